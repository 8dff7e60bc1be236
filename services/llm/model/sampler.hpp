#pragma once
/// From logits to the next id: repetition penalty -> repetition-aware ban -> temperature -> top-k -> top-p -> softmax
/// -> draw. Source: docs/lm.md §8.
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::llm {

struct Sampling {
  double temperature = 0.7;                  ///< 0 = greedy: the largest logit, the lowest id on ties; else 0.001…100
  std::optional<std::int64_t> top_k = 50;    ///< ties at the border survive
  std::optional<double> top_p;               ///< in (0, 1]
  std::optional<double> repetition_penalty;  ///< 0.001…1000
  bool repetition_aware = false;             ///< TTS: an id seen twice among the last ten is forbidden for this step
  std::uint64_t seed = 0;

  static Sampling chat() { return {.temperature = 0.7, .top_k = 50, .top_p = 0.9}; }
  static Sampling tts() { return {.temperature = 0.7, .top_k = 50, .repetition_aware = true}; }
  static Sampling greedy() { return {.temperature = 0, .top_k = {}}; }
  std::optional<Error> problem() const;
  bool operator==(const Sampling&) const = default;
};

/// Probability of every id after the whole chain. @param history prompt + output
/// @error Errc::invalid_argument when no id is left, Errc::internal when a logit is NaN or +inf (a broken computation,
/// never an id)
Result<std::vector<float>> probabilities(std::span<const float> logits, std::span<const std::int32_t> history,
                                         const Sampling& sampling);

/// The next id. The draw depends on (seed, position) alone, and logits do not depend on who shares a pass: on the same
/// instruction set, with the same weights in the same format, a replay repeats it.
Result<std::int32_t> sample(std::span<const float> logits, std::span<const std::int32_t> history,
                            const Sampling& sampling, std::uint64_t position);

/// What a draw needs to know of a part of the vocabulary. Of all parts, one behind the other, it gives the id that
/// `sample` of all logits gives.
struct Candidates {
  std::vector<std::int32_t> ids;  ///< ascending
  std::vector<float> values;      ///< their logits, as the repetition rules leave them
  std::int32_t bad = -1;          ///< an id whose logit is NaN or +inf; −1: none. The others mean nothing then
  float bad_value = 0;
};
/// Greedy: the largest one. With a top_k below the vocabulary: so many of the part, and what equals or nearly equals
/// the last of them. Else all of the part, since each of its ids may be drawn.
/// @param first  id of the first of these logits   @param vocabulary  ids of all parts   @param out  keeps its memory
void candidates(std::span<const float> logits, std::int64_t first, std::int64_t vocabulary,
                std::span<const std::int32_t> history, const Sampling& sampling, Candidates& out);
/// @error as for all logits
Result<std::int32_t> sample(const Candidates& all, std::int64_t vocabulary, const Sampling& sampling,
                            std::uint64_t position);

/// Counter-based uniform number in [0, 1).
double uniform(std::uint64_t seed, std::uint64_t counter);

}  // namespace parlando::llm
