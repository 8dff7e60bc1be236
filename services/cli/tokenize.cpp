#include "services/cli/tokenize.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iostream>

#include "common/audio/audio_file.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/codes.hpp"
#include "common/base/units.hpp"
#include "services/tokenizer/model/live.hpp"
#include "services/vad/model/silero.hpp"
#include "services/vad/turn_detector.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr std::int64_t kPrerollSamples = 4800, kTailSamples = 3200;  // as the controller keeps them

/// What a conversation whose end the client tells would hear: from the first start of speech to its last end.
Result<audio::Recording> speech_of(const audio::Recording& recording, const fs::path& weights) {
  PARLANDO_TRY(const auto loaded, vad::SileroWeights::load(weights));
  auto wave = audio::resample(recording.wave, recording.rate, kInputRate);
  const auto size = static_cast<std::int64_t>(wave.size());
  wave.resize((wave.size() + vad::kFrameSamples - 1) / vad::kFrameSamples * vad::kFrameSamples, 0.0f);
  vad::Silero net(loaded);
  vad::TurnDetector detector({});
  std::int64_t first = -1, last = -1;
  const auto note = [&](const std::optional<vad::TurnEvent>& event) {
    using Kind = vad::TurnEvent::Kind;
    if (event && event->kind == Kind::started && first < 0) first = event->sample;
    if (event && event->kind == Kind::ended) last = event->sample;
  };
  for (std::int64_t at = 0; at < static_cast<std::int64_t>(wave.size()); at += vad::kFrameSamples)
    note(detector.push(net(std::span(wave).subspan(static_cast<std::size_t>(at)).first<vad::kFrameSamples>()), at));
  note(detector.flush());
  if (first < 0)
    return fail(Errc::no_speech, "no speech was found in {:.2f} s of audio", static_cast<double>(size) / kInputRate);
  const auto begin = std::max<std::int64_t>(0, first - kPrerollSamples), end = std::min(size, last + kTailSamples);
  return audio::Recording{kInputRate, {wave.begin() + begin, wave.begin() + end}};
}

int compare_live(const Common& common, const std::shared_ptr<const tokenizer::SpeechTokenizer>& tokenizer,
                 const audio::Recording& recording_of, bool trim) {
  const auto wave = tokenizer->preprocess(recording_of.wave, recording_of.rate, {trim, false});
  if (!wave) return report(wave.error(), common.as_json);
  tokenizer::LiveTokenizer stream(tokenizer, {});
  std::int64_t frozen = 0;
  for (std::size_t at = 0; at < wave->size(); at += 320) {
    const auto update =
        stream.push(std::span<const float>(*wave).subspan(at, std::min<std::size_t>(320, wave->size() - at)));
    if (!update) return report(update.error(), common.as_json);
    if (*update) frozen = (*update)->final_groups;
  }
  const auto whole = stream.exact(wave->size()), streamed = stream.stable(wave->size());
  if (!whole || !streamed) return report(whole ? streamed.error() : whole.error(), common.as_json);
  const auto *exact = &whole->codes, *stable = &streamed->codes;
  std::size_t differ = 0;
  for (std::size_t i = 0; i < exact->size(); ++i) differ += i >= stable->size() || (*exact)[i] != (*stable)[i];
  const json out{{"seconds", recording_of.seconds()},
                 {"codes", exact->size()},
                 {"frozen_while_speaking", frozen * kCodesPerGroup},
                 {"differ_from_exact", differ}};
  if (common.as_json)
    std::cout << out.dump() << "\n";
  else
    fmt::print("{} codes, {} frozen while speaking, {} ({:.1f} %) differ from the exact ones\n", exact->size(),
               frozen * kCodesPerGroup, differ,
               exact->empty() ? 0.0 : 100.0 * static_cast<double>(differ) / static_cast<double>(exact->size()));
  return kOk;
}

}  // namespace

int tokenize(const Common& common, const TokenizeOptions& options) {
  auto recording = audio::read_audio(options.recording);
  if (!recording) return report(recording.error(), common.as_json);
  if (options.speech_only) {
    auto speech = speech_of(*recording, find_models("silero-vad") / "silero_vad.safetensors");
    if (!speech) return report(speech.error(), common.as_json);
    recording = *std::move(speech);
  }
  const auto directory = fs::path(common.model_path) / "Step-Audio-Tokenizer";
  auto tokenizer = tokenizer::SpeechTokenizer::load(fs::exists(directory) ? directory : fs::path(common.model_path));
  if (!tokenizer) return report(tokenizer.error(), common.as_json);
  if (options.live) return compare_live(common, *tokenizer, *recording, options.trim);
  const auto codes = (*tokenizer)->codes(recording->wave, recording->rate, {options.trim, !options.no_norm});
  if (!codes) return report(codes.error(), common.as_json);
  if (common.as_json)
    std::cout << json{{"seconds", recording->seconds()}, {"codes", *codes}}.dump() << "\n";
  else
    std::cout << to_token_string(*codes) << "\n";
  return kOk;
}

}  // namespace parlando::cli
