#include "services/cli/pauses.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/pcm.hpp"
#include "common/base/units.hpp"
#include "services/tokenizer/model/live.hpp"
#include "services/vad/model/silero.hpp"
#include "services/vad/turn_detector.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr std::int64_t kBeforeVoiceSamples = 4800;  // as the controller keeps them
constexpr int kSilenceMs = 4000;

/// @param live  the stream that has heard it, in mode `stable`; none: as at the end of an utterance in mode `exact`, of
/// which only the states are made
Result<HeardPause::Heard> hear(const tokenizer::SpeechTokenizer& model, std::span<const float> wave,
                               tokenizer::LiveTokenizer* live) try {
  const c10::InferenceMode guard;
  at::Tensor states;
  auto said = std::vector<float>(wave.begin(), wave.end());
  if (live != nullptr) {
    PARLANDO_TRY(const auto end, live->stable(wave.size()));
    states = end.states;
  } else {
    PARLANDO_TRY(said, model.preprocess(wave, kInputRate, {}));
    const auto& encoder = *model.linguistic();
    states = tokenizer::latest_rows({}, encoder.encode(encoder.features(said)));
  }
  if (!states.defined() || states.size(0) == 0) return HeardPause::Heard{{}, model.completeness({}, {})};
  return HeardPause::Heard{tokenizer::TurnEnd::seen(states, said), model.completeness(states, said)};
} catch (const std::exception& e) {
  return fail(Errc::internal, "hearing {} samples failed: {}", wave.size(), e.what());
}

void write_states(std::ofstream& file, const at::Tensor& states) {
  const auto missing = tokenizer::TurnEnd::kRows - states.size(0);
  const auto rows = at::cat({at::zeros({missing, states.size(1)}), states}).contiguous();
  file.write(static_cast<const char*>(rows.data_ptr()), static_cast<std::streamsize>(rows.nbytes()));
}

}  // namespace

Result<std::vector<HeardPause>> pauses_of(std::vector<float> wave, const std::shared_ptr<const vad::SileroWeights>& vad,
                                          const std::shared_ptr<const tokenizer::SpeechTokenizer>& model,
                                          const PausesOptions& options) {
  const auto pcm = to_pcm16(wave);
  wave = from_pcm16(pcm);
  wave.resize((wave.size() + kInputRate + vad::kFrameSamples - 1) / vad::kFrameSamples * vad::kFrameSamples, 0.0f);
  vad::Silero net(vad);
  vad::TurnConfig config;
  config.silence_ms = kSilenceMs;
  config.pause_ms = options.pause_ms;
  config.pause_again_ms = 0;  // each is listed once
  vad::TurnDetector detector(config);
  std::vector<HeardPause> out;
  std::int64_t begun = 0;
  std::optional<tokenizer::LiveTokenizer> stream;
  std::size_t open = 0;  // pauses before this one have all their tails
  for (std::int64_t at = 0; at + vad::kFrameSamples <= static_cast<std::int64_t>(wave.size());
       at += vad::kFrameSamples) {
    const auto frame = std::span(wave).subspan(static_cast<std::size_t>(at));
    const auto event = detector.push(net(frame.first<vad::kFrameSamples>()), at);
    const auto heard = at + vad::kFrameSamples;
    using Kind = vad::TurnEvent::Kind;
    if (event && event->kind == Kind::started) {
      begun = std::max<std::int64_t>(0, event->sample - kBeforeVoiceSamples);
      stream.emplace(model, tokenizer::LiveTokenizer::Options{});
    }
    if (event && event->kind == Kind::paused) out.push_back({begun, event->sample});
    if (event && event->kind == Kind::resumed) out.back().resumed = event->sample;
    if (!stream) continue;
    const auto known = begun + static_cast<std::int64_t>(stream->samples());
    const auto more = std::span(wave).subspan(static_cast<std::size_t>(known), static_cast<std::size_t>(heard - known));
    if (options.live) {
      PARLANDO_TRY([[maybe_unused]] const auto update, stream->push(more));
    } else {
      stream->add(more);
    }
    for (auto i = open; i < out.size(); ++i) {
      auto& pause = out[i];
      for (auto tail = pause.heard.size(); tail < options.tails_ms.size(); ++tail) {
        const auto until = pause.sample + options.tails_ms[tail] * kInputRate / 1000;
        if (heard < until) break;
        const auto said = std::span(wave).subspan(static_cast<std::size_t>(pause.begun),
                                                  static_cast<std::size_t>(until - pause.begun));
        PARLANDO_TRY(auto end, hear(*model, said, options.live ? &*stream : nullptr));
        pause.heard.push_back(std::move(end));
      }
      if (i == open && pause.heard.size() == options.tails_ms.size()) ++open;
    }
    if (!event || event->kind != Kind::ended) continue;
    stream.reset();
    open = out.size();
  }
  return out;
}

Result<void> print_pauses(const PausesOptions& options, bool as_json) {
  auto recordings = options.recordings;
  if (!options.list.empty()) {
    std::ifstream list(options.list);
    if (!list) return fail(Errc::not_found, "'{}' cannot be read", options.list.string());
    for (std::string line; std::getline(list, line);)
      if (!line.empty()) recordings.push_back(line);
  }
  if (recordings.empty()) return fail(Errc::invalid_argument, "give a recording, or --list with a file of their names");
  PARLANDO_TRY(const auto vad, vad::SileroWeights::load(options.vad_weights));
  PARLANDO_TRY(const auto model, tokenizer::SpeechTokenizer::load(options.model_path / "Step-Audio-Tokenizer"));
  std::ofstream states;
  if (!options.states.empty()) {
    states.open(options.states, std::ios::binary | std::ios::trunc);
    if (!states) return fail(Errc::io, "'{}' cannot be written", options.states.string());
  }
  for (const auto& name : recordings) {
    PARLANDO_TRY(const auto recording, audio::read_audio(name));
    PARLANDO_TRY(const auto pauses,
                 pauses_of(audio::resample(recording.wave, recording.rate, kInputRate), vad, model, options));
    json list = json::array();
    for (const auto& p : pauses) {
      for (std::size_t tail = 0; tail < p.heard.size(); ++tail) {
        const auto& heard = p.heard[tail];
        list.push_back({{"begun_sample", p.begun},
                        {"sample", p.sample},
                        {"resumed_sample", p.resumed ? json(*p.resumed) : json()},
                        {"tail_ms", options.tails_ms[tail]},
                        {"rows", heard.rows.defined() ? heard.rows.size(0) : 0},
                        {"completeness", heard.completeness < 0 ? json() : json(heard.completeness)}});
        if (!as_json)
          fmt::print("{:<40} {:6.2f} s  {:>4} ms  {}\n", name, static_cast<double>(p.sample) / kInputRate,
                     options.tails_ms[tail],
                     heard.completeness < 0 ? "completeness is not known" : fmt::format("{:.3f}", heard.completeness));
        if (states.is_open() && heard.rows.defined()) write_states(states, heard.rows);
      }
    }
    if (as_json) std::cout << json{{"recording", name}, {"pauses", list}}.dump() << "\n";
  }
  if (states.is_open() && !states.flush()) return fail(Errc::io, "'{}' cannot be written", options.states.string());
  return {};
}

}  // namespace parlando::cli
