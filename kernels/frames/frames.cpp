#include "kernels/frames/frames.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <vector>

#include "kernels/vector/dispatch.hpp"

#define PARLANDO_BODY "kernels/frames/frames.inc"
#include "kernels/vector/for_each_isa.inc"

namespace parlando::kernels {

void frames_norm(const float* x, std::int64_t size, std::int64_t channels, const float* w, const float* b, float eps,
                 std::uint16_t* y) {
  PARLANDO_DISPATCH(norm_frames, x, size, channels, w, b, eps, y);
}

void frames_moments(const float* x, std::int64_t size, std::int64_t channels, std::int64_t groups, Moments* out) {
  PARLANDO_DISPATCH(moments_of_frames, x, size, channels, groups, out);
}

void frames_norm_mish(const float* x, std::int64_t size, std::int64_t channels, std::int64_t groups,
                      const Moments* moments, const float* w, const float* b, float eps, const float* shift,
                      const float* add, float* y, std::uint16_t* rounded) {
  const auto each = channels / groups;
  std::vector<float> scale(static_cast<std::size_t>(channels)), offset(scale.size());
  for (std::int64_t c = 0; c < channels; ++c) {
    const auto& m = moments[c / each];
    const auto over = 1.0f / std::sqrt(static_cast<float>(m.squares / m.count) + eps);
    scale[static_cast<std::size_t>(c)] = over * w[c];
    offset[static_cast<std::size_t>(c)] = b[c] - static_cast<float>(m.mean) * over * w[c];
  }
  PARLANDO_DISPATCH(norm_mish_frames, x, size, channels, scale.data(), offset.data(), shift, add, y, rounded);
}

void frames_round(const float* x, std::int64_t size, std::int64_t channels, std::uint16_t* y, std::int64_t stride) {
  PARLANDO_DISPATCH(round_frames, x, size, channels, y, stride);
}

}  // namespace parlando::kernels
