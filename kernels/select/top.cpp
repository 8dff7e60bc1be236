#include "kernels/select/top.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/vector/dispatch.hpp"

namespace parlando::kernels {
namespace {

void note_bad(const float* x, std::int64_t size, std::int64_t from, std::int64_t& bad) {
  for (auto i = from; i < size && bad < 0; ++i)
    if (!(x[i] <= std::numeric_limits<float>::max())) bad = i;
}

/// The k-th largest of some numbers less its slack; leaves them in another order.
float border_of(float* x, std::int64_t size, std::int64_t count, float slack) {
  auto* nth = x + (count - 1);
  std::nth_element(x, nth, x + size, std::greater<>());
  return std::isinf(*nth) ? *nth : *nth - slack * std::abs(*nth);
}

/// Drops what is below the k-th largest and its slack. @return the border
float keep_largest(TopCandidates& c, std::int64_t count, float slack) {
  thread_local std::vector<float> sorted;
  sorted = c.values;
  const float border = border_of(sorted.data(), static_cast<std::int64_t>(sorted.size()), count, slack);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < c.ids.size(); ++i)
    if (c.values[i] >= border) c.ids[kept] = c.ids[i], c.values[kept++] = c.values[i];
  c.ids.resize(kept), c.values.resize(kept);
  return border;
}

}  // namespace
}  // namespace parlando::kernels

#define PARLANDO_BODY "kernels/select/top.inc"
#include "kernels/vector/for_each_isa.inc"

namespace parlando::kernels {

void top_candidates(std::span<const float> x, std::int64_t count, float slack, TopCandidates& out) {
  PARLANDO_DISPATCH(candidates, x.data(), static_cast<std::int64_t>(x.size()), count, slack, out);
}

Largest largest_of(std::span<const float> x) {
  return PARLANDO_DISPATCH(largest_at, x.data(), static_cast<std::int64_t>(x.size()));
}

}  // namespace parlando::kernels
