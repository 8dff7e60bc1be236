#include "services/controller/session.hpp"

#include <algorithm>

#include "common/base/codes.hpp"
#include "common/base/nesting.hpp"
#include "common/base/pcm.hpp"
#include "common/base/random_id.hpp"
#include "common/telemetry/log.hpp"
#include "services/controller/tools.hpp"

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
constexpr int kResultsDepthMax = 32;
constexpr std::size_t kEffectBytesMax = 1u << 20;  // 20 s of sound: more is not made in a pause

std::string text_of(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }
Bytes bytes_of(const std::string& text) { return to_bytes(std::span<const char>(text)); }

std::string text_in(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

std::vector<json> results_of(const JsonText& list) {
  if (nested_deeper_than(list.text, kResultsDepthMax)) return {};
  const auto parsed = json::parse(list.text, nullptr, false);
  return parsed.is_array() ? parsed.get<std::vector<json>>() : std::vector<json>();
}

/// What the former controller had told, as the gateway saw it.
void take_over(Turn& turn, const Open& open) {
  turn.ids = from_bytes<std::int32_t>(open.payload);
  turn.transcript.told_bytes = open.transcript_bytes;
  turn.reply.told_bytes = open.reply_bytes;
  turn.samples = open.turn_samples;
  turn.told.tool_calls = open.tool_calls;
  turn.told.tool_results = results_of(open.tool_results);
  turn.told.pieces = open.pieces;
  turn.told.piece_samples = open.piece_samples;
  const auto before = open.turn_samples - open.piece_samples;
  (open.pieces > 0 ? turn.told.whole_samples : turn.skip) = before;
  turn.told.anything = open.transcript_bytes + open.reply_bytes + open.tool_calls + open.turn_samples > 0;
}

}  // namespace

Session::Session(SessionId id, ClientStream client, Open open, Ledger ledger, Surroundings around)
    : id_(id),
      client_(std::move(client)),
      open_(std::move(open)),
      around_(around),
      ledger_(std::move(ledger)),
      calls_{Call(Role::vad, id, around.fleet, around.outlet), Call(Role::tokenizer, id, around.fleet, around.outlet),
             Call(Role::chat, id, around.fleet, around.outlet), Call(Role::tts, id, around.fleet, around.outlet)} {
  if (open_.seed == 0) open_.seed = mix_seed(id.high ^ id.low, 0);
  input_ = open_.first_input == 0 ? 0 : open_.first_input - 1;
}

void Session::start(Time now) {
  ledger_.open(open_.expected_epoch, now);
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
  return !opened_ || turn_.is_open() || trial_ || voice_ || turn_.deadline != Time::max() || ledger_.waiting() > 0 ||
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
  next_turn(now);
  tell(Opened{ledger_.turns(), open_.seed, ledger_.is_degraded()});
  if (open_.open_turn.value != 0) adopt(now);
  for (; !early_.empty() && !over_; early_.pop_front()) take_input(std::move(early_.front()), now);
  early_.clear();
  early_bytes_ = 0;
}

void Session::adopt(Time now) {
  around_.tally.adoptions.add();
  const auto turn = static_cast<std::int64_t>(open_.open_turn.value);
  const auto& latest = ledger_.latest();
  const bool stored = latest && latest->turn == turn;
  if (turn <= ledger_.turns() && !stored) return;  // it is over, and what was told of it counts for no other
  if (!stored && !open_.inputs_kept)
    return fail_turn({Errc::unavailable, "the turn went with its controller: what was said must be said again"}, now);
  take_over(turn_, open_);
  turn_.deadline = now + std::chrono::seconds(around_.config.reply_seconds_max);
  if (stored) finish_stored(open_.open_turn, now);
}

