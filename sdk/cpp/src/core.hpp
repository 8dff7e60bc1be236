#pragma once
/// Sockets and the thread that drives them: one per client, for all its conversations.
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "common/transport/zmq/sockets.hpp"
#include "sdk/cpp/src/talk.hpp"

namespace parlando::sdk {

/// A connection to one endpoint: a mesh of one link, so that it is known which gateway a conversation is at.
class Gateway final : public Place {
 public:
  /// @throw Error
  Gateway(std::shared_ptr<transport::ZmqContext> context, const std::string& endpoint, const ClientOptions& options,
          Time now);
  Result<void> send(protocol::Message message) override;
  void handled(const protocol::Envelope& head) override;
  bool is_suspect() const override { return linked_ && !mesh_.is_up(peer_.instance); }

  /// @return whether more waits
  bool read(Time now);
  void flush(Time now);
  bool idle() const { return sockets_->idle(); }
  Time due(Time now) const { return std::min(mesh_.due(now), sockets_->due()); }
  std::span<const pollfd> descriptors() { return sockets_->descriptors(); }
  void readable(std::span<const pollfd> polled) { sockets_->readable(polled); }
  /// Messages in order; the link's going among them, without a message.
  struct Arrived {
    std::optional<protocol::Message> message;
  };
  std::vector<Arrived> take();
  /// It is there and is to stay, whether it has room or not.
  bool stands() const;
  bool takes_conversations() const { return stands() && peer_.slots > 0; }
  /// It does not take us at all.
  bool refuses() const { return !linked_ && mesh_.counters().hello_refused > 0; }
  bool has_unsent() const { return linked_ && mesh_.is_up(peer_.instance) && mesh_.kept_bytes() > 0; }
  const std::string& endpoint() const { return endpoint_; }

 private:
  std::string endpoint_;
  transport::Mesh mesh_;
  std::unique_ptr<transport::Sockets> sockets_;
  transport::Peer peer_;
  bool linked_ = false;
};

/// All public functions may be called from any thread; what touches conversations holds `mutex`.
class Core final : public Finder, public std::enable_shared_from_this<Core> {
 public:
  /// @throw Error
  explicit Core(ClientOptions options);
  ~Core() override;
  std::shared_ptr<Talk> begin(nlohmann::json opening);
  void close();
  std::string endpoint_of(const Talk& talk);
  bool refused() const;

  Place* find(const Place* but, const std::set<const Place*>& nor = {}) override;
  int standing() const override;
  void wake() override;

  std::mutex mutex;
  std::condition_variable changed;
  SteadyClock clock;

 private:
  void run();
  bool pass(std::vector<pollfd>& polled, milliseconds& timeout);
  void dispatch(Gateway& gateway, Time now);
  ClientOptions options_;
  std::shared_ptr<transport::ZmqContext> context_;
  std::vector<std::unique_ptr<Gateway>> gateways_;
  std::vector<std::shared_ptr<Talk>> talks_;
  std::size_t turn_ = 0;
  bool stopped_ = false;
  int wake_ = -1;
  std::thread thread_;
};

}  // namespace parlando::sdk
