/// The user's voice over an answer. The answer stands still at once; a short voice (a cough, "mhm") lets it go on, a
/// longer one takes the word: what was heard of the answer is what it was, and the voice begins the next turn. Where
/// the loudspeaker is, the gateway knows.
#include "common/telemetry/log.hpp"
#include "services/controller/session.hpp"

namespace parlando::controller {
using namespace protocol;
using Stage = Turn::Stage;

void Session::raise_voice(std::int64_t sample, Time now) {
  if (around_.config.barge_in_ms == 0 || detached_) return;
  if (voice_) {
    voice_->end.reset();  // more of what the next turn begins with
    return;
  }
  Voice voice;
  voice.over = is_answering() ? turn_.id : playing_;
  voice.begin = sample;
  voice.input = input_;
  voice.since = now;
  // An utterance that is only understood makes no sound, and some answers are not to be disturbed.
  voice.waits = is_answering() && (turn_.notes || !turn_.lead->settings.interrupts || turn_.lead->is_manual());
  voice.holds = !voice.waits;
  voice_ = voice;
  if (voice.waits) return checkpoint(told_checkpoint_.input, 0);
  around_.tally.holds.add();
  tell(Hold{voice.over});
  checkpoint(told_checkpoint_.input, 0);  // what is said from here on belongs to a turn
}

/// It falls silent at this sample, for a moment or for good.
void Session::lower_voice(std::int64_t sample, bool ended, Time now) {
  if (voice_->taken || voice_->waits) {
    if (ended) voice_->end = sample;
    return;
  }
  const auto spoken = input_time(sample - voice_->begin);
  if (spoken >= milliseconds(around_.config.barge_in_ms)) {
    if (ended) voice_->end = sample;
    return interrupt(now);
  }
  if (std::exchange(voice_->holds, false)) tell(Release{voice_->over});
  if (!ended) return;
  voice_.reset();
  trim_memory(is_answering() ? ear_ : turn_.sound, now);
}

/// It takes the word once it has spoken for so long; also by the clock, because a recording is said all at once.
void Session::judge_voice(Time now) {
  if (!voice_ || !voice_->holds || voice_->taken || voice_->waits) return;
  const milliseconds enough(around_.config.barge_in_ms);
  const auto spoken = input_time(heard_samples_ - voice_->begin);
  if (spoken >= enough && now - voice_->since >= enough / 2) interrupt(now);
}

void Session::interrupt(Time now) {
  auto& voice = *voice_;
  voice.taken = true;
  around_.tally.interruptions.add();
  const bool under_way = is_answering() && voice.over == turn_.id;
  const auto& turn = under_way || !last_ ? turn_ : *last_;
  const auto samples = voice.heard_samples < 0 ? turn.samples : std::min(voice.heard_samples, turn.samples);
  const auto heard = turn.heard_text(samples);
  telemetry::log(telemetry::Level::info, "controller has an answer interrupted session={} turn={} samples={} of {}",
                 id_.text(), voice.over.value, samples, turn.samples);
  playing_ = {};
  auto to = client_head();
  to.turn = voice.over;
  tell(to, Interrupted{voice.over, samples, heard});
  if (!under_way || turn_.stage == Stage::closing || turn_.durable) {
    // It is stored, or on its way there: the next turn's record says what was heard of it.
    if (turn.remember) correct({{"turn", voice.over.value}, {"heard", heard}});
    return;
  }
  end_answer(samples, heard, now);
}

/// The answer under way is over, and this was heard of it.
void Session::end_answer(std::int64_t samples, const std::string& heard, Time now) {
  for (const auto role : {Role::tokenizer, Role::chat, Role::tts}) call(role).end(head());
  if (turn_.transcript.text.empty() && !turn_.typed) {  // it was not understood yet: there is nothing to remember
    tell(Cancelled{turn_.id});
    return next_turn(now);
  }
  turn_.interrupted = turn_.text_done = true;
  turn_.waits_since = Time::max();
  turn_.reply.text = heard;
  turn_.samples = samples;
  turn_.pieces.clear();
  complete_if_all_there(now);
}

/// The voice begins the turn that stands ready.
void Session::take_voice(Time now) {
  const auto voice = *std::exchange(voice_, std::nullopt);
  begin_hearing(voice.begin, now);
  if (turn_.stage != Stage::hearing) return;
  // Its pauses were not judged: the vad tells of them again.
  if (turn_.lead->is_semantic() && judged_) return hear_again(now);
  if (!voice.end) return;
  if (turn_.lead->is_manual())
    turn_.end_sample = *voice.end;
  else
    finish_hearing(*voice.end, Detector::silence, now);
}

void Session::on_played(const Played& played) {
  if (played.over && playing_.value != 0 && played.turn.value >= playing_.value) playing_ = {};
  if (voice_ && voice_->over == played.turn && !voice_->taken) voice_->heard_samples = played.samples;
}

}  // namespace parlando::controller
