#pragma once
/// Semantic codebook: CosyVoice speech_tokenizer_v1 (25 Hz), full attention over pieces of at most 30 s.
/// Source: docs/tokenizer.md §5.
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "common/base/result.hpp"
#include "common/checkpoint/tensor_data.hpp"
#include "common/nn/linear.hpp"

namespace parlando::tokenizer {

inline constexpr std::int64_t kPieceSamples = 480000, kPieceSamplesMin = 480;
inline constexpr std::int64_t kSemanticLookBackRows = 250;  ///< of a stream: 10 s

/// Ids of an utterance of `samples` at 16 kHz.
std::int64_t semantic_count(std::int64_t samples);

/// What a stream keeps of the rows of a piece that are settled. Blocks are shared, never written to: a copy of a state
/// stands still.
struct SemanticState {
  std::int64_t rows = 0;           ///< settled
  std::vector<at::Tensor> blocks;  ///< keys and values, [layers, 2, heads, rows, d] each, oldest first
};

class SemanticEncoder {
 public:
  using Trace = std::function<void(const std::string&, const at::Tensor&)>;
  /// @throws Failure on a bad checkpoint
  SemanticEncoder(checkpoint::TensorMap tensors, int heads, const std::string& source);

  /// Whisper log-mel [T, 128] -> hidden [ceil(ceil(T/2)/2), width].
  at::Tensor encode(const at::Tensor& mel, const Trace& trace = {}) const;
  /// Rows of a piece that is still growing. Each row attends to all rows of this call and to the settled ones before
  /// it, which stay as they were. The first `settle` rows of this call are settled then; of those
  /// kSemanticLookBackRows are remembered.
  /// @param mel  [T, 128] from the first frame that the first row that is not settled reads (`first_frame`) to the end
  /// @return [rows, width] from that row on
  at::Tensor extend(SemanticState& state, const at::Tensor& mel, std::int64_t settle) const;
  /// What `extend` takes.
  struct Growth {
    SemanticState* state = nullptr;
    at::Tensor mel;
    std::int64_t settle = 0;
  };
  /// The same for several pieces side by side, each with its own past. What a piece gets does not depend on its
  /// company: products sum each row on its own, the rest is done piece by piece.
  std::vector<at::Tensor> extend(const std::vector<Growth>& pieces) const;
  static std::int64_t first_frame(const SemanticState& state) { return std::max<std::int64_t>(0, 4 * state.rows - 3); }
  /// Nearest code of the L2-normalised rows.
  std::vector<std::int32_t> quantise(const at::Tensor& hidden) const;
  /// Preprocessed wave at 16 kHz -> ids; cut into pieces of 30 s, a piece under 30 ms is skipped.
  std::vector<std::int32_t> ids(std::span<const float> wave16k) const;
  std::int64_t width() const { return width_; }

 private:
  struct Block {
    at::Tensor attn_ln_w, attn_ln_b, mlp_ln_w, mlp_ln_b;
    nn::PackedLinear qkv, out, w0, w2;
  };
  struct Piece {
    at::Tensor mel;
    std::int64_t first_row = 0;
  };
  /// Keys and values [1, heads, rows, d] of a layer: it may put others in front of them.
  using Past = std::function<void(std::size_t piece, std::size_t layer, at::Tensor& k, at::Tensor& v)>;
  /// [1, rows, width], without context.
  at::Tensor embed(const Piece& piece, const Trace& trace) const;
  std::vector<at::Tensor> run(const std::vector<Piece>& pieces, const Past& past, const Trace& trace) const;
  std::int64_t width_ = 0;
  int heads_ = 0;
  at::Tensor conv1_w_, conv1_b_, conv2_w_, conv2_b_, positions_, codebook_t_, codebook_norms_;
  std::vector<Block> blocks_;
};

}  // namespace parlando::tokenizer
