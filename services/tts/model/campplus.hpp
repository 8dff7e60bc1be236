#pragma once
/// CAM++ speaker encoder: filter bank [1, T, 80] -> embedding [1, 192]. Source: docs/vocoder.md §4.
/// Runs the folded form (convolution + bias); torch-named checkpoints are folded while loading.
#include <ATen/core/Tensor.h>

#include <functional>

#include "common/base/result.hpp"
#include "common/checkpoint/tensor_data.hpp"

namespace parlando::tts {

class CamPlus {
 public:
  using Trace = std::function<void(const std::string&, const at::Tensor&)>;
  /// Accepts the names of campplus.safetensors (torch) and of `parlando import` (folded). @throws Failure on a bad
  /// checkpoint
  CamPlus(checkpoint::TensorMap tensors, const std::string& source);

  /// Mean-subtracted filter bank [1, T, 80] -> [1, 192]
  at::Tensor embed(const at::Tensor& fbank, const Trace& trace = {}) const;
  /// Wave at 16 kHz -> [1, 192]. @error Errc::invalid_argument when it is too short (under 0.05 s)
  Result<at::Tensor> operator()(std::span<const float> wave16k) const;

 private:
  struct Conv {
    at::Tensor w, b;
  };
  struct Affine {
    at::Tensor scale, shift;
  };
  struct Residual {
    Conv conv1, conv2, shortcut;
  };
  struct Dense {
    Affine norm;
    Conv linear1, local, context1, context2;
    std::int64_t dilation = 1;
  };
  struct Stage {
    std::vector<Dense> layers;
    Affine norm;
    Conv transit;
  };
  Conv head1_, head2_, tdnn_, dense_;
  std::vector<Residual> residuals_;
  std::vector<Stage> stages_;
  Affine out_, last_;
};

}  // namespace parlando::tts
