/// Where an utterance ends. With a semantic detector the tokenizer is asked at every pause how likely the utterance is
/// complete there, and the first pause where it is likely enough is its end, whatever has been said since: the answer
/// depends on the sound up to `judge_ms` behind it alone, so that another controller, which hears everything at once,
/// finds the same end. A pause that lasts, as the vad says by telling it again, is judged once more, `judge_again_ms`
/// behind it: less is enough then. That depends on the sound alone, too: of a pause behind which the user has gone on
/// before, no vad says that it lasts. What the vad says of the end by silence, or the client, waits until the pauses in
/// front of it are judged.
#include "common/telemetry/log.hpp"
#include "services/controller/session.hpp"

namespace parlando::controller {
using namespace protocol;
using Stage = Turn::Stage;

namespace {
constexpr std::int64_t kVadFrame = 512;  // samples; where a vad may tell a pause
constexpr std::size_t kPausesMax = 256;  // of 96 ms at least, in an utterance of at most 30 s
}  // namespace

void Session::add_pause(std::int64_t sample, bool lasts) {
  auto& turn = heard_turn();
  if (!judged_ || turn.stage != Stage::hearing || !turn.lead->is_semantic()) return;
  // Only what stands in front of an end may be one in its place.
  if (turn.ended && !turn.sealed && sample >= turn.end_sample) return;
  if (lasts && around_.config.judge_again_ms == 0) return;
  // A vad that hears the turn anew has its frames elsewhere: the pause that lasts is the one that is known.
  const bool is_known = turn.paused_until >= 0 && std::abs(sample - turn.paused_until) < kVadFrame;
  if (is_known) sample = turn.paused_until;
  const auto last = std::pair(turn.paused_until, turn.paused_lasts);
  if (std::pair(sample, lasts) <= last || turn.pauses.size() >= kPausesMax) return;  // a vad hears it again
  turn.paused_until = sample;
  turn.paused_lasts = lasts;
  turn.pauses.push_back({.sample = sample, .lasts = lasts});
}

/// As soon as the sound has come that it is judged by.
void Session::ask_about_pauses() {
  auto& turn = heard_turn();
  if (turn.stage != Stage::hearing || !call(Role::tokenizer).is_live()) return;
  for (auto& pause : turn.pauses) {
    if (pause.attempt != 0 || pause.is_judged()) continue;
    const auto& config = around_.config;
    auto end = pause.sample + input_samples(milliseconds(pause.lasts ? config.judge_again_ms : config.judge_ms));
    if (turn.sealed) end = std::min(end, turn.sound.end_sample());
    if (turn.sound.end_sample() < end) return;
    pause.attempt = ++trials_;
    send(Role::tokenizer, Flush{end, pause.attempt});
  }
}

void Session::judge_pause(const Tokens& tokens, Time now) {
  auto& turn = heard_turn();
  if (turn.stage != Stage::hearing) return;
  const auto found =
      std::find_if(turn.pauses.begin(), turn.pauses.end(), [&](const Pause& p) { return p.attempt == tokens.attempt; });
  auto* const pause = found != turn.pauses.end() ? &*found : turn.hint.attempt == tokens.attempt ? &turn.hint : nullptr;
  if (pause == nullptr) return;
  pause->permille = tokens.complete_permille;
  if (pause->permille >= 0) {
    // What was too unlikely for a trial may be likely enough when more silence has come.
    if (pause->sample == turn.hint.sample) turn.hint.permille = std::max(turn.hint.permille, pause->permille);
    return;
  }
  telemetry::log(telemetry::Level::warning,
                 "controller ends utterances by silence: the tokenizer cannot say whether they are complete session={}",
                 id_.text());
  around_.tally.unjudged.add();
  judged_ = false;
  turn.pauses.clear();
  turn.ended = false;  // by a silence that was too long
  hear_again(now);
}

/// The vad is told the whole utterance anew, with the options of now.
void Session::hear_again(Time now) {
  call(Role::vad).end(head());
  want(Role::vad, now);
}

void Session::settle_pauses(Time now) {
  auto& turn = heard_turn();
  if (turn.stage != Stage::hearing) return;
  for (; !turn.pauses.empty(); turn.pauses.pop_front()) {
    const auto pause = turn.pauses.front();
    if (!pause.is_judged()) return ask_about_pauses();  // no more sound may come
    turn.last_permille = pause.permille;
    if (pause.permille < turn.lead->enough(pause.lasts)) continue;
    finish_hearing(pause.sample, pause.lasts ? Detector::semantic_again : Detector::semantic, now);
    return hear_rest(now);
  }
  if (!turn.ended) return;
  if (turn.lead->is_semantic() && judged_ && !turn.sealed) {
    if (const auto patience = turn.lead->patience(turn.last_permille); patience > turn.patience) {
      turn.ended = false;
      turn.patience = patience;
      return hear_again(now);
    }
  }
  finish_hearing(turn.end_sample, turn.sealed ? Detector::client : Detector::silence, now);
  if (std::exchange(went_on_, false)) hear_rest(now);
}

/// What follows is heard anew from the end on: how far the vad had come depends on when it was asked.
void Session::hear_rest(Time now) {
  went_on_ = false;
  call(Role::vad).end(head());
  if (!ear_.is_empty() && around_.config.barge_in_ms > 0 && !detached_) listen(now);
}

/// The utterance ends at this sample.
void Session::finish_hearing(std::int64_t sample, Detector by, Time now) {
  around_.tally.decisions[static_cast<std::size_t>(by)].add();
  heard_turn().pauses.clear();
  if (trial_ && trial_->sample == sample) return commit_trial(now);
  drop_trial();
  end_speech(sample, sound_end_at(sample), now);
}

}  // namespace parlando::controller
