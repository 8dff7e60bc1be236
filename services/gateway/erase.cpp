/// Deleting what was said in a session. Whoever has it here loses it first; then any controller is asked, which makes
/// the store forget it whoever leads it. What was asked for is gone on with when its client goes.
#include <algorithm>

#include "common/telemetry/log.hpp"
#include "services/gateway/sessions.hpp"

namespace parlando::gateway {
using namespace protocol;

namespace {
constexpr std::size_t kErasuresMax = 64;          // at a time, as many as a controller takes
constexpr std::chrono::seconds kErasureTime{15};  // a controller gives up after 10
constexpr milliseconds kEraseRetry{1000};
}  // namespace

void Sessions::erase(Client& client, EraseOptions wish, Time now) {
  if (!wish.session && !client.session) return complain_not_open(client, false);
  const auto id = wish.session ? *wish.session : client.session->id;
  if (wish.session && !config_.tokens.is_right(wish.token, id, client.traits.owner))
    return complain(client, {Errc::not_found, "nothing is stored of a session with this token"}, now);
  if (erasures_.size() >= kErasuresMax)
    return say(client,
               error_event(to_string(Errc::overloaded), "too many sessions are being erased", kEraseRetry.count()));
  auto* holder = find(id);
  const auto controller = holder != nullptr ? holder->session->controller : std::string();
  if (holder != nullptr) {
    const bool stored = holder->session->options.stored;
    give_up_sound(*holder);
    end_session(*holder);
    holder->told_not_open = true;  // sound under way is not its fault
    if (holder != &client) say(*holder, error_event(to_string(Errc::not_found), "the session was erased", 0, true));
    if (!stored) return say(client, erased_event(id, 0));
  }
  Erasure erasure;
  erasure.client = client.id;
  erasure.session = id;
  erasure.give_up = now + kErasureTime;
  erasure.was_here = holder != nullptr;
  erasure.was_own = holder == &client;
  ask_to_erase(std::move(erasure), controller);
}

/// @param first  who had the session: it may have turns of it that are not stored yet
void Sessions::ask_to_erase(Erasure erasure, const std::string& first) {
  const auto may = [&](const std::string& peer) {
    return linked_.contains(peer) && !suspects_.contains(peer) && !erasure.asked.contains(peer);
  };
  std::string best = may(first) ? first : "";
  if (best.empty())
    for (const auto& peer : linked_)
      if (may(peer) && (best.empty() || service::rendezvous_weight(erasure.session, peer) >
                                            service::rendezvous_weight(erasure.session, best)))
        best = peer;
  if (best.empty()) {
    return erasure_failed(erasure, {std::string(to_string(Errc::unavailable)),
                                    "no controller can erase the session now; ask again", kEraseRetry.count()});
  }
  Envelope head;
  head.session = erasure.session;
  head.stream = {++streams_};
  head.trace = random_();
  erasure.controller = best;
  erasure.asked.insert(best);
  erasures_[head.stream.value] = std::move(erasure);
  to_controllers_.push_back({best, head, Erase{}});
}

void Sessions::on_erasure(const std::string& peer, Message message) {
  const auto head = message.head;
  const auto found = erasures_.find(head.stream.value);
  if (found->second.controller != peer || head.session != found->second.session) {
    ++counters_.stale;
    return;
  }
  auto erasure = std::move(found->second);
  erasures_.erase(found);
  close_erasure(erasure, head.stream);
  if (head.type == MessageType::erased)
    if (const auto erased = protocol::read<Erased>(message)) return erasure_over(erasure, erased->turns);
  auto error = protocol::read<ErrorMessage>(message);
  if (head.type != MessageType::error || !error) {
    ++counters_.malformed;
    return ask_to_erase(std::move(erasure), {});
  }
  const auto code = errc_of(error->code);
  // Another one was asked before and did not come to answer: it may have done it.
  if (code == Errc::not_found && (erasure.was_here || erasure.asked.size() > 1)) return erasure_over(erasure, 0);
  if (code == Errc::not_found || code == Errc::invalid_argument) return erasure_failed(erasure, *error);
  ask_to_erase(std::move(erasure), {});
}

void Sessions::close_erasure(const Erasure& erasure, StreamId stream) {
  Envelope head;
  head.session = erasure.session;
  head.stream = stream;
  if (linked_.contains(erasure.controller)) to_controllers_.push_back({erasure.controller, head, Close{false}});
}

void Sessions::erasure_over(const Erasure& erasure, std::int64_t turns) {
  telemetry::log(telemetry::Level::info, "gateway has a session erased session={} turns={}", erasure.session.text(),
                 turns);
  if (auto* client = find(erasure.client)) say(*client, erased_event(erasure.session, turns));
}

void Sessions::erasure_failed(const Erasure& erasure, const ErrorMessage& why) {
  if (auto* client = find(erasure.client))
    say(*client, error_event(why.code, why.message, why.retry_ms, erasure.was_own));
}

/// Those that a controller has not answered, and will not.
void Sessions::move_erasures(const std::string& peer) {
  std::vector<Erasure> left;
  std::erase_if(erasures_, [&](auto& entry) {
    const bool its = entry.second.controller == peer;
    if (its) left.push_back(std::move(entry.second));
    return its;
  });
  for (auto& erasure : left) ask_to_erase(std::move(erasure), {});
}

void Sessions::review_erasures(Time now) {
  std::vector<std::pair<std::uint32_t, Erasure>> over;
  for (const auto& [stream, erasure] : erasures_)
    if (now >= erasure.give_up) over.emplace_back(stream, erasure);
  for (const auto& [stream, erasure] : over) {
    close_erasure(erasure, {stream});
    erasures_.erase(stream);
    erasure_failed(erasure, {std::string(to_string(Errc::unavailable)), "the store does not answer; ask again",
                             kEraseRetry.count()});
  }
}

}  // namespace parlando::gateway
