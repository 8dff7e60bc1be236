#pragma once
/// The estimator of the flow (docs/vocoder.md §8) with weights and products in bf16. Sums, norms and the stream between
/// blocks are fp32; what a product reads is rounded when it is written. Frames lie one behind the other, so that a
/// convolution is a product whose rows overlap.
#include <ATen/core/Tensor.h>

#include "common/nn/linear.hpp"
#include "common/tensor/weights.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/linear/packed_matrix.hpp"
#include "services/tts/model/flow_past.hpp"

namespace parlando::tts {

class Bf16Estimator {
 public:
  /// @param prefix  of its names in `w`   @param inputs  channels that change from step to step, the first ones
  Bf16Estimator(tensor::Weights& w, const std::string& prefix, std::int64_t heads, std::int64_t dim,
                std::int64_t inputs);
  /// @param x          [batch, inputs, frames]
  /// @param conv, res  [batch, frames, channels] what the first resnet makes of the other inputs
  /// @param time       [batch, width] embedding of the time behind its activation
  /// @return [batch, inputs, frames]
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& conv, const at::Tensor& res, const at::Tensor& time,
                        PastStep* past) const;
  std::int64_t stride() const { return stride_; }

 private:
  /// A product with its bias.
  struct Product {
    kernels::PackedMatrix w;
    std::vector<float> bias;
    void operator()(kernels::Team& team, const std::uint16_t* x, std::int64_t count, std::int64_t stride,
                    kernels::GemmOut out) const;
  };
  struct Norm {
    std::vector<float> w, b;
  };
  struct Transformer {
    Norm norm1, norm3;
    Product qkv, out, ff1, ff2;
  };
  struct Stage {
    nn::Linear time;
    Product conv1, conv2, res;
    Norm norm1, norm2;
    std::vector<Transformer> transformers;
    Product conv;       ///< behind the stage, one frame for one or one for two, or
    Product even, odd;  ///< two frames for one
    bool resamples = false;
  };
  /// bf16 numbers with a frame in front of each batch and one behind it, zeros at first.
  struct Frames {
    Frames(std::int64_t batch, std::int64_t size, std::int64_t channels);
    std::uint16_t* row(std::int64_t batch, std::int64_t frame);  ///< from −1 on
    std::int64_t batch, size, channels;
    std::vector<std::uint16_t> data;
  };
  static Product product(const at::Tensor& w, const at::Tensor& b);
  static void before(Frames& x, PastStep* past);
  void normed(kernels::Team& team, const float* y, std::int64_t batch, std::int64_t size, const Norm& norm,
              PastStep* past, const float* shift, const float* add, float* to, Frames* rounded) const;
  std::vector<float> stage(kernels::Team& team, Frames& in, const Stage& s, const at::Tensor& time, PastStep* past,
                           const float* conv, const float* res) const;
  void transform(kernels::Team& team, std::vector<float>& x, std::int64_t batch, std::int64_t size,
                 const Transformer& t, PastStep* past) const;

  std::int64_t heads_, dim_, inputs_, stride_ = 1;
  std::vector<Stage> down_, mid_, up_;
  Product final_conv_, final_proj_;
  Norm final_norm_;
};

}  // namespace parlando::tts