/// The turn is in the store, but the client was not told all of it: the rest is made from the record, and nothing is
/// stored again.
void Session::finish_stored(TurnId turn, Time now) {
  const auto& record = ledger_.latest()->record;
  turn_.id = turn;
  turn_.durable = true;
  turn_.stage = Stage::thinking;
  turn_.ended_at = now;
  turn_.ids.clear();
  if (record.contains("seed") && record["seed"].is_number_integer()) turn_.seed = record["seed"].get<std::uint64_t>();
  // The gateway says the turn's inputs again, now or later; they must not become another turn.
  if (record.contains("last_input") && record["last_input"].is_number_integer())
    stored_input_ = record["last_input"].get<std::uint64_t>();
  if (record.contains("typed") && record["typed"] == true) turn_.typed = text_in(record, "user");
  if (turn_.typed)
    turn_.transcript.text = *turn_.typed;
  else
    on_transcript({TextKind::transcript, 0, text_in(record, "user"), {}}, now);
  for (const auto& stored : record.value("tool_calls", json::array())) {
    turn_.tool_calls.push_back(
        {text_in(stored, "name"), stored.value("arguments", json()), stored.value("result", json())});
    const auto index = static_cast<std::int64_t>(turn_.tool_calls.size()) - 1;
    if (index >= turn_.told.tool_calls) tell(Text{TextKind::tool_call, index, text_of(stored), {}});
  }
  on_reply({TextKind::text, 0, text_in(record, "assistant"), {}}, now);
  on_text_done(now);
}

void Session::refuse_open(const Error& error) {
  tell(ErrorMessage{std::string(to_string(error.code)), error.message, is_refusal(error.code) ? kRetry.count() : 0});
  leave();
}

void Session::stop_stale(Epoch known) {
  around_.tally.stale.add();
  yield(known);
}

void Session::yield(Epoch to) {
  auto head = client_head();
  if (to.value != 0) head.epoch = to;
  const auto text = fmt::format("the session is another owner's, under epoch {}", head.epoch.value);
  tell(head, ErrorMessage{std::string(to_string(Errc::stale_epoch)), text});
  leave();
}

void Session::leave() {
  drop_trial();
  for (auto& c : calls_) c.end(head());
  if (ledger_.waiting() == 0) ledger_.close();
  over_ = true;
}

// ------------------------------------------------------------------------------------------------ what the client says

template <class T, class F>
void Session::read_input(Message& message, F&& use) {
  auto body = read<T>(message);
  if (!body) return refuse_input(body.error());
  use(std::move(*body));
}

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
    read_input<Played>(message, [&](const Played& p) { on_played(p); });
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
  ++input_;
  if (input_ <= stored_input_) return;
  switch (message.head.type) {
    case MessageType::audio:
      return read_input<Audio>(message, [&](Audio a) { on_audio(std::move(a), now); });
    case MessageType::flush:
      return read_input<Flush>(message, [&](const Flush& f) { on_flush(f, now); });
    case MessageType::say:
      return read_input<Say>(message, [&](const Say& s) { on_say(s, now); });
    case MessageType::cancel:
      return read_input<Cancel>(message, [&](const Cancel& c) { on_cancel(c, now); });
    default:
      --input_;
      refuse_input(
          {Errc::unsupported, fmt::format("a controller takes no {} from a client", to_string(message.head.type))});
  }
}

