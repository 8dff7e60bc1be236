#pragma once
/// When sound has to be on its way to a client that buffers it: a loudspeaker that plays all that it is given without a
/// break would be 5 s behind then. Who is quicker than real time is never late, however much waits for it.
#include <algorithm>

#include "common/base/clock.hpp"

namespace parlando::gateway {

class SoundDue {
 public:
  static constexpr milliseconds kLateMax{5000};
  /// Of the next sound, so long.
  Time next(std::chrono::microseconds length, Time now) {
    const auto begin = std::max(played_, now);
    played_ = begin + length;
    return begin + kLateMax;
  }

 private:
  Time played_{};
};

}  // namespace parlando::gateway
