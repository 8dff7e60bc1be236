#pragma once
/// What a network does to frames between its products in bf16: frames lie one behind the other, [size, channels]. Norms
/// and sums in fp32.
#include <cstdint>

#include "kernels/rows/rows.hpp"

namespace parlando::kernels {

/// Norm of each frame, y = (x − mean) / sqrt(variance + eps) · w + b, as bf16.
/// @param x, y  [size, channels]
void frames_norm(const float* x, std::int64_t size, std::int64_t channels, const float* w, const float* b, float eps,
                 std::uint16_t* y);

/// Of all frames, of each group of neighbouring channels. @param out  [groups]
void frames_moments(const float* x, std::int64_t size, std::int64_t channels, std::int64_t groups, Moments* out);

/// y = mish(norm(x) · w + b) + shift + add, the norm by the moments of each group of neighbouring channels.
/// @param shift    [channels] or null   @param add  [size, channels] or null
/// @param y        [size, channels] or null
/// @param rounded  the same as bf16, or null
void frames_norm_mish(const float* x, std::int64_t size, std::int64_t channels, std::int64_t groups,
                      const Moments* moments, const float* w, const float* b, float eps, const float* shift,
                      const float* add, float* y, std::uint16_t* rounded);

/// As bf16. @param y  [size] rows, `stride` apart
void frames_round(const float* x, std::int64_t size, std::int64_t channels, std::uint16_t* y, std::int64_t stride);

}  // namespace parlando::kernels
