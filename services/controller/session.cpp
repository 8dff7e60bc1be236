#include "services/controller/session.hpp"

#include <algorithm>

#include "common/base/codes.hpp"
#include "common/base/nesting.hpp"
#include "common/base/pcm.hpp"
#include "common/base/random_id.hpp"
#include "common/telemetry/log.hpp"
#include "services/controller/json_text.hpp"
#include "services/controller/trace.hpp"

namespace parlando::controller {
using namespace protocol;
using nlohmann::json;
using transport::PeerState;
using Stage = Turn::Stage;

namespace {

constexpr milliseconds kMemory{500};       // kept in front of the pre-roll: what a vad may take to notice speech
constexpr milliseconds kVadLag{2000};      // a vad may be behind what has come
constexpr milliseconds kMemorySlack{500};  // trimmed in strides, so that a frame does not move the whole memory
constexpr milliseconds kCheckpointEvery{1000};
constexpr std::size_t kEarlyMessagesMax = 8192;
constexpr std::size_t kEarlyBytesMax = 2u << 20;  // 35 s of sound and its headers
constexpr int kFiguresDepthMax = 32;
constexpr std::size_t kPiecesAhead = 16;           // asked of a tts, which keeps 64
constexpr std::size_t kEffectBytesMax = 1u << 20;  // 20 s of sound: more is not made in a pause

Bytes bytes_of(const std::string& text) { return to_bytes(std::span<const char>(text)); }

/// A refusal of this owner, from whatever service.
bool is_stale(const Message& message) {
  if (message.head.type != MessageType::error) return false;
  auto copy = message;
  const auto error = read<ErrorMessage>(copy);
  return error && errc_of(error->code) == Errc::stale_epoch;
}

/// Inputs as a message names them.
JsonText list_of(const std::vector<std::uint64_t>& inputs) { return {json(inputs).dump()}; }

}  // namespace

Session::Session(SessionId id, ClientStream client, Open open, Ledger ledger, Surroundings around)
    : id_(id),
      client_(std::move(client)),
      open_(std::move(open)),
      around_(around),
      ledger_(std::move(ledger)),
      calls_{Call(Role::vad, id, around.fleet, around.outlet), Call(Role::tokenizer, id, around.fleet, around.outlet),
             Call(Role::chat, id, around.fleet, around.outlet), Call(Role::tts, id, around.fleet, around.outlet)},
      summaries_(id, around.config, around.fleet, around.outlet, around.tally) {
  if (open_.seed == 0) open_.seed = mix_seed(id.high ^ id.low, 0);
  input_ = open_.first_input == 0 ? 0 : open_.first_input - 1;
}

void Session::start(Time now) {
  auto lead = lead_by(open_, around_.config, around_.personas);
  if (!lead) return refuse_open(lead.error());
  lead_ = *std::move(lead);
  if (open_.stored)
    ledger_.open(open_.expected_epoch, now);
  else
    ledger_.open_unstored();
  settle(now);
}

void Session::set_trace(std::uint64_t trace) {
  if (trace == 0) return;
  trace_ = trace;
  ledger_.set_trace(trace);
}

bool Session::is_busy() const {
  if (detached_ && turn_.stage == Stage::closing && ledger_.waiting() == 0) return false;  // its client decides
  const auto waits = [](const Call& c) { return c.is_wanted() && !c.is_served(); };
  return !opened_ || turn_.is_open() || trial_ || summaries_.is_busy() || voice_ || !later_.empty() ||
         (open_.stored && !items_.is_empty()) || turn_.deadline != Time::max() || ledger_.waiting() > 0 ||
         std::any_of(calls_.begin(), calls_.end(), waits);
}

Envelope Session::head() const {
  Envelope head;
  head.session = id_;
  head.epoch = ledger_.epoch();
  head.turn = turn_.id;
  head.trace = trace_;
  return head;
}

Envelope Session::client_head() const {
  auto to = head();
  to.stream = client_.stream;
  to.link = client_.link;
  return to;
}

// ------------------------------------------------------------------------------------------------ the beginning

void Session::opened(Time now) {
  opened_ = true;
  told_checkpoint_.degraded = ledger_.waiting() > 0;
  next_turn(now);
  tell(Opened{ledger_.turns(), open_.seed, ledger_.is_degraded()});
  adopt(now);
  for (; !early_.empty() && !over_; early_.pop_front()) take_input(std::move(early_.front()), now);
  early_.clear();
  early_bytes_ = 0;
}

void Session::refuse_open(const Error& error) {
  tell(ErrorMessage{std::string(to_string(error.code)), error.message, is_refusal(error.code) ? kRetry.count() : 0});
  leave();
}

void Session::stop_stale(Epoch known) {
  around_.tally.stale.add();
  yield(known);
}

void Session::yield(Epoch to, Then then) {
  drop_trial();  // this word is not held back
  auto head = client_head();
  if (to.value != 0) head.epoch = to;
  const auto text = fmt::format("the session is another owner's, under epoch {}", head.epoch.value);
  tell(head, ErrorMessage{std::string(to_string(Errc::stale_epoch)), text});
  leave(then);
}

void Session::leave(Then then) {
  drop_trial();
  later_.clear();
  forget_calls();
  for (auto& c : calls_) c.end(head());
  summaries_.give_up(head());
  if (then == Then::is_over) forget_at_chats();
  if (ledger_.waiting() == 0) ledger_.close();
  over_ = true;
}

/// Nothing of the session is asked there again: what its chats have computed may go.
void Session::forget_at_chats() {
  for (const auto& replica : std::exchange(chats_, {})) {
    if (!around_.fleet.is_linked(Role::chat, replica)) continue;
    auto to = head();
    to.stream = around_.fleet.next_stream();
    around_.outlet.send(replica, to, Erase{});
    around_.outlet.send(replica, to, Close{});
  }
}

// ------------------------------------------------------------------------------------------------ what the client says

template <class T, class F>
void Session::read_answer(Message& message, F&& use, Time now) {
  auto body = read<T>(message);
  if (!body) return fail_turn(body.error(), now);
  use(std::move(*body));
}

void Session::on_input(Message message, Time now) {
  if (over_) return;
  set_trace(message.head.trace);
  if (message.head.type == MessageType::played) {
    taken_ = 0;
    read_input<Played>(message, [&](const Played& p) { on_played(p, now); });
    return settle(now);
  }
  if (opened_) {
    take_input(std::move(message), now);
    return settle(now);
  }
  early_bytes_ += message.bytes();
  early_.push_back(std::move(message));
  if (early_.size() > kEarlyMessagesMax || early_bytes_ > kEarlyBytesMax)
    refuse_open({Errc::overloaded, fmt::format("{} inputs came before the session was granted", early_.size())});
}

void Session::take_input(Message message, Time now) {
  taken_ = ++input_;
  if (settled_.erase(input_) > 0)
    ;  // answered, and only said again
  else if (input_ <= stored_input_)
    skip_stored(std::move(message), now);
  else if (message.head.type == MessageType::audio)
    read_input<Audio>(message, [&](Audio a) { on_audio(std::move(a), now); });
  else if (!waits(input_, message, now))
    take(input_, std::move(message), now);
  if (decided_ && !over_ && input_ >= open_.last_input) give_up_decision(now);
}

void Session::on_audio(Audio audio, Time now) {
  if (audio.payload.size() % kSampleBytes != 0)
    return refuse_input(
        {Errc::invalid_argument, fmt::format("audio of {} bytes is no whole number of samples", audio.payload.size())});
  if (audio.payload.empty()) return;  // of sound that is not kept any more only the number is left
  if (const auto over = sound_from_ - audio.first_sample; over > 0) {
    const auto bytes = static_cast<std::size_t>(over) * kSampleBytes;
    heard_samples_ = std::max(
        heard_samples_,
        std::min<std::int64_t>(sound_from_, audio.first_sample + static_cast<std::int64_t>(audio.payload.size() / 2)));
    if (bytes >= audio.payload.size()) return;
    audio.payload.erase(audio.payload.begin(), audio.payload.begin() + static_cast<std::ptrdiff_t>(bytes));
    audio.first_sample = sound_from_;
  }
  const bool missing = audio.first_sample > heard_samples_;
  heard_samples_ = audio.first_sample + static_cast<std::int64_t>(audio.payload.size() / kSampleBytes);
  heard_at_ = now;
  auto& turn = heard_turn();
  const bool hears = (turn.stage == Stage::listening || turn.stage == Stage::hearing) && !turn.sealed;
  if (!hears && missing && ear_.is_empty() && is_answering()) call(Role::vad).end(head());  // the ear cannot tell
  if (!hears) return overhear(std::move(audio), now);
  if (turn.is_full) return;
  const bool gap = !turn.sound.is_empty() && audio.first_sample > turn.sound.end_sample();
  if (gap) {
    // Sound is missing: what was said before it is what was said.
    drop_trial();
    seal(now);
    return overhear(std::move(audio), now);
  }
  auto fresh = turn.sound.append(std::move(audio), input_, now);
  if (!fresh || fresh->payload.empty()) return;
  if (turn.stage == Stage::hearing) send(Role::tokenizer, *fresh);
  if (decided_) return go_by_decision(now);
  if (voice_ && voice_->flushed)
    ;  // what comes behind it is for a stream of its own
  else if (call(Role::vad).is_wanted())
    send(Role::vad, std::move(*fresh));
  else
    listen(now);
  if (turn.stage == Stage::hearing) {
    if (turn.sound.samples() < kInputRate * around_.config.turn_seconds_max) {
      try_trial(now);
      return ask_about_pauses();
    }
    if (turn.lead->is_manual()) {  // nobody but the client ends it
      turn.is_full = true;
      return refuse_input({Errc::overloaded, fmt::format("an utterance has at most {} s: what follows is not heard",
                                                         around_.config.turn_seconds_max)});
    }
    finish_hearing(turn.sound.end_sample(), Detector::limit, now);
    return call(Role::vad).end(head());  // it is in the middle of speech: what goes on begins anew
  }
  judge_voice(now);
  if (!voice_) trim_memory(turn_.sound, now);
  if (now - checkpoint_at_ < kCheckpointEvery) return;
  checkpoint_at_ = now;
  checkpoint(input_before(turn_.sound), 0);
}

/// What comes behind the end of a turn that is not over yet.
void Session::overhear(Audio audio, Time now) {
  // The vad still looks for the end of a sealed turn; it hears this as a stream of its own.
  const bool sealed = turn_.stage == Stage::listening || turn_.stage == Stage::hearing;
  const auto& heard = ear_.is_empty() ? turn_.sound : ear_;
  if (!heard.is_empty() && audio.first_sample > heard.end_sample()) {
    if (voice_ && !sealed) end_voice_here(now);
    if (voice_ && !sealed) return;  // it waits for its turn; what comes behind it is heard when that has begun
    if (!sealed) call(Role::vad).end(head());
    ear_ = {};
  }
  auto fresh = ear_.append(std::move(audio), input_, now);
  if (!fresh || fresh->payload.empty()) return;
  if (!voice_ && !lead_->is_manual()) trim_memory(ear_, now);
  ear_.drop_before(ear_.end_sample() - kInputRate * around_.config.turn_seconds_max);
  if (sealed || around_.config.barge_in_ms == 0 || detached_ || (voice_ && voice_->flushed)) return;
  if (call(Role::vad).is_wanted())
    send(Role::vad, std::move(*fresh));
  else if (now >= listen_again_at_)
    want(Role::vad, now);
  judge_voice(now);
}

/// Inputs up to here belong to turns that are over. What a vad may still find speech in does not.
std::uint64_t Session::past_input() const { return input_before(is_answering() ? ear_ : turn_.sound); }

/// Inputs up to here are wholly in front of what is kept.
std::uint64_t Session::input_before(const SoundLog& sound) const {
  const auto first = sound.first_input();
  return first == 0 ? input_ : first - 1;
}

/// Asks for a vad, unless none could be had a moment ago and none has come since.
void Session::listen(Time now) {
  if (now >= listen_again_at_ || around_.fleet.any(Role::vad)) want(Role::vad, now);
}

/// Silence in front of a turn is kept for as long as a turn can reach back; longer while nobody listens to it or a vad
/// was told all of it just now, and what has just come is kept in any case: a recording is said all at once, and the
/// vad finds its beginning when its end is here already.
void Session::trim_memory(SoundLog& sound, Time now) {
  const bool heard = (call(Role::vad).is_served() && now - told_vad_at_ >= kVadLag) || !call(Role::vad).is_wanted();
  const auto most = sound.end_sample() - kInputRate * around_.config.turn_seconds_max;
  const auto enough = sound.end_sample() - input_samples(milliseconds(lead_->preroll_ms(around_.config)) + kMemory);
  const auto from = heard ? std::max(most, std::min(enough, sound.first_sample_since(now - kVadLag))) : most;
  if (from - sound.first_sample() >= input_samples(kMemorySlack)) sound.drop_before(from);
}

void Session::on_flush(const Flush& flush, Time now) {
  drop_trial();
  if (decided_) return go_by_decision(now);
  if (is_answering()) return flush_voice(flush, now);
  if (!settle_with_turn() || turn_.sealed) return;
  turn_.end_input = taken_;
  if (voice_ && voice_->waits) take_voice(now);  // it is what the client means
  if (turn_.sound.is_empty()) return fail_turn({Errc::no_speech, "no audio came before the end of the turn"}, now);
  turn_.flushed = true;
  turn_.flush_sample = std::min(flush.end_sample, turn_.sound.end_sample());
  if (voice_) voice_->flushed = voice_->wins = true;
  if (voice_) hold_voice(now);
  seal(now);
}

/// No more sound counts for this turn; the vad says whether there was speech and where it ended.
void Session::seal(Time now) {
  turn_.sealed = true;
  turn_.deadline = now + std::chrono::seconds(around_.config.reply_seconds_max);
  if (call(Role::vad).is_wanted())
    send(Role::vad, Flush{turn_.flush_sample});
  else
    want(Role::vad, now);
}

void Session::on_say(const Say& say, Time now) {
  if (turn_.is_open()) return refuse_input({Errc::invalid_argument, "a turn is under way"});
  if (say.text.empty()) return refuse_input({Errc::invalid_argument, "the text is empty"});
  take_decision(taken_);
  if (!may_begin(taken_, now)) return;
  drop_voice();
  call(Role::vad).end(head());
  turn_.typed = turn_.transcript.text = say.text;
  turn_.sound_end = heard_samples_;
  begin_answer(taken_, now);
  want(Role::chat, now);
}

/// Of a turn that is no utterance.
void Session::begin_answer(std::uint64_t input, Time now) {
  turn_.stage = Stage::thinking;
  turn_.last_input = input;
  turn_.ended_at = now;
  turn_.deadline = now + std::chrono::seconds(around_.config.reply_seconds_max);
  turn_.answers_input = input;
  turn_.inputs.push_back(input);
  begin_turn(input, now);
  tell_decided();
}

void Session::on_cancel(const Cancel& cancel, Time now) {
  const auto id = cancel.turn.value == 0 ? turn_.id : cancel.turn;
  const bool meant = id == turn_.id;
  const auto heard = std::exchange(heard_, {});
  // It is complete and as good as stored: its end comes first, and settles what waited behind it, too.
  if (meant && (turn_.stage == Stage::closing || turn_.durable || turn_.committing)) {
    if (!settle_with_turn()) return;
    turn_.cancel_asked = true;
    for (const auto& later : std::exchange(later_, {})) turn_.inputs.push_back(later.input);
    return;
  }
  std::vector<std::uint64_t> settled{taken_};
  const auto drop_later = [&] {
    for (const auto& later : std::exchange(later_, {})) settled.push_back(later.input);
  };
  if (!meant) {
    if (id <= retold_note_ && taken_ <= open_.last_input) drop_later();
    cut_where_heard(id, heard, now);
    return tell_at_once(id, Cancelled{id, list_of(settled)});
  }
  drop_trial();
  settled.insert(settled.end(), turn_.inputs.begin(), turn_.inputs.end());
  drop_later();
  if (turn_.is_open())
    telemetry::log(telemetry::Level::info, "controller drops a turn session={} turn={}", id_.text(), turn_.id.value);
  const auto sound_from = rest_from();
  drop_sound_of(turn_.id, now);
  next_turn(now);
  auto to = client_head();
  to.turn = id;
  tell(to, Cancelled{id, list_of(settled), sound_from});
  checkpoint(past_input(), 0);
}

/// A turn more than the store may owe us is not begun.
/// @param input  that asks for it; 0: none does
bool Session::may_begin(std::uint64_t input, Time now) {
  if (!ledger_.is_full()) return true;
  if (input != 0) turn_.inputs.push_back(input);
  fail_turn({Errc::unavailable,
             fmt::format("{} turns wait to be stored and no replica of context takes them", ledger_.waiting())},
            now, kRetry);
  return false;
}

/// @param input  what came before it stands in front of the turn
void Session::begin_turn(std::uint64_t input, Time now) {
  turn_.begin_input = input;
  turn_.before = items_.take_before(input);
  turn_.history_from = first_told(ledger_.history(), around_.config.history_bytes_max);
  ledger_.renew(now);
}

// ------------------------------------------------------------------------------------------------ what services answer

void Session::on_answer(const std::string& peer, Message message, Time now) {
  if (over_) return;
  if (ledger_.is_current(peer, message.head.stream)) {
    ledger_.on_message(std::move(message), now);
    return settle(now);
  }
  if (summaries_.is_current(peer, message.head.stream)) {
    const auto known = message.head.epoch;
    if (is_stale(message)) return stop_stale(known);
    summaries_.on_message(std::move(message), head());
    return settle(now);
  }
  // Whoever listens on under a trial has nothing to say but that it cannot: the trial is not worth the trouble.
  if (trial_ && trial_->chat.is_current(peer, message.head.stream)) drop_trial();
  const auto found = std::find_if(calls_.begin(), calls_.end(),
                                  [&](const Call& c) { return c.is_current(peer, message.head.stream); });
  if (found == calls_.end()) return;
  const auto role = static_cast<Role>(found - calls_.begin() + 1);
  const auto known = message.head.epoch;
  if (message.head.type != MessageType::error) found->works();
  switch (message.head.type) {
    case MessageType::speech_started:
      read_answer<SpeechStarted>(
          message, [&](const SpeechStarted& s) { on_vad(s, now); }, now);
      break;
    case MessageType::speech_ended:
      read_answer<SpeechEnded>(
          message, [&](const SpeechEnded& s) { on_vad(s, now); }, now);
      break;
    case MessageType::speech_paused:
      read_answer<SpeechPaused>(
          message, [&](const SpeechPaused& s) { on_vad(s, now); }, now);
      break;
    case MessageType::speech_resumed:
      read_answer<SpeechResumed>(
          message, [&](const SpeechResumed& s) { on_vad(s, now); }, now);
      break;
    case MessageType::tokens:
      read_answer<Tokens>(
          message, [&](Tokens t) { on_tokens(std::move(t), now); }, now);
      break;
    case MessageType::text:
      read_answer<Text>(
          message, [&](Text t) { on_text(std::move(t), now); }, now);
      break;
    case MessageType::speech:
      read_answer<Speech>(
          message, [&](Speech s) { on_speech(std::move(s), now); }, now);
      break;
    case MessageType::error:
      read_answer<ErrorMessage>(
          message,
          [&](const ErrorMessage& e) {
            if (errc_of(e.code) == Errc::stale_epoch) return stop_stale(known);
            on_service_error(role, e, now);
          },
          now);
      break;
    default:
      break;
  }
  settle(now);
}

void Session::on_service_error(Role role, const ErrorMessage& error, Time now) {
  const Error why{errc_of(error.code), error.message};
  if (trial_) {
    const bool its_own = role == Role::chat || role == Role::tts;
    drop_trial();
    if (its_own) return;  // what listens on is whole
  }
  if (is_refusal(why.code)) {
    if (call(role).refused(head(), why, now)) say(role);
    return;  // when nobody is left, `settle` says so
  }
  // The vad had found the end of what was said, and went on because only the client decides.
  const bool manual = turn_.stage == Stage::hearing && turn_.lead->is_manual() && turn_.end_sample >= 0;
  if (role == Role::vad && why.code == Errc::no_speech && turn_.sealed && manual)
    return finish_hearing(turn_.end_sample, Detector::client, now);
  // It has no part in the answer: that goes on. Nobody spoke where the client flushed over it: so be it.
  if (role == Role::vad && (is_answering() || voice_))
    return why.code == Errc::no_speech ? forget_flush() : lose_vad(now);
  // It has told the end already, and there is no speech behind that.
  if (role == Role::vad && why.code == Errc::no_speech && turn_.stage == Stage::hearing && turn_.ended)
    return call(Role::vad).end(head());
  // Sound was missing and nobody spoke before it: there is nothing to report.
  if (role == Role::vad && why.code == Errc::no_speech && !turn_.flushed && turn_.stage == Stage::listening) {
    if (turn_.told.anything)  // of that turn the gateway has let go what the former owner had heard
      return fail_turn({Errc::unavailable, "the turn went with its controller: what was said must be said again"}, now);
    next_turn(now);
    return checkpoint(past_input(), 0);
  }
  fail_turn({why.code, fmt::format("{}: {}", to_string(role), why.message)}, now, milliseconds(error.retry_ms));
}

void Session::on_vad(const SpeechStarted& started, Time now) {
  // Its end is found already, and only its pauses are still judged: this is of what comes behind.
  const auto& heard = heard_turn();
  if (heard.stage == Stage::hearing && heard.ended && started.sample >= heard.end_sample) went_on_ = true;
  if (trial_ || turn_.stage == Stage::hearing) return;  // of a vad that hears it again
  settle_voice(now);                                    // one that waited for its turn has it now
  if (turn_.stage == Stage::hearing) return;
  const bool unheard =
      (turn_.sealed && around_.config.barge_in_ms == 0) || !turn_.lead->settings.interrupts || turn_.lead->is_manual();
  if (is_answering() || voice_ || (playing_.value != 0 && !unheard)) return raise_voice(started.sample, now);
  begin_hearing(started.sample, now);
}

void Session::begin_hearing(std::int64_t sample, Time now, std::uint64_t begin_input) {
  if (!may_begin(0, now)) return;
  turn_.stage = Stage::hearing;
  turn_.begin_sample = sample;
  turn_.notes = !turn_.lead->settings.answers;
  turn_.deadline = now + std::chrono::seconds(around_.config.turn_seconds_max + around_.config.reply_seconds_max);
  // Nobody knows how long a client that ends its utterances itself holds one open.
  if (turn_.lead->is_manual()) turn_.deadline = Time::max();
  begin_turn(begin_input != 0 ? begin_input : turn_.sound.input_of(sample), now);
  turn_.sound.drop_before(sample - input_samples(milliseconds(turn_.lead->preroll_ms(around_.config))));
  tell_decided();
  if (!turn_.told.anything) tell(SpeechStarted{sample});
  checkpoint(input_before(turn_.sound), 0);
  want(Role::tokenizer, now);
  want(Role::chat, now);
}

void Session::on_vad(const SpeechEnded& ended, Time now) {
  if (voice_) return lower_voice(ended.sample, true, now);
  auto& turn = heard_turn();
  if (turn.stage != Stage::hearing) return;
  if (turn.lead->is_manual() && !turn.sealed) {
    turn.end_sample = ended.sample;
    return;
  }
  // A later one is not this turn's, unless the client has ended it there.
  if (!turn.ended || turn.sealed) turn.end_sample = ended.sample;
  turn.ended = true;
  settle_pauses(now);
}

void Session::on_vad(const SpeechPaused& paused, Time now) {
  const bool lasts = std::exchange(vad_paused_, paused.sample) == paused.sample;  // it says so once more
  if (voice_) return lower_voice(paused.sample, false, now);                      // twice counts once
  const bool is_old = paused.sample < heard_turn().paused_until;                  // a vad hears it again
  add_pause(paused.sample, lasts);
  if (!trial_ && !is_old && !lasts && turn_.stage == Stage::hearing) {
    turn_.paused_sample = paused.sample;
    try_trial(now);
  }
  ask_about_pauses();
}

void Session::on_vad(const SpeechResumed& resumed, Time now) {
  if (trial_ && resumed.sample < trial_->sample) return;  // of a vad that hears it again
  drop_trial();
  turn_.paused_sample = -1;
  if (voice_ && !voice_->waits) resume_voice(resumed.sample, now);
}

/// The sound that belongs to an utterance that ends at this sample, as far as it has come.
std::int64_t Session::sound_end_at(std::int64_t sample) const {
  return std::min(turn_.sound.end_sample(), sample + input_samples(milliseconds(turn_.lead->tail_ms)));
}

void Session::end_speech(std::int64_t sample, std::int64_t sound_end, Time now) {
  if (turn_.stage != Stage::hearing) return;
  begin_thinking(sample, now);
  // What came behind a sealed turn is in the ear already; where sound is missing in between, it begins there.
  const bool joins = ear_.is_empty() || ear_.first_sample() == turn_.sound.end_sample();
  auto rest = turn_.sound.split_from(sound_end);
  if (joins) {
    rest.join(std::move(ear_));
    ear_ = std::move(rest);
  }
  decide_end(sample, now);
  send(Role::tokenizer, Flush{turn_.sound.end_sample()});
}

/// As if speech had ended at this sample.
void Session::begin_thinking(std::int64_t sample, Time now) {
  turn_.stage = Stage::thinking;
  turn_.end_sample = sample;
  turn_.ended_at = now - input_time(std::max<std::int64_t>(0, heard_samples_ - sample));
  const bool spoke_on = turn_.flushed && sample >= turn_.flush_sample;  // the client has ended it, and not a silence
  if (!spoke_on) turn_.ended_at -= kVadHearsOn;
  turn_.deadline = turn_.ended_at + std::chrono::seconds(around_.config.reply_seconds_max);
}

/// It has: the client is told. What was said behind it is in the ear already.
void Session::decide_end(std::int64_t sample, Time now) {
  turn_.last_input = input_;
  turn_.sound_end = turn_.sound.end_sample();
  turn_.mark("decision_ms", now);
  // A vad that was asked for the end of a sealed turn has done its work; what comes behind it is another stream's.
  if (turn_.sealed || around_.config.barge_in_ms == 0) call(Role::vad).end(head());
  tell_decided();
  if (!turn_.told.anything) tell(SpeechEnded{sample});
  // Other replicas find the same end only with the silence behind it.
  checkpoint(input_before(turn_.sound), input_);
}

/// Codes of an attempt follow those that the stream has told, which the turn that listens on has.
void Session::on_tokens(Tokens tokens, Time now) {
  const bool asked = tokens.attempt != 0;
  if (asked) {
    judge_pause(tokens, now);
    if (tokens.attempt != turn_.attempt) {  // of a trial that was dropped, or of none
      settle_pauses(now);
      return try_trial(now);  // it may be worth one by now
    }
  }
  const bool listens = !asked && turn_.attempt != 0;
  if (listens && !trial_ && turn_.codes_done) return;
  auto& known = trial_ ? trial_->turn.codes : turn_.codes;
  const auto at = static_cast<std::size_t>(tokens.first_group) * kCodesPerGroup;
  if (at > known.size())
    return fail_turn(
        {Errc::internal, fmt::format("tokenizer: group {} came, {} codes are known", tokens.first_group, known.size())},
        now);
  const auto codes = from_bytes<std::int32_t>(tokens.payload);
  auto all = std::vector<std::int32_t>(known.begin(), known.begin() + static_cast<std::ptrdiff_t>(at));
  all.insert(all.end(), codes.begin(), codes.end());
  if (asked) {
    turn_.codes = std::move(all);
    if (!turn_.codes.empty()) send(Role::chat, Hear{0, to_bytes(std::span<const std::int32_t>(turn_.codes))});
  } else {
    known = std::move(all);
    Hear hear{tokens.first_group, std::move(tokens.payload)};
    if (!codes.empty() && trial_) trial_->chat.send(head(), std::move(hear), trial_->turn.deadline);
    if (!codes.empty() && !listens) send(Role::chat, std::move(hear));
  }
  if (!tokens.last || listens) return;
  turn_.codes_done = true;
  turn_.mark("tokenizer_ms", now);
  const auto settled = [&] {
    if (asked) settle_pauses(now);
  };
  if (!trial_) call(Role::tokenizer).end(head());
  if (turn_.codes.empty()) {
    const auto seconds = static_cast<double>(turn_.sound.samples()) / kInputRate;
    fail_turn({Errc::no_speech, fmt::format("{:.2f} s of speech are too short to be understood", seconds)}, now);
    return settled();
  }
  ask_for_answer();
  settled();
}

void Session::on_text(Text text, Time now) {
  const auto ids = from_bytes<std::int32_t>(text.payload);
  turn_.ids.insert(turn_.ids.end(), ids.begin(), ids.end());
  switch (text.kind) {
    case TextKind::transcript:
      return on_transcript(std::move(text), now);
    case TextKind::text:
      return on_reply(std::move(text), now);
    case TextKind::tool_call:
      return on_tool_call(std::move(text), now);
    case TextKind::done:
      tell_ids(std::move(text.payload));
      return on_text_done(text.text, now);
  }
}

/// Ids are told even when their text is known: the gateway hands them to the next controller.
void Session::tell_text(TextKind kind, TextTrack::News news, Bytes ids) {
  if (news.telling.empty() && ids.empty()) return;
  tell(Text{kind, news.at_bytes, std::move(news.telling), std::move(ids)});
}

void Session::tell_ids(Bytes ids) {
  if (!ids.empty()) tell(Text{TextKind::text, turn_.reply.told_bytes, {}, std::move(ids)});
}

void Session::on_transcript(Text text, Time now) {
  auto news = turn_.transcript.push(text.at_bytes, text.text);
  if (!news) return fail_turn({Errc::internal, "llm-chat: a part of the transcript is missing"}, now);
  if (!news->fresh.empty()) turn_.mark("transcript_ms", now);
  tell_text(TextKind::transcript, std::move(*news), std::move(text.payload));
}

void Session::on_reply(Text text, Time now) {
  const bool first = turn_.reply.text.empty();
  auto news = turn_.reply.push(text.at_bytes, text.text);
  if (!news) return fail_turn({Errc::internal, "llm-chat: a part of the answer's text is missing"}, now);
  if (first && !news->fresh.empty()) turn_.mark("first_text_ms", now);
  if (turn_.durable) turn_.call_ends = call_ends_of(stored(turn_.id));  // all of its text comes at once
  auto pieces = turn_.durable ? turn_.cut_again(news->fresh) : turn_.chunker.push(news->fresh);
  tell_text(TextKind::text, std::move(*news), std::move(text.payload));
  speak(std::move(pieces), now);
}

/// @param figures  JSON {finish, prompt_tokens, …} of the model, or nothing
void Session::on_text_done(const std::string& figures, Time now) {
  if (turn_.notes && turn_.transcript.text.empty() && !turn_.durable)
    return fail_turn({Errc::no_speech, "nothing was understood"}, now);
  turn_.text_done = true;
  if (auto done = nested_deeper_than(figures, kFiguresDepthMax) ? json() : json::parse(figures, nullptr, false);
      done.is_object()) {
    turn_.finish = text_in(done, "finish");
    done.erase("finish");
    turn_.usage = std::move(done);
  }
  turn_.mark("text_ms", now);
  call(Role::chat).end(head());
  speak(turn_.chunker.finish(), now);
  complete_if_all_there(now);
}

void Session::on_speech(Speech speech, Time now) {
  if (speech.piece >= turn_.pieces.size() || turn_.pieces[speech.piece].done) return;
  auto& piece = turn_.pieces[speech.piece];
  if (speech.first_sample > piece.samples)
    return fail_turn(
        {Errc::internal, fmt::format("tts: sample {} came, {} are known", speech.first_sample, piece.samples)}, now);
  // Behind a death the first message may overlap what the client has.
  const auto count = static_cast<std::int64_t>(speech.payload.size() / kSampleBytes);
  const auto known = std::min(piece.samples - speech.first_sample, count);
  const auto fresh = count - known;
  const auto skipped = std::min(turn_.skip, fresh);
  const auto cut_bytes = static_cast<std::ptrdiff_t>((known + skipped) * 2);
  speech.payload.erase(speech.payload.begin(), speech.payload.begin() + cut_bytes);
  speech.first_sample = piece.samples + skipped;
  piece.samples += fresh;
  piece.done = speech.last;
  if (turn_.samples == 0 && fresh > 0) turn_.mark("first_audio_ms", now);
  turn_.skip -= skipped;
  turn_.samples += fresh - skipped;
  // A text of the client's may be as long as it likes: it is given up when nothing comes of it.
  if (turn_.given && fresh > 0)
    turn_.deadline = std::max(turn_.deadline, now + std::chrono::seconds(around_.config.reply_seconds_max));
  turn_.rate = speech.rate;
  if (open_.plays && fresh > skipped && !trial_) add_playing(turn_.id);
  const bool is_last = speech.last;
  if (fresh > skipped || (is_last && turn_.skip == 0)) tell(std::move(speech));
  if (is_last) ask_for_pieces();
  complete_if_all_there(now);
}

// ------------------------------------------------------------------------------------------------ what services are
// told

void Session::want(Role role, Time now) {
  if (role == Role::chat) summaries_.give_up(head());  // its place may be needed
  if (call(role).begin(now)) say(role);
}

void Session::say(Role role) {
  static constexpr std::array<void (Session::*)(), kRoles> kSay{
      nullptr, &Session::say_to_vad, &Session::say_to_tokenizer, &Session::say_to_chat, &Session::say_to_tts};
  (this->*kSay[static_cast<std::size_t>(role)])();
}

void Session::say_to_vad() {
  const auto& turn = heard_turn();
  const bool hears = turn.stage == Stage::listening || turn.stage == Stage::hearing;
  told_vad_at_ = heard_at_;
  vad_paused_ = -1;
  told_vad_ = hears ? turn.lead->vad(judged_, turn.patience) : lead_->vad(judged_);
  send(Role::vad, told_vad_);
  (hears ? turn.sound : ear_).each([this](Audio part) { send(Role::vad, std::move(part)); });
  if (hears && turn.sealed) send(Role::vad, Flush{turn.flush_sample});
  if (!hears && flushed_sample_ >= 0) send(Role::vad, Flush{flushed_sample_});
}

void Session::say_to_tokenizer() {
  turn_.attempt = 0;
  const auto& chosen = turn_.lead->settings.tokenizer_mode;
  const auto& mode = chosen.empty() ? around_.config.tokenizer_mode : chosen;
  send(Role::tokenizer, OpenTokenizer{mode == "exact" ? TokenizerMode::exact : TokenizerMode::stable});
  turn_.sound.each([this](Audio part) { send(Role::tokenizer, std::move(part)); });
  if (turn_.stage == Stage::thinking) send(Role::tokenizer, Flush{turn_.sound.end_sample()});
  for (auto& pause : turn_.pauses)
    if (!pause.is_judged()) pause.attempt = 0;
  if (!turn_.hint.is_judged()) turn_.hint = {};
  ask_about_pauses();
}

void Session::say_to_chat() {
  chats_.insert(call(Role::chat).replica());
  auto past = messages_of(ledger_.history(), turn_.history_from);
  auto before = json::array();
  for (const auto& w : turn_.before) before.push_back(w.item);
  append_items(past, before);
  const auto& settings = turn_.lead->settings;
  OpenChat chat;
  chat.system = turn_.lead->system;
  chat.operator_system = turn_.lead->is_persona;
  chat.seed = turn_.seed;
  chat.tools = settings.tools;
  chat.tool_choice = settings.tool_choice;
  chat.temperature_milli = settings.temperature_milli;
  chat.top_p_milli = settings.top_p_milli;
  chat.top_k = settings.top_k;
  chat.tokens_max = settings.tokens_max;
  chat.stop = settings.stop;
  chat.payload = bytes_of(text_of(past));
  send(Role::chat, std::move(chat));
  turn_.calls_made = turn_.results_said = 0;
  if (turn_.typed && !turn_.responds) send(Role::chat, Say{*turn_.typed});
  if (!turn_.codes.empty()) send(Role::chat, Hear{0, to_bytes(std::span<const std::int32_t>(turn_.codes))});
  if (turn_.typed || turn_.codes_done) ask_for_answer();
}

void Session::ask_for_answer() {
  if (!turn_.ids.empty()) send(Role::chat, GoOn{to_bytes(std::span<const std::int32_t>(turn_.ids))});
  call(Role::chat).send(head(), Generate{turn_.notes, turn_.responds}, chat_deadline());
}

/// While calls are executed the turn's time stands still; the chat cannot know.
Time Session::chat_deadline() const {
  constexpr int kRounds = 4;
  const bool elsewhere = !turn_.lead->tools.empty() || around_.tools != nullptr;
  if (!elsewhere || turn_.deadline == Time::max()) return turn_.deadline;
  return turn_.deadline + kRounds * std::chrono::seconds(around_.config.tool_seconds_max);
}

/// From the first piece that the client does not have wholly.
void Session::say_to_tts() {
  turn_.pieces_asked = 0;
  ask_for_pieces();
}

/// A text may have more pieces than a tts keeps: a few at a time are asked for, in their order.
void Session::ask_for_pieces() {
  if (!call(Role::tts).is_wanted()) return;
  auto& asked = turn_.pieces_asked;
  auto ahead =
      std::count_if(turn_.pieces.begin() + static_cast<std::ptrdiff_t>(asked - std::min(asked, kPiecesAhead)),
                    turn_.pieces.begin() + static_cast<std::ptrdiff_t>(asked), [](const Piece& p) { return !p.done; });
  for (; asked < turn_.pieces.size() && ahead < static_cast<std::ptrdiff_t>(kPiecesAhead); ++asked) {
    if (turn_.pieces[asked].done) continue;
    send(Role::tts, speak_of(asked));
    ++ahead;
  }
}

Speak Session::speak_of(std::size_t piece) const {
  const auto& p = turn_.pieces[piece];
  const auto& settings = turn_.lead->settings;
  return {static_cast<std::uint32_t>(piece), p.text,         turn_.lead->speaker,  p.samples,
          mix_seed(turn_.seed, piece),       settings.style, settings.speed_milli, settings.volume_milli};
}

void Session::speak(std::vector<TextChunk> pieces, Time now) {
  if (!turn_.lead->settings.speak) return;
  bool any = false;
  for (auto& chunk : pieces) {
    const auto index = static_cast<std::int64_t>(turn_.pieces.size());
    Piece piece{std::move(chunk.text), 0, false, chunk.tag_bytes, chunk.end};
    piece.done = index < turn_.told.pieces;
    if (index < static_cast<std::int64_t>(turn_.told.lengths.size()))
      piece.samples = turn_.told.lengths[static_cast<std::size_t>(index)];
    if (index == turn_.told.pieces) piece.samples = turn_.told.piece_samples;
    turn_.pieces.push_back(std::move(piece));
    any = any || !turn_.pieces.back().done;
  }
  if (!any) return;
  ask_for_pieces();
  want(Role::tts, now);
}

// ------------------------------------------------------------------------------------------------ how a turn ends

void Session::complete_if_all_there(Time now) {
  if (trial_) return;
  if (turn_.stage != Stage::thinking || !turn_.is_complete()) return;
  turn_.mark("total_ms", now);
  turn_.stage = Stage::closing;
  call(Role::tts).end(head());
  if (!turn_.remember || turn_.durable || std::exchange(turn_.committing, true)) return;
  turn_.corrections = items_.take_corrections();
  auto record = turn_.record();
  write_corrections(record, turn_.corrections);
  summaries_.write(record, ledger_.history());
  if (items_.waits_since(turn_.last_input)) record["items_until"] = turn_.begin_input - 1;
  ledger_.commit(turn_.id.value, std::move(record), now);
}

/// With what it settles: whoever takes the session over answers nothing twice.
void Session::report(const Turn& turn, bool degraded, const json& trace) {
  auto to = client_head();
  to.turn = turn.id;
  auto done = turn.record();
  // What was taken up waits again when nothing of the turn is stored.
  const auto settled = turn.remember ? JsonText{done["inputs"].dump()} : list_of(turn.inputs);
  const auto sound_from = turn.sound_end < 0 ? -1 : turn.id == turn_.id ? rest_from() : turn.sound_end;
  if (turn.notes)
    return tell(to, Noted{turn.noted_id(), turn.transcript.text, std::max<std::int64_t>(0, turn.begin_sample),
                          std::max<std::int64_t>(0, turn.end_sample), settled, sound_from, degraded});
  for (const auto* own : {"last_input", "inputs", "sound_end", "piece_lengths", "call_ends"}) done.erase(own);
  done["turn"] = turn.id.value;
  done["stages"] = turn.stages;
  done["trace"] = trace;
  done["audio_seconds"] = static_cast<double>(turn.samples) / turn.rate;
  if (!turn.finish.empty()) done["finish"] = turn.finish;
  if (!turn.usage.is_null()) done["usage"] = turn.usage;
  if (!turn.remember) done["remembered"] = false;
  tell(to, TurnDone{turn.id.value, degraded, bytes_of(text_of(done)), turn.remember, settled, sound_from});
}

void Session::finish_turn(bool degraded, Time now) {
  const auto trace = trace_of(trace_, turn_.stages);
  report(turn_, degraded, trace);
  if (turn_.remember) turn_.before.clear();
  (turn_.notes ? around_.tally.notes : around_.tally.turns).add();
  if (degraded) around_.tally.degraded.add();
  told_checkpoint_.degraded = told_checkpoint_.degraded || degraded;
  if (turn_.stages.contains("first_audio_ms"))
    around_.tally.first_audio.observe(turn_.stages["first_audio_ms"].get<double>() / 1000);
  for (const auto& part : trace["parts"])
    around_.tally.observe_part(part["name"].get_ref<const std::string&>(), part["ms"].get<double>() / 1000);
  around_.tally.latest_turns.add(json{
      {"time", around_.outlet.wall_time(now)},
      {"session", id_.text()},
      {"turn", turn_.id.value},
      {"degraded", degraded},
      {"stages", turn_.stages},
      {"trace", trace}}.dump());
  telemetry::log(telemetry::Level::info, "controller ends a turn session={} turn={} degraded={} stages={}", id_.text(),
                 turn_.id.value, degraded, turn_.stages.dump());
  if (turn_.cancel_asked) tell(Cancelled{turn_.id});
  // Of a turn that was taken over all sound may have been told before; if it was heard, the gateway answers Hold so.
  if (open_.plays && turn_.told.anything && turn_.samples > 0 && !turn_.pieces.empty()) add_playing(turn_.id);
  turn_.sound = {};
  turn_.codes.clear();
  items_due_ = items_due_ || !turn_.before.empty();
  items_.give_back(std::exchange(turn_.before, {}));
  last_ = std::move(turn_);
  next_turn(now);
  checkpoint(past_input(), 0);
  finish_next_stored(now);
}

void Session::fail_turn(const Error& error, Time now, milliseconds retry) {
  if (trial_) return drop_trial();  // only the trial has failed
  if (retry.count() == 0 && is_refusal(error.code)) retry = kRetry;
  tell(ErrorMessage{std::string(to_string(error.code)), error.message, retry.count(), list_of(turn_.inputs),
                    rest_from()});
  around_.tally.turn_errors[static_cast<std::size_t>(error.code)].add();
  telemetry::log(telemetry::Level::info, "controller fails a turn session={} turn={} code={}: {}", id_.text(),
                 turn_.id.value, to_string(error.code), error.message);
  if (turn_.cancel_asked) tell(Cancelled{turn_.id});
  listen_again_at_ = now + retry;
  drop_sound_of(turn_.id, now);
  for (auto& correction : turn_.corrections) items_.correct(std::move(correction));  // its record is not stored
  next_turn(now);
  checkpoint(past_input(), 0);
  finish_next_stored(now);
}

/// Everything of the turn is dropped; what was said behind it belongs to the next.
void Session::next_turn(Time now) {
  drop_trial();
  forget_calls();
  if (!is_answering()) drop_voice();  // its sound is that of the turn
  // Its vad goes on with what was said behind the turn, if it has heard that and is to stay.
  const auto& vad = call(Role::vad);
  const bool stays = vad.is_live() && !around_.fleet.is_draining(Role::vad, vad.replica());
  const bool goes_on = is_answering() && !ear_.is_empty() && stays;
  const bool same = told_vad_.threshold_permille == lead_->vad(judged_).threshold_permille &&
                    told_vad_.silence_ms == lead_->vad(judged_).silence_ms;
  for (const auto role : {Role::tokenizer, Role::chat, Role::tts}) call(role).end(head());
  if (!goes_on || !same) call(Role::vad).end(head());
  items_due_ = items_due_ || !turn_.before.empty();
  items_.give_back(std::move(turn_.before));
  turn_ = Turn();
  turn_.lead = lead_;
  turn_.settings_input = configured_;
  turn_.sound = std::exchange(ear_, {});
  decided_.reset();
  turn_.id = {static_cast<std::uint32_t>(ledger_.turns() + 1)};
  turn_.seed = mix_seed(open_.seed, turn_.id.value);
  for (auto& [id, output] : std::exchange(early_outputs_, {})) keep_output(id, output.second, output.first);
  // Nobody is left who would say what the client's flush has ended. What it has ended is said behind all turns that are
  // still to be told.
  if (voice_ || !untold_.empty()) return;
  const auto flushed = std::exchange(flushed_sample_, -1);
  if (flushed < 0) return;
  turn_.inputs.push_back(flushed_input_);
  if (goes_on || turn_.sound.is_empty()) return;
  turn_.end_input = flushed_input_;
  turn_.flushed = true;
  turn_.flush_sample = flushed;
  seal(now);
}

/// After everything that happened: what follows from the state of ledger and calls.
void Session::settle(Time now) {
  settle_turn(now);
  keep_summary(now);
}

/// Old turns are summarised while nobody speaks, waits or is answered.
void Session::keep_summary(Time now) {
  if (over_ || !opened_) return;
  const bool free = turn_.stage == Stage::listening && !turn_.sealed && !voice_ && !detached_ && later_.empty() &&
                    !decided_ && untold_.empty();
  if (!free) return summaries_.give_up(head());
  summaries_.begin(ledger_.history(), ledger_.turns(), turn_.seed, head(), now);
  if (summaries_.is_busy()) chats_.insert(summaries_.replica());
}

void Session::settle_turn(Time now) {
  if (over_) return;
  if (trial_ && trial_->effect_bytes > kEffectBytesMax) drop_trial();
  ledger_.tick(now);
  if (const auto stale = ledger_.stale()) return stop_stale(*stale);
  if (const auto failure = ledger_.take_failure()) {
    if (!opened_) return refuse_open(*failure);
    if (!items_are_lost() && (turn_.stage == Stage::closing || turn_.committing)) fail_turn(*failure, now);
  }
  if (items_are_lost()) settle_items(now);
  if (!opened_ && ledger_.is_open()) opened(now);
  if (!opened_ || over_) return;
  take_later(now);
  settle_voice(now);
  store_items(now);
  if (told_checkpoint_.degraded && ledger_.waiting() == 0 && !trial_)
    checkpoint(told_checkpoint_.input, told_checkpoint_.keep_until);
  if (turn_.stage == Stage::closing) {
    const bool durable =
        !turn_.remember || turn_.durable || ledger_.durable() >= static_cast<std::int64_t>(turn_.id.value);
    // A client that is not there is told when it is back, behind the sound that it has not got.
    if (!detached_ && (durable || ledger_.is_degraded())) finish_turn(!durable, now);
    return;
  }
  if (is_answering() && call(Role::vad).trouble(now, milliseconds(around_.config.wait_ms_max))) lose_vad(now);
  for (const auto& c : calls_) {
    const auto trouble = c.trouble(now, milliseconds(around_.config.wait_ms_max));
    if (trouble && trial_) return drop_trial();
    if (trouble) return fail_turn(*trouble, now);
  }
}

void Session::on_peer(Role role, const std::string& instance, PeerState state, Time now) {
  if (over_) return;
  if (trial_ && role != Role::context && state != PeerState::up && state != PeerState::changed) {
    const bool its = instance == trial_->chat.replica() || instance == call(role).replica();
    if (its) drop_trial();
  }
  if (role == Role::chat) summaries_.on_peer(instance, state, head());
  if (role == Role::context)
    ledger_.on_peer(instance, state, now);
  else if (call(role).on_peer(head(), instance, state, now))
    say(role);
  // A vad that drains hears its turns to their end; silence can be listened to elsewhere.
  else if (role == Role::vad && !trial_ && !voice_ && turn_.stage != Stage::hearing && !turn_.sealed &&
           call(role).leave_draining(head(), now))
    say(role);
  settle(now);
}

void Session::on_refused(const std::string& peer, const Envelope& head, const Error& error, Time now) {
  if (over_) return;
  if (ledger_.is_current(peer, head.stream)) {
    ledger_.on_refused(error, now);
    return settle(now);
  }
  if (summaries_.is_current(peer, head.stream)) return summaries_.fail(this->head());
  const auto is_its = [&](const Call& c) { return c.is_current(peer, head.stream); };
  if (trial_ && (is_its(trial_->chat) || std::any_of(calls_.begin(), calls_.end(), is_its))) {
    drop_trial();
    settle(now);
    if (over_) return;
  }
  const auto found = std::find_if(calls_.begin(), calls_.end(), is_its);
  if (found != calls_.end()) {
    const auto role = static_cast<Role>(found - calls_.begin() + 1);
    if (is_link_lost(error.code)) {
      if (found->lost(now)) say(role);
      return settle(now);
    }
    on_service_error(role, ErrorMessage{std::string(to_string(error.code)), error.message}, now);
    return settle(now);
  }
  if (peer != client_.gateway || head.stream != client_.stream) return;
  if (is_link_lost(error.code)) return;  // the gateway's end decides
  // Something is missing at the client, and nothing behind it may arrive.
  telemetry::log(telemetry::Level::warning, "controller drops a session whose client takes no more session={}: {}",
                 id_.text(), error.message);
  drop_trial();
  tell(client_head(), ErrorMessage{std::string(to_string(Errc::stale_epoch)),
                                   "the controller cannot tell what follows: " + error.message});
  leave(Then::goes_on);
}

void Session::on_exception(const std::string& what, Time now) {
  if (over_) return;
  drop_trial();
  const Error error{Errc::internal, "the controller failed: " + what};
  if (!opened_) return refuse_open(error);
  fail_turn(error, now);
}

void Session::on_tick(Time now) {
  if (over_) return;
  if (opened_ && turn_.is_open()) ledger_.renew(now);
  summaries_.tick(head(), now);
  expire_calls(now);
  if (opened_ && turn_.stage != Stage::closing && !turn_.is_waiting() && now >= turn_.deadline)
    fail_turn({Errc::deadline_exceeded, fmt::format("the turn took more than {} s", around_.config.reply_seconds_max)},
              now);
  settle(now);
}

void Session::refuse_input(const Error& error, milliseconds retry) {
  tell_at_once({}, ErrorMessage{std::string(to_string(error.code)), error.message, retry.count(),
                                taken_ == 0 ? JsonText() : list_of({taken_})});
}

bool Session::settle_with_turn() {
  if (turn_.inputs.size() >= kTurnInputsMax) {
    refuse_input(
        {Errc::overloaded, fmt::format("{} inputs wait for the end of turn {}", turn_.inputs.size(), turn_.id.value)});
    return false;
  }
  turn_.inputs.push_back(taken_);
  return true;
}

/// How much of the sound behind `keep_until` an utterance may begin in that nobody has noticed yet. The gateway does
/// not leave a controller that drains before what was told is stored.
void Session::checkpoint(std::uint64_t input, std::uint64_t keep_until) {
  if (const auto needed = needed_input(); needed != 0) input = std::min(input, needed - 1);
  const bool degraded = told_checkpoint_.degraded && ledger_.waiting() > 0;
  const bool same = keep_until == told_checkpoint_.keep_until && degraded == told_checkpoint_.degraded;
  if (input <= told_checkpoint_.input && same) return;
  told_checkpoint_ = {std::max(input, told_checkpoint_.input), keep_until, 0, degraded};
  if (keep_until != 0)
    told_checkpoint_.recent_samples =
        input_samples(milliseconds(lead_->preroll_ms(around_.config)) + kMemory + kMemorySlack + kVadLag);
  tell(Checkpoint{told_checkpoint_});
}

}  // namespace parlando::controller
