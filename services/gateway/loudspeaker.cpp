/// What is heard of a session: sound that leaves in its time, and the words of its owner that stop it. `playout.hpp`
/// keeps the time; clients without a lead are sent everything at once.
#include "services/gateway/sessions.hpp"

namespace parlando::gateway {
using namespace protocol;

void Sessions::play(Time now) {
  std::vector<ClientId> due;
  for (auto it = sound_due_.begin(); it != sound_due_.end() && it->first <= now; ++it) due.push_back(it->second);
  for (const auto id : due) play(*find(id), now);
}

/// Sends what may leave now.
void Sessions::play(Client& client, Time now) {
  auto& session = *client.session;
  if (!session.playout) return;
  auto& playout = *session.playout;
  const auto unsent = sockets_.bytes ? sockets_.bytes(client.id) / kSampleBytes : 0;
  for (auto& out : playout.take(now, static_cast<std::int64_t>(unsent))) switch (out.kind) {
      case Playout::Out::Kind::event:
        say(client, std::move(out.data));
        break;
      case Playout::Out::Kind::sound:
        send_sound(client, out.turn, std::move(out.data));
        break;
      case Playout::Out::Kind::over:
        tell_played(session, {out.turn, out.samples, true});
    }
  counters_.underruns += playout.take_underruns();
  counters_.early_samples += playout.take_early_samples();
  set_due(client);
}

void Sessions::set_due(Client& client) {
  auto& session = *client.session;
  const auto due = session.playout ? session.playout->due() : Time::max();
  if (due == session.sound_due) return;
  sound_due_.erase({session.sound_due, client.id});
  session.sound_due = due;
  if (due != Time::max()) sound_due_.emplace(due, client.id);
}

/// What belongs to a turn is told in the order of turns.
void Sessions::tell_in_turn(Client& client, TurnId turn, std::string event, Time now) {
  auto& session = *client.session;
  if (!session.playout || turn.value == 0) return say(client, std::move(event));
  session.playout->event(turn, std::move(event));
  play(client, now);
}

void Sessions::send_sound(Client& client, TurnId turn, std::string pcm) {
  counters_.sent_samples += static_cast<std::int64_t>(pcm.size() / kSampleBytes);
  to_clients_.push_back({ToClient::Kind::sound, client.id, std::move(pcm), 0, turn});
}

// ------------------------------------------------------------------------------------------------ taking it back

/// What the client's socket has not sent of a turn. @return messages
std::size_t Sessions::drop_unsent(Client& client, TurnId turn) {
  const auto dropped = std::erase_if(to_clients_, [&](const ToClient& action) {
    return action.kind == ToClient::Kind::sound && action.client == client.id && action.turn == turn;
  });
  return dropped + (sockets_.drop ? sockets_.drop(client.id, turn) : 0);
}

void Sessions::take_back(Client& client, Time now) {
  auto& playout = *client.session->playout;
  counters_.sent_samples -= playout.take_back(drop_unsent(client, playout.playing()), now);
}

/// @param turn  0: all
void Sessions::drop_sound(Client& client, TurnId turn, Time now) {
  auto& session = *client.session;
  if (!session.playout) return;
  if (turn.value == 0 || turn == session.playout->playing()) take_back(client, now);
  session.playout->drop(turn, now);
  play(client, now);
}

void Sessions::give_up_sound(Client& client) {
  if (!client.session || !client.session->playout) return;
  for (auto& event : client.session->playout->give_up()) say(client, std::move(event));
}

// ------------------------------------------------------------------------------------------------ the owner's words

void Sessions::hold(Client& client, TurnId turn, Time now) {
  ++counters_.holds;
  play(client, now);  // so that what is over is known to be
  auto& session = *client.session;
  if (!session.playout) {
    say(client, hold_event(turn));
  } else if (!session.playout->heard(turn, now).over) {
    take_back(client, now);
    if (session.playout->hold(turn, now)) say(client, hold_event(turn));
    set_due(client);
  }
  tell_played(session, played(session, turn, now));
}

void Sessions::release(Client& client, TurnId turn, Time now) {
  auto& session = *client.session;
  if (session.playout && !session.playout->release(turn, now)) return;
  say(client, release_event(turn));
  play(client, now);
}

void Sessions::interrupt(Client& client, const Interrupted& interrupted, Time now) {
  ++counters_.interruptions;
  auto& session = *client.session;
  if (session.turn.id() == interrupted.turn) session.turn.interrupt();
  if (!session.playout) {
    drop_unsent(client, interrupted.turn);
  } else {
    if (session.playout->playing() <= interrupted.turn) take_back(client, now);
    session.playout->interrupt(interrupted.turn, now);
  }
  say(client, interrupted_event(interrupted));
  play(client, now);
}

/// How much of a turn's sound was heard; of a client without a lead: sent.
Played Sessions::played(const Session& session, TurnId turn, Time now) const {
  if (session.playout) {
    const auto heard = session.playout->heard(turn, now);
    return {turn, heard.samples, heard.over};
  }
  if (session.turn.is_open() && session.turn.id() == turn)
    return {turn, session.turn.samples(), session.turn.is_interrupted()};
  return {turn, session.spoken == turn ? session.spoken_samples : 0, true};
}

/// A new owner is told what plays of the turns that are done, so that a voice can interrupt it.
void Sessions::tell_playing(Session& session, Time now) {
  const auto turn = session.playout ? session.playout->playing() : TurnId();
  if (turn.value == 0 || turn > session.turn_done) return;
  const auto playing = played(session, turn, now);
  if (!playing.over) tell_played(session, playing);
}

void Sessions::tell_played(Session& session, const Played& played) {
  session.answer_again = Time::max();
  if (session.place != Place::open) return;
  auto head = head_of(session);
  head.turn = played.turn;
  to_controllers_.push_back({session.controller, head, played});
}

}  // namespace parlando::gateway
