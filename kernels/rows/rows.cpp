#include "kernels/rows/rows.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>

#include "kernels/vector/dispatch.hpp"

#define PARLANDO_BODY "kernels/rows/rows.inc"
#include "kernels/vector/for_each_isa.inc"

namespace parlando::kernels {

void rms_norm(const float* x, const float* w, float eps, std::int64_t size, bool round, float* y) {
  if (round)
    PARLANDO_DISPATCH(norm_row<true>, x, w, eps, size, y);
  else
    PARLANDO_DISPATCH(norm_row<false>, x, w, eps, size, y);
}

void swiglu(const float* gate, const float* up, std::int64_t size, bool round, float* y) {
  if (round)
    PARLANDO_DISPATCH(swiglu_row<true>, gate, up, size, y);
  else
    PARLANDO_DISPATCH(swiglu_row<false>, gate, up, size, y);
}

void add_to(float* x, const float* y, std::int64_t size, bool round) {
  if (round)
    PARLANDO_DISPATCH(add_row<true>, x, y, size);
  else
    PARLANDO_DISPATCH(add_row<false>, x, y, size);
}

void group_moments(const float* x, std::int64_t channels, std::int64_t stride, std::int64_t size, std::int64_t groups,
                   Moments* out) {
  PARLANDO_DISPATCH(group_moments_of, x, channels, stride, size, groups, out);
}

void group_norm_mish(const float* x, std::int64_t channels, std::int64_t size, std::int64_t groups, const float* w,
                     const float* b, float eps, float* y, const Moments* before) {
  PARLANDO_DISPATCH(group_norm_mish_rows, x, channels, size, groups, w, b, eps, y, before);
}

void round_to_bf16(float* x, std::int64_t size) { PARLANDO_DISPATCH(round_row, x, size); }

void widen_bf16(const std::uint16_t* x, std::int64_t size, float* y) { PARLANDO_DISPATCH(widen_row, x, size, y); }

}  // namespace parlando::kernels