void Session::on_audio(Audio audio, Time now) {
  if (audio.payload.size() % kSampleBytes != 0)
    return refuse_input(
        {Errc::invalid_argument, fmt::format("audio of {} bytes is no whole number of samples", audio.payload.size())});
  if (audio.payload.empty()) return;  // of sound that is not kept any more only the number is left
  heard_samples_ = audio.first_sample + static_cast<std::int64_t>(audio.payload.size() / kSampleBytes);
  auto& turn = heard_turn();
  const bool hears = (turn.stage == Stage::listening || turn.stage == Stage::hearing) && !turn.sealed;
  if (!hears) return overhear(std::move(audio), now);
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
  if (call(Role::vad).is_wanted())
    send(Role::vad, std::move(*fresh));
  else
    listen(now);
  if (turn.stage == Stage::hearing) {
    if (turn.sound.samples() < kInputRate * around_.config.turn_seconds_max) return try_trial(now);
    drop_trial();
    end_speech(turn_.sound.end_sample(), now);
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
  if (!ear_.is_empty() && audio.first_sample > ear_.end_sample()) {
    if (!sealed) call(Role::vad).end(head());
    ear_ = {};
    voice_.reset();
  }
  auto fresh = ear_.append(std::move(audio), input_, now);
  if (!fresh || fresh->payload.empty()) return;
  if (!voice_) trim_memory(ear_, now);
  ear_.drop_before(ear_.end_sample() - kInputRate * around_.config.turn_seconds_max);
  if (sealed || around_.config.barge_in_ms == 0 || detached_) return;
  if (call(Role::vad).is_wanted())
    send(Role::vad, std::move(*fresh));
  else
    listen(now);
  judge_voice(now);
}

/// Inputs up to here belong to turns that are over. Of silence behind a turn the gateway has not kept all, so that it
/// begins anew; a voice is kept from where it was noticed.
std::uint64_t Session::past_input() const { return voice_ ? voice_->input : input_; }

/// Inputs up to here are wholly in front of what is kept.
std::uint64_t Session::input_before(const SoundLog& sound) const {
  const auto first = sound.first_input();
  return first == 0 ? input_ : first - 1;
}

/// Asks for a vad, unless none could be had a moment ago and none has come since.
void Session::listen(Time now) {
  if (now >= listen_again_at_ || around_.fleet.any(Role::vad)) want(Role::vad, now);
}

/// Silence in front of a turn is kept for as long as a turn can reach back; longer while nobody listens to it, and what
/// has just come is kept in any case: a recording is said all at once, and the vad finds its beginning when its end is
/// here already.
void Session::trim_memory(SoundLog& sound, Time now) {
  const bool heard = call(Role::vad).is_served() || !call(Role::vad).is_wanted();
  const auto most = sound.end_sample() - kInputRate * around_.config.turn_seconds_max;
  const auto enough = sound.end_sample() - input_samples(milliseconds(around_.config.preroll_ms) + kMemory);
  const auto from = heard ? std::max(most, std::min(enough, sound.first_sample_since(now - kVadLag))) : most;
  if (from - sound.first_sample() >= input_samples(kMemorySlack)) sound.drop_before(from);
}

void Session::on_flush(const Flush& flush, Time now) {
  drop_trial();
  const bool hears = (turn_.stage == Stage::listening || turn_.stage == Stage::hearing) && !turn_.sealed;
  if (!hears) return;  // an answer is under way
  if (turn_.sound.is_empty()) return fail_turn({Errc::no_speech, "no audio came before the end of the turn"}, now);
  turn_.flushed = true;
  turn_.flush_sample = std::min(flush.end_sample, turn_.sound.end_sample());
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
  if (!may_begin(now)) return;
  call(Role::vad).end(head());
  turn_.typed = turn_.transcript.text = say.text;
  turn_.stage = Stage::thinking;
  turn_.last_input = input_;
  turn_.ended_at = now;
  turn_.deadline = now + std::chrono::seconds(around_.config.reply_seconds_max);
  begin_turn(now);
  want(Role::chat, now);
}

void Session::on_cancel(const Cancel& cancel, Time now) {
  const auto id = cancel.turn.value == 0 ? turn_.id : cancel.turn;
  const bool meant = id == turn_.id;
  // It is complete and as good as stored: its end comes first.
  if (meant && (turn_.stage == Stage::closing || turn_.durable || turn_.committing)) {
    turn_.cancel_asked = true;
    return;
  }
  drop_trial();
  if (meant) {
    if (turn_.is_open())
      telemetry::log(telemetry::Level::info, "controller drops a turn session={} turn={}", id_.text(), turn_.id.value);
    next_turn(now);
  }
  auto to = client_head();
  to.turn = id;
  tell(to, Cancelled{id});
  if (meant) checkpoint(past_input(), 0);
}

/// A turn more than the store may owe us is not begun.
bool Session::may_begin(Time now) {
  if (!ledger_.is_full()) return true;
  fail_turn({Errc::unavailable,
             fmt::format("{} turns wait to be stored and no replica of context takes them", ledger_.waiting())},
            now, kRetry);
  return false;
}

void Session::begin_turn(Time now) {
  turn_.cut = cut_;
  ledger_.renew(now);
}

// ------------------------------------------------------------------------------------------------ what services answer

void Session::on_answer(const std::string& peer, Message message, Time now) {
  if (over_) return;
  if (ledger_.is_current(peer, message.head.stream)) {
    ledger_.on_message(std::move(message), now);
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
  // Sound was missing and nobody spoke before it: there is nothing to report.
  if (role == Role::vad && why.code == Errc::no_speech && !turn_.flushed && turn_.stage == Stage::listening) {
    next_turn(now);
    return checkpoint(input_, 0);
  }
  fail_turn({why.code, fmt::format("{}: {}", to_string(role), why.message)}, now, milliseconds(error.retry_ms));
}

void Session::on_vad(const SpeechStarted& started, Time now) {
  if (trial_ || turn_.stage == Stage::hearing) return;  // of a vad that hears it again
  if (is_answering() || (playing_.value != 0 && !turn_.sealed)) return raise_voice(started.sample, now);
  begin_hearing(started.sample, now);
}

void Session::begin_hearing(std::int64_t sample, Time now) {
  if (!may_begin(now)) return;
  turn_.stage = Stage::hearing;
  turn_.deadline = now + std::chrono::seconds(around_.config.turn_seconds_max + around_.config.reply_seconds_max);
  turn_.sound.drop_before(sample - input_samples(milliseconds(around_.config.preroll_ms)));
  begin_turn(now);
  if (!turn_.told.anything) tell(SpeechStarted{sample});
  checkpoint(input_before(turn_.sound), 0);
  want(Role::tokenizer, now);
  want(Role::chat, now);
}

void Session::on_vad(const SpeechEnded& ended, Time now) {
  if (trial_ && trial_->sample == ended.sample) return commit_trial(now);
  drop_trial();
  if (voice_) return lower_voice(ended.sample, true, now);
  end_speech(ended.sample, now);
}

void Session::on_vad(const SpeechPaused& paused, Time now) {
  if (voice_) return lower_voice(paused.sample, false, now);
  if (trial_ || turn_.stage != Stage::hearing) return;
  turn_.paused_sample = paused.sample;
  try_trial(now);
}

void Session::on_vad(const SpeechResumed&, Time now) {
  drop_trial();
  turn_.paused_sample = -1;
  if (!voice_ || voice_->taken || voice_->holds) return;
  voice_->holds = true;
  tell(Hold{voice_->over});
  judge_voice(now);
}

void Session::end_speech(std::int64_t sample, Time now) {
  if (turn_.stage != Stage::hearing) return;
  begin_thinking(sample, now);
  ear_ = turn_.sound.split_from(sample + input_samples(milliseconds(around_.config.tail_ms)));
  decide_end(sample, now);
  send(Role::tokenizer, Flush{turn_.sound.end_sample()});
}

/// As if speech had ended at this sample.
void Session::begin_thinking(std::int64_t sample, Time now) {
  turn_.stage = Stage::thinking;
  turn_.ended_at = now - input_time(std::max<std::int64_t>(0, heard_samples_ - sample));
  turn_.deadline = turn_.ended_at + std::chrono::seconds(around_.config.reply_seconds_max);
}

/// It has: the client is told. What was said behind it is in the ear already.
void Session::decide_end(std::int64_t sample, Time now) {
  turn_.last_input = input_;
  turn_.mark("decision_ms", now);
  // A vad that was asked for the end of a sealed turn has done its work; what comes behind it is another stream's.
  if (turn_.sealed || around_.config.barge_in_ms == 0) call(Role::vad).end(head());
  if (!turn_.told.anything) tell(SpeechEnded{sample});
  // Other replicas find the same end only with the silence behind it.
  checkpoint(input_before(turn_.sound), input_);
}

/// Codes of an attempt follow those that the stream has told, which the turn that listens on has.
void Session::on_tokens(Tokens tokens, Time now) {
  const bool asked = tokens.attempt != 0;
  if (asked && tokens.attempt != turn_.attempt) return;  // of a trial that was dropped
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
  if (!trial_) call(Role::tokenizer).end(head());
  if (turn_.codes.empty()) {
    const auto seconds = static_cast<double>(turn_.sound.samples()) / kInputRate;
    return fail_turn({Errc::no_speech, fmt::format("{:.2f} s of speech are too short to be understood", seconds)}, now);
  }
  ask_for_answer();
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
      return on_text_done(now);
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
  auto pieces = turn_.chunker.push(news->fresh);
  tell_text(TextKind::text, std::move(*news), std::move(text.payload));
  speak(std::move(pieces), now);
}

/// A call is made once, whoever asks for it again: its result is in the turn, or was told by the gateway.
void Session::on_tool_call(Text text, Time now) {
  if (trial_) return trial_->tool_calls.push_back(std::move(text));  // the model waits for it, and so does the world
  const auto index = static_cast<std::size_t>(text.at_bytes);
  auto& calls = turn_.tool_calls;
  if (index > calls.size()) return fail_turn({Errc::internal, "llm-chat: a tool call is missing"}, now);
  if (index == calls.size()) {
    auto call = read_tool_call(text.text);
    if (!call) return fail_turn(call.error(), now);
    call->result = index < turn_.told.tool_results.size()
                       ? turn_.told.tool_results[index]
                       : run_tool(around_.config.tools, *call, around_.outlet.wall_time(now));
    calls.push_back(std::move(*call));
    if (text.at_bytes >= turn_.told.tool_calls)
      tell(Text{TextKind::tool_call, text.at_bytes, text_of(to_json(calls.back())), std::exchange(text.payload, {})});
  }
  tell_ids(std::move(text.payload));
  send(Role::chat, ToolResult{{text_of(calls[index].result)}});
}

void Session::on_text_done(Time now) {
  turn_.text_done = true;
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
  turn_.rate = speech.rate;
  if (open_.plays && fresh > skipped && !trial_) playing_ = turn_.id;
  if (fresh > skipped || (speech.last && turn_.skip == 0)) tell(std::move(speech));
  complete_if_all_there(now);
}

// ------------------------------------------------------------------------------------------------ what services are
// told

void Session::want(Role role, Time now) {
  if (call(role).begin(now)) say(role);
}

void Session::say(Role role) {
  static constexpr std::array<void (Session::*)(), kRoles> kSay{
      nullptr, &Session::say_to_vad, &Session::say_to_tokenizer, &Session::say_to_chat, &Session::say_to_tts};
  (this->*kSay[static_cast<std::size_t>(role)])();
}

void Session::say_to_vad() {
  send(Role::vad, OpenVad{});
  const auto& turn = heard_turn();
  const bool hears = turn.stage == Stage::listening || turn.stage == Stage::hearing;
  (hears ? turn.sound : ear_).each([this](Audio part) { send(Role::vad, std::move(part)); });
  if (hears && turn.sealed) send(Role::vad, Flush{turn.flush_sample});
}

void Session::say_to_tokenizer() {
  turn_.attempt = 0;
  send(Role::tokenizer,
       OpenTokenizer{around_.config.tokenizer_mode == "exact" ? TokenizerMode::exact : TokenizerMode::stable});
  turn_.sound.each([this](Audio part) { send(Role::tokenizer, std::move(part)); });
  if (turn_.stage == Stage::thinking) send(Role::tokenizer, Flush{turn_.sound.end_sample()});
}

void Session::say_to_chat() {
  json past = json::array();
  for (const auto& turn : ledger_.history()) {
    past.push_back({{"role", "user"}, {"content", text_in(turn.record, "user")}});
    past.push_back({{"role", "assistant"}, {"content", text_in(turn.record, "assistant")}});
  }
  OpenChat chat;
  chat.system = open_.system;
  chat.seed = turn_.seed;
  chat.payload = bytes_of(text_of(past));
  send(Role::chat, std::move(chat));
  if (turn_.typed) send(Role::chat, Say{*turn_.typed});
  if (!turn_.codes.empty()) send(Role::chat, Hear{0, to_bytes(std::span<const std::int32_t>(turn_.codes))});
  if (turn_.typed || turn_.codes_done) ask_for_answer();
}

void Session::ask_for_answer() {
  if (!turn_.ids.empty()) send(Role::chat, GoOn{to_bytes(std::span<const std::int32_t>(turn_.ids))});
  send(Role::chat, Generate{});
}

/// From the first piece that the client does not have wholly.
void Session::say_to_tts() {
  for (std::size_t i = 0; i < turn_.pieces.size(); ++i)
    if (!turn_.pieces[i].done) send(Role::tts, speak_of(i));
}

Speak Session::speak_of(std::size_t piece) const {
  const auto& p = turn_.pieces[piece];
  return {static_cast<std::uint32_t>(piece), p.text, open_.speaker, p.samples, mix_seed(turn_.seed, piece)};
}

void Session::speak(std::vector<std::string> pieces, Time now) {
  if (!open_.speak) return;
  bool any = false;
  for (auto& text : pieces) {
    const auto index = static_cast<std::int64_t>(turn_.pieces.size());
    Piece piece{std::move(text)};
    piece.done = index < turn_.told.pieces;
    if (index == turn_.told.pieces) piece.samples = turn_.told.piece_samples;
    turn_.pieces.push_back(std::move(piece));
    if (turn_.pieces.back().done) continue;
    any = true;
    if (call(Role::tts).is_wanted()) send(Role::tts, speak_of(turn_.pieces.size() - 1));
  }
  if (any) want(Role::tts, now);
}

// ------------------------------------------------------------------------------------------------ how a turn ends

void Session::complete_if_all_there(Time now) {
  if (trial_) return;
  if (turn_.stage != Stage::thinking || !turn_.is_complete()) return;
  turn_.mark("total_ms", now);
  turn_.stage = Stage::closing;
  call(Role::tts).end(head());
  if (turn_.durable || std::exchange(turn_.committing, true)) return;
  cut_.reset();
  ledger_.commit(turn_.id.value, turn_.record(), now);
}

void Session::report(const Turn& turn, bool degraded) {
  auto done = turn.record();
  done.erase("last_input");
  done["turn"] = turn.id.value;
  done["stages"] = turn.stages;
  done["audio_seconds"] = static_cast<double>(turn.samples) / turn.rate;
  auto to = client_head();
  to.turn = turn.id;
  tell(to, TurnDone{turn.id.value, degraded, bytes_of(text_of(done))});
}

void Session::finish_turn(bool degraded, Time now) {
  // A durable turn is known to whoever takes over; what led to it may go, before anybody could hear it again.
  if (!degraded) checkpoint(past_input(), 0);
  report(turn_, degraded);
  around_.tally.turns.add();
  if (degraded) around_.tally.degraded.add();
  if (turn_.stages.contains("first_audio_ms"))
    around_.tally.first_audio.observe(turn_.stages["first_audio_ms"].get<double>() / 1000);
  telemetry::log(telemetry::Level::info, "controller ends a turn session={} turn={} degraded={} stages={}", id_.text(),
                 turn_.id.value, degraded, turn_.stages.dump());
  if (turn_.cancel_asked) tell(Cancelled{turn_.id});
  turn_.sound = {};
  turn_.codes.clear();
  last_ = std::move(turn_);
  next_turn(now);
  checkpoint(past_input(), 0);
}

void Session::fail_turn(const Error& error, Time now, milliseconds retry) {
  if (trial_) return drop_trial();  // only the trial has failed
  if (retry.count() == 0 && is_refusal(error.code)) retry = kRetry;
  tell(ErrorMessage{std::string(to_string(error.code)), error.message, retry.count()});
  around_.tally.turn_errors[static_cast<std::size_t>(error.code)].add();
  telemetry::log(telemetry::Level::info, "controller fails a turn session={} turn={} code={}: {}", id_.text(),
                 turn_.id.value, to_string(error.code), error.message);
  if (turn_.cancel_asked) tell(Cancelled{turn_.id});
  listen_again_at_ = now + retry;
  next_turn(now);
  checkpoint(past_input(), 0);
}

/// Everything of the turn is dropped; what was said behind it belongs to the next.
void Session::next_turn(Time) {
  drop_trial();
  // Its vad goes on with what was said behind the turn, if it has heard that and is to stay.
  const auto& vad = call(Role::vad);
  const bool stays = vad.is_live() && !around_.fleet.is_draining(Role::vad, vad.replica());
  const bool goes_on = is_answering() && !ear_.is_empty() && stays;
  for (const auto role : {Role::tokenizer, Role::chat, Role::tts}) call(role).end(head());
  if (!goes_on) call(Role::vad).end(head());
  turn_ = Turn();
  turn_.sound = std::exchange(ear_, {});
  turn_.id = {static_cast<std::uint32_t>(ledger_.turns() + 1)};
  turn_.seed = mix_seed(open_.seed, turn_.id.value);
}

/// After everything that happened: what follows from the state of ledger and calls.
void Session::settle(Time now) {
  if (over_) return;
  if (trial_ && trial_->effect_bytes > kEffectBytesMax) drop_trial();
  ledger_.tick(now);
  if (const auto stale = ledger_.stale()) return stop_stale(*stale);
  if (const auto failure = ledger_.take_failure()) {
    if (!opened_) return refuse_open(*failure);
    if (turn_.stage == Stage::closing || turn_.committing) fail_turn(*failure, now);
  }
  if (!opened_ && ledger_.is_open()) opened(now);
  if (!opened_ || over_) return;
  // Nobody speaks any more whom the voice could interrupt, or it has taken the word.
  if (voice_ && turn_.stage == Stage::listening && (voice_->taken || playing_.value == 0)) take_voice(now);
  if (turn_.stage == Stage::closing) {
    const bool durable = turn_.durable || ledger_.durable() >= static_cast<std::int64_t>(turn_.id.value);
    // A client that is not there is told when it is back, behind the sound that it has not got.
    if (!detached_ && (durable || ledger_.is_degraded())) finish_turn(!durable, now);
    return;
  }
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
  if (trial_ && trial_->chat.is_current(peer, head.stream)) drop_trial();
  const auto found =
      std::find_if(calls_.begin(), calls_.end(), [&](const Call& c) { return c.is_current(peer, head.stream); });
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
  leave();
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
  judge_voice(now);
  if (opened_ && turn_.stage != Stage::closing && now >= turn_.deadline)
    fail_turn({Errc::deadline_exceeded, fmt::format("the turn took more than {} s", around_.config.reply_seconds_max)},
              now);
  settle(now);
}

void Session::refuse_input(const Error& error, milliseconds retry) {
  auto to = client_head();
  to.turn = {};
  tell(to, ErrorMessage{std::string(to_string(error.code)), error.message, retry.count()});
}

void Session::checkpoint(std::uint64_t input, std::uint64_t keep_until) {
  if (input <= told_checkpoint_.input && keep_until == told_checkpoint_.keep_until) return;
  told_checkpoint_ = {std::max(input, told_checkpoint_.input), keep_until};
  tell(Checkpoint{told_checkpoint_});
}

}  // namespace parlando::controller
