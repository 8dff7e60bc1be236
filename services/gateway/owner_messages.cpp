/// What controllers say to a session, and what of it reaches the client.
#include "common/telemetry/log.hpp"
#include "services/gateway/sessions.hpp"

namespace parlando::gateway {
using namespace protocol;

namespace {
constexpr std::uint16_t kTryLater = 1013;
}

template <class T>
std::optional<T> Sessions::read(Message& message) {
  auto body = protocol::read<T>(message);
  if (body) return *std::move(body);
  ++counters_.malformed;
  telemetry::log(telemetry::Level::warning, "gateway drops a message of a controller: {}", body.error().message);
  return {};
}

/// Only the owner is listened to: this controller, this stream, no epoch that has been left behind.
void Sessions::on_message(const std::string& peer, Message message, Time now) {
  if (is_of_attempt(message.head)) return on_attempt(peer, std::move(message), now);
  if (erasures_.contains(message.head.stream.value)) return on_erasure(peer, std::move(message));
  auto* client = find(message.head.session);
  if (client == nullptr || !client->session) return;  // it has ended
  auto& session = *client->session;
  const bool error = message.head.type == MessageType::error;
  const bool from_owner = session.has_owner() && session.controller == peer && session.stream == message.head.stream;
  // An error may answer what was said before the epoch was granted; its stream names its sender well enough.
  if (!from_owner || (!error && message.head.epoch < session.epoch)) {
    ++counters_.stale;
    return;
  }
  if (error) return on_error(*client, message, now);
  const bool answers_open = message.head.type == MessageType::opened;
  if ((session.place == Place::opening) != answers_open) {
    ++counters_.malformed;
    return;
  }
  session.epoch = message.head.epoch;
  answers_open ? on_opened(*client, message, now) : on_owner(*client, message, now);
}

void Sessions::on_opened(Client& client, Message& message, Time now) {
  auto& session = *client.session;
  const auto opened = read<Opened>(message);
  if (!opened) return;  // it is asked no further when its time is over
  session.place = Place::open;
  session.opened_head = message.head;
  session.give_up = session.ask_again = Time::max();
  session.asked.clear();
  session.stale_once = false;
  // A turn that was reported before it was durable, and whose owner then died: the next owner has it not, and uses its
  // number again.
  session.turn_done = std::min(session.turn_done, TurnId{static_cast<std::uint32_t>(opened->turns)});
  session.log.opened(opened->turns);
  session.unstored = false;
  session.told_degraded(opened->degraded, now);
  if (const auto turn = session.turn.id(); static_cast<std::int64_t>(turn.value) > opened->turns + 1) {
    // The turn under way follows one of these: it begins again, under another number. One whose inputs are not kept
    // here is to fail under that, also when this owner is lost before it says so.
    drop_sound(client, turn, now);
    session.turn.end();
    say(client, cancelled_event(turn));
    if (turn == session.turn_resumed)
      session.turn.begin(session.turn_resumed = {static_cast<std::uint32_t>(opened->turns + 1)});
  }
  if (!std::exchange(session.told_opened, true))
    say(client,
        opened_event(session.id, session.seed,
                     {std::exchange(session.token.text, {}), config_.tokens.of(session.id, client.traits.owner)},
                     *opened, session.options.lead));
  // Who made it stand still is not there to let it go on.
  if (const auto held = session.playout ? session.playout->held() : std::nullopt) release(client, *held, now);
  tell_playing(session, now);
  pump(session);
}

void Sessions::on_error(Client& client, Message& message, Time now) {
  auto& session = *client.session;
  const auto head = message.head;
  const auto error = read<ErrorMessage>(message);
  if (!error) return;
  if (session.place == Place::opening) return on_open_refused(client, head.epoch, *error, now);
  if (error->code == to_string(Errc::stale_epoch)) {
    if (head.epoch.value != 0) session.epoch = head.epoch;
    return lost_by_owner(client, Reason::stale, now);
  }
  // Who refuses an input names it: then it is a turn or a call that was not found, and not the stream.
  const bool of_input = error->settled.text != "null";
  const bool stream_is_gone = error->code == to_string(Errc::not_found) && head.turn.value == 0 && !of_input;
  if (stream_is_gone || error->code == to_string(Errc::credit_exceeded))
    return lost_by_owner(client, Reason::broken, now);
  on_turn_error(client, head.turn, *error, now);
}

void Sessions::on_turn_error(Client& client, TurnId turn, const ErrorMessage& error, Time now) {
  auto& session = *client.session;
  session.log.settle(error.settled, error.sound_from);
  if (turn.value != 0) session.log.turn_over(turn, false);
  if (is_repeat(turn.value != 0 && turn <= session.turn_done)) return;
  if (turn.value != 0 || !session.turn.is_open()) {
    if (turn.value != 0) drop_sound(client, turn, now);
    turn_over(session);
  } else {  // only an input was refused; the turn goes on
    session.requests = std::max(0, session.requests - 1);
  }
  say(client, error_event(error.code, error.message, error.retry_ms, false, turn));
}

void Sessions::on_owner(Client& client, Message& message, Time now) {
  switch (message.head.type) {
    case MessageType::speech_started:
      return on_speech_started(client, message);
    case MessageType::speech_ended:
      return on_speech_ended(client, message);
    case MessageType::text:
      return on_text(client, message, now);
    case MessageType::speech:
      return on_speech(client, message, now);
    case MessageType::turn_done:
      return on_turn_done(client, message, now);
    case MessageType::cancelled:
      return on_cancelled(client, message, now);
    case MessageType::waiting:
      return on_waiting(client, message, now);
    case MessageType::noted:
      return on_noted(client, message, now);
    case MessageType::hold:
      if (const auto body = read<Hold>(message)) hold(client, body->turn, now);
      return;
    case MessageType::release:
      if (const auto body = read<Release>(message)) release(client, body->turn, now);
      return;
    case MessageType::interrupted:
      if (const auto body = read<Interrupted>(message)) interrupt(client, *body, now);
      return;
    case MessageType::checkpoint:
      if (const auto point = read<Checkpoint>(message)) {
        client.session->log.checkpoint(point->input, point->keep_until, point->recent_samples);
        client.session->told_degraded(point->degraded, now);
      }
      return;
    case MessageType::decided:
      if (const auto body = read<Decided>(message)) client.session->log.decide(*body);
      return;
    default:
      ++counters_.malformed;
  }
}

// ------------------------------------------------------------------------------------------------ a turn

bool Sessions::is_repeat(bool repeat) {
  counters_.repeats += repeat;
  return repeat;
}

/// @param from_the_start  the message begins what it tells
/// @return false for a message of a turn that is over
bool Sessions::enter_turn(Session& session, TurnId turn) {
  if (turn.value == 0) return true;
  if (is_repeat(turn <= session.turn_done || turn < session.turn.id())) return false;
  session.turn.begin(turn);
  if (session.playout) session.playout->begin(turn);
  return true;
}

void Sessions::turn_over(Session& session) {
  if (session.turn.is_open()) {
    session.spoken = session.turn.id();
    session.spoken_samples = session.turn.samples();
  }
  session.turn.end();
  session.turn_resumed = {};  // its number may be another turn's
  session.requests = 0;
  session.trace = random_();
}

void Sessions::on_speech_started(Client& client, Message& message) {
  auto& session = *client.session;
  const auto body = read<SpeechStarted>(message);
  if (!body || !enter_turn(session, message.head.turn)) return;
  const bool first = message.head.turn.value == 0 || session.turn.speech_started();
  if (is_repeat(!first || body->sample <= session.speech_started)) return;
  session.speech_started = body->sample;
  say(client, speech_event("speech_started", body->sample));
}

void Sessions::on_speech_ended(Client& client, Message& message) {
  auto& session = *client.session;
  const auto body = read<SpeechEnded>(message);
  if (!body || !enter_turn(session, message.head.turn)) return;
  const bool first = message.head.turn.value == 0 || session.turn.speech_ended();
  if (is_repeat(!first || body->sample <= session.speech_ended)) return;
  session.speech_ended = body->sample;
  say(client, speech_event("speech_ended", body->sample));
}

void Sessions::on_text(Client& client, Message& message, Time now) {
  auto& session = *client.session;
  const auto body = read<Text>(message);
  if (!body) return;
  if (!enter_turn(session, message.head.turn)) return;
  const auto fresh = session.turn.text(*body);
  if (body->kind == TextKind::done || body->text.empty() || is_repeat(!fresh)) return;
  tell_in_turn(client, session.turn.id(), text_event(session.turn.id(), body->kind, *fresh), now);
}

void Sessions::on_waiting(Client& client, Message& message, Time now) {
  const auto body = read<Waiting>(message);
  if (!body || !enter_turn(*client.session, body->turn)) return;
  tell_in_turn(client, body->turn, waiting_event(*body), now);
}

/// The utterance led to no turn.
void Sessions::on_noted(Client& client, Message& message, Time now) {
  auto& session = *client.session;
  const auto body = read<Noted>(message);
  if (!body) return;
  session.log.settle(body->settled, body->sound_from);
  session.log.turn_over(message.head.turn, true);
  session.told_degraded(body->degraded, now);
  if (is_repeat(body->end_sample <= session.noted)) return;
  session.noted = body->end_sample;
  session.turn_done = std::max(session.turn_done, message.head.turn);
  if (session.turn.is_open() && session.turn.id() == message.head.turn) turn_over(session);
  session.requests = 0;
  if (session.playout) session.playout->end_unanswered(message.head.turn);
  say(client, noted_event(*body));
  play(client, now);
}

void Sessions::on_speech(Client& client, Message& message, Time now) {
  auto& session = *client.session;
  const auto body = read<Speech>(message);
  if (!body || !enter_turn(session, message.head.turn)) return;
  const auto fresh = session.turn.speech(*body);
  if (body->payload.empty() || is_repeat(fresh.empty())) return;
  if (session.turn.is_interrupted()) return;
  const auto turn = session.turn.id();
  if (!session.playout) return send_sound(client, turn, {reinterpret_cast<const char*>(fresh.data()), fresh.size()});
  session.playout->sound(turn, fresh);
  play(client, now);
  if (session.playout->is_overrun()) close(client, kTryLater, "the connection is too slow");
}

void Sessions::on_turn_done(Client& client, Message& message, Time now) {
  auto& session = *client.session;
  const auto body = read<TurnDone>(message);
  if (!body) return;
  const TurnId turn = message.head.turn.value != 0 ? message.head.turn : TurnId{static_cast<std::uint32_t>(body->turn)};
  session.log.settle(body->settled, body->sound_from);
  session.log.turn_over(turn, body->remembered);
  if (!enter_turn(session, turn)) return;
  // With one that is stored, those before it are.
  if (body->degraded || body->remembered) session.told_degraded(body->degraded, now);
  if (body->remembered) session.turn_done = turn;
  session.losses = 0;
  turn_over(session);
  if (!session.playout) return say(client, turn_event(*body));
  session.playout->end(turn, turn_event(*body));
  play(client, now);
}

void Sessions::on_cancelled(Client& client, Message& message, Time now) {
  auto& session = *client.session;
  const auto body = read<Cancelled>(message);
  if (!body) return;
  const auto turn = body->turn.value != 0 ? body->turn : message.head.turn;
  session.log.settle(body->settled, body->sound_from);
  session.log.turn_over(turn, false);
  drop_sound(client, turn.value != 0 ? turn : session.turn.id(), now);
  // A turn that is not the open one was asked for, and nothing was dropped.
  if (turn.value == 0 || session.turn.id().value == 0 || turn == session.turn.id()) turn_over(session);
  say(client, cancelled_event(turn));
}

}  // namespace parlando::gateway
