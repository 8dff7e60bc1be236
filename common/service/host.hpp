#pragma once
/// Runs a Core as a service: two CAF actors between the socket thread and the plain class. The bridge keeps streams in order, windows and
/// replays (`Channels`); the worker owns the core on a thread of its own, handles messages and turns its units of work.
#include <functional>

#include "common/service/config.hpp"
#include "common/service/core.hpp"

namespace parlando::service {

/// Of the actor library this was built with.
std::string caf_version();

/// The actor system and what services of one process share.
class Runtime {
 public:
  Runtime();
  ~Runtime();
  struct Impl;
  std::unique_ptr<Impl> impl;
  std::shared_ptr<transport::ZmqContext> context;
};

class Host {
 public:
  /// Starts actors, sockets and the metrics server. @error Errc::io, Errc::bad_format naming what failed
  static Result<std::unique_ptr<Host>> start(Runtime& runtime, const std::string& role, const WireConfig& wire, std::unique_ptr<Core> core);
  ~Host();
  /// Runs a function on the worker's thread with the core; for front ends with threads of their own. Refused (false) when the queue is full.
  bool post(std::function<void(Core&, Time)> function);
  /// True once the core is ready; otherwise `why` says what is missing.
  bool ready(std::string* why = nullptr) const;
  /// No new sessions; true when nothing is under way.
  bool drain();
  const std::string& instance() const;
  const std::string& endpoint() const;
  int metrics_port() const;
  /// Of the core's own listener, 0 for none.
  int listening_port() const;
  std::string metrics_text() const;

 private:
  struct Impl;
  Host() = default;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parlando::service
