#pragma once
/// How fast a client may send: `factor` times real time, with a burst of a whole recording. Nothing is refused: who is
/// over it is read later. A plain class.
#include <algorithm>
#include <chrono>
#include <cstddef>

#include "common/base/clock.hpp"
#include "common/base/units.hpp"

namespace parlando::gateway {

struct UploadLimits {
  int factor = 4;                               ///< of real time
  std::chrono::microseconds burst{31'000'000};  ///< of sound at once: the longest turn and a little
  std::chrono::microseconds message{5'000};     ///< what the smallest message counts: a flood of empty ones is one, too
};

class UploadLimit {
 public:
  UploadLimit(UploadLimits limits, Time now) : limits_(limits), left_(limits.burst), at_(now) {}

  /// A message of this many bytes has come; texts count as sound of their size.
  void take(std::size_t bytes, Time now) {
    refill(now);
    left_ -= std::max(limits_.message, input_time(static_cast<std::int64_t>(bytes / kSampleBytes)));
  }
  bool is_over() const { return left_.count() < 0; }
  /// May the client be read again? A little later than `is_over`, so that reading does not stutter.
  bool may_resume(Time now) {
    refill(now);
    return left_ >= std::min(limits_.burst, kResumeAt);
  }

 private:
  static constexpr std::chrono::microseconds kResumeAt{200'000};
  void refill(Time now) {
    const auto passed = std::chrono::duration_cast<std::chrono::microseconds>(now - at_);
    at_ = now;
    left_ = std::min(limits_.burst, left_ + limits_.factor * passed);
  }
  UploadLimits limits_;
  std::chrono::microseconds left_;
  Time at_;
};

}  // namespace parlando::gateway
