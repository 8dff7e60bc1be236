#pragma once
/// Notices that a thread stands still: without progress it either waits for something that does not come, or computes
/// for longer than it may. A thread that would run and gets no processor does neither. It is asked every tick of the
/// watcher, and counts the watcher's own ticks, so that a process that was stopped as a whole accuses nobody when it
/// wakes. A plain class.
#include <sys/types.h>

#include <cstdint>

#include "common/base/clock.hpp"

namespace parlando::service {

/// What the system says of a thread.
struct ThreadUse {
  bool runnable = false;  ///< it runs or would run; else it sleeps
  milliseconds cpu{0};    ///< used so far
};
/// From /proc; a thread that cannot be read is runnable and uses nothing: it is not accused.
ThreadUse thread_use(pid_t thread);

class ProgressWatch {
 public:
  /// @param limit  of sleeping, and of computing, without progress   @param tick  time between two questions
  ProgressWatch(milliseconds limit, milliseconds tick) : limit_(limit), ticks_max_(limit / tick) {}
  /// @param steps  grows with the thread's progress   @param busy  it is inside a piece of work; when it is not, it
  /// cannot be stuck
  /// @return whether it has stood still for too long
  bool stuck(std::uint64_t steps, bool busy, ThreadUse use) {
    if (steps != steps_ || !busy) {
      steps_ = steps;
      asleep_ = 0;
      cpu_ = use.cpu;
      return false;
    }
    if (!use.runnable) ++asleep_;
    return asleep_ > ticks_max_ || use.cpu - cpu_ > limit_;
  }

 private:
  milliseconds limit_;
  std::int64_t ticks_max_;
  std::int64_t asleep_ = 0;  ///< ticks
  std::uint64_t steps_ = 0;
  milliseconds cpu_{0};
};

}  // namespace parlando::service
