#include "services/cli/bench_turn.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "common/audio/resampler.hpp"
#include "services/cli/bench_setting.hpp"
#include "services/cli/served_engine.hpp"
#include "services/cli/ws_load.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int kRate = 16000;
constexpr double kTurnSecondsMax = 20;
constexpr std::int64_t kWarmUpTurns = 4;
constexpr int kSpeakersAtOnce = 4;
constexpr int kInterruptEvery = 2;
constexpr float kLoud = 0.02f;  // of the loudest sample: what is softer behind the last word is no speech
constexpr int kWindow = kRate / 100;
constexpr std::size_t kNameWidth = 46;

/// A recording as it is said, and where its last word ends: the last 10 ms that are louder than `kLoud` of the peak.
Result<Utterance> utterance_of(const fs::path& file) {
  PARLANDO_TRY(const auto recording, audio::read_audio(file, 30));
  const auto wave = audio::resample(recording.wave, recording.rate, kRate);
  float peak = 0;
  for (const float x : wave) peak = std::max(peak, std::abs(x));
  Utterance out;
  for (std::size_t i = 0; i < wave.size(); ++i) {
    const auto sample = static_cast<std::int16_t>(std::lround(std::clamp(wave[i], -1.0f, 1.0f) * 32767));
    out.pcm.push_back(static_cast<char>(sample & 0xff));
    out.pcm.push_back(static_cast<char>(sample >> 8));
  }
  for (std::size_t at = 0; at + kWindow <= wave.size(); at += kWindow) {
    double energy = 0;
    for (int i = 0; i < kWindow; ++i) energy += wave[at + i] * wave[at + i];
    if (std::sqrt(energy / kWindow) <= kLoud * peak) continue;
    if (out.end_sample == 0) out.begin_sample = static_cast<std::int64_t>(at);
    out.end_sample = static_cast<std::int64_t>(at + kWindow);
  }
  return out;
}

Result<std::vector<Utterance>> questions(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code))
    if (entry.path().extension() == ".wav") files.push_back(entry.path());
  if (files.empty()) return fail(Errc::not_found, "'{}' holds no recording to be said", folder.string());
  std::sort(files.begin(), files.end());
  std::vector<Utterance> out;
  for (const auto& file : files) {
    PARLANDO_TRY(auto said, utterance_of(file));
    out.push_back(std::move(said));
  }
  return out;
}

class Table {
 public:
  json figures = json::object();
  std::vector<std::string> missed;

  /// @param most50, most95  targets of the median and the 95th percentile; 0: none
  json row(const std::string& name, std::vector<double> values, double most50 = 0, double most95 = 0) {
    std::erase_if(values, [](double v) { return std::isnan(v); });
    const auto p = [&](double q) { return quantile(values, q); };
    const bool met = !values.empty() && (most50 == 0 || p(0.5) <= most50) && (most95 == 0 || p(0.95) <= most95);
    fmt::print("{:<{}} {:>8.1f} {:>8.1f} {:>8.1f} {:>6}  {}{}\n", name, kNameWidth, p(0.5), p(0.95), p(0.99),
               values.size(), most50 > 0 ? fmt::format("p50 ≤ {:.0f} ", most50) : std::string(),
               most95 > 0 ? fmt::format("p95 ≤ {:.0f} ", most95) : std::string());
    std::fflush(stdout);
    if (!met) missed.push_back(name);
    return {{"p50", p(0.5)}, {"p95", p(0.95)}, {"p99", p(0.99)}, {"n", values.size()}};
  }
};

std::vector<double> of(const std::vector<TurnFigure>& turns, double TurnFigure::*what) {
  std::vector<double> out;
  for (const auto& t : turns)
    if (!t.interrupted) out.push_back(t.*what);
  return out;
}

struct Trials {
  double begun = 0, committed = 0;
};
Result<Trials> trials_of(const ServedEngine& engine) {
  Trials out;
  PARLANDO_TRY(out.begun, engine.metric("parlando_controller_trials_total"));
  PARLANDO_TRY(out.committed, engine.metric("parlando_controller_trials_committed_total"));
  return out;
}

}  // namespace

