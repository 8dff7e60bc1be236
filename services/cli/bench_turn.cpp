#include "services/cli/bench_turn.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "common/audio/resampler.hpp"
#include "services/cli/bench_setting.hpp"
#include "services/cli/dialogues.hpp"
#include "services/cli/served_engine.hpp"
#include "services/cli/ws_load.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int kRate = 16000;
constexpr double kTurnSecondsMax = 20;
constexpr std::int64_t kWarmUpTurns = 4;
constexpr int kInterruptEvery = 2;
constexpr int kSpeakers[] = {2, 4, 8, 16};  // at once, as long as it goes well
constexpr int kSpeakersTold = 4;
constexpr double kCrowdMs = 1000;  // of 95 % of the answers: then it goes well
constexpr double kLateMs = 1500;   // who waits longer for the decision thinks that nobody listens
constexpr std::chrono::milliseconds kAskEvery{250};
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
  out.pcm = in_a_room(wave);
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
    if (!t.interrupted && !t.cut_off) out.push_back(t.*what);
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

class TurnBench {
 public:
  TurnBench(const ServedEngine& engine, std::vector<Utterance> questions, std::vector<Utterance> dialogues,
            const TurnBenchOptions& options)
      : engine_(engine), questions_(std::move(questions)), dialogues_(std::move(dialogues)), options_(options) {}

  json figures = json::object();
  std::vector<std::string> missed() const { return table_.missed; }

  /// The labelled dialogues, by one speaker. @param primary  what is told of thinking ahead is told of this detector
  Result<void> dialogues(bool semantic, bool primary) {
    const std::string name = semantic ? "semantic" : "silence";
    auto plan = plan_of(dialogues_, semantic);
    plan.ask_every = kAskEvery;
    PARLANDO_TRY(const auto before, trials_of(engine_));
    PARLANDO_TRY(const auto run, measure(1, options_.turns, plan));
    PARLANDO_TRY(const auto after, trials_of(engine_));
    const auto& turns = run.spoken;
    auto& out = figures[name];
    out["end_of_speech_to_first_audio_ms"] =
        table_.row(name + ".end_of_speech_to_first_audio_ms", of(turns, &TurnFigure::first_audio), semantic ? 0 : 530);
    const auto ends = of(turns, &TurnFigure::end_told);
    out["end_of_speech_to_decision_ms"] = table_.row(name + ".end_of_speech_to_decision_ms", ends);
    const auto late = std::count_if(ends.begin(), ends.end(), [](double ms) { return ms > kLateMs; });
    const json detector{{"cut_off_share", share(run.cut_off, run.pauses)},
                        {"late_share", share(late, static_cast<std::int64_t>(ends.size()))},
                        {"pauses", run.pauses},
                        {"utterances", ends.size()}};
    out["detector"] = detector;
    say(name + ".cut_off_share", detector["cut_off_share"], semantic ? 0.03 : 1);
    say(name + ".late_share", detector["late_share"], 0.05);
    out["murmurs_that_ended_an_answer"] = run.murmurs_took;
    out["murmurs"] = run.murmurs;
    add_underruns(run);
    add_voices(run);
    if (semantic) figures["detector"] = detector;
    if (!primary) return {};
    thinking_ahead(turns, after.begun - before.begun - after.committed + before.committed);
    figures["overhead_ms"] = table_.row("overhead_ms", run.round_trips);
    return {};
  }

  /// More and more speakers at once, as long as nobody waits too long and no loudspeaker runs dry.
  Result<void> crowd(bool semantic) {
    int most = 1;
    for (const int speakers : kSpeakers) {
      PARLANDO_TRY(const auto run, measure(speakers, std::max<std::int64_t>(2 * speakers, quarter() / 2),
                                           plan_of(questions_, semantic)));
      const auto waits = of(run.spoken, &TurnFigure::first_audio);
      const auto name = fmt::format("{}_at_once.end_of_speech_to_first_audio_ms", speakers);
      const bool told = speakers == kSpeakersTold;
      const auto row = table_.row(name, waits, told && !semantic ? 650 : 0);
      figures["at_once"][std::to_string(speakers)] = row;
      if (told) add_underruns(run);
      if (quantile(waits, 0.95) > kCrowdMs || underruns_of(run) > 0) break;
      most = speakers;
    }
    figures["live_sessions"] = most;
    fmt::print("{:<{}} {:>8}\n", "live_sessions", kNameWidth, most);
    return {};
  }

  /// Every second answer is spoken over.
  Result<void> interruptions(bool semantic) {
    auto plan = plan_of(questions_, semantic);
    plan.interrupts_every = kInterruptEvery;
    PARLANDO_TRY(const auto run, measure(1, quarter(), plan));
    add_voices(run);
    figures["barge_in_ms"] = table_.row("barge_in_ms", silenced_, 0, 50);
    figures["voice_to_hold_ms"] = table_.row("voice_to_hold_ms", held_);
    figures["interruptions"] = interruptions_;
    return {};
  }

  void finish() {
    figures["underruns"] = underruns_;
    fmt::print("{:<{}} {:>8} ≤ 0\n", "underruns", kNameWidth, underruns_);
    if (underruns_ > 0) table_.missed.push_back("underruns");
  }

 private:
  std::int64_t quarter() const { return std::max<std::int64_t>(4, options_.turns / 4); }

