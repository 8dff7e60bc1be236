#pragma once
/// When a child process is started, signalled and given up: a plain class of events and time, one per child. It
/// decides; `Supervisor` forks, signals and waits.
#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "common/base/clock.hpp"

namespace parlando::service::process {

inline constexpr int kExitUsage = 2;           ///< wrong flags: starting again changes nothing
inline constexpr int kExitConfiguration = 78;  ///< EX_CONFIG: neither does it here

struct RestartLimits {
  milliseconds back_off_min{100};    ///< before the first start again; doubles with each
  milliseconds back_off_max{5000};   ///
  milliseconds life_good{10'000};    ///< who lived that long starts with `back_off_min` again
  milliseconds stopped_max{10'000};  ///< a child somebody has sent SIGSTOP is killed then; 0: never
  milliseconds hung_max{10'000};     ///< without a sign of life, after the first one; 0: never
  milliseconds abort_grace{2000};    ///< between SIGABRT (which leaves a core) and SIGKILL
};

/// How a process ended.
struct Exit {
  bool by_signal = false;
  int number = 0;  ///< exit status or signal
  /// From waitpid's status.
  static Exit of_status(int status);
  std::string to_text() const;  ///< "exit 78", "signal 9"
};

struct RestartCounters {
  std::uint64_t starts = 0;
  std::uint64_t start_failures = 0;  ///< fork refused
  std::uint64_t ends = 0;            ///< not asked for
  std::uint64_t given_up = 0;
  std::uint64_t stops_seen = 0;  ///< SIGSTOP by somebody
  std::uint64_t stopped_killed = 0;
  std::uint64_t hung_aborted = 0;
  std::uint64_t killed = 0;  ///< SIGKILL by us, whatever the reason
};

class RestartPolicy {
 public:
  enum class State {
    waiting,   ///< no process; starts at `start_at`
    running,   ///< perhaps stopped by SIGSTOP
    ending,    ///< was asked to end, by SIGTERM
    aborting,  ///< hung: SIGABRT was sent
    killing,   ///< SIGKILL was sent
    done,      ///< was asked to end and has
    given_up,  ///< ended in a way that starting again does not mend
  };
  enum class Action {
    none,
    start,      ///< fork it, then `started` or `start_failed`
    terminate,  ///< SIGTERM, and SIGCONT so that a stopped one hears it
    abort,      ///< SIGABRT
    kill,       ///< SIGKILL
  };

  explicit RestartPolicy(RestartLimits limits, Time now) : limits_(limits), start_at_(now) {}

  /// What is to be done now; to be called until it says `none`. Tells each thing once.
  Action act(Time now);
  /// When `act` may have something to say if nothing happens before.
  std::optional<Time> next() const;

  void started(Time now);
  void start_failed(Time now);
  void alive(Time now);  ///< a sign of life; the first one starts the watch
  void stopped(Time now);
  void continued(Time now);
  /// The process is gone. `state` then says what comes: waiting (see `start_at`), done or given_up.
  void ended(Exit exit, Time now);
  /// Nobody listened for a while (the supervisor itself was stopped or starved): silence meanwhile proves nothing.
  void forgive(Time now);

  /// Ends it for good; SIGKILL after `grace`. Once more: another SIGTERM, the shorter grace holds.
  void stop(Time now, milliseconds grace);
  /// Ends it and starts it at once, without back-off; starts it when it is not there, given up or not.
  void restart(Time now, milliseconds grace);

  State state() const { return state_; }
  bool has_process() const;
  bool is_stopped() const { return stopped_since_.has_value(); }
  Time start_at() const { return start_at_; }
  const RestartCounters& counters() const { return counters_; }
  /// Ends that nobody asked for, not older than `window`; at most the last 256 are remembered.
  std::size_t ends_within(Time now, milliseconds window) const;

 private:
  enum class Wish { run, end, restart };
  void end_process(Time now, milliseconds grace);
  RestartLimits limits_;
  State state_ = State::waiting;
  Wish wish_ = Wish::run;
  RestartCounters counters_;
  milliseconds back_off_{0};  // before the next start; 0: none was needed yet
  Time start_at_;
  Time started_{};
  Time deadline_{};  // of ending and aborting
  bool term_due_ = false;
  std::optional<Time> alive_at_;
  std::optional<Time> stopped_since_;
  std::deque<Time> ends_;
};

}  // namespace parlando::service::process
