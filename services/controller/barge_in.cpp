/// The user's voice over an answer. The answer stands still at once; a short voice (a cough, "mhm") lets it go on, a
/// longer one takes the word: what was heard of the answer is what it was, and the voice begins the next turn. Where
/// the loudspeaker is, the gateway knows.
#include <algorithm>

#include "common/telemetry/log.hpp"
#include "services/controller/session.hpp"

namespace parlando::controller {
using namespace protocol;
using Stage = Turn::Stage;

namespace {
constexpr milliseconds kVadSaysPause{136};     // behind what it hears as the end: 96 ms of silence, and a frame
constexpr milliseconds kPlayedWaitMax{300};    // for the gateway to say how far the sound was heard
constexpr milliseconds kMicrophoneStops{500};  // without sound so long: nobody says any more where a voice ends
}  // namespace

/// As if it paused at this sample.
std::int64_t Session::Voice::voiced_to(std::int64_t sample) const {
  if (speaks_from < 0) return voiced;
  const auto from = std::max(speaks_from, counted_to);  // another vad says again what was counted
  return voiced + std::max<std::int64_t>(0, sample - from - input_samples(kVadHearsOn));
}

void Session::raise_voice(std::int64_t sample, Time now) {
  if (around_.config.barge_in_ms == 0 || detached_) return;
  if (voice_) {
    if (voice_->flushed && voice_->end) return;  // what comes behind is none of it
    voice_->end.reset();                         // more of what the next turn begins with
    return resume_voice(sample, now);
  }
  Voice voice;
  voice.over = playing_.value != 0 ? playing_ : turn_.id;
  voice.begin = sample;
  voice.since = now;
  // An utterance that is only understood makes no sound, and some answers are not to be disturbed.
  voice.waits = is_answering() && (turn_.notes || !turn_.lead->settings.interrupts || turn_.lead->is_manual());
  voice.flushed = voice.wins = is_answering() ? sample < flushed_sample_ : turn_.flushed;
  voice_ = voice;
  if (voice.waits) return checkpoint(told_checkpoint_.input, 0);
  around_.tally.holds.add();
  resume_voice(sample, now);
  checkpoint(told_checkpoint_.input, 0);  // what is said from here on belongs to a turn
}

/// It speaks from this sample on, after a pause or for the first time.
void Session::resume_voice(std::int64_t sample, Time now) {
  voice_->speaks_from = sample;
  hold_voice(now);
}

/// How far the sound was heard is asked each time: it may have played on since the last.
void Session::hold_voice(Time now) {
  if (voice_->taken || voice_->waits || std::exchange(voice_->holds, true)) return;
  voice_->heard_samples = -1;
  voice_->held_at = now;
  has_held_ = true;
  tell(Hold{voice_->over});
}

void Session::release_voice() {
  if (!voice_->taken && std::exchange(voice_->holds, false)) tell(Release{voice_->over});
}

/// It is no turn.
void Session::drop_voice() {
  if (!voice_) return;
  release_voice();
  voice_.reset();
}

/// It falls silent at this sample, for a moment or for good.
void Session::lower_voice(std::int64_t sample, bool ended, Time now) {
  if (voice_->waits) {
    if (ended) voice_->end = sample;
    return;
  }
  auto& voice = *voice_;
  voice.voiced = voice.voiced_to(sample);
  voice.counted_to = std::max(voice.counted_to, sample);
  voice.speaks_from = -1;
  if (ended) voice.end = sample;
  voice.wins = voice.wins || input_time(voice.voiced) >= milliseconds(around_.config.barge_in_ms);
  if (voice.wins || voice.taken) return judge_voice(now);
  release_voice();
  if (!ended || is_quiet()) return;  // it may go on, or there is nothing any more that it could be too short for
  drop_voice();
  if (is_answering()) return trim_memory(ear_, now);
  if (!turn_.sealed) return trim_memory(turn_.sound, now);
  next_turn(now);  // sound was missing behind it
  checkpoint(past_input(), 0);
}

/// Nobody says any more where it ends: its microphone or its vad has stopped, or sound is missing.
void Session::end_voice_here(Time now) {
  if (voice_->end) return;
  const bool heard = call(Role::vad).is_served();
  call(Role::vad).end(head());  // what comes now is another voice
  const auto& sound = is_answering() ? ear_ : turn_.sound;
  const auto end = voice_->speaks_from < 0 && voice_->counted_to >= 0 ? voice_->counted_to : sound.end_sample();
  if (!heard) voice_->speaks_from = -1;  // how much of what came was voice is not known
  lower_voice(end, true, now);
  if (voice_) return;
  (is_answering() ? ear_ : turn_.sound).drop_before(end);  // it is not heard once more
}

/// The client has said over the answer what it wanted to say: that is a question, be it as short as it may. The vad
/// says where it is.
void Session::flush_voice(const Flush& flush, Time now) {
  const bool has_effect = around_.config.barge_in_ms != 0 && !ear_.is_empty() && !(voice_ && voice_->flushed);
  if (!has_effect || turn_.inputs.size() >= kTurnInputsMax) {
    settle_with_turn();
    return;
  }
  forget_flush();
  flushed_input_ = taken_;
  flushed_sample_ = flush.end_sample < 0 ? ear_.end_sample() : std::min(flush.end_sample, ear_.end_sample());
  if (voice_) voice_->flushed = voice_->wins = true;
  if (voice_) hold_voice(now);
  if (voice_ && voice_->end) return;
  if (call(Role::vad).is_wanted())
    send(Role::vad, Flush{flushed_sample_});
  else
    want(Role::vad, now);
}

/// It has led to nothing.
void Session::forget_flush() {
  if (std::exchange(flushed_sample_, -1) >= 0) turn_.inputs.push_back(flushed_input_);
}

/// It takes the word once it has spoken for so long; also by the clock, because a recording is said all at once.
void Session::judge_voice(Time now) {
  if (!voice_ || voice_->taken || voice_->waits || !voice_->holds) return;
  auto& voice = *voice_;
  const milliseconds enough(around_.config.barge_in_ms);
  if (call(Role::vad).is_served() && now - voice.since >= enough / 2) {
    const auto spoken = voice.voiced_to(heard_samples_ - input_samples(kVadSaysPause));
    voice.wins = voice.wins || input_time(spoken) >= enough;
  }
  if (!voice.wins || (is_quiet() && open_.plays)) return;
  if (voice.heard_samples < 0 && now - voice.held_at < kPlayedWaitMax) return;
  interrupt(now);
}

/// What follows from the time and from the state of the turn. Without `plays` the sound of a turn that is over may
/// still be heard, so that a voice that holds it is judged to its end.
void Session::settle_voice(Time now) {
  if (voice_ && !voice_->end && now - heard_at_ >= kMicrophoneStops) end_voice_here(now);
  judge_voice(now);
  // What the client has asked for comes first, unless sound is missing behind the voice: then that waits for its end.
  if (!voice_ || turn_.stage != Stage::listening || (!later_.empty() && !turn_.sealed)) return;
  if (voice_->taken || voice_->waits || (is_quiet() && (open_.plays || !voice_->holds))) take_voice(now);
}

/// The vad is gone or has failed; an answer needs none.
void Session::lose_vad(Time now) {
  if (voice_) end_voice_here(now);
  call(Role::vad).end(head());
  listen_again_at_ = now + kRetry;
}

/// Nothing of a turn plays any more, and no voice is over it.
void Session::drop_sound_of(TurnId turn, Time now) {
  if (playing_last_ == turn) playing_last_ = playing_ == turn ? TurnId() : playing_;
  if (playing_ == turn) playing_ = playing_last_;
  if (!voice_ || voice_->taken || voice_->over != turn) return;
  release_voice();
  if (playing_.value == 0) return;
  voice_->over = playing_;
  hold_voice(now);
}

const Past* Session::stored(TurnId id) const {
  const auto is_it = [&](const Past& past) { return past.turn == static_cast<std::int64_t>(id.value); };
  const auto& history = ledger_.history();
  const auto found = std::find_if(history.begin(), history.end(), is_it);
  const auto& latest = ledger_.latest();
  return found != history.end() ? &*found : latest && is_it(*latest) ? &*latest : nullptr;
}

/// Of a former owner, as the store has it; records of older builds do not say how long its pieces are.
Turn Session::stored_turn(TurnId id) const {
  Turn out;
  out.id = id;
  const auto* past = stored(id);
  if (past == nullptr || !past->record.contains("assistant") || !past->record["assistant"].is_string()) return out;
  out.reply.text = past->record["assistant"].get<std::string>();
  out.call_ends = call_ends_of(past);
  auto chunks = out.cut_again(out.reply.text);
  for (auto& chunk : out.chunker.finish()) chunks.push_back(std::move(chunk));
  for (auto& chunk : chunks) out.pieces.push_back({std::move(chunk.text), 0, false, chunk.tag_bytes, chunk.end});
  const auto lengths = past->record.find("piece_lengths");
  if (lengths == past->record.end() || !lengths->is_array() || lengths->size() != out.pieces.size()) return out;
  for (std::size_t i = 0; i < out.pieces.size(); ++i) {
    const auto& length = (*lengths)[i];
    if (!length.is_number_integer()) continue;
    out.pieces[i].samples = length.get<std::int64_t>();
    out.pieces[i].done = true;
  }
  return out;
}

/// What the loudspeaker is at, and the answer that is under way; that one may be behind the sound of the turn before.
void Session::interrupt(Time now) {
  auto& voice = *voice_;
  voice.taken = true;
  around_.tally.interruptions.add();
  playing_ = playing_last_ = {};
  const bool under_way = is_answering() && voice.over == turn_.id;
  if (!under_way) cut_done_turn(voice.over, voice.heard_samples);
  if (!is_answering()) return;
  const auto said = under_way ? voice.heard_samples : 0;
  const auto samples = said < 0 ? turn_.samples : std::min(said, turn_.samples);
  const auto heard = turn_.heard_text(samples);
  const bool is_stored = turn_.stage == Stage::closing || turn_.durable || turn_.committing;
  if (is_stored)
    cut_turn(turn_.id, samples, heard, turn_.remember);
  else
    tell(Interrupted{turn_.id, samples, heard});
  if (turn_.stage == Stage::closing) return;
  end_answer(samples, heard, now);
}

/// A turn before the one that is under way.
/// @param heard_samples  < 0: nobody knows
void Session::cut_done_turn(TurnId turn, std::int64_t heard_samples) {
  const bool is_last = last_ && last_->id == turn;
  const auto stored = is_last ? Turn() : stored_turn(turn);
  const auto most = is_last ? last_->samples : std::max<std::int64_t>(0, heard_samples);
  const auto samples = heard_samples < 0 ? most : std::min(heard_samples, most);
  // The number of a turn that was told and forgotten may be the next one's by now.
  cut_turn(turn, samples, (is_last ? *last_ : stored).heard_text(samples), !is_last || last_->remember);
}

/// An answer that is complete is cancelled while it is still heard; the gateway has said how far. A hold of it is over
/// with that.
void Session::cut_where_heard(TurnId turn, const Played& heard, Time now) {
  if (!open_.plays || heard.turn.value == 0 || heard.turn != turn || heard.over) return;
  cut_done_turn(turn, heard.samples);
  if (voice_ && voice_->over == turn) voice_->holds = false;
  drop_sound_of(turn, now);
}

/// The answer under way is over, and this was heard of it.
void Session::end_answer(std::int64_t samples, const std::string& heard, Time now) {
  for (const auto role : {Role::tokenizer, Role::chat, Role::tts}) call(role).end(head());
  const bool is_stored = turn_.durable || turn_.committing;
  if (!is_stored && turn_.transcript.text.empty() && !turn_.typed && heard.empty()) {  // there is nothing to remember
    tell(Cancelled{turn_.id});
    return next_turn(now);
  }
  forget_calls();
  turn_.text_done = true;
  turn_.waits_since = Time::max();
  turn_.samples = samples;
  turn_.pieces.clear();
  if (!is_stored) {
    turn_.interrupted = true;
    turn_.reply.text = heard;
  }
  complete_if_all_there(now);
}

/// It is stored, or on its way there: the next turn's record says what was heard of it.
void Session::cut_turn(TurnId turn, std::int64_t samples, const std::string& heard, bool remembered) {
  auto to = client_head();
  to.turn = turn;
  tell(to, Interrupted{turn, samples, heard});
  if (remembered) correct(0, {{"turn", turn.value}, {"heard", heard}});
}

/// The voice begins the turn that stands ready.
void Session::take_voice(Time now) {
  release_voice();
  const auto voice = *std::exchange(voice_, std::nullopt);
  const auto flushed = std::exchange(flushed_sample_, -1);
  if (voice.flushed && flushed >= 0) {
    turn_.end_input = flushed_input_;
    turn_.inputs.push_back(flushed_input_);
  }
  begin_hearing(voice.begin, now);
  if (turn_.stage != Stage::hearing) return;
  const bool asked = turn_.sealed;  // the vad is asked for its end already
  if (voice.flushed) turn_.sealed = turn_.flushed = true;
  if (voice.flushed && voice.end) return finish_hearing(*voice.end, Detector::client, now);
  // Its pauses were not judged: the vad tells of them again.
  if (!voice.flushed && turn_.lead->is_semantic() && judged_) return hear_again(now);
  if (voice.end && turn_.lead->is_manual() && !asked)
    turn_.end_sample = *voice.end;
  else if (voice.end)
    finish_hearing(*voice.end, Detector::silence, now);
  if (voice.end) return;
  if (asked || !voice.flushed) return want(Role::vad, now);
  turn_.flush_sample = flushed;
  seal(now);
}

void Session::add_playing(TurnId turn) {
  if (playing_.value == 0) playing_ = turn;
  playing_last_ = turn;
}

void Session::on_played(const Played& played, Time now) {
  heard_ = played;
  // A turn that a former owner has told: the gateway says so behind `opened`. What is said again of a turn that is
  // taken over in its middle is no voice over it.
  const bool told = static_cast<std::int64_t>(played.turn.value) <= ledger_.turns() && open_.open_turn != turn_.id;
  if (open_.plays && !played.over && playing_.value == 0 && !has_held_ && told) add_playing(played.turn);
  if (played.over && playing_.value != 0 && played.turn.value >= playing_.value)
    playing_ = played.turn < playing_last_ ? playing_last_ : TurnId();
  if (playing_.value == 0) playing_last_ = {};
  if (!voice_ || voice_->over != played.turn || voice_->taken) return;
  voice_->heard_samples = played.samples;
  const auto next = playing_.value != 0 ? playing_ : is_answering() ? turn_.id : TurnId();
  if (!played.over || next.value == 0 || next == played.turn) return;
  release_voice();  // nothing was held: it is over what comes behind
  voice_->over = next;
  hold_voice(now);
}

}  // namespace parlando::controller