  ClientPlan plan_of(const std::vector<Utterance>& said, bool semantic) const {
    ClientPlan plan;
    plan.speak = true;
    plan.utterances = said;
    plan.lead_ms = options_.lead_ms;
    plan.semantic = semantic;
    return plan;
  }

  Result<LoadFigures> measure(int speakers, std::int64_t turns, const ClientPlan& plan) {
    WsLoad load(engine_.port());
    PARLANDO_DO(load.add(speakers, plan));
    const auto seconds = [&](std::int64_t n) { return kTurnSecondsMax * static_cast<double>(n); };
    const auto warm = kWarmUpTurns * speakers;
    PARLANDO_DO(load.run_turns(warm, seconds(warm)));
    load.take();
    PARLANDO_DO(load.run_turns(warm + turns, seconds(turns)));
    return load.take();
  }

  static double share(std::int64_t part, std::int64_t of_all) {
    return of_all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(of_all);
  }

  void say(const std::string& name, double value, double most) {
    fmt::print("{:<{}} {:>8.3f}{}\n", name, kNameWidth, value, most < 1 ? fmt::format(" ≤ {}", most) : std::string());
    if (value > most) table_.missed.push_back(name);
  }

  static std::int64_t underruns_of(const LoadFigures& run) {
    std::int64_t sum = 0;
    for (const auto& t : run.spoken) sum += t.interrupted || t.cut_off ? 0 : t.underruns;
    return sum;
  }
  void add_underruns(const LoadFigures& run) { underruns_ += underruns_of(run); }

  void add_voices(const LoadFigures& run) {
    silenced_.insert(silenced_.end(), run.silenced.begin(), run.silenced.end());
    held_.insert(held_.end(), run.held.begin(), run.held.end());
    interruptions_ += run.interruptions;
  }

  void thinking_ahead(const std::vector<TurnFigure>& turns, double discarded_trials) {
    std::vector<double> behind_decision, saved;
    double whole = 0;
    for (const auto& t : turns) {
      if (t.interrupted || t.cut_off) continue;
      ++whole;
      if (std::isnan(t.trial)) continue;
      behind_decision.push_back(t.engine_audio - t.decision);
      saved.push_back(t.trial);
    }
    figures["committed"]["decision_to_first_audio_ms"] =
        table_.row("committed.decision_to_first_audio_ms", behind_decision, 10, 40);
    const auto count = static_cast<double>(turns.size());
    const double committed = whole == 0 ? 0 : static_cast<double>(saved.size()) / whole;
    // The turns of the warm-up are in the engine's counts.
    const double discarded = discarded_trials / (count + kWarmUpTurns);
    figures["speculation"] = {{"committed_share", committed}, {"discarded_per_turn", discarded}};
    figures["speculation"]["saved_ms"] = table_.row("speculation.saved_ms", saved);
    fmt::print("{:<{}} {:>8.2f} ≥ 0.6\n{:<{}} {:>8.2f} ≤ 0.7\n", "speculation.committed_share", kNameWidth, committed,
               "speculation.discarded_per_turn", kNameWidth, discarded);
    if (committed < 0.6) table_.missed.push_back("speculation.committed_share");
    if (discarded > 0.7) table_.missed.push_back("speculation.discarded_per_turn");
  }

  const ServedEngine& engine_;
  std::vector<Utterance> questions_, dialogues_;
  TurnBenchOptions options_;
  Table table_;
  std::vector<double> silenced_, held_;
  std::int64_t underruns_ = 0, interruptions_ = 0;
};

}  // namespace

Result<json> bench_turn(const TurnBenchOptions& options) {
  const Scratch scratch;
  if (scratch.path().empty()) return fail(Errc::io, "no folder can be made in /tmp");
  PARLANDO_TRY(auto asked, questions(options.model_path / "questions"));
  PARLANDO_TRY(auto labelled, read_dialogues(options.model_path / "dialogues"));
  auto out = machine_of(options.source);
  fmt::print("{} · {} cores · {} · {} · load {}\n", out["processor"].get<std::string>(), out["cores"].get<unsigned>(),
             out["instruction_set"].get<std::string>(), out["commit"].get<std::string>(),
             out["load_before"].get<std::string>());
  fmt::print("{:<{}} {:>8} {:>8} {:>8} {:>6}\n", "milliseconds", kNameWidth, "p50", "p95", "p99", "n");
  PARLANDO_TRY(const auto engine, ServedEngine::start(scratch.path(), options.model_path, false));
  TurnBench bench(engine, std::move(asked), std::move(labelled), options);
  const bool semantic = options.detector != Detector::silence;
  if (options.detector != Detector::semantic) PARLANDO_DO(bench.dialogues(false, !semantic));
  if (semantic) PARLANDO_DO(bench.dialogues(true, true));
  PARLANDO_DO(bench.crowd(semantic));
  PARLANDO_DO(bench.interruptions(semantic));
  bench.finish();
  out.update(bench.figures);
  const auto missed = bench.missed();
  out["load_after"] = load_average();
  out["missed"] = missed;
  fmt::print("load {} · {}\n", out["load_after"].get<std::string>(),
             missed.empty() ? "every target is met" : fmt::format("{} missed", missed.size()));
  return out;
}

}  // namespace parlando::cli
