#include "services/cli/ends.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/base/pcm.hpp"
#include "common/base/units.hpp"
#include "services/cli/bench_setting.hpp"
#include "services/cli/dialogues.hpp"
#include "services/controller/lead.hpp"
#include "services/vad/turn_detector.hpp"

namespace parlando::cli {
using nlohmann::json;

namespace {

constexpr std::int64_t kPerMs = 16, kPreroll = 300 * kPerMs;
constexpr double kLateMs = 1500;
constexpr std::int64_t kEndTolerance = 100 * kPerMs;  // a closed mouth in the last sound of a word is its end
enum Tail : std::size_t { kHint, kJudge, kAgain };

/// Silence in whole frames at which a vad that was asked for so many milliseconds ends an utterance.
std::int64_t ends_after(int silence_ms) {
  vad::TurnConfig turn;
  turn.silence_ms = silence_ms;
  return turn.end_samples();
}

std::int64_t permille(const HeardPause& pause, Tail tail) {
  return tail < pause.heard.size() ? std::lround(1000 * pause.heard[tail].completeness) : 0;
}

}  // namespace

FoundEnd end_of(const std::vector<HeardPause>& pauses, const controller::ControllerConfig& config) {
  using By = FoundEnd::By;
  const auto lead = controller::lead_by({.detection = protocol::Detection::semantic}, config, {}).value();
  auto patience = controller::Patience::likely;
  const auto waited = [&] { return ends_after(lead->vad(true, patience).silence_ms); };
  auto waits = waited();
  for (const auto& p : pauses) {
    auto likely = permille(p, kJudge);
    if (likely >= lead->enough(false)) return {p.sample, p.sample + config.judge_ms * kPerMs, By::judged};
    const auto lasts = [&](std::int64_t samples) { return !p.resumed || *p.resumed - p.sample >= samples; };
    const auto told_again = vad::TurnConfig{}.again_samples();
    if (config.judge_again_ms > 0 && lasts(told_again) && waits > told_again) {
      likely = permille(p, kAgain);
      const auto heard = std::max(told_again, config.judge_again_ms * kPerMs);
      if (likely >= lead->enough(true)) return {p.sample, p.sample + heard, By::judged_again};
    }
    if (lasts(waits) && lead->patience(likely) > patience) {
      patience = lead->patience(likely);
      waits = waited();
    }
    if (lasts(waits)) return {p.sample, p.sample + waits, By::silence};
  }
  return {pauses.back().sample, pauses.back().sample + waits, By::silence};
}

double voiced_ms(const std::vector<HeardPause>& pauses) {
  std::int64_t sum = 0;
  const HeardPause* before = nullptr;
  for (const auto& p : pauses) {
    const auto from =
        before != nullptr && before->begun == p.begun ? before->resumed.value_or(p.sample) : p.begun + kPreroll;
    sum += std::max<std::int64_t>(0, p.sample - from - vad::TurnConfig{}.lag_ms * kPerMs);
    before = &p;
  }
  return static_cast<double>(sum) / kPerMs;
}

Result<json> ends_of_dialogues(const std::filesystem::path& folder, int rounds, const PausesOptions& given) {
  PARLANDO_TRY(const auto once, read_dialogues(folder));
  PARLANDO_TRY(const auto vad, vad::SileroWeights::load(given.vad_weights));
  PARLANDO_TRY(const auto model, tokenizer::SpeechTokenizer::load(given.model_path / "Step-Audio-Tokenizer"));
  if (!model->knows_completeness())
    return fail(Errc::unsupported, "'{}' cannot say how complete an utterance is", given.model_path.string());
  const controller::ControllerConfig config;
  auto options = given;
  options.live = true;
  options.pause_ms = vad::TurnConfig{}.pause_ms;
  options.tails_ms = {config.semantic_tail_ms, config.judge_ms, config.judge_again_ms};
  std::vector<double> decided;
  int pauses = 0, cut_off = 0, late = 0, at_once = 0, again = 0, dropped = 0, committed = 0, murmurs = 0, took = 0;
  json all = json::array();
  for (int round = 0; round < rounds; ++round)
    for (const auto& said : round == 0 ? once : redrawn(once, static_cast<unsigned>(round))) {
      const auto wave = from_pcm16(std::as_bytes(std::span(said.pcm)));
      PARLANDO_TRY(const auto heard, pauses_of(wave, vad, model, options));
      if (!said.takes_turn) {
        ++murmurs;
        took += voiced_ms(heard) >= config.barge_in_ms;
        continue;
      }
      pauses += said.pauses;
      if (heard.empty()) return fail(Errc::no_speech, "no end was heard in an utterance of the dialogues");
      const auto end = end_of(heard, config);
      const bool cut = end.sample < said.end_sample - kEndTolerance || end.decided_sample < said.end_sample;
      for (const auto& p : heard) {
        if (p.sample > end.sample || permille(p, kHint) < config.trial_permille) continue;
        ++(p.sample == end.sample && !cut ? committed : dropped);
      }
      const auto ms = static_cast<double>(end.decided_sample - said.end_sample) / kPerMs;
      json scores = json::array();
      for (const auto& p : heard)
        scores.push_back({p.sample, permille(p, kHint), permille(p, kJudge), permille(p, kAgain)});
      all.push_back({{"end_sample", said.end_sample}, {"ms", ms}, {"cut_off", cut}, {"pauses", scores}});
      cut_off += cut;
      if (cut) continue;
      decided.push_back(ms);
      late += ms > kLateMs;
      at_once += end.by == FoundEnd::By::judged;
      again += end.by == FoundEnd::By::judged_again;
    }
  const auto share = [](int of, std::size_t n) {
    return n == 0 ? 0.0 : static_cast<double>(of) / static_cast<double>(n);
  };
  return json{{"utterances", decided.size() + static_cast<std::size_t>(cut_off)},
              {"pauses", pauses},
              {"cut_off_share", share(cut_off, static_cast<std::size_t>(pauses))},
              {"late_share", share(late, decided.size())},
              {"at_once_share", share(at_once, decided.size())},
              {"again_share", share(again, decided.size())},
              {"decision_ms", {{"p50", quantile(decided, 0.5)}, {"p95", quantile(decided, 0.95)}}},
              {"trial_share", share(committed, decided.size())},
              {"trials_dropped_per_turn", share(dropped, decided.size())},
              {"murmurs", murmurs},
              {"murmurs_took_share", share(took, static_cast<std::size_t>(murmurs))},
              {"all", all}};
}

Result<void> print_ends(const std::filesystem::path& folder, int rounds, const PausesOptions& options, bool as_json) {
  PARLANDO_TRY(auto found, ends_of_dialogues(folder, rounds, options));
  if (as_json) {
    fmt::print("{}\n", found.dump());
    return {};
  }
  found.erase("all");
  for (const auto& [name, value] : found.items()) fmt::print("{:<26} {}\n", name, value.dump());
  return {};
}

}  // namespace parlando::cli
