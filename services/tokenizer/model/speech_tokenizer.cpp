#include "services/tokenizer/model/speech_tokenizer.hpp"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "common/audio/resampler.hpp"
#include "common/base/codes.hpp"
#include "common/base/mapped_file.hpp"
#include "common/checkpoint/safetensors.hpp"

namespace parlando::tokenizer {

Result<std::shared_ptr<const SpeechTokenizer>> SpeechTokenizer::load(const std::filesystem::path& directory) try {
  if (!std::filesystem::exists(directory / "tokenizer.json"))
    return fail(Errc::not_found,
                "'{}' holds no tokenizer.json; official directories are converted by `parlando import DIR OUT`",
                directory.string());
  PARLANDO_TRY(const auto text, read_file(directory / "tokenizer.json", 1u << 20));
  const auto config = nlohmann::json::parse(text, nullptr, false);
  auto heads = [&](const char* part) -> int {
    if (!config.is_object() || !config.contains(part) || !config[part].contains("heads") ||
        !config[part]["heads"].is_number_integer())
      raise(Errc::bad_json, "'{}/tokenizer.json' lacks {}.heads", directory.string(), part);
    return config[part]["heads"].get<int>();
  };
  PARLANDO_TRY(auto linguistic, checkpoint::read_safetensors(directory / "linguistic.safetensors"));
  PARLANDO_TRY(auto semantic, checkpoint::read_safetensors(directory / "semantic.safetensors"));
  auto encoder = std::make_shared<const LinguisticEncoder>(std::move(linguistic.tensors), heads("linguistic"),
                                                           (directory / "linguistic.safetensors").string());
  std::shared_ptr<const TurnEnd> turn_end;
  if (const auto file = directory / "turn_end.safetensors"; std::filesystem::exists(file)) {
    PARLANDO_TRY(auto weights, checkpoint::read_safetensors(file));
    turn_end = std::make_shared<const TurnEnd>(std::move(weights.tensors), encoder->width(), file.string());
  }
  return std::make_shared<const SpeechTokenizer>(
      std::move(encoder),
      std::make_shared<const SemanticEncoder>(std::move(semantic.tensors), heads("semantic"),
                                              (directory / "semantic.safetensors").string()),
      std::move(turn_end));
} catch (const Failure& failure) {
  return tl::make_unexpected(failure.error);
} catch (const std::exception& e) {
  return fail(Errc::internal, "loading the tokenizer of '{}' failed: {}", directory.string(), e.what());
}

double SpeechTokenizer::completeness(const at::Tensor& states, std::span<const float> wave) const {
  if (turn_end_ == nullptr) return TurnEnd::kUnknown;
  return turn_end_->completeness(TurnEnd::seen(states, wave), static_cast<double>(wave.size()) / 16000);
}

Result<std::vector<float>> SpeechTokenizer::preprocess(std::span<const float> wave, int rate,
                                                       const Preprocess& options) const {
  if (rate < 16000)
    return fail(Errc::invalid_argument, "audio at {} Hz cannot be tokenised, at least 16000 Hz is needed", rate);
  auto out = audio::resample(wave, rate, 16000);
  if (options.energy_norm) audio::peak_normalise(out);
  if (options.trim) out = audio::trim_silence(out).wave;
  return out;
}

Result<SpeechTokenizer::Ids> SpeechTokenizer::encode(std::span<const float> wave) const try {
  Ids ids;
  const auto rows = linguistic_->features(wave);
  const auto hidden = linguistic_->encode(rows);
  ids.states = latest_rows({}, hidden);
  ids.linguistic = linguistic_->quantise(hidden);
  ids.semantic = semantic_->ids(wave);
  return ids;
} catch (const Failure& failure) {
  return tl::make_unexpected(failure.error);
} catch (const std::exception& e) {
  return fail(Errc::internal, "tokenising {} samples failed: {}", wave.size(), e.what());
}

Result<std::vector<std::int32_t>> SpeechTokenizer::codes(std::span<const float> wave, int rate,
                                                         const Preprocess& options) const {
  PARLANDO_TRY(const auto ready, preprocess(wave, rate, options));
  PARLANDO_TRY(const auto ids, encode(ready));
  return interleave(ids.linguistic, ids.semantic);
}

}  // namespace parlando::tokenizer
