#pragma once
/// Runs a Core as a service of CAF actors. A light core lives with its link on one detached actor, whose thread polls
/// sockets, mailbox and timers together; a heavy one has a detached worker actor of its own behind a bounded queue. A
/// watching actor monitors them: one that ends, or stands still for too long, ends the process, so that it is started
/// again. Nothing spins: an idle service sleeps.
#include <functional>

#include "common/service/config.hpp"
#include "common/service/core.hpp"
#include "common/transport/zmq/sockets.hpp"

namespace parlando::service {

/// Of the actor library this was built with.
std::string caf_version();

/// Exit code of a process whose thread stood still or died.
inline constexpr int kExitStuck = 70;

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
  static Result<std::unique_ptr<Host>> start(Runtime& runtime, const std::string& role, const WireConfig& wire,
                                             std::unique_ptr<Core> core);
  /// Ends the actors and their threads.
  ~Host();
  /// Runs a function on the core's thread; for tests and for what asks whether it is alive. @return false when too many
  /// wait
  bool post(std::function<void(Core&, Time)> function);
  /// True once the core is ready; otherwise `why` says what is missing.
  bool ready(std::string* why = nullptr) const;
  /// No new sessions from now on, and callers are told; true when nothing is under way any more.
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