Result<json> bench_turn(const TurnBenchOptions& options) {
  const Scratch scratch;
  if (scratch.path().empty()) return fail(Errc::io, "no folder can be made in /tmp");
  PARLANDO_TRY(const auto said, questions(options.model_path / "questions"));
  auto out = machine_of(options.source);
  fmt::print("{} · {} cores · {} · {} · load {}\n", out["processor"].get<std::string>(), out["cores"].get<unsigned>(),
             out["instruction_set"].get<std::string>(), out["commit"].get<std::string>(),
             out["load_before"].get<std::string>());
  fmt::print("{:<{}} {:>8} {:>8} {:>8} {:>6}\n", "milliseconds", kNameWidth, "p50", "p95", "p99", "n");
  PARLANDO_TRY(const auto engine, ServedEngine::start(scratch.path(), options.model_path, false));
  ClientPlan plan;
  plan.speak = true;
  plan.utterances = said;
  plan.lead_ms = options.lead_ms;
  Table table;
  const auto measure = [&](int speakers, std::int64_t turns, const ClientPlan& how) -> Result<LoadFigures> {
    WsLoad load(engine.port());
    PARLANDO_DO(load.add(speakers, how));
    const auto seconds = [&](std::int64_t n) { return kTurnSecondsMax * static_cast<double>(n); };
    const auto warm = kWarmUpTurns * speakers;
    PARLANDO_DO(load.run_turns(warm, seconds(warm)));
    load.take();
    PARLANDO_DO(load.run_turns(warm + turns, seconds(turns)));
    return load.take();
  };
  std::int64_t underruns = 0;
  const auto add_underruns = [&](const LoadFigures& f) {
    for (const auto& t : f.spoken) underruns += t.interrupted ? 0 : t.underruns;
  };
  {
    PARLANDO_TRY(const auto before, trials_of(engine));
    PARLANDO_TRY(const auto one, measure(1, options.turns, plan));
    PARLANDO_TRY(const auto after, trials_of(engine));
    add_underruns(one);
    const auto& turns = one.spoken;
    out["silence"]["end_of_speech_to_first_audio_ms"] =
        table.row("silence.end_of_speech_to_first_audio_ms", of(turns, &TurnFigure::first_audio), 530);
    std::vector<double> behind_decision, saved;
    std::size_t committed = 0;
    for (const auto& t : turns) {
      if (std::isnan(t.trial)) continue;
      ++committed;
      behind_decision.push_back(t.engine_audio - t.decision);
      saved.push_back(t.trial);
    }
    out["committed"]["decision_to_first_audio_ms"] =
        table.row("committed.decision_to_first_audio_ms", behind_decision, 10, 40);
    const auto count = static_cast<double>(turns.size());
    const double share = static_cast<double>(committed) / count;
    // The turns of the warm-up are in the engine's counts.
    const double all = count + kWarmUpTurns;
    const double discarded = (after.begun - before.begun - after.committed + before.committed) / all;
    out["speculation"] = {{"committed_share", share}, {"discarded_per_turn", discarded}};
    out["speculation"]["saved_ms"] = table.row("speculation.saved_ms", saved);
    fmt::print("{:<{}} {:>8.2f} ≥ 0.6\n{:<{}} {:>8.2f} ≤ 0.7\n", "speculation.committed_share", kNameWidth, share,
               "speculation.discarded_per_turn", kNameWidth, discarded);
    if (share < 0.6) table.missed.push_back("speculation.committed_share");
    if (discarded > 0.7) table.missed.push_back("speculation.discarded_per_turn");
  }
  const auto quarter = std::max<std::int64_t>(4, options.turns / 4);
  {
    PARLANDO_TRY(const auto four, measure(kSpeakersAtOnce, quarter, plan));
    add_underruns(four);
    out["four"]["end_of_speech_to_first_audio_ms"] =
        table.row("four.end_of_speech_to_first_audio_ms", of(four.spoken, &TurnFigure::first_audio), 650);
  }
  {
    auto how = plan;
    how.interrupts_every = kInterruptEvery;
    PARLANDO_TRY(const auto talk, measure(1, quarter, how));
    out["barge_in_ms"] = table.row("barge_in_ms", talk.silenced, 0, 50);
    out["voice_to_hold_ms"] = table.row("voice_to_hold_ms", talk.held);
    out["interruptions"] = talk.interruptions;
  }
  out["underruns"] = underruns;
  fmt::print("{:<{}} {:>8} ≤ 0\n", "underruns", kNameWidth, underruns);
  if (underruns > 0) table.missed.push_back("underruns");
  // Not measured: there is no semantic detector, and no labelled dialogue with pauses and coughs yet.
  out["semantic"] = out["detector"] = nullptr;
  out["load_after"] = load_average();
  out["missed"] = table.missed;
  fmt::print("load {} · {}\n", out["load_after"].get<std::string>(),
             table.missed.empty() ? "every target is met" : fmt::format("{} missed", table.missed.size()));
  return out;
}

}  // namespace parlando::cli
