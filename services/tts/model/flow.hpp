#pragma once
/// Flow matching: codes -> mel at 86.13 frames/s, 80 bins, log. Source: docs/vocoder.md §5–§8.
/// A result is a pure function of (tokens, prompt, speaker, noise); noise comes from the caller.
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "common/base/result.hpp"
#include "common/checkpoint/tensor_data.hpp"
#include "common/nn/convolution.hpp"
#include "common/nn/linear.hpp"
#include "services/tts/model/bf16_estimator.hpp"
#include "services/tts/model/flow_past.hpp"

namespace parlando::tts {

inline constexpr std::int64_t kMelBins = 80, kHop = 256;
inline constexpr int kMelRate = 22050, kFlowSteps = 10;  ///< steps of the official code

/// Frames of n tokens, in the reference's order of operations.
std::int64_t mel_frames(std::int64_t tokens, double input_frame_rate);

enum class ScheduleType { fp32, bf16 };
struct Schedule {
  std::vector<float> span, t, dt;
};
/// Cosine schedule; bf16 is the one the shipped code really uses.
Schedule flow_schedule(int steps, ScheduleType type);

class Flow {
 public:
  using Trace = std::function<void(const std::string&, const at::Tensor&)>;
  /// @param dtype  at::kBFloat16: the estimator in bf16 (`Bf16Estimator`), the rest in fp32 either way
  /// @throws Failure on a bad checkpoint or configuration
  Flow(checkpoint::TensorMap tensors, const nlohmann::json& config, const std::string& source,
       at::ScalarType dtype = at::kFloat);

  int steps() const { return steps_; }
  double token_rate() const { return rate_; }
  std::int64_t vocabulary() const { return vocabulary_; }
  std::int64_t frames_of(std::int64_t tokens) const { return mel_frames(tokens, rate_); }
  /// True for the single-codebook variant: semantic ids 0…4095 at 25/s.
  bool single_codebook() const { return single_; }

  /// tokens [T] -> h [T, 80]
  at::Tensor encode(const at::Tensor& tokens, const Trace& trace = {}) const;
  /// One part of h stretched to `frames` columns: [1, 80, frames]
  static at::Tensor stretch(const at::Tensor& h, std::int64_t frames);
  /// Parts side by side -> mu [1, 80, F]
  at::Tensor regulate(const at::Tensor& stretched) const;
  /// The v1 streaming rule: 20 tokens at each end of a long chunk are stretched on their own.
  at::Tensor stretch_v1(const at::Tensor& h, std::int64_t frames) const;
  at::Tensor speaker(const at::Tensor& embedding) const;  ///< [1, 192] -> [1, 80]

  /// Velocity: x, mu, cond [B, 80, F]; t [B]; spk [B, 80].
  at::Tensor estimate(const at::Tensor& x, const at::Tensor& mu, const at::Tensor& t, const at::Tensor& spk,
                      const at::Tensor& cond, const Trace& trace = {}) const;
  /// Euler steps from z (`cfm.n_timesteps`, official 10) with classifier-free guidance.
  at::Tensor solve(const at::Tensor& z, const at::Tensor& mu, const at::Tensor& spk, const at::Tensor& cond,
                   const Trace& trace = {}) const;
  /// The same, and what the first `frames` frames, a multiple of `stride`, are to those behind them.
  at::Tensor solve(const at::Tensor& z, const at::Tensor& mu, const at::Tensor& spk, const at::Tensor& cond,
                   std::int64_t frames, FlowPast& past) const;
  /// A window behind frames that are not computed again: they are as they were where `past` was made.
  at::Tensor solve_behind(const FlowPast& past, const at::Tensor& z, const at::Tensor& mu, const at::Tensor& spk,
                          const at::Tensor& cond) const;
  /// Frames that become one in the middle of the estimator.
  std::int64_t stride() const { return stride_; }

  /// Offline: tokens [T], prompt tokens [P], prompt mel [1, F1, 80], embedding [1, 192], z [1, 80, F1 + F2] -> mel [1,
  /// 80, F2]
  at::Tensor mel(const at::Tensor& tokens, const at::Tensor& prompt_tokens, const at::Tensor& prompt_mel,
                 const at::Tensor& embedding, const at::Tensor& z) const;

  /// Drops what the flow cannot read (text ids, codes past its vocabulary) and, for the single-codebook variant, the
  /// linguistic codes.
  std::vector<std::int64_t> usable(const std::vector<std::int32_t>& codes, std::int64_t* dropped = nullptr) const;

 private:
  struct Norm {
    at::Tensor w, b;
  };
  struct EncoderLayer {
    nn::Linear qkv, out, w1, w2, pos;
    Norm norm_mha, norm_ff;
    at::Tensor u, v;
  };
  struct Block {
    nn::Convolution conv;
    Norm norm;
  };
  struct Resnet {
    nn::Linear mlp;
    Block block1, block2;
    nn::Convolution res;
  };
  struct Transformer {
    Norm norm1, norm3;
    nn::Linear qkv, out, ff1, ff2;
  };
  struct Stage {
    Resnet resnet;
    std::vector<Transformer> transformers;
    nn::Convolution conv;  ///< that keeps the length, or
    Norm resample;         ///< weights of one that halves or doubles it
  };
  /// What the first resnet makes of those inputs that are the same in every step: mu, speaker, condition. In bf16 frame
  /// by frame.
  struct Fixed {
    at::Tensor conv, res;
  };
  static at::Tensor norm(const at::Tensor& x, const Norm& n);
  at::Tensor fixed_inputs(const at::Tensor& mu, const at::Tensor& spk, const at::Tensor& cond) const;
  Fixed fixed(const at::Tensor& inputs, const at::Tensor& before = {}) const;
  at::Tensor velocity(const at::Tensor& x, const Fixed& inputs, const at::Tensor& t, const Trace& trace,
                      PastStep* past = nullptr) const;
  static at::Tensor activated(const at::Tensor& x, std::int64_t groups, const Norm& n, PastStep* past = nullptr);
  static at::Tensor before(const at::Tensor& x, PastStep* past);
  at::Tensor block(const at::Tensor& x, const Block& b, PastStep* past) const;
  at::Tensor attended(const at::Tensor& qkv, PastStep* past) const;
  at::Tensor stage(at::Tensor x, const Stage& s, const at::Tensor& time, const Trace& trace, const std::string& name,
                   PastStep* past, const Fixed* inputs = nullptr) const;
  /// @param made, known  at most one of them
  at::Tensor integrate(const at::Tensor& z, const at::Tensor& mu, const at::Tensor& spk, const at::Tensor& cond,
                       const Trace& trace, FlowPast* made, const FlowPast* known) const;

  double rate_ = 0, cfg_rate_ = 0;
  std::int64_t vocabulary_ = 0, width_ = 0, encoder_heads_ = 0, heads_ = 0, dim_ = 0, time_inputs_ = 0, stride_ = 1;
  int steps_ = kFlowSteps;
  bool single_ = false;
  at::Tensor embedding_;
  nn::Linear embed_, encoder_proj_, speaker_, time1_, time2_;
  Norm embed_norm_, after_norm_;
  std::vector<EncoderLayer> encoder_;
  std::vector<nn::Convolution> regulator_conv_;
  std::vector<Norm> regulator_norm_;
  nn::Convolution fixed_conv_, fixed_res_, final_proj_;  ///< the first two: of `Fixed`
  std::vector<Stage> down_, mid_, up_;
  Block final_block_;
  std::shared_ptr<const Bf16Estimator> bf16_;  ///< in the place of the three lines before
};

}  // namespace parlando::tts
