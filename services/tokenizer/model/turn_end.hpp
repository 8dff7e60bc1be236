#pragma once
/// How complete an utterance sounds at a pause: a small network over what the linguistic encoder made of its last two
/// seconds. Rows of states go through a linear layer that knows how far they are from the end and a convolution over
/// five of them; heads of attention pool them beside the mean of all and the mean of the last eight; with the length
/// of the utterance two layers give one logit. Trained by tools/nano/train/turn_end; official weights have none.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

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

  /// @param states  [0 ≤ rows ≤ kRows, width], the latest of the utterance.  @param seconds  length of the utterance
  /// @return probability in [0, 1] that the user has said what they wanted to say; 0 without any row
  double completeness(const at::Tensor& states, double seconds) const;

 private:
  std::int64_t inner_ = 0, heads_ = 0;
  at::Tensor in_w_, in_b_, place_, conv_w_, conv_b_, attend_, hidden_w_, hidden_b_, out_w_, out_b_;
};

/// The last `TurnEnd::kRows` of `before` and `rows`, both [·, width]; either may be undefined. A new tensor.
at::Tensor latest_rows(const at::Tensor& before, const at::Tensor& rows);

}  // namespace parlando::tokenizer
