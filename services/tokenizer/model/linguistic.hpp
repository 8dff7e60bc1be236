#pragma once
/// Linguistic codebook: the streaming Paraformer encoder with k-means on its output, 16.67 ids per second.
/// Source: docs/tokenizer.md §4. All dimensions come from the checkpoint.
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <vector>

#include "common/audio/front_end.hpp"
#include "common/base/result.hpp"
#include "common/checkpoint/tensor_data.hpp"
#include "common/nn/linear.hpp"

namespace parlando::tokenizer {

inline constexpr int kChunkSamples = 3840;  ///< 240 ms at 16 kHz: four ids
inline constexpr int kWindowRows = 9, kOverlapRows = 5, kNewRows = 4, kLookBackRows = 16;

/// Ids of an utterance of `samples` at 16 kHz; a tail under 880 samples gives none.
std::int64_t linguistic_count(std::int64_t samples);
inline constexpr int kStack = 7,
                     kSkip = 6;  ///< Filter-bank frames that one input row stacks, and how far apart rows are.

/// What one session carries from window to window; rebuilt by replaying the utterance.
struct LinguisticState {
  std::vector<at::Tensor> keys, values;  ///< per layer [rows ≤ 16, width]
  at::Tensor overlap;                    ///< [5, 560]
  std::int64_t position = 1;             ///< of the next row; starts at 1
};

/// Observes intermediate values in tests; called with a name and a tensor.
using Trace = std::function<void(const std::string&, const at::Tensor&)>;

class LinguisticEncoder {
 public:
  /// @param heads  from the configuration; everything else from tensor shapes.  @throws Failure on a bad checkpoint
  LinguisticEncoder(checkpoint::TensorMap tensors, int heads, const std::string& source);

  std::int64_t width() const { return width_; }
  std::int64_t layers() const { return static_cast<std::int64_t>(layers_.size()); }
  LinguisticState start() const;

  /// Stacked and normalised features of a whole utterance: [count, 560].
  at::Tensor features(std::span<const float> wave) const;

  /// `fresh[b]` [≥ 1, 560] are the session's next rows, four of them a window; only the last window of an utterance may
  /// have fewer. All windows of all sessions run side by side. Answers one [rows, width] per session and advances the
  /// states. Any grouping of sessions and windows gives the same result. Tensors of a state are replaced, never
  /// written to: a copy of a state stands still.
  std::vector<at::Tensor> step(const std::vector<LinguisticState*>& states, const std::vector<at::Tensor>& fresh,
                               const Trace& trace = {}) const;

  /// A whole utterance at once: [T, 560] -> [T, width].
  at::Tensor encode(const at::Tensor& features) const;

  /// Nearest centroid per row.
  std::vector<std::int32_t> quantise(const at::Tensor& hidden) const;

  /// CMVN of stacked frames in place.
  void normalise(at::Tensor& stacked) const;

 private:
  struct Layer {
    at::Tensor norm1_w, norm1_b, fsmn, norm2_w, norm2_b;
    nn::PackedLinear qkv, out, w1, w2;
    bool residual = true;
  };
  using LookBack = std::function<void(std::size_t layer, const at::Tensor& k, const at::Tensor& v, at::Tensor& old_k,
                                      at::Tensor& old_v)>;
  at::Tensor run(at::Tensor window, const at::Tensor& rows, const at::Tensor& cached, const LookBack& look_back,
                 const Trace& trace) const;
  at::Tensor positioned(const at::Tensor& feats, std::int64_t first_position) const;

  std::int64_t width_ = 0, inputs_ = 0;
  int heads_ = 0;
  std::vector<Layer> layers_;
  at::Tensor after_w_, after_b_, centroids_, centroid_norms_, shift_, rescale_;
};

/// Turns arriving samples into encoder rows, chunk by chunk; the packet size changes nothing.
class LinguisticFrontEnd {
 public:
  LinguisticFrontEnd() : fbank_(audio::FbankWindow::hamming, 32768.0f) {}
  /// @return stacked rows [n, 560] as values, four per completed 240 ms chunk (before CMVN)
  std::vector<float> push(std::span<const float> wave);
  /// The rows of the tail; the object is then at its start again.
  std::vector<float> finish();

 private:
  void take_frames(std::size_t samples_usable);
  std::vector<float> stack(std::int64_t until, bool final);
  audio::Fbank fbank_;
  std::vector<float> samples_;  ///< from the next frame's start on
  std::vector<float> frames_;   ///< fbank frames not needed any more are dropped
  std::int64_t received_ = 0, frames_total_ = 0, frames_first_ = 0, emitted_ = 0, chunks_done_ = 0, sample_first_ = 0;
};

/// Streaming interface of one session: samples in, ids out.
class LinguisticStream {
 public:
  explicit LinguisticStream(std::shared_ptr<const LinguisticEncoder> encoder)
      : encoder_(std::move(encoder)), state_(encoder_->start()) {}
  std::vector<std::int32_t> push(std::span<const float> wave16k);
  std::vector<std::int32_t> finish();

 private:
  std::vector<std::int32_t> encode(const std::vector<float>& rows);
  std::shared_ptr<const LinguisticEncoder> encoder_;
  LinguisticFrontEnd front_end_;
  LinguisticState state_;
};

}  // namespace parlando::tokenizer
