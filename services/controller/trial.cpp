/// Second thoughts: in a pause the answer is made as if speech had ended, on a copy of the turn and a fork of its chat,
/// while the turn itself listens on. When the end is decided where the pause began, the copy becomes the turn and what
/// it has to say leaves at once; when the user goes on, it is dropped without a trace.
#include "common/telemetry/log.hpp"
#include "services/controller/session.hpp"

namespace parlando::controller {
using namespace protocol;
using Stage = Turn::Stage;

namespace {
constexpr int kTrialsPerTurnMax = 3;
}  // namespace

/// A semantic detector says early whether the pause may be the end at all. What it says decides nothing else.
bool Session::is_worth_a_trial() {
  if (!turn_.lead->is_semantic() || !judged_) return true;
  auto& hint = turn_.hint;
  if (hint.sample == turn_.paused_sample) return hint.permille >= around_.config.trial_permille;
  hint = {turn_.paused_sample, ++trials_};
  send(Role::tokenizer, Flush{sound_end_at(hint.sample), hint.attempt});
  return false;
}

/// Begins one when all that an end of speech in this pause would use has come, and the services can take it.
void Session::try_trial(Time now) {
  const auto& config = around_.config;
  if (trial_ || detached_ || turn_.stage != Stage::hearing || turn_.sealed || turn_.paused_sample < 0) return;
  if (turn_.lead->is_manual()) return;  // a pause is no end
  if (config.trials_max == 0 || turn_.trials >= kTrialsPerTurnMax) return;
  const auto end = turn_.paused_sample + input_samples(milliseconds(turn_.lead->tail_ms));
  if (turn_.sound.end_sample() < end) return;
  if (!call(Role::tokenizer).is_served() || !call(Role::chat).is_served()) return;
  if (!is_worth_a_trial()) return;
  if (around_.tally.trials_open >= config.trials_max) {
    turn_.paused_sample = -1;  // not in this pause
    return around_.tally.trials_refused.add();
  }
  ++turn_.trials;
  ++around_.tally.trials_open;
  around_.tally.trials.add();
  auto& listening = call(Role::chat);
  auto fork = listening.fork();
  fork.send(head(), ForkChat{listening.stream()}, turn_.deadline);
  trial_.emplace(Trial{turn_, std::exchange(listening, std::move(fork)), turn_.paused_sample, now, {}, 0, {}});
  turn_.attempt = ++trials_;
  turn_.sound.drop_from(end);
  begin_thinking(turn_.paused_sample, now);
  send(Role::tokenizer, Flush{turn_.sound.end_sample(), turn_.attempt});
}

/// What the client would be told; `settle` drops a trial that says too much.
void Session::hold_back(Message message) {
  trial_->effect_bytes += message.bytes();
  trial_->effects.push_back(std::move(message));
}

void Session::commit_trial(Time now) {
  auto trial = *std::move(trial_);
  trial_.reset();
  --around_.tally.trials_open;
  around_.tally.trials_committed.add();
  around_.tally.trial_lead.observe(std::chrono::duration<double>(now - trial.begun).count());
  turn_.stages["trial_ms"] = std::chrono::duration<double, std::milli>(now - trial.begun).count();
  ear_ = trial.turn.sound.split_from(turn_.sound.end_sample());
  trial.chat.end(head());
  if (turn_.codes_done)
    call(Role::tokenizer).end(head());
  else
    turn_.codes = std::move(trial.turn.codes);
  decide_end(trial.sample, now);
  for (auto& effect : trial.effects) around_.outlet.post(client_.gateway, std::move(effect));
  if (open_.plays && turn_.samples > 0) add_playing(turn_.id);
  if (turn_.stages.contains("first_audio_ms")) turn_.mark("first_audio_ms", now);  // it was made before, and left now
  for (auto& call : trial.tool_calls) {
    if (turn_.stage != Stage::thinking) return;  // the one before has failed the turn
    on_tool_call(std::move(call), now);
  }
  complete_if_all_there(now);
}

/// The turn listens on as if there had been no trial.
void Session::drop_trial() {
  if (!trial_) return;
  auto trial = *std::move(trial_);
  trial_.reset();
  --around_.tally.trials_open;
  call(Role::chat).end(head());
  call(Role::tts).end(head());
  const auto trials = turn_.trials;
  call(Role::chat) = std::move(trial.chat);
  turn_ = std::move(trial.turn);
  turn_.trials = trials;
  turn_.paused_sample = -1;
}

}  // namespace parlando::controller
