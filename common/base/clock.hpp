#pragma once
/// Time as an argument: nothing but this header and its users at the edge of a process asks the machine for the time.
#include <chrono>

namespace parlando {

using Time = std::chrono::steady_clock::time_point;
using std::chrono::milliseconds;

inline double ms_between(Time from, Time to) { return std::chrono::duration<double, std::milli>(to - from).count(); }

class Clock {
 public:
  virtual ~Clock() = default;
  virtual Time now() const = 0;
};

class SteadyClock final : public Clock {
 public:
  Time now() const override { return std::chrono::steady_clock::now(); }
};

/// Turned by hand, in tests and simulations.
class ManualClock final : public Clock {
 public:
  Time now() const override { return now_; }
  void advance(milliseconds by) { now_ += by; }

 private:
  Time now_{std::chrono::hours(1)};
};

}  // namespace parlando
