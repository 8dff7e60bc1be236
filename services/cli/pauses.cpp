#include "services/cli/pauses.hpp"

#include <ATen/ATen.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/pcm.hpp"
#include "services/tokenizer/model/live.hpp"
#include "services/vad/model/silero.hpp"
#include "services/vad/turn_detector.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int kRate = 16000;
constexpr std::int64_t kPrerollSamples = 4800;  // as the controller keeps them
constexpr int kSilenceMs = 4000;

struct Pause {
  std::int64_t begun = 0, sample = 0;  ///< where the utterance begins, where speech ends
  tokenizer::LiveEnd heard;
};

/// Every pause that lasts until the sound that belongs to its end has come.
Result<std::vector<Pause>> pauses_of(std::vector<float> wave, const std::shared_ptr<const vad::SileroWeights>& vad,
                                     const std::shared_ptr<const tokenizer::SpeechTokenizer>& model, bool live,
                                     std::int64_t tail_samples) {
  const auto pcm = to_pcm16(wave);
  wave = from_pcm16(pcm);
  wave.resize((wave.size() + kRate + vad::kFrameSamples - 1) / vad::kFrameSamples * vad::kFrameSamples, 0.0f);
  vad::Silero net(vad);
  vad::TurnConfig config;
  config.silence_ms = kSilenceMs;
  vad::TurnDetector detector(config);
  std::vector<Pause> out;
  std::int64_t begun = 0, paused = -1;
  std::optional<tokenizer::LiveTokenizer> stream;
  for (std::int64_t at = 0; at + vad::kFrameSamples <= static_cast<std::int64_t>(wave.size());
       at += vad::kFrameSamples) {
    const auto frame = std::span(wave).subspan(static_cast<std::size_t>(at));
    const auto event = detector.push(net(frame.first<vad::kFrameSamples>()), at);
    const auto heard = at + vad::kFrameSamples;
    using Kind = vad::TurnEvent::Kind;
    if (event && event->kind == Kind::started) {
      begun = std::max<std::int64_t>(0, event->sample - kPrerollSamples);
      stream.emplace(model, tokenizer::LiveTokenizer::Options{});
    }
    if (event) paused = event->kind == Kind::paused ? event->sample : -1;
    if (!stream) continue;
    const auto known = begun + static_cast<std::int64_t>(stream->samples());
    const auto more = std::span(wave).subspan(static_cast<std::size_t>(known), static_cast<std::size_t>(heard - known));
    if (live) {
      PARLANDO_TRY([[maybe_unused]] const auto update, stream->push(more));
    } else {
      stream->add(more);
    }
    if (event && event->kind == Kind::ended) stream.reset();
    if (paused < 0 || heard < paused + tail_samples) continue;
    const auto end = static_cast<std::size_t>(paused + tail_samples - begun);
    PARLANDO_TRY(auto heard_so_far, live ? stream->stable(end) : stream->exact(end));
    out.push_back({begun, paused, std::move(heard_so_far)});
    paused = -1;
  }
  return out;
}

void write_states(std::ofstream& file, const at::Tensor& states) {
  const auto missing = tokenizer::TurnEnd::kRows - states.size(0);
  const auto rows = at::cat({at::zeros({missing, states.size(1)}), states}).contiguous();
  file.write(static_cast<const char*>(rows.data_ptr()), static_cast<std::streamsize>(rows.nbytes()));
}

}  // namespace

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
    PARLANDO_TRY(const auto pauses, pauses_of(audio::resample(recording.wave, recording.rate, kRate), vad, model,
                                              options.live, options.tail_ms * kRate / 1000));
    json list = json::array();
    for (const auto& p : pauses) {
      const auto at = static_cast<double>(p.sample) / kRate;
      const auto& heard = p.heard;
      list.push_back({{"begun_sample", p.begun},
                      {"sample", p.sample},
                      {"rows", heard.states.defined() ? heard.states.size(0) : 0},
                      {"completeness", heard.completeness < 0 ? json() : json(heard.completeness)}});
      if (!as_json)
        fmt::print("{:<40} {:6.2f} s  {}\n", name, at,
                   heard.completeness < 0 ? "completeness is not known" : fmt::format("{:.3f}", heard.completeness));
      if (states.is_open() && heard.states.defined()) write_states(states, heard.states);
    }
    if (as_json) std::cout << json{{"recording", name}, {"pauses", list}}.dump() << "\n";
  }
  if (states.is_open() && !states.flush()) return fail(Errc::io, "'{}' cannot be written", options.states.string());
  return {};
}

}  // namespace parlando::cli
