#pragma once
/// Silero voice-activity network (16 kHz, version 5), run without any tensor library.
/// 512 samples (32 ms) per call; the object keeps the recurrent state and the 64 samples of context in front of the
/// next frame. Weights: the tensors of `silero_vad_16k_op15.onnx` as safetensors. Source: goldens/vad,
/// docs/tokenizer.md §8.2.
#include <array>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::vad {

inline constexpr int kFrameSamples = 512, kContextSamples = 64, kStateSize = 128;

class SileroWeights {
 public:
  /// @error Errc::checkpoint_mismatch naming the tensor that is missing or misshapen
  static Result<std::shared_ptr<const SileroWeights>> load(const std::filesystem::path& file);

  struct Conv {
    int inputs, outputs, stride;
    std::vector<float> weight, bias;
  };                         ///< weight as [outputs, 3·inputs], tap-major
  std::vector<float> basis;  ///< [258, 256]
  std::array<Conv, 4> encoder;
  std::vector<float> lstm, lstm_bias;  ///< [512, 256] over (input ‖ hidden), [512]
  std::vector<float> out;              ///< [128]
  float out_bias = 0;
};

/// State of one stream. Copyable: a copy continues on its own.
class Silero {
 public:
  explicit Silero(std::shared_ptr<const SileroWeights> weights) : weights_(std::move(weights)) { reset(); }
  /// Speech probability of the next 512 samples at 16 kHz, values in [-1, 1].
  float operator()(std::span<const float, kFrameSamples> frame);
  void reset();

 private:
  std::shared_ptr<const SileroWeights> weights_;
  std::array<float, kContextSamples> context_;
  std::array<float, kStateSize> hidden_, cell_;
};

}  // namespace parlando::vad
