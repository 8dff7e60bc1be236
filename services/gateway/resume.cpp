/// A client that lost its gateway, or its socket, and wants its session back. Nobody here knows who has it: all
/// controllers are asked, and the one that keeps it for this token answers with all that is needed to go on.
#include <algorithm>

#include "common/telemetry/log.hpp"
#include "services/gateway/sessions.hpp"

namespace parlando::gateway {
using namespace protocol;

namespace {
constexpr std::size_t kAskedMax = 64;
constexpr milliseconds kLeadDefault{400};  // of a client that had one and does not say it again
constexpr milliseconds kResumeRetry{500};  // before the same is asked again; asking took `resume_wait` already
}  // namespace

void Sessions::resume(Client& client, ResumeOptions options, Time now) {
  if (client.session) return complain(client, {Errc::invalid_argument, "a session is open already"}, now);
  if (client.attempt) return complain(client, {Errc::invalid_argument, "a session is being resumed"}, now);
  client.attempt = std::make_unique<Attempt>();
  auto& attempt = *client.attempt;
  attempt.next = ResumeToken::make(random_);
  attempt.wanted = std::move(options);
  attempt.wanted.claim.token_digest = digest_of(attempt.wanted.token);
  attempt.wanted.claim.next_digest = attempt.next.digest;
  attempt.trace = random_();
  attempt.give_up = now + config_.resume_wait;
  attempt.pause = config_.resume_again;
  client.told_not_open = false;
  ask_all(client, now);
}

/// One round. The likeliest owner is the one that would be chosen for the session.
void Sessions::ask_all(Client& client, Time now) {
  auto& attempt = *client.attempt;
  const auto id = attempt.wanted.session;
  attempt.ask_again = Time::max();
  attempt.is_kept = false;
  attempt.answer_by = now + config_.resume_answer;
  std::vector<std::string> peers;
  if (!by_session_.contains(id)) peers.assign(linked_.begin(), linked_.end());  // else a client here has it
  std::sort(peers.begin(), peers.end(), [&](const auto& a, const auto& b) {
    return service::rendezvous_weight(id, a) > service::rendezvous_weight(id, b);
  });
  peers.resize(std::min(peers.size(), kAskedMax));
  attempt.stream = {++streams_};
  attempts_[attempt.stream.value] = client.id;
  for (const auto& peer : peers) {
    Envelope head;
    head.session = id;
    head.stream = attempt.stream;
    head.trace = attempt.trace;
    to_controllers_.push_back({peer, head, attempt.wanted.claim});
    attempt.asked.insert(peer);
    if (!suspects_.contains(peer)) attempt.awaited.insert(peer);
  }
  if (attempt.awaited.empty()) decide(client, now);
}

bool Sessions::is_of_attempt(const Envelope& head) const { return attempts_.contains(head.stream.value); }

void Sessions::on_attempt(const std::string& peer, Message message, Time now) {
  auto& client = *find(attempts_.at(message.head.stream.value));
  auto& attempt = *client.attempt;
  const bool first = attempt.asked.contains(peer) && message.head.session == attempt.wanted.session;
  const auto knows = [&](const Attempt::Answer& a) { return a.controller == peer; };
  if (first && message.head.type == MessageType::attached) {
    attempt.found.push_back({peer, std::move(message)});
    attempt.answer_by = std::min(attempt.answer_by, now + config_.resume_settle);
    return answered(client, peer, now);
  }
  if (first) {
    const auto error = protocol::read<ErrorMessage>(message);
    attempt.is_kept = attempt.is_kept || (error && error->code == to_string(Errc::unavailable));
    close_at(attempt, peer, {});
    return answered(client, peer, now);
  }
  if (std::any_of(attempt.found.begin(), attempt.found.end(), knows))
    attempt.behind.push_back({peer, std::move(message)});
  else
    ++counters_.stale;
}

void Sessions::answered(Client& client, const std::string& peer, Time now) {
  auto& attempt = *client.attempt;
  attempt.asked.erase(peer);
  attempt.awaited.erase(peer);
  if (attempt.awaited.empty() && attempt.ask_again == Time::max()) decide(client, now);
}

/// Nothing more is expected of this controller.
void Sessions::drop_from_attempt(Client& client, const std::string& peer, Time now) {
  auto& attempt = *client.attempt;
  const auto its = [&](const Attempt::Answer& a) { return a.controller == peer; };
  if (!linked_.contains(peer)) {
    std::erase_if(attempt.found, its);
    std::erase_if(attempt.behind, its);
    attempt.asked.erase(peer);
  }
  if (attempt.awaited.erase(peer) > 0 && attempt.awaited.empty()) decide(client, now);
}

/// The round is over. Of several that keep the session the one of the highest epoch is its owner.
void Sessions::decide(Client& client, Time now) {
  auto& attempt = *client.attempt;
  const auto epoch = [](const Attempt::Answer& a) { return a.message.head.epoch; };
  std::sort(attempt.found.begin(), attempt.found.end(),
            [&](const auto& a, const auto& b) { return epoch(a) > epoch(b); });
  while (!attempt.found.empty()) {
    auto answer = std::move(attempt.found.front());
    attempt.found.erase(attempt.found.begin());
    const auto winner = answer.controller;
    if (!take(client, attempt, std::move(answer), now)) {
      close_at(attempt, winner, {});
      continue;
    }
    end_round(attempt, winner);
    const auto done = std::move(client.attempt);
    ++counters_.resumed;
    for (auto& said : done->behind)
      if (said.controller == winner) on_message(winner, std::move(said.message), now);
    return;
  }
  // Who has not answered may have it.
  const bool is_over = !attempt.is_kept && attempt.asked.empty();
  end_round(attempt, {});
  attempt.ask_again = now + (attempt.is_kept ? config_.resume_again_kept : attempt.pause);
  attempt.pause = std::min(2 * attempt.pause, config_.resume_again_max);
  if (attempt.ask_again < attempt.give_up) return;
  ++counters_.not_resumed;
  if (is_over)
    say(client, error_event(to_string(Errc::not_found), "no session is kept for this token; open another one"));
  else
    say(client, error_event(to_string(Errc::unavailable), "what may have the session is silent; resume it again",
                            kResumeRetry.count()));
  end_attempt(client);
}

bool Sessions::take(Client& client, Attempt& attempt, Attempt::Answer answer, Time now) {
  const auto head = answer.message.head;
  auto attached = protocol::read<Attached>(answer.message);
  if (!attached) {
    ++counters_.malformed;
    return false;
  }
  OpenOptions options;
  static_cast<Settings&>(options) = *attached;
  options.seed = attached->seed;
  if (attached->plays) options.lead = attempt.wanted.lead.value_or(kLeadDefault);
  client.session = std::make_unique<Session>(attempt.wanted.session, std::move(options), config_.inputs,
                                             config_.playout, std::max<std::uint64_t>(1, attached->first_input));
  auto& session = *client.session;
  session.seed = attached->seed;
  session.token.digest = attempt.next.digest;
  session.place = Place::open;
  session.controller = answer.controller;
  session.stream = attempt.stream;
  session.epoch = head.epoch;
  session.opened_head = head;
  session.told_opened = true;
  session.position_samples = attached->position_samples;
  session.trace = attempt.trace;
  session.turn_resumed = attached->open_turn;
  const bool in_turn = attached->open_turn.value != 0;
  if (in_turn) session.turn_done = {attached->open_turn.value - 1};
  session.log.resumed(in_turn ? session.turn_done.value : attached->turns);
  session.told_degraded(attached->degraded, now);
  by_session_[session.id] = client.id;
  telemetry::log(telemetry::Level::info, "gateway resumes session={} at={} turn={}", session.id.text(),
                 session.controller, attached->open_turn.value);
  say(client, resumed_event(session.id, {attempt.next.text, config_.tokens.of(session.id, client.traits.owner)},
                            *attached, session.options.lead));
  if (session.playout && attached->open_turn.value != 0)
    session.playout->resume(attached->open_turn, attached->turn_samples);
  session.turn.resume(*std::move(attached));
  return true;
}

/// A controller that has not answered yet may still do so: it keeps the session then, for the next round, which brings
/// the same token for the client.
void Sessions::end_round(Attempt& attempt, const std::string& winner) {
  attempts_.erase(attempt.stream.value);
  for (const auto& peer : attempt.asked) close_at(attempt, peer, {.detached = true});
  for (const auto& answer : attempt.found)
    if (answer.controller != winner) close_at(attempt, answer.controller, {.moves = !winner.empty()});
  attempt.asked.clear();
  attempt.awaited.clear();
  attempt.found.clear();
}

void Sessions::end_attempt(Client& client) {
  if (!client.attempt) return;
  end_round(*client.attempt, {});
  client.attempt.reset();
  client.told_not_open = true;
}

void Sessions::close_at(const Attempt& attempt, const std::string& peer, Close how) {
  if (!linked_.contains(peer)) return;
  Envelope head;
  head.session = attempt.wanted.session;
  head.stream = attempt.stream;
  head.trace = attempt.trace;
  to_controllers_.push_back({peer, head, how});
}

void Sessions::review_attempt(Client& client, Time now) {
  auto& attempt = *client.attempt;
  if (attempt.ask_again != Time::max()) {
    if (now >= attempt.ask_again) ask_all(client, now);
    return;
  }
  if (now >= attempt.answer_by) decide(client, now);
}

}  // namespace parlando::gateway
