#pragma once
/// A linear layer for the few rows of a streaming window: weights are packed once at loading and streamed once per
/// call.
#include <ATen/core/Tensor.h>

namespace parlando::nn {

class PackedLinear {
 public:
  PackedLinear() = default;
  /// @param w [out, in] float32   @param b [out] or undefined
  PackedLinear(const at::Tensor& w, const at::Tensor& b);
  /// [..., in] -> [..., out]   @throws Failure when x has another width
  at::Tensor operator()(const at::Tensor& x) const;

 private:
  at::Tensor packed_, bias_;
  std::int64_t rows_ = 0, columns_ = 0;
};

/// A linear layer in whatever type its weights have: packed in fp32, libtorch's product otherwise.
class Linear {
 public:
  Linear() = default;
  /// @param w [out, in]   @param b [out] or undefined
  Linear(const at::Tensor& w, const at::Tensor& b);
  /// [..., in] -> [..., out]
  at::Tensor operator()(const at::Tensor& x) const;

 private:
  PackedLinear packed_;
  at::Tensor w_, b_;  ///< undefined when packed
};

}  // namespace parlando::nn
