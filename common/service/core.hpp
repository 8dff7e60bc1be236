#pragma once
/// What a service is without its process: messages in, messages out, units of work. A plain class: no sockets, no
/// actors, no clock of its own. Hosts run it on ZeroMQ (`host.hpp`), simulations over a seeded network
/// (`tests/support/world.hpp`); both through `Runner`.
#include <poll.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/protocol/messages.hpp"
#include "common/telemetry/metrics.hpp"
#include "common/transport/mesh.hpp"

namespace parlando::service {

struct Out {
  std::string peer;
  protocol::Message message;
};

class Core {
 public:
  virtual ~Core() = default;

  // ---- what happens
  /// Each message once and in the order of its stream. What is thrown is counted and answered on the stream with
  /// Errc::internal.
  virtual void on_message(const std::string& peer, protocol::Message message, Time now) = 0;
  /// A peer is up, has changed, is suspect (what was sent to it is kept; turn elsewhere if you can, and close the
  /// streams you leave) or is down (its streams are gone without a word).
  virtual void on_peer(const transport::Peer& /*peer*/, transport::PeerState /*state*/, Time /*now*/) {}
  /// A message that was sent could not be taken: Errc::overloaded (a limit), Errc::unavailable (no such peer).
  virtual void on_refused(const std::string& /*peer*/, const protocol::Envelope& /*head*/, const Error& /*error*/,
                          Time /*now*/) {}
  virtual void on_tick(Time /*now*/) {}
  /// How long on_tick may stay away.
  virtual milliseconds tick_interval() const { return load() > 0 ? milliseconds(20) : milliseconds(500); }
  /// One unit of heavy work, batched across sessions. @return whether there is more to do at once
  virtual bool work(Time /*now*/) { return false; }

  // ---- where it runs
  /// Heavy cores get a thread of their own beside the link's; light ones share it.
  virtual bool is_heavy() const { return false; }
  /// Called once on the thread that runs everything else; libraries keep their number of threads per thread.
  virtual void on_thread() {}
  /// Waits until one of the descriptors can be read or the time is over, as poll(2); front ends serve their own sockets
  /// meanwhile. Called on the core's thread; calls of the core's own callbacks happen inside.
  virtual int wait(std::span<pollfd> descriptors, milliseconds timeout) {
    return ::poll(descriptors.data(), descriptors.size(), static_cast<int>(timeout.count()));
  }
  /// Opens a front end's own listener, before anything else is called. @error Errc::io
  virtual Result<void> listen() { return {}; }
  /// Of its own listener; 0 for services that have none.
  virtual int listening_port() const { return 0; }

  // ---- what is told of it
  /// Empty when requests can be served, else what is missing.
  virtual std::string why_not_ready() const { return {}; }
  virtual void add_metrics(telemetry::Metrics& /*metrics*/) {}
  /// Sessions or utterances at work, and how many more are possible; told to callers by heartbeats.
  virtual std::int64_t load() const { return 0; }
  virtual std::int64_t slots() const { return 1; }
  /// The same for metrics, which autoscalers go by: whatever those that it calls have room for. More of this service do
  /// not help where another one is full.
  virtual std::int64_t own_slots() const { return slots(); }
  /// No new sessions from now on. @return true when nothing is under way any more
  virtual bool drain() { return load() == 0; }

  std::vector<Out> take() { return std::exchange(out_, {}); }

  // ---- messages that are put by
  /// The message that `on_message` was given last is not worked on yet: it keeps its place in its stream's window, so
  /// that its sender slows down.
  bool take_put_by() { return std::exchange(put_by_, false); }
  using Places = std::vector<std::pair<std::string, protocol::Envelope>>;
  /// Peer and envelope of those that were put by and are worked on now.
  Places take_handled() { return std::exchange(handled_, {}); }

 protected:
  /// To be called in `on_message`.
  void put_by() { put_by_ = true; }
  void worked_on(const std::string& peer, const protocol::Envelope& head) { handled_.emplace_back(peer, head); }
  /// A message of a stream; `head` names session, stream, turn, epoch, trace. `deadline`: when nobody waits for it any
  /// more.
  template <protocol::WireMessage T>
  void send(const std::string& peer, const protocol::Envelope& head, T body, Time deadline = Time::max()) {
    auto message = protocol::pack(std::move(body), head);
    message.deadline = deadline;
    out_.push_back({peer, std::move(message)});
  }
  /// The same for a message that is packed already: cores whose parts write their own messages.
  void post(const std::string& peer, protocol::Message message) { out_.push_back({peer, std::move(message)}); }
  /// Answers on the stream of a request; `to` is the request's envelope.
  template <protocol::WireMessage T>
  void answer(const std::string& peer, const protocol::Envelope& to, T body) {
    send(peer, to, std::move(body));
  }
  void answer_error(const std::string& peer, const protocol::Envelope& to, const Error& error,
                    milliseconds retry = milliseconds(0)) {
    send(peer, to, protocol::ErrorMessage{std::string(to_string(error.code)), error.message, retry.count()});
  }

 private:
  std::vector<Out> out_;
  bool put_by_ = false;
  Places handled_;
};

}  // namespace parlando::service
