#pragma once
/// Both codebooks of one tokenizer directory (the form that `parlando import` writes), and the offline path from a wave
/// to codes.
#include <filesystem>
#include <memory>

#include "services/tokenizer/model/linguistic.hpp"
#include "services/tokenizer/model/semantic.hpp"
#include "services/tokenizer/model/turn_end.hpp"

namespace parlando::tokenizer {

struct Preprocess {
  bool trim = false;        ///< cut silence at both ends: cloning and speaker prompts
  bool energy_norm = true;  ///< divide by the peak of the whole utterance
};

class SpeechTokenizer {
 public:
  /// @param turn_end  none: no completeness is known
  SpeechTokenizer(std::shared_ptr<const LinguisticEncoder> linguistic, std::shared_ptr<const SemanticEncoder> semantic,
                  std::shared_ptr<const TurnEnd> turn_end = nullptr)
      : linguistic_(std::move(linguistic)), semantic_(std::move(semantic)), turn_end_(std::move(turn_end)) {}
  /// @param directory  tokenizer.json, linguistic.safetensors, semantic.safetensors, perhaps turn_end.safetensors
  /// @error Errc::not_found or Errc::checkpoint_mismatch, naming the file and what was expected
  static Result<std::shared_ptr<const SpeechTokenizer>> load(const std::filesystem::path& directory);

  const std::shared_ptr<const LinguisticEncoder>& linguistic() const { return linguistic_; }
  const SemanticEncoder& semantic() const { return *semantic_; }

  bool knows_completeness() const { return turn_end_ != nullptr; }
  /// @param states, wave  of the utterance. @return as `TurnEnd` says it; TurnEnd::kUnknown without such a network
  double completeness(const at::Tensor& states, std::span<const float> wave) const;

  /// Mono wave at `rate` Hz -> wave at 16 kHz, normalised and trimmed as asked.
  /// @error Errc::invalid_argument when the rate is below 16 kHz, as in the reference
  Result<std::vector<float>> preprocess(std::span<const float> wave, int rate, const Preprocess& options) const;

  struct Ids {
    std::vector<std::int32_t> linguistic, semantic;
    at::Tensor states;  ///< of the linguistic encoder, the latest `TurnEnd::kRows`
  };
  /// Preprocessed wave at 16 kHz -> ids of both codebooks.
  Result<Ids> encode(std::span<const float> wave16k) const;
  /// Wave -> interleaved codes 0…5119. Audio under 90 ms gives none.
  Result<std::vector<std::int32_t>> codes(std::span<const float> wave, int rate, const Preprocess& options) const;

 private:
  std::shared_ptr<const LinguisticEncoder> linguistic_;
  std::shared_ptr<const SemanticEncoder> semantic_;
  std::shared_ptr<const TurnEnd> turn_end_;
};

}  // namespace parlando::tokenizer
