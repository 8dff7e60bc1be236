#pragma once
/// What a network does to rows between its products. With `round` every intermediate result is rounded to bf16, as a
/// network in that type does it.
#include <cstdint>

namespace parlando::kernels {

/// y = x · 1/sqrt(mean(x²) + eps) · w, the factor rounded first, then each product. May be in place.
void rms_norm(const float* x, const float* w, float eps, std::int64_t size, bool round, float* y);
/// y = silu(gate) · up.
void swiglu(const float* gate, const float* up, std::int64_t size, bool round, float* y);
/// x += y.
void add_to(float* x, const float* y, std::int64_t size, bool round);
/// How many numbers, their mean and the sum of their squared distances from it.
struct Moments {
  double count = 0, mean = 0, squares = 0;
};
/// As if both had been looked at together.
inline Moments together(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, apart = b.mean - a.mean;
  return {count, a.mean + apart * b.count / count, a.squares + b.squares + apart * apart * a.count * b.count / count};
}
/// Those of the first `size` columns of each group of neighbouring channels.
/// @param x  [channels, stride], `groups` divides the channels   @param out  [groups]
void group_moments(const float* x, std::int64_t channels, std::int64_t stride, std::int64_t size, std::int64_t groups,
                   Moments* out);
/// y = mish(norm(x) · w + b), mish(v) = v · tanh(log(1 + e^v)); the norm is over all of a group of neighbouring
/// channels.
/// @param x, y  [channels, size], `groups` divides the channels   @param w, b  [channels]
/// @param before  [groups] of numbers that stand before x and are not given; null: there are none
void group_norm_mish(const float* x, std::int64_t channels, std::int64_t size, std::int64_t groups, const float* w,
                     const float* b, float eps, float* y, const Moments* before = nullptr);
void round_to_bf16(float* x, std::int64_t size);
void widen_bf16(const std::uint16_t* x, std::int64_t size, float* y);

}  // namespace parlando::kernels
