#include "common/nn/linear.hpp"

#include <ATen/ATen.h>

#include "common/base/result.hpp"
#include "common/nn/threads.hpp"
#include "kernels/gemv/gemv.hpp"
#include "kernels/team/team.hpp"

namespace parlando::nn {

PackedLinear::PackedLinear(const at::Tensor& w, const at::Tensor& b) {
  if (!w.defined()) return;  // reported by the loader
  if (w.dim() != 2 || w.numel() == 0)
    raise(Errc::checkpoint_mismatch, "a linear layer has no {}-dimensional weights of {} numbers", w.dim(), w.numel());
  const auto weights = w.contiguous();
  rows_ = w.size(0), columns_ = w.size(1);
  packed_ = at::empty({kernels::packed_size(rows_, columns_)});
  kernels::pack_f32(weights.data_ptr<float>(), rows_, columns_, packed_.data_ptr<float>());
  if (b.defined()) bias_ = b.contiguous();
}

at::Tensor PackedLinear::operator()(const at::Tensor& x) const {
  if (x.dim() == 0 || x.size(-1) != columns_)
    raise(Errc::invalid_argument, "a linear layer of {} inputs was given {}", columns_, x.dim() == 0 ? 0 : x.size(-1));
  const auto in = x.contiguous();
  const auto count = in.numel() / columns_;
  auto shape = x.sizes().vec();
  shape.back() = rows_;
  auto out = at::empty(shape);
  const float *from = in.data_ptr<float>(), *weights = packed_.data_ptr<float>(),
              *bias = bias_.defined() ? bias_.data_ptr<float>() : nullptr;
  float* to = out.data_ptr<float>();
  const auto panels = (rows_ + 15) / 16;
  const auto weights_count = static_cast<double>(rows_ * columns_);
  const auto cost = kernels::Cost::of(weights_count * sizeof(float), weights_count * static_cast<double>(count),
                                      kProductsPerNanosecond);
  kernels::Team::of_this_thread().run(panels, cost, [&](std::int64_t first, std::int64_t last) {
    const auto begin = first * 16, n = std::min(rows_, last * 16) - begin;
    if (n == rows_) return kernels::gemm_packed_f32(weights, rows_, columns_, from, count, bias, to);
    std::vector<float> part(static_cast<std::size_t>(n * count));  // each thread its panels, into its own block
    kernels::gemm_packed_f32(weights + begin * columns_, n, columns_, from, count,
                             bias == nullptr ? nullptr : bias + begin, part.data());
    for (std::int64_t r = 0; r < count; ++r) std::copy_n(part.data() + r * n, n, to + r * rows_ + begin);
  });
  return out;
}

Linear::Linear(const at::Tensor& w, const at::Tensor& b) {
  if (!w.defined() || w.scalar_type() == at::kFloat)
    packed_ = PackedLinear(w, b);
  else
    w_ = w, b_ = b;
}

at::Tensor Linear::operator()(const at::Tensor& x) const { return w_.defined() ? at::linear(x, w_, b_) : packed_(x); }

}  // namespace parlando::nn
