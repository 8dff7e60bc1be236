#pragma once
/// How complete an utterance sounds at a pause: small recurrent networks over its last two seconds, of which they see
/// what the linguistic encoder has made of them and how they were said (`prosody_of`). Rows go through a linear layer
/// and a GRU; its last state and the length of the utterance give one logit in two layers, and the logits of all
/// networks are averaged. Trained by tools/nano/train/turn_end; official weights have none.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/checkpoint/tensor_data.hpp"

namespace parlando::tokenizer {

class TurnEnd {
 public:
  /// Rows that it looks at, 60 ms each; a caller keeps so many.
  static constexpr std::int64_t kRows = 32;
  /// What is told where there is no such network.
  static constexpr double kUnknown = -1;

  /// @param width  of the encoder's states.  @throws Failure (Errc::checkpoint_mismatch) on a bad checkpoint
  TurnEnd(checkpoint::TensorMap tensors, std::int64_t width, const std::string& source);

  /// What the networks look at. @param states  [rows, width], the latest of the utterance; undefined: none
  /// @param wave  the utterance up to the same moment, at 16 kHz.  @return [rows ≤ kRows, width + kProsodyWidth]
  static at::Tensor seen(const at::Tensor& states, std::span<const float> wave);

  /// @param seen  as `seen` makes it.  @param seconds  length of the utterance
  /// @return probability in [0, 1] that the user has said what they wanted to say; 0 without any row
  double completeness(const at::Tensor& seen, double seconds) const;

 private:
  struct Net {
    at::Tensor in_w, in_b, hidden_w, hidden_b, out_w, out_b;
    std::vector<at::Tensor> gru;
  };
  std::vector<Net> nets_;
};

/// The last `TurnEnd::kRows` of `before` and `rows`, both [·, width]; either may be undefined. A new tensor.
at::Tensor latest_rows(const at::Tensor& before, const at::Tensor& rows);

}  // namespace parlando::tokenizer
