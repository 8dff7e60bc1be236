#include "services/llm/model/step_cost.hpp"

#include <algorithm>
#include <bit>
#include <limits>

namespace parlando::llm {

namespace {
constexpr double kNoLimit = 3600;
constexpr double kWeight = 0.25;  // of the newest; a faster pass is believed slowly, a slower one half at once
double followed(double old, double now) {
  if (old == 0) return now;
  return old + (now - old) * (now > old ? 0.5 : kWeight);
}
}  // namespace

std::size_t StepCost::bucket(std::int64_t decoding) {
  return std::min<std::size_t>(23, static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(decoding))));
}

double StepCost::without_prefill(std::int64_t decoding) const {
  // That of as many, or of the next fewer that was seen: a floor, so that pieces rather are too small.
  for (auto b = bucket(decoding) + 1; b-- > 0;)
    if (steps_[b] > 0) return steps_[b];
  return 0;
}

void StepCost::observe(std::int64_t decoding, std::int64_t prefilled, double seconds) {
  if (prefilled == 0) {
    if (decoding > 0) steps_[bucket(decoding)] = followed(steps_[bucket(decoding)], seconds);
    return;
  }
  const double added = std::max(0.0, seconds - without_prefill(decoding)) / static_cast<double>(prefilled);
  // What the first few tokens cost says little about many: memory is waited for anyway, then sums are.
  token_ = followed(token_, std::max(added, std::numeric_limits<double>::min()));
  seen_ = std::max(prefilled, seen_ - seen_ / 8);
}

std::int64_t StepCost::room(std::int64_t decoding) const {
  if (seconds_max_ >= kNoLimit) return std::numeric_limits<std::int64_t>::max();
  const auto least = decoding == 0 ? kAlone : kLeast;
  if (token_ == 0) return std::max(kFirst, least);
  const double base = without_prefill(decoding), allowed = std::max(seconds_max_, base * growth_) - base;
  const double tokens = allowed / token_;
  const auto most = std::max(2 * seen_, std::max(kFirst, least));
  return tokens >= static_cast<double>(most) ? most : std::max(least, static_cast<std::int64_t>(tokens));
}

}  // namespace parlando::llm
