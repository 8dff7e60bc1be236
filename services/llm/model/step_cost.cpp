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

/// The least that passes take: a faster one is believed at once, a slower one slowly, since most are slow by accident.
constexpr double kFloorWeight = 0.0625;
double floored(double old, double now) {
  if (old == 0 || now < old) return now;
  return old + (now - old) * kFloorWeight;
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
  const auto here = bucket(decoding);
  if (prefilled == 0) {
    if (decoding > 0) steps_[here] = floored(steps_[here], seconds);
    return;
  }
  // What the first few tokens cost says little about many: memory is waited for anyway, then sums are.
  seen_ = std::max(prefilled, seen_ - seen_ / 8);
  const double added = seconds - without_prefill(decoding);
  if (added <= 0) {
    // The same pass without a piece, or with fewer who speak, takes no longer, so those that were seen were slow by
    // accident. This one says nothing of a token but that it costs no more than all of it: no work is free.
    for (std::size_t b = 0; b <= here; ++b) steps_[b] = std::min(steps_[b], seconds);
    token_ = std::min(token_ == 0 ? kNoLimit : token_, seconds / static_cast<double>(prefilled));
    return;
  }
  token_ = followed(token_, added / static_cast<double>(prefilled));
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
