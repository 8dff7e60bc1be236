#pragma once
/// What a service is without its process: messages in, messages out, units of work. A plain class: no sockets, no actors, no clock of its own.
/// Hosts run it as actors over ZeroMQ (`host.hpp`); tests run it over a simulated network.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.hpp"
#include "common/telemetry/metrics.hpp"
#include "common/transport/transport.hpp"

namespace parlando::service {

struct Out {
  std::string peer;
  protocol::Message message;
};

class Core {
 public:
  virtual ~Core() = default;
  /// Each message once and in the order of its stream.
  virtual void on_message(const std::string& peer, protocol::Message message, Time now) = 0;
  virtual void on_peer(const transport::Peer& /*peer*/, bool /*up*/, Time /*now*/) {}
  /// Every few tens of milliseconds.
  virtual void on_tick(Time /*now*/) {}
  /// One unit of heavy work, batched across sessions. @return whether there is more to do at once
  virtual bool work(Time /*now*/) { return false; }
  /// Called once on the thread that runs everything else; libraries keep their number of threads per thread.
  virtual void on_thread() {}
  /// For front ends with threads of their own: called once before anything else, with a way to run a function on the core's thread.
  using Post = std::function<bool(std::function<void(Core&, Time)>)>;
  virtual Result<void> attach(Post /*post*/) { return {}; }
  /// The port of a front end's own listener; 0 for services that have none.
  virtual int listening_port() const { return 0; }
  /// Empty when requests can be served, else what is missing.
  virtual std::string why_not_ready() const { return {}; }
  virtual void add_metrics(telemetry::Metrics& /*metrics*/) {}
  /// Sessions or utterances at work, and how many more are possible; told to callers by heartbeats.
  virtual std::int64_t load() const { return 0; }
  virtual std::int64_t slots() const { return 0; }
  /// No new sessions; @return true when nothing is under way any more.
  virtual bool drain() { return true; }

  std::vector<Out> take() { return std::exchange(out_, {}); }

 protected:
  void send(std::string peer, protocol::Message message) { out_.push_back({std::move(peer), std::move(message)}); }
  /// Answers on the stream of a request.
  void answer(const std::string& peer, const protocol::Envelope& to, protocol::MessageType type, std::string body, std::vector<std::byte> payload = {}) {
    protocol::Message m;
    m.head.type = type, m.head.session = to.session, m.head.stream = to.stream, m.head.turn = to.turn, m.head.trace = to.trace;
    m.body = std::move(body), m.payload = std::move(payload);
    send(peer, std::move(m));
  }
  void answer_error(const std::string& peer, const protocol::Envelope& to, const Error& error);

 private:
  std::vector<Out> out_;
};

}  // namespace parlando::service
