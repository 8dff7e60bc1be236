#pragma once
/// Plain values <-> libtorch tensors, by copy.
#include <ATen/ATen.h>

#include <algorithm>
#include <span>
#include <vector>

namespace parlando::tensor {

/// A float32 tensor of `shape` filled with `values`, row-major; the sizes must agree.
inline at::Tensor from_values(std::span<const float> values, at::IntArrayRef shape) {
  auto out = at::empty(shape);
  std::copy(values.begin(), values.end(), out.data_ptr<float>());
  return out;
}

/// All elements of a tensor as float32, row-major.
inline std::vector<float> to_values(const at::Tensor& tensor) {
  const auto flat = tensor.to(at::kFloat).contiguous();
  return {flat.data_ptr<float>(), flat.data_ptr<float>() + flat.numel()};
}

}  // namespace parlando::tensor
