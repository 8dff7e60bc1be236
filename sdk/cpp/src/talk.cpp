#include "sdk/cpp/src/talk.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>

namespace parlando::sdk {
using namespace protocol;
using nlohmann::json;

namespace {

constexpr std::int64_t kRate = 16000;
constexpr std::int64_t kKeptSamples = 60 * kRate;    // of sound that is said again after a resume
constexpr std::int64_t kUnsentSamples = 20 * kRate;  // of sound that waits for a gateway
constexpr std::size_t kKeptEvents = 512, kKeptEventBytes = 1u << 20;
constexpr std::size_t kToldMax = 1024;  // the window is smaller
constexpr milliseconds kOpenWait{10000};
/// Pauses behind attempts that have failed: the first, and what they double up to.
constexpr milliseconds kAgain{50}, kAgainMax{400};
constexpr std::string_view kUtterance = "utterance_";
constexpr milliseconds kServed{5000};  // behind `opened`: a gateway has served, also when there was nothing to tell

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }
Bytes bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}
std::string text_of(const json& fields, const char* name) {
  const auto found = fields.find(name);
  return found != fields.end() && found->is_string() ? found->get<std::string>() : std::string();
}
std::int64_t number_of(const json& fields, const char* name, std::int64_t otherwise = 0) {
  const auto found = fields.find(name);
  return found != fields.end() && found->is_number() ? found->get<std::int64_t>() : otherwise;
}
Error error_of(const json& fields) {
  return Error(text_of(fields, "code"), text_of(fields, "message"), number_of(fields, "retry_ms"));
}
/// SplitMix64
std::uint64_t next_random(std::uint64_t& state) {
  auto z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

void Latency::add(milliseconds time) { last_[count_++ % last_.size()] = static_cast<double>(time.count()); }

double Latency::median_ms() const {
  if (count_ == 0) return 0;
  std::vector<double> sorted(last_.begin(), last_.begin() + static_cast<long>(std::min(count_, last_.size())));
  const auto middle = sorted.begin() + static_cast<long>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

Talk::Talk(Finder& finder, json opening, milliseconds reconnect, std::uint64_t seed, Time now)
    : finder_(finder),
      opening_(std::move(opening)),
      reconnect_(reconnect),
      random_(seed),
      not_before_(now),
      lost_at_(now) {
  resumes_ = text_of(opening_, "type") == "resume";
  if (!resumes_) return;
  session_ = text_of(opening_, "session");
  token_ = text_of(opening_, "token");
  for (const auto* name : {"turn", "samples", "transcript_bytes", "reply_bytes", "tool_calls"})
    if (opening_.contains(name)) had_[name] = number_of(opening_, name);
}

Metrics Talk::metrics() const {
  auto out = metrics_;
  out.first_text_ms = first_text_.median_ms();
  out.first_sound_ms = first_sound_.median_ms();
  out.whole_turn_ms = whole_turn_.median_ms();
  return out;
}

json Talk::resume_token() const {
  json out{{"session", session_}, {"token", token_}};
  for (const auto& [name, n] : had_) out[name] = n;
  return out;
}

// ------------------------------------------------------------------------------------------------ what the user says

bool Talk::asks(const Input& input) {
  return input.type == "text" || input.type == "flush" || input.type == "respond" || input.type == "utter";
}

Result<void> Talk::must_go_on() const {
  if (state_ != State::ended) return {};
  if (failure_) return parlando::fail(errc_of(failure_->code), "{}", failure_->message);
  return parlando::fail(Errc::cancelled, "the conversation is closed");
}

Result<void> Talk::say(json fields, Time now) {
  PARLANDO_DO(must_go_on());
  Input input;
  input.position = position_;
  input.type = text_of(fields, "type");
  input.bytes = dump(fields).size();
  if (input.bytes > protocol::Event::kClientEventBytesMax)
    return parlando::fail(Errc::invalid_argument, "a message of {} bytes, at most {} are sent", input.bytes,
                          protocol::Event::kClientEventBytesMax);
  input.fields = std::move(fields);
  const bool is_ask = asks(input);
  PARLANDO_DO(offer(std::move(input)));
  if (is_ask) ask(now);
  return {};
}

Result<void> Talk::hear(std::span<const std::int16_t> samples) {
  PARLANDO_DO(must_go_on());
  Input input;
  input.position = position_;
  input.pcm.resize(samples.size_bytes());
  std::memcpy(input.pcm.data(), samples.data(), samples.size_bytes());
  PARLANDO_DO(offer(std::move(input)));
  metrics_.sound_sent_seconds += static_cast<double>(samples.size()) / kRate;
  return {};
}

/// What is said while others still wait stands behind them: without a gateway, or behind what is said again.
Result<void> Talk::offer(Input input) {
  say_unsent();
  if (state_ == State::open && unsent_ == 0) {
    PARLANDO_DO(send(input));
  } else if (input.is_sound() && unsent_samples_ + input.samples() > kUnsentSamples) {
    return parlando::fail(Errc::overloaded, "{} samples wait for a gateway, at most {} are kept", unsent_samples_,
                          kUnsentSamples);
  } else if (!input.is_sound() && (unsent_events_ >= kKeptEvents || unsent_bytes_ + input.bytes > kKeptEventBytes)) {
    return parlando::fail(Errc::overloaded, "{} messages of {} bytes wait for a gateway, at most {} of {} are kept",
                          unsent_events_, unsent_bytes_, kKeptEvents, kKeptEventBytes);
  }
  keep(std::move(input));
  // What was sent, the oldest first. Never what was not: of sound less is taken than is kept, and of messages no more.
  while (log_samples_ > kKeptSamples) drop(log_.begin());
  while (log_events_ > kKeptEvents || log_bytes_ > kKeptEventBytes)
    drop(std::find_if(log_.begin(), log_.end(), [](const Input& i) { return !i.is_sound(); }));
  finder_.wake();
  return {};
}

void Talk::keep(Input input) {
  position_ += input.samples();
  log_samples_ += input.samples();
  log_bytes_ += input.bytes;
  log_events_ += !input.is_sound();
  if (!input.sent) count_unsent(input, 1);
  log_.push_back(std::move(input));
}

void Talk::count_unsent(const Input& input, int sign) {
  const auto count = [&](std::size_t& all, std::size_t n) { all = sign > 0 ? all + n : all - n; };
  count(unsent_, 1);
  count(unsent_events_, input.is_sound() ? 0 : 1);
  count(unsent_bytes_, input.bytes);
  unsent_samples_ += sign * input.samples();
}

/// In order, as far as the link has room; the rest at the next tick. A link that takes nothing because it is gone says
/// so itself.
void Talk::say_unsent() {
  while (state_ == State::open && unsent_ > 0) {
    auto& input = log_[log_.size() - unsent_];
    if (!send(input)) return;
    count_unsent(input, -1);
  }
}

Result<void> Talk::send(Input& input) {
  auto message = input.is_sound() ? pack(Audio{input.position, input.pcm}, head_)
                                  : pack(protocol::Event{bytes_of(dump(input.fields))}, head_);
  PARLANDO_DO(place_->send(std::move(message)));
  input.sent = true;
  return {};
}

void Talk::drop(Log::iterator input) {
  log_samples_ -= input->samples();
  log_bytes_ -= input->bytes;
  log_events_ -= !input->is_sound();
  log_.erase(input);
}

void Talk::drop_through(Log::iterator last) {
  for (auto n = last - log_.begin() + 1; n > 0; --n) drop(log_.begin());
}

void Talk::ask(Time now) {
  asked_at_ = now;
  noted_.clear();
}

void Talk::close(bool detached) {
  if (state_ == State::ended) return;
  leave(detached);
  state_ = State::ended;
}

// ------------------------------------------------------------------------------------------------ finding a gateway

void Talk::on_tick(Time now) {
  const bool looks = state_ == State::placing || state_ == State::asking;
  if (looks && now - lost_at_ > reconnect_) return give_up();
  if (state_ == State::asking && now >= ask_by_) lost(now, place_);
  // It may wake, and then it reads that we have gone; meanwhile another one goes on.
  if (state_ == State::open && place_->is_suspect() && finder_.find(place_) != nullptr) lost(now, place_);
  if (state_ == State::placing && now >= not_before_) look_for_place(now);
  say_unsent();
}

void Talk::look_for_place(Time now) {
  auto* place = finder_.find(avoid_, refusers_);
  if (place == nullptr && avoid_ != nullptr) place = finder_.find(nullptr, refusers_);
  if (place == nullptr) {
    if (is_new() && finder_.standing() > 0)
      fail(refusal_.value_or(Error("overloaded", "no gateway takes another conversation", 1000)));
    return;
  }
  place_ = place;
  head_ = {};
  head_.session = {next_random(random_), next_random(random_)};
  head_.stream = {1};
  state_ = State::asking;
  was_served_ = false;
  ask_by_ = now + kOpenWait;
  auto fields = opening_;
  if (resumes_) {
    fields = resume_token();
    fields["type"] = "resume";
    if (opening_.contains("lead_ms")) fields["lead_ms"] = opening_["lead_ms"];
  }
  if (!place_->send(pack(protocol::Event{bytes_of(dump(fields))}, head_))) lost(now, place_);  // it is full
  finder_.wake();
}

/// Whether gateways were not there, full, silent, or did not have it.
void Talk::give_up() {
  auto message = fmt::format("no gateway has taken the conversation for {} ms", reconnect_.count());
  if (answer_) message += fmt::format("; the last answer was {}: {}", answer_->code, answer_->message);
  fail(Error("unavailable", std::move(message), 1000));
}

void Talk::leave(bool detached) {
  if (place_ == nullptr) return;
  // When the link is gone, the stream is, too.
  [[maybe_unused]] const auto ignored = place_->send(pack(Close{detached}, head_));
  finder_.wake();
  place_ = nullptr;
}

/// This gateway does not go on with it; another one, or the same one anew, may. Behind one that has served the next is
/// asked at once; behind every attempt that has failed since, later.
/// @param wait  as the gateway says, at least
void Talk::lost(Time now, const Place* avoid, milliseconds wait) {
  const bool was_open = state_ == State::open;
  if (was_open && (was_served_ || now - opened_at_ >= kServed)) failures_ = 0;
  if (!was_open) failures_ = std::max(failures_, 1);
  wait = std::max(wait, pause());
  ++failures_;
  leave(was_open || resumes_);  // a session that nobody has a token of is not to wait
  if (was_open) {
    lost_at_ = now;
    resumes_ = true;
  }
  avoid_ = avoid;
  state_ = State::placing;
  not_before_ = now + wait;
}

/// At random within the upper half: many that lost the same gateway spread out.
milliseconds Talk::pause() {
  if (failures_ == 0) return milliseconds(0);
  const auto whole = std::min(kAgainMax, kAgain * (1 << std::min(failures_ - 1, 8)));
  const auto half = static_cast<std::uint64_t>(whole.count()) / 2;
  return whole - milliseconds(next_random(random_) % (half + 1));
}

void Talk::fail(Error error) {
  if (state_ == State::ended) return;
  leave(false);
  state_ = State::ended;
  ++metrics_.errors;
  const json fields{{"type", "error"}, {"code", error.code}, {"message", error.message}, {"session_ended", true}};
  failure_ = std::move(error);
  tell(Event{"error", dump(fields)});
}

void Talk::on_down(const Place& place, Time now) {
  if (place_ == &place && (state_ == State::asking || state_ == State::open)) lost(now, nullptr);
}

// ------------------------------------------------------------------------------------------------ what the gateway
// says

void Talk::on_message(const Place&, Message& message, Time now) {
  const auto head = message.head;
  if (head.type == MessageType::speech) return on_sound(message, now);
  if (head.type == MessageType::error) {
    place_->handled(head);
    return on_stream_ended(json::parse(message.body, nullptr, false), now);
  }
  const auto* text = reinterpret_cast<const char*>(message.payload.data());
  const auto fields = json::parse(text, text + message.payload.size(), nullptr, false);
  if (head.type != MessageType::event || !fields.is_object()) return place_->handled(head);
  const auto type = text_of(fields, "type");
  if (state_ == State::asking && (type == "opened" || type == "error")) {
    place_->handled(head);
    return on_answer(fields, now);
  }
  on_event(fields, head, now);
}

/// A conversation that never stood is not waited for: the next gateway is asked at once, each once, and its client
/// decides when to come again.
bool Talk::is_refused(const Error& error, Time now) {
  if (!is_new() || error.code != "overloaded" || place_ == nullptr) return false;
  refusers_.insert(place_);
  refusal_ = error;
  lost(now, nullptr);
  look_for_place(now);
  return true;
}

void Talk::on_stream_ended(const json& fields, Time now) {
  auto error = error_of(fields);
  if (is_refused(error, now)) return;
  const bool elsewhere = error.code == "unavailable" || error.code == "credit_exceeded" ||
                         (state_ == State::asking && error.code == "overloaded");
  if (!elsewhere) return fail(std::move(error));
  lost(now, place_, milliseconds(error.retry_ms));
  answer_ = std::move(error);
}

void Talk::on_answer(const json& fields, Time now) {
  if (text_of(fields, "type") == "opened") return on_opened(fields, now);
  auto error = error_of(fields);
  if (is_refused(error, now)) return;
  // Until its death is noticed, the former gateway still has the session.
  const bool later = error.code == "unavailable" || error.code == "overloaded" || error.code == "not_ready" ||
                     (error.code == "not_found" && was_opened_);
  if (!later) return fail(std::move(error));
  lost(now, nullptr, milliseconds(error.retry_ms));
  answer_ = std::move(error);
}

void Talk::on_opened(const json& fields, Time now) {
  const bool first = !std::exchange(was_opened_, true);
  session_ = text_of(fields, "session");
  token_ = text_of(fields, "resume_token");
  if (fields.contains("session_token")) session_token_ = text_of(fields, "session_token");
  rate_ = static_cast<std::int32_t>(number_of(fields, "rate"));
  state_ = State::open;
  opened_at_ = now;
  avoid_ = nullptr;
  answer_.reset();
  const bool resumed = fields.contains("resumed");
  const auto under_way = number_of(fields, "turn");
  const auto claimed = resumed ? had_["turn"] : 0;
  const auto next = claimed != 0 ? claimed : number_of(fields, "turns") + 1;
  // Else the one that was claimed is under way, from there.
  if (claimed == 0 || under_way != claimed) nothing_of(under_way != 0 ? under_way : next);
  metrics_.resumed += resumed && !first;
  repeat(fields);
  tell(Event{first ? "opened" : "resumed", dump(fields)});
}

/// Says what the gateway has not heard: all that was not sent, sound behind `input_samples`, messages that were said
/// behind that sound. Of messages at that very place it is known only whether a turn has come of them; it may be that
/// of one in front of a `cancel`, which is said again, and so is what stands behind it.
void Talk::repeat(const json& fields) {
  const auto arrived = number_of(fields, "input_samples");
  const bool came = fields.contains("turn") || number_of(fields, "turns") >= had_["turn"];
  auto inputs = std::exchange(log_, {});
  log_samples_ = unsent_samples_ = 0;
  log_bytes_ = log_events_ = unsent_ = unsent_events_ = unsent_bytes_ = 0;
  std::size_t behind_asks = 0;  // inputs before it that a turn has come of
  for (std::size_t n = 0; came && n < inputs.size(); ++n) {
    if (!inputs[n].sent || inputs[n].position != arrived) continue;
    if (inputs[n].type == "cancel") break;
    if (asks(inputs[n])) behind_asks = n + 1;
  }
  came_turn_ = came ? number_of(fields, "turn", number_of(fields, "turns")) : 0;
  position_ = arrived;
  for (std::size_t n = 0; n < inputs.size(); ++n) {
    auto& input = inputs[n];
    if (input.is_sound() && input.sent) {
      if (input.position + input.samples() <= arrived) continue;
      if (input.position < arrived)
        input.pcm.erase(input.pcm.begin(), input.pcm.begin() + 2 * (arrived - input.position));
    } else if (input.sent) {
      if (input.position < arrived) continue;
      if (input.position == arrived && n < behind_asks) {
        if (input.type != "flush") continue;
        swallow_no_speech_ = true;  // the first one may have arrived
        came_turn_ = 0;             // it is in the log
      }
    }
    metrics_.said_again += input.sent;
    input.position = position_;
    input.sent = false;
    keep(std::move(input));
  }
  say_unsent();
}

void Talk::nothing_of(std::int64_t turn) {
  had_ = {{"turn", turn}, {"samples", 0}, {"transcript_bytes", 0}, {"reply_bytes", 0}, {"tool_calls", 0}};
}

/// That is not answered yet: inputs are answered in order, so what stands behind it is not, either.
Talk::Log::iterator Talk::first_cancel() {
  return std::find_if(log_.begin(), sent_end(), [](const Input& input) { return input.type == "cancel"; });
}

/// A turn is over: what asked for it, and what was said before that, is not said again. What was not sent has asked for
/// nothing yet; and what asked for a turn that had come when the session was resumed is not in the log.
/// @param turn  0: it is not known which   @param is_noted  an utterance, which nothing but `flush` asks for
void Talk::forget_ask(std::int64_t turn, bool is_noted) {
  if (turn != 0 && turn <= came_turn_) {
    if (turn == came_turn_) came_turn_ = 0;  // a number may come again behind `cancelled`
    return;
  }
  const auto end = first_cancel();
  const auto found = std::find_if(log_.begin(), end, asks);
  if (found != end && (!is_noted || found->type == "flush")) drop_through(found);
}

/// Answers a `cancel`, and then all that was said before it is over, but for what had asked for another turn than the
/// one that it names. Without one the engine has dropped the turn of its own accord.
void Talk::forget_cancelled(std::int64_t turn) {
  const bool was_over = turn != 0 && turn < had_["turn"];
  const auto cancel = first_cancel();
  if (cancel == sent_end()) {
    if (!was_over) forget_ask(turn);
    return;
  }
  if (was_over && number_of(cancel->fields, "turn") != 0)
    drop(cancel);
  else
    drop_through(cancel);
  if (turn == came_turn_) came_turn_ = 0;
}

/// It was cancelled or has failed: its number may come again. Of one that was over before nothing was to come.
void Talk::no_more_of(std::int64_t turn) {
  if (turn == 0 || turn >= had_["turn"]) nothing_of(std::max(turn, had_["turn"]));
}

void Talk::on_turn(const json& fields, Time now) {
  const auto turn = number_of(fields, "turn");
  note("turn", whole_turn_, now);
  ++metrics_.turns;
  forget_ask(turn);
  swallow_no_speech_ = false;
  const auto remembered = fields.find("remembered");
  const bool is_forgotten = remembered != fields.end() && *remembered == false;  // its number is used again
  // The note was lost with its controller, and its number used again.
  if (!is_forgotten && turn <= noted_turn_ && turn < had_["turn"]) noted_turn_ = 0;
  nothing_of(std::max(is_forgotten ? turn : turn + 1, noted_turn_ + 1));
}

/// An utterance has the number of a turn, which stands in its name: utterance_<turn>_<sample>. It is told at once, also
/// while a turn before it is still heard, whose end is then to come.
void Talk::on_noted(const json& fields) {
  const auto id = text_of(fields, "id");
  std::int64_t turn = had_["turn"];
  if (id.starts_with(kUtterance)) std::from_chars(id.data() + kUtterance.size(), id.data() + id.size(), turn);
  forget_ask(turn, true);
  noted_turn_ = std::max(noted_turn_, turn);
  const bool has_some = had_["samples"] + had_["transcript_bytes"] + had_["reply_bytes"] + had_["tool_calls"] > 0;
  if (had_["turn"] == turn || (had_["turn"] < turn && !has_some)) nothing_of(turn + 1);
}

/// Something of this turn is told. Numbers that no turn has are passed over (items that are stored on their own); a
/// number comes again when the turn was lost with its controller.
/// @return whether it counts for what is claimed
bool Talk::reach(std::int64_t turn) {
  if (turn != 0 && turn <= noted_turn_) return turn == had_["turn"];  // its text may come behind `noted`
  if (turn != 0 && turn != had_["turn"]) nothing_of(turn);
  return true;
}

void Talk::note(const char* kind, Latency& latency, Time now) {
  if (!asked_at_ || std::exchange(noted_[kind], true)) return;
  latency.add(std::chrono::duration_cast<milliseconds>(now - *asked_at_));
}

void Talk::on_event(const json& fields, const Envelope& head, Time now) {
  const auto type = text_of(fields, "type");
  was_served_ = was_served_ || type != "error";
  if (type == "text") {
    const auto kind = text_of(fields, "kind");
    const bool counts = reach(number_of(fields, "turn"));
    if (counts && kind == "tool_call")
      ++had_["tool_calls"];
    else if (counts)
      had_[kind == "text" ? "reply_bytes" : "transcript_bytes"] +=
          static_cast<std::int64_t>(text_of(fields, "text").size());
    if (kind == "text") note("text", first_text_, now);
  } else if (type == "turn") {
    on_turn(fields, now);
  } else if (type == "noted") {
    on_noted(fields);
  } else if (type == "cancelled") {
    forget_cancelled(number_of(fields, "turn"));
    no_more_of(number_of(fields, "turn"));
  } else if (type == "speech_ended" && !asked_at_) {
    ask(now);
  } else if (type == "speech_started") {
    asked_at_.reset();
  } else if (type == "erased") {
    place_->handled(head);
    leave(false);
    state_ = State::ended;
    return tell(Event{type, dump(fields)});
  } else if (type == "error" && on_error(fields, head)) {
    return;
  }
  tell(Event{type, dump(fields)}, place_, head);
}

/// @return whether it was told, or is not for the user
bool Talk::on_error(const json& fields, const Envelope& head) {
  if (text_of(fields, "code") == "no_speech" && std::exchange(swallow_no_speech_, false)) {
    place_->handled(head);
    return true;
  }
  if (fields.contains("session_ended")) {
    place_->handled(head);
    fail(error_of(fields));
    return true;
  }
  ++metrics_.errors;
  forget_ask(number_of(fields, "turn"));
  if (number_of(fields, "turn") != 0) no_more_of(number_of(fields, "turn"));
  return false;
}

void Talk::on_sound(Message& message, Time now) {
  const auto head = message.head;
  auto speech = protocol::read<Speech>(message);
  if (!speech) return place_->handled(head);
  was_served_ = true;
  Sound sound;
  sound.turn = head.turn.value;
  sound.first_sample = speech->first_sample;
  sound.rate = static_cast<std::int32_t>(speech->rate);
  sound.samples.resize(speech->payload.size() / 2);
  std::memcpy(sound.samples.data(), speech->payload.data(), sound.samples.size() * 2);
  if (had_["turn"] < sound.turn) reach(sound.turn);
  if (had_["turn"] == sound.turn) {
    sound.first_sample = had_["samples"];
    had_["samples"] += static_cast<std::int64_t>(sound.samples.size());
  }
  note("sound", first_sound_, now);
  metrics_.sound_received_seconds += static_cast<double>(sound.samples.size()) / std::max(1, sound.rate);
  tell(std::move(sound), place_, head);
}

// ------------------------------------------------------------------------------------------------ what the user is
// told

void Talk::tell(Told told, Place* place, const Envelope& head) {
  told_.push_back({std::move(told), place, head});
  if (told_.size() > kToldMax) fail(Error("overloaded", "nobody takes what is told"));
}

std::optional<Told> Talk::take() {
  if (told_.empty()) return {};
  auto out = std::move(told_.front());
  told_.pop_front();
  if (out.place != nullptr) {
    out.place->handled(out.head);
    finder_.wake();
  }
  return std::move(out.told);
}

}  // namespace parlando::sdk
