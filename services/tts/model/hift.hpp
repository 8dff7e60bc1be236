#pragma once
/// HiFT vocoder: mel -> wave at 22.05 kHz, offline and in exact chunks. Source: docs/vocoder.md §9, §11.3.
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "common/base/result.hpp"
#include "common/checkpoint/tensor_data.hpp"
#include "kernels/convolution/convolution.hpp"

namespace parlando::tts {

inline constexpr int kHarmonics = 9;

class Hift {
 public:
  using Trace = std::function<void(const std::string&, const at::Tensor&)>;
  /// Accepts weight_g/weight_v, parametrizations, plain weights and a `generator.` prefix. @throws Failure on a bad
  /// checkpoint
  Hift(checkpoint::TensorMap tensors, const nlohmann::json& config, const std::string& source);

  at::Tensor f0(const at::Tensor& mel) const;  ///< [1, 80, F] -> [1, F] Hz

  /// Phase of the nine harmonics between chunks.
  struct SourceState {
    std::array<double, kHarmonics> cycles{};
  };
  /// f0 [F], initial phases [9] (entry 0 counts as 0), noise [9, 256 F] -> source [1, 1, 256 F]; advances the state.
  at::Tensor source(const at::Tensor& f0, std::span<const float> phase, const at::Tensor& noise,
                    SourceState& state) const;
  /// mel [1, 80, F], source [1, 1, 256 F] -> wave [256 F]
  at::Tensor decode(const at::Tensor& mel, const at::Tensor& source, const Trace& trace = {}) const;
  /// Whole utterance. `cache_source` overwrites the head of the source.
  struct Wave {
    at::Tensor wave, source;
  };
  Wave operator()(const at::Tensor& mel, std::span<const float> phase, const at::Tensor& noise,
                  const at::Tensor& cache_source = {}) const;

  float voiced_threshold() const { return voiced_threshold_; }
  at::Tensor& conv_post_bias() { return conv_post_.b; }  ///< for the limiter's test

 private:
  struct Conv {
    at::Tensor w, b;
  };
  struct ResBlock {
    std::vector<kernels::PackedFilter> convs1, convs2;
    std::vector<std::vector<float>> alpha1, alpha2;
    std::vector<std::int64_t> dilations;
  };
  at::Tensor run(const ResBlock& r, const at::Tensor& x) const;  ///< [1, channels, n], as long as x
  std::vector<Conv> condnet_, ups_, source_downs_;
  std::vector<ResBlock> source_blocks_, blocks_;
  std::vector<std::int64_t> rates_, kernels_;
  Conv classifier_, merge_, conv_pre_, conv_post_;
  at::Tensor window_;
  double alpha_ = 0.1, sigma_ = 0.003, slope_ = 0.1, limit_ = 0.99, sample_rate_ = 22050;
  float voiced_threshold_ = 10;
};

/// Random input of the source as a function of position, so that any re-computation sees the same values.
class SourceNoise {
 public:
  explicit SourceNoise(std::uint64_t seed) : seed_(seed) {}
  std::array<float, kHarmonics> phase() const;                              ///< uniform in [−π, π)
  at::Tensor noise(std::int64_t first_sample, std::int64_t samples) const;  ///< [9, samples] standard normal

 private:
  std::uint64_t seed_;
};

/// Standard normal values indexed by (seed, stream, position); Box–Muller on a counter-based generator.
void fill_normal(std::uint64_t seed, std::uint64_t stream, std::int64_t first, std::span<float> out);

/// The vocoder in chunks. Without provisional frames the concatenated output equals the whole for any chunking, up to
/// float rounding; 19 frames (221 ms) are then withheld until `finish`.
class HiftStream {
 public:
  using NoiseSource = std::function<at::Tensor(std::int64_t first_sample, std::int64_t samples)>;
  HiftStream(std::shared_ptr<const Hift> hift, std::array<float, kHarmonics> phase, NoiseSource noise)
      : hift_(std::move(hift)), phase_(phase), noise_(std::move(noise)) {}

  /// @param mel [80, n] final frames   @return samples that became final
  std::vector<float> push(const at::Tensor& mel) { return advance(mel, {}, false); }
  /// Low latency: `provisional` frames (a guess of what follows, [80, m], may be empty) serve as right context, so that
  /// every final frame is voiced at once; a 5 ms cross-fade hides the revision of the guess.
  std::vector<float> push_now(const at::Tensor& mel, const at::Tensor& provisional) {
    return advance(mel, provisional, true);
  }
  std::vector<float> finish();

  static constexpr std::int64_t kContext = 14, kF0Context = 5, kFadeSamples = 110;

 private:
  /// Source of the `count` frames behind `voiced_`; `mel` begins at frame `first_`.
  at::Tensor source_of(const at::Tensor& mel, std::int64_t count, Hift::SourceState& state) const;
  void extend_source(const at::Tensor& mel, std::int64_t until);
  std::vector<float> advance(const at::Tensor& mel, const at::Tensor& provisional, bool now);
  std::vector<float> emit(std::int64_t until, const at::Tensor& mel, const at::Tensor& source, std::int64_t available,
                          bool final);

  std::shared_ptr<const Hift> hift_;
  std::array<float, kHarmonics> phase_;
  NoiseSource noise_;
  at::Tensor mel_, source_;  ///< buffered frames [80, n] and their source [256 n'] from frame `first_` on
  std::int64_t first_ = 0, frames_ = 0, voiced_ = 0,
               emitted_ = 0;  ///< frames: buffered start, received, with source, voiced out
  Hift::SourceState state_;
  std::vector<float> tail_;  ///< the held-back end of the last provisional chunk
};

}  // namespace parlando::tts
