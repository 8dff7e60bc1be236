/// Which controller has a session, and how another one gets it.
#include <algorithm>

#include "common/telemetry/log.hpp"
#include "services/gateway/sessions.hpp"

namespace parlando::gateway {
using namespace protocol;
using transport::PeerState;

namespace {

constexpr std::int64_t kRetryMs = 1000;  // when a client may try again, if its controller did not say
constexpr int kLossesMax = 10;           // owners in a row that gave a session up, before it is given up
constexpr int kLossesAtOnce = 2;         // of these, how many are replaced without a pause
constexpr milliseconds kLossPause{50};   // then; doubled each time, up to
constexpr milliseconds kLossPauseMax{2000};
constexpr std::chrono::seconds kCalm{10};  // without a loss: what was before does not count

std::string name(Errc code) { return std::string(to_string(code)); }

/// Another replica may do what this one will not.
bool another_may(const std::string& code) {
  return code == to_string(Errc::overloaded) || code == to_string(Errc::not_ready) ||
         code == to_string(Errc::unavailable);
}

}  // namespace

// ------------------------------------------------------------------------------------------------ words

Envelope Sessions::head_of(const Session& session) const {
  Envelope head = session.opened_head;
  head.turn = {};
  head.sequence = 0;
  head.session = session.id;
  head.stream = session.stream;
  head.epoch = session.epoch;
  head.trace = session.trace;
  return head;
}

template <class T>
void Sessions::send(const Session& session, const Envelope& head, T body) {
  to_controllers_.push_back({session.controller, head, std::move(body)});
}

Open Sessions::describe(const Session& session) const {
  Open open;
  static_cast<Settings&>(open) = session.log.settings();
  open.stored = session.options.stored;
  open.plays = session.playout.has_value();
  open.seed = session.seed;
  open.expected_epoch = session.epoch;
  session.log.describe(open);
  open.token_digest = session.token.digest;
  if (session.turn.is_open()) session.turn.describe(open);
  open.inputs_kept = !session.turn.is_open() || session.turn.id() != session.turn_resumed;
  return open;
}

// ------------------------------------------------------------------------------------------------ finding one

/// Asks the best replica, or leaves the session waiting, or tells the client that there is none.
void Sessions::place(Client& client, Time now) {
  auto& session = *client.session;
  session.place = Place::waiting;
  if (now < session.not_before) return;
  if (const auto controller = replicas_.choose(session.id, session.asked)) return ask(client, *controller, now);
  nobody_takes_it(client, now);
}

std::optional<ErrorMessage> Sessions::why_full(std::size_t reserved, Time now) {
  note_start(now);
  std::int64_t places = 0;
  for (auto& [controller, p] : places_) {
    if (p.free <= 0 && now - p.moved > config_.full_told) p.is_known = false;
    if (!p.is_known) return {};
    places += std::max<std::int64_t>(0, p.free);
  }
  const bool may_wait = !replicas_.any_up() && may_still_come(now);
  if (places > static_cast<std::int64_t>(reserved) || may_wait) return {};
  return nobody();
}

ErrorMessage Sessions::nobody() const {
  if (replicas_.size() == 0) return {name(Errc::unavailable), "no controller is connected", kRetryMs};
  return {name(Errc::overloaded), "no controller takes sessions now", kRetryMs};
}

/// At our own start, or while one is suspect, a controller may be there in a moment.
bool Sessions::may_still_come(Time now) const { return !suspects_.empty() || now - *started_ < config_.start_wait; }

void Sessions::nobody_takes_it(Client& client, Time now) {
  auto& session = *client.session;
  const bool refused = !session.asked.empty();
  if (session.told_opened) {  // it is worth waiting for: `review` gives it up
    if (refused && session.ask_again == Time::max()) session.ask_again = now + config_.ask_again;
    return;
  }
  if (refused) return fail(client, session.refusal);
  if (may_still_come(now)) return;
  fail(client, nobody());
}

void Sessions::ask(Client& client, const std::string& controller, Time now) {
  auto& session = *client.session;
  session.place = Place::opening;
  session.controller = controller;
  session.stream = {++streams_};
  if (const auto places = places_.find(controller); places != places_.end()) {
    --places->second.free;
    places->second.moved = now;
  }
  session.answer_by = now + config_.open_answer;
  auto open = describe(session);
  if (session.turn.is_open() && !protocol::check(pack(open))) {  // texts of tools beyond any message
    say(client, error_event(name(Errc::internal), "the turn is too large to be handed over; it begins again"));
    drop_sound(client, session.turn.id(), now);
    session.turn.end();
    session.turn_resumed = {};  // its number may be another turn's
    open = describe(session);
  }
  send(session, head_of(session), std::move(open));
}

/// It goes on elsewhere.
void Sessions::leave_for_another(Session& session) { leave(session, {.moves = true}); }

/// The owner is the owner no more. Close reaches it when it wakes; of one that is gone nothing is left.
void Sessions::leave(Session& session, Close how) {
  if (!session.has_owner()) return;
  if (replicas_.is_linked(session.controller)) send(session, head_of(session), how);
  // A session that came and went between two words of its controller has changed nothing that it would tell.
  if (const auto places = places_.find(session.controller); places != places_.end()) ++places->second.free;
  session.place = Place::waiting;
  session.controller.clear();
  session.opened_head = {};
  session.resend_at = Time::max();
  session.log.go_back();
}

/// The session ends with an error; its socket may open another one.
void Sessions::fail(Client& client, const ErrorMessage& why) {
  ++counters_.failed;
  const auto retry = why.retry_ms == 0 && another_may(why.code) ? kRetryMs : why.retry_ms;
  telemetry::log(telemetry::Level::info, "gateway ends session={} code={} reason='{}'", client.session->id.text(),
                 why.code, why.message);
  give_up_sound(client);
  say(client, error_event(why.code, why.message, retry, true));
  end_session(client);
  client.told_not_open = true;  // audio under way is not the client's fault
}

void Sessions::ask_another(Client& client, ErrorMessage why, Time now) {
  auto& session = *client.session;
  session.asked.insert(session.controller);
  session.refusal = std::move(why);
  leave_for_another(session);
  place(client, now);
}

void Sessions::on_open_refused(Client& client, Epoch true_epoch, const ErrorMessage& why, Time now) {
  auto& session = *client.session;
  const bool stale = why.code == to_string(Errc::stale_epoch);
  if (stale && !session.stale_once) {
    session.stale_once = true;
    const auto controller = session.controller;
    leave_for_another(session);
    if (true_epoch.value != 0) session.epoch = true_epoch;
    return ask(client, controller, now);
  }
  // A session that is opened by its name may be on its way out of another connection, of which its controller has not
  // heard yet.
  if (why.code == to_string(Errc::not_found) && session.options.session && !session.told_opened &&
      now + config_.resume_again_max < session.give_up) {
    leave_for_another(session);
    session.stale_once = false;
    session.not_before = now + config_.resume_again_max;
    return;
  }
  if (why.code == to_string(Errc::not_found)) return fail(client, why);  // its client has resumed it elsewhere
  if (session.told_opened || another_may(why.code)) return ask_another(client, why, now);
  fail(client, why);
}

// ------------------------------------------------------------------------------------------------ handing over

void Sessions::move(Client& client, Reason reason, Time now) {
  auto& session = *client.session;
  if (session.told_opened && !session.options.stored)
    return fail(client, {name(Errc::unavailable), "the conversation went with its controller: nothing of it is stored",
                         kRetryMs});
  if (session.place == Place::open) session.give_up = now + config_.handover_wait;
  if (session.told_opened) {
    ++counters_.handovers[static_cast<std::size_t>(reason)];
    telemetry::log(telemetry::Level::info, "gateway hands over session={} from={} reason={}", session.id.text(),
                   session.controller, kReasonNames[static_cast<std::size_t>(reason)]);
  }
  leave_for_another(session);
  place(client, now);
}

/// The owner says that it is not, or has forgotten the session: another takes it, but not round and round.
void Sessions::lost_by_owner(Client& client, Reason reason, Time now) {
  auto& session = *client.session;
  if (now - session.lost_at > kCalm) session.losses = 0;
  session.lost_at = now;
  if (++session.losses > kLossesMax)
    return fail(client, {name(Errc::unavailable), "no controller keeps the session; open again", kRetryMs});
  if (session.losses > kLossesAtOnce)
    session.not_before = now + std::min(kLossPauseMax, kLossPause * (1 << (session.losses - kLossesAtOnce - 1)));
  move(client, reason, now);
}

void Sessions::on_peer(const transport::Peer& peer, PeerState state, Time now) {
  note_start(now);
  if (peer.caller) return;
  replicas_.on_peer(peer, state);
  places_.erase(peer.instance);
  const bool takes = state != PeerState::down && state != PeerState::suspect && peer.ready && !peer.draining;
  if (takes && peer.slots > 0) places_[peer.instance] = {peer.slots, true, now};
  if (state == PeerState::down)
    linked_.erase(peer.instance);
  else
    linked_.insert(peer.instance);
  if (state == PeerState::suspect)
    suspects_.insert(peer.instance);
  else
    suspects_.erase(peer.instance);
  for (auto& [id, client] : clients_)
    if (client.session) review(client, now);
  if (state != PeerState::down && state != PeerState::suspect) return;
  for (auto& [id, client] : clients_)
    if (client.attempt) drop_from_attempt(client, peer.instance, now);
  move_erasures(peer.instance);
}

void Sessions::review(Client& client, Time now) {
  auto& session = *client.session;
  if (session.has_owner()) return review_owner(client, now);
  if (now >= session.give_up) {
    const ErrorMessage nobody{name(Errc::unavailable), "no controller takes the session; open again", kRetryMs};
    return fail(client, session.asked.empty() ? nobody : session.refusal);
  }
  if (now >= session.ask_again) {
    session.asked.clear();
    session.ask_again = Time::max();
  }
  place(client, now);
}

void Sessions::review_owner(Client& client, Time now) {
  auto& session = *client.session;
  const auto& owner = session.controller;
  if (!replicas_.is_linked(owner)) return move(client, Reason::down, now);
  // One that is suspect or drains is never chosen: whoever is, is another. What is not stored can only wait.
  const bool moves = session.options.stored || session.place != Place::open;
  if (!moves) {
  } else if (!replicas_.is_up(owner)) {
    if (replicas_.choose(session.id, session.asked)) return move(client, Reason::suspect, now);
  } else if (session.place == Place::open && replicas_.is_draining(owner) && !session.is_busy()) {
    // Another owner's claim would end what this one has still to store.
    const bool waits = session.unstored && now - session.unstored_since < config_.store_wait;
    if (!waits && replicas_.choose(session.id, session.asked)) return move(client, Reason::draining, now);
  }
  if (session.place == Place::opening && now >= session.answer_by)
    return ask_another(client, {name(Errc::unavailable), "the controller does not answer", kRetryMs}, now);
  if (now >= session.answer_again) tell_played(session, played(session, session.unanswered, now));
  if (session.is_stuck() && now >= session.resend_at) return resend(client, now);
  pump(session);
}

// ------------------------------------------------------------------------------------------------ inputs

/// Hands out what waits. Not to an owner that is suspect: what is kept here is bounded for each session by itself, the
/// link is shared.
void Sessions::pump(Session& session) {
  if (session.place != Place::open || session.is_stuck() || !replicas_.is_up(session.controller)) return;
  while (const auto* entry = session.log.next()) {
    auto head = head_of(session);
    head.sequence = session.log.next_number();
    head.trace = entry->trace;
    std::visit([&](const auto& input) { send(session, head, input); }, entry->input);
    session.log.handed_out();
  }
}

void Sessions::on_refused(const std::string& peer, const Envelope& head, const Error& error, Time now) {
  if (head.type == MessageType::close) return;
  if (is_of_attempt(head)) return drop_from_attempt(*find(attempts_.at(head.stream.value)), peer, now);
  if (const auto erasure = erasures_.find(head.stream.value);
      erasure != erasures_.end() && erasure->second.controller == peer)
    return move_erasures(peer);
  auto* client = find(head.session);
  if (client == nullptr || !client->session) return;
  auto& session = *client->session;
  if (!session.has_owner() || session.controller != peer || session.stream != head.stream) return;
  const ErrorMessage why{name(error.code), error.message};
  if (session.place == Place::opening) return on_open_refused(*client, {}, why, now);
  if (error.code == Errc::unavailable || error.code == Errc::cancelled) {
    session.asked.insert(peer);  // whatever its state is said to be
    return lost_by_owner(*client, error.code == Errc::cancelled ? Reason::broken : Reason::down, now);
  }
  if (head.type != MessageType::played) return on_input_refused(*client, head.sequence, error, now);
  session.unanswered = head.turn;
  session.answer_again = now + config_.resend;
}

/// Nothing is lost: what came back is handed out again, and the client is not read meanwhile.
void Sessions::on_input_refused(Client& client, std::uint64_t number, const Error& error, Time now) {
  auto& session = *client.session;
  if (!session.is_stuck()) {
    session.refused_first = number;
    session.refused_end = session.log.next_number();
    session.refused = 0;
    session.resend_at = now + config_.resend;
    session.log.go_back_to(number);
  }
  ++session.refused;
  if (error.code != Errc::overloaded) session.log.blank(number);  // it would come back for ever
  review_pause(client, now);
}

void Sessions::resend(Client& client, Time now) {
  auto& session = *client.session;
  session.resend_at = Time::max();
  // A smaller input may have found room behind a larger one that did not: then the controller has a hole and counts
  // wrongly.
  if (session.refused != session.refused_end - session.refused_first) return lost_by_owner(client, Reason::broken, now);
  pump(session);
}

}  // namespace parlando::gateway
