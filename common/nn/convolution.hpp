#pragma once
/// A convolution along time that keeps the length: weights are packed once at loading.
#include <ATen/core/Tensor.h>

#include <memory>

#include "kernels/convolution/convolution.hpp"

namespace parlando::nn {

class Convolution {
 public:
  Convolution() = default;
  /// In fp32 the weights are packed; in another type libtorch's product of that type serves.
  /// @param w  [out, in, taps], an odd number of taps   @param b  [out] or undefined
  /// @throws Failure when the number of taps is even
  Convolution(const at::Tensor& w, const at::Tensor& b);
  /// [batch, in, n] -> [batch, out, n], zeros on both sides   @throws Failure when x has other channels
  at::Tensor operator()(const at::Tensor& x) const { return (*this)(x, {}); }
  /// @param before  [batch, in, taps / 2], what stands before x in the place of zeros; undefined: zeros
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& before) const;

 private:
  at::Tensor w_, b_;
  std::shared_ptr<const kernels::PackedFilter> packed_;
};

}  // namespace parlando::nn
