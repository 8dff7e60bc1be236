#include "common/nn/convolution.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "common/base/result.hpp"
#include "common/nn/threads.hpp"
#include "kernels/team/team.hpp"

namespace parlando::nn {

Convolution::Convolution(const at::Tensor& w, const at::Tensor& b) {
  if (!w.defined()) return;  // reported by the loader
  if (w.dim() != 3 || w.size(2) % 2 == 0)
    raise(Errc::checkpoint_mismatch, "a convolution has {} taps, expected an odd number", w.dim() == 3 ? w.size(2) : 0);
  if (w.scalar_type() != at::kFloat) {
    w_ = w, b_ = b;
    return;
  }
  const auto weights = w.contiguous(), bias = b.defined() ? b.contiguous() : at::Tensor();
  packed_ = std::make_shared<kernels::PackedFilter>(
      weights.data_ptr<float>(), bias.defined() ? bias.data_ptr<float>() : nullptr, w.size(0), w.size(1), w.size(2));
}

at::Tensor Convolution::operator()(const at::Tensor& x, const at::Tensor& before) const {
  if (!packed_ && !before.defined()) return at::conv1d(x, w_, b_, 1, w_.size(2) / 2);
  if (!packed_) return at::conv1d(at::constant_pad_nd(at::cat({before, x}, 2), {0, w_.size(2) / 2}), w_, b_);
  const auto& filter = *packed_;
  if (x.dim() != 3 || x.size(1) != filter.in)
    raise(Errc::invalid_argument, "a convolution of {} channels was given {}", filter.in, x.dim() == 3 ? x.size(1) : 0);
  const auto batch = x.size(0), size = x.size(2), margin = filter.taps / 2, stride = size + 2 * margin;
  auto padded = at::zeros({batch * filter.in * stride + kernels::kConvolutionSlack});
  const auto rows = padded.narrow(0, 0, batch * filter.in * stride).view({batch, filter.in, stride});
  rows.narrow(2, margin, size).copy_(x);
  if (before.defined()) rows.narrow(2, 0, margin).copy_(before);
  auto out = at::empty({batch, filter.out, size});
  for (std::int64_t n = 0; n < batch; ++n) {
    const float* from = padded.data_ptr<float>() + n * filter.in * stride;
    float* to = out.data_ptr<float>() + n * filter.out * size;
    const auto products = static_cast<double>(filter.in * filter.out * filter.taps * size);
    const auto cost = kernels::Cost::of(0, products, kProductsPerNanosecond);
    kernels::Team::of_this_thread().run(size, cost, [&](std::int64_t first, std::int64_t last) {
      kernels::convolve(filter, from + first, stride, 1, last - first, nullptr, to + first, size);
    });
  }
  return out;
}

}  // namespace parlando::nn
