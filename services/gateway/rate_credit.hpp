#pragma once
/// So many a minute, as many of them at once: what is left of a minute's worth, which grows as time goes by.
#include <algorithm>
#include <chrono>
#include <optional>

#include "common/base/clock.hpp"

namespace parlando::gateway {

class RateCredit {
 public:
  explicit RateCredit(int per_minute) : per_minute_(per_minute), left_(per_minute) {}

  /// One more. @return how long to wait when there is no credit for it; else it is counted
  std::optional<milliseconds> take(Time now) {
    const double rate = per_minute_ / 60000.0;  // a millisecond
    if (counted_) {
      const auto passed = std::chrono::duration<double, std::milli>(now - *counted_).count();
      left_ = std::min<double>(per_minute_, left_ + rate * std::max(0.0, passed));
    }
    counted_ = now;
    if (left_ < 1) return milliseconds(static_cast<std::int64_t>((1 - left_) / rate) + 1);
    left_ -= 1;
    return {};
  }

 private:
  int per_minute_;
  double left_;
  std::optional<Time> counted_;
};

}  // namespace parlando::gateway
