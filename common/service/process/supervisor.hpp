#pragma once
/// Children as real processes: started, watched, started again, ended in order. What is decided is decided by one
/// `RestartPolicy` a child; this class forks, signals, reads their pipes and waits. It sleeps until a signal, a command
/// or a deadline comes; with healthy children it wakes twice a second to empty their pipes.
///
/// A child gets PDEATHSIG = SIGTERM, a process group of its own (Ctrl-C reaches the supervisor alone, which then ends
/// them in order), no blocked signals, and a pipe (see ready_pipe.hpp).
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/base/result.hpp"
#include "common/service/process/ready_pipe.hpp"
#include "common/service/process/restart_policy.hpp"

namespace parlando::service::process {

struct ChildSpec {
  std::string name;  ///< unique: tts-2
  std::string role;  ///< tts
  std::string program;
  std::vector<std::string> arguments;
  std::string version;         ///< of what the arguments point to; a difference restarts the child
  int group = 0;               ///< lower ones end first
  milliseconds grace{25'000};  ///< between SIGTERM and SIGKILL
  bool operator==(const ChildSpec&) const = default;
};

/// Order in which roles end: who asks others ends before them, so that turns under way find their answers. Gateways 0,
/// controllers 1, tts 2, language models 3, tokenizer 4, vad 5, context last; others before all.
int stop_group(const std::string& service);

struct Event {
  enum class Kind {
    started,        ///< pid
    ready,          ///< port
    ended,          ///< exit; `again_in` says when it starts again, if it was not asked to end
    gave_up,        ///< exit; is not started again
    stopped,        ///< somebody sent SIGSTOP
    continued,      ///< and SIGCONT
    stop_too_long,  ///< SIGKILL is sent for it
    hung,           ///< no sign of life: SIGABRT is sent
    killed,         ///< SIGKILL is sent because grace is over
    reloaded,       ///< SIGHUP: the wanted children were read again
    reload_failed,  ///< text says why; everything stays
  };
  Kind kind = Kind::started;
  std::string name;
  std::string role;
  pid_t pid = 0;
  int port = 0;
  Exit exit;
  milliseconds again_in{-1};  ///< negative: not started again
  std::string text;
  /// A sentence that starts with the role, and keys: `tts ended (signal 9), starts again in 100 ms instance=tts-2
  /// pid=7`.
  std::string to_text() const;
};

struct SupervisorOptions {
  RestartLimits limits;
  /// Told in order, on the thread of `run`, which may be called back from it.
  std::function<void(const Event&)> tell;
  /// Once, when every child has said that it is ready; with the highest port any has named.
  std::function<void(int port)> all_ready;
  /// SIGHUP: the children that are wanted from now on. An error leaves everything as it is.
  std::function<Result<std::vector<ChildSpec>>()> reload;
};

struct ChildStatus {
  std::string name;
  std::string role;
  pid_t pid = 0;
  RestartPolicy::State state = RestartPolicy::State::waiting;
  bool ready = false;
  bool stopped = false;
  int port = 0;
  RestartCounters counters;
  std::size_t ends_lately = 0;  ///< in the last ten minutes
};

/// Functions may be called from any thread, before and during `run`.
class Supervisor {
 public:
  explicit Supervisor(SupervisorOptions options);
  /// Kills what is left.
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  /// @error Errc::invalid_argument when the name is taken, Errc::not_found when the program cannot be executed,
  /// Errc::unavailable when everything ends already
  Result<void> add(ChildSpec spec);
  /// Ends and starts again, by name or all of a role; also those stopped or given up. @error Errc::not_found
  Result<void> restart(const std::string& which);
  /// Ends for good, until `restart`. @error Errc::not_found
  Result<void> stop(const std::string& which);
  /// Makes the children match: new ones start, missing ones end and are forgotten, changed ones start again.
  Result<void> match(const std::vector<ChildSpec>& wanted);
  /// Ends everything in order, as SIGTERM does. Once more: at once.
  void end();

  /// Until SIGTERM, SIGINT or `end`, and until all children have ended. These signals, SIGHUP and SIGCHLD must be
  /// blocked in all other threads. @return 0, or 78 when it ended because every child had given up
  int run();

  std::vector<ChildStatus> status() const;

 private:
  struct Child;
  Result<void> check(const ChildSpec& spec) const;
  std::vector<Child*> named(const std::string& which);
  void wake();
  void read_signals(int descriptor);
  void reload();
  void reap(Time now);
  void read_pipe(Child& child, Time now);
  void act(Child& child, Time now);
  void spawn(Child& child, Time now);
  void end_in_order(Time now);
  bool finished() const;
  void tell(Event::Kind kind, const Child& child, Event event = {});

  SupervisorOptions options_;
  SteadyClock clock_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Child>> children_;
  std::vector<Event> events_;  // told when the lock is released
  bool ending_ = false;
  bool urgent_ = false;
  bool reload_due_ = false;
  bool told_ready_ = false;
  int wake_ = -1;
};

}  // namespace parlando::service::process
