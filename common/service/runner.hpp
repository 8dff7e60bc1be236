#pragma once
/// The policy between link and core that hosts and simulations share: spent budgets are answered, what a core throws
/// becomes an error on the stream it was working on, and nothing leaves the handler. A plain class on the core's
/// thread.
#include "common/service/core.hpp"

namespace parlando::service {

struct RunnerCounters {
  std::uint64_t messages = 0, expired = 0, failures = 0, steps = 0;
};

class Runner {
 public:
  explicit Runner(Core& core) : core_(core) {}
  /// A message for the core. @return whether `handled` must be told to the link now; else the core has put it by, and
  /// `take_handled` names it later
  [[nodiscard]] bool deliver(const std::string& peer, protocol::Message message, Time now);
  void peer(const transport::Peer& peer, transport::PeerState state, Time now);
  void refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now);
  void tick(Time now);
  /// One unit of work. @return whether there is more to do at once
  bool work(Time now);
  /// What the core and the runner want to send.
  std::vector<Out> take();
  Core::Places take_handled() { return core_.take_handled(); }
  const RunnerCounters& counters() const { return counters_; }

 private:
  template <class F>
  bool guarded(const char* what, F&& f, Error& error);
  void collect();
  void answer_error(const std::string& peer, const protocol::Envelope& to, const Error& error);
  Core& core_;
  std::vector<Out> out_;
  RunnerCounters counters_;
};

}  // namespace parlando::service
