#include "kernels/convolution/convolution.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>

#include "kernels/vector/dispatch.hpp"

#define PARLANDO_BODY "kernels/convolution/convolution.inc"
#include "kernels/vector/for_each_isa.inc"

namespace parlando::kernels {

PackedFilter::PackedFilter(const float* w, const float* of_bias, std::int64_t outs, std::int64_t ins, std::int64_t n)
    : out(outs), in(ins), taps(n) {
  const auto groups = (out + 5) / 6, each = in * taps;
  weights.assign(static_cast<std::size_t>(groups * each * 6), 0.0f);
  bias.assign(static_cast<std::size_t>(groups * 6), 0.0f);
  for (std::int64_t o = 0; o < out; ++o) {
    for (std::int64_t k = 0; k < each; ++k)
      weights[static_cast<std::size_t>((o / 6 * each + k) * 6 + o % 6)] = w[o * each + k];
    if (of_bias != nullptr) bias[static_cast<std::size_t>(o)] = of_bias[o];
  }
}

void convolve(const PackedFilter& filter, const float* x, std::int64_t x_stride, std::int64_t dilation,
              std::int64_t size, const float* to_add, float* y, std::int64_t y_stride) {
  PARLANDO_DISPATCH(convolve_all, filter, x, x_stride, dilation, size, to_add, y, y_stride);
}

void convolve_reference(const float* w, const float* bias, std::int64_t out, std::int64_t in, std::int64_t taps,
                        const float* x, std::int64_t x_stride, std::int64_t dilation, std::int64_t size, double* y) {
  for (std::int64_t o = 0; o < out; ++o)
    for (std::int64_t t = 0; t < size; ++t) {
      double sum = bias == nullptr ? 0.0 : bias[o];
      for (std::int64_t i = 0; i < in; ++i)
        for (std::int64_t j = 0; j < taps; ++j)
          sum += double{w[(o * in + i) * taps + j]} * x[i * x_stride + t + j * dilation];
      y[o * size + t] = sum;
    }
}

void snake(const float* x, float alpha, std::int64_t size, float* y) {
  PARLANDO_DISPATCH(snake_row, x, alpha, size, y);
}

}  // namespace parlando::kernels
