#pragma once
/// Convolutions along time of few channels (24 to 128): what a vocoder spends its time in. One position reads so few
/// numbers that putting them together as a matrix first would cost as much as the products; here windows of 32
/// positions lie in registers for up to twelve output channels.
#include <cstdint>
#include <vector>

namespace parlando::kernels {

/// Floats that a row of `convolve`'s input must be readable for beyond what it means; what stands there does not
/// matter.
inline constexpr std::int64_t kConvolutionSlack = 32;

/// Weights [out, in, taps] in the order in which they are read: groups of six output channels.
class PackedFilter {
 public:
  PackedFilter() = default;
  /// @param w  [out, in, taps] row-major   @param bias  [out], or null for none
  PackedFilter(const float* w, const float* bias, std::int64_t out, std::int64_t in, std::int64_t taps);

  std::int64_t out = 0, in = 0, taps = 0;
  std::vector<float> weights;  ///< [groups][in][taps][6], zeros behind the last channel
  std::vector<float> bias;     ///< [groups · 6]
};

/// y[o][t] = bias[o] + Σ w[o][i][j] · x[i][t + j · dilation] (+ to_add[o][t]) for t in [0, size).
/// @param x       row i begins at x + i · x_stride; each row is readable for size + (taps − 1) · dilation +
///                kConvolutionSlack floats
/// @param to_add  rows `y_stride` apart, or null; may be y itself
/// A position's sum does not depend on how many others are asked for.
void convolve(const PackedFilter& filter, const float* x, std::int64_t x_stride, std::int64_t dilation,
              std::int64_t size, const float* to_add, float* y, std::int64_t y_stride);
/// The same in double precision.
void convolve_reference(const float* w, const float* bias, std::int64_t out, std::int64_t in, std::int64_t taps,
                        const float* x, std::int64_t x_stride, std::int64_t dilation, std::int64_t size, double* y);

/// y = x + sin²(alpha · x) / (alpha + 1e-9), the activation "snake"; within 1e-6 + 2e-7 · |x| where |alpha · x| ≤ 1000.
void snake(const float* x, float alpha, std::int64_t size, float* y);

}  // namespace parlando::kernels
