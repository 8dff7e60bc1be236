#include "common/transport/channels.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace parlando::transport {
using namespace protocol;

Result<void> Channels::send(const std::string& peer, Message message, Time now) {
  const Key key{message.head.session, message.head.stream};
  auto found = outgoing_.find({peer, key});
  if (found == outgoing_.end()) {
    const auto of_peer = std::count_if(outgoing_.begin(), outgoing_.end(), [&](const auto& o) { return o.first.first == peer; });
    if (static_cast<std::size_t>(of_peer) >= limits_.streams_max) {
      ++counters_.refused;
      return fail(Errc::overloaded, "{} streams to '{}' are open, at most {} are kept", of_peer, peer, limits_.streams_max);
    }
    found = outgoing_.emplace(std::pair{peer, key}, Outgoing{Outbox(limits_.window_messages, limits_.unacknowledged_bytes_max), now}).first;
  }
  auto& out = found->second;
  if (out.box.unacknowledged() == 0) out.last_progress = now;
  out.closing = out.closing || message.head.type == MessageType::close;
  if (auto done = out.box.push(std::move(message)); !done) {
    ++counters_.refused;
    return done;
  }
  out.fresh = true;
  return {};
}

std::optional<Message> Channels::receive(const std::string& peer, Message message, Time now) {
  const auto& head = message.head;
  const Key key{head.session, head.stream};
  if (head.type == MessageType::window) {
    const auto found = outgoing_.find({peer, key});
    if (found == outgoing_.end()) return {};
    const auto body = body_of(message);
    if (!body.contains("ack") || !body["ack"].is_number_unsigned() || !body.contains("limit") || !body["limit"].is_number_unsigned()) return {};
    auto& out = found->second;
    const auto before = out.box.unacknowledged();
    out.box.window(body["ack"].get<std::uint64_t>(), body["limit"].get<std::uint64_t>());
    if (out.box.unacknowledged() < before) out.last_progress = now;
    out.fresh = true;
    return {};
  }
  if (is_control(head.type)) return message;
  auto& side = sides_.try_emplace(peer, Side{Inbox(limits_.streams_max), {}}).first->second;
  const auto place = side.incoming.find(key);
  if (place != side.incoming.end() && head.sequence > place->second.handled + 2 * limits_.window_messages) {  // twice: our last window may be under way
    ++counters_.credit_exceeded;
    return {};
  }
  switch (side.inbox.judge(head)) {
    case Inbox::Verdict::accept: {
      if (place == side.incoming.end()) {
        if (side.incoming.size() >= limits_.streams_max) side.incoming.erase(side.incoming.begin());
        side.incoming[key].handled = head.sequence - 1;
      }
      return message;
    }
    case Inbox::Verdict::duplicate:
      ++counters_.duplicates;
      break;
    case Inbox::Verdict::stale:
      ++counters_.stale;
      return {};
    case Inbox::Verdict::gap:
      ++counters_.gaps;
      break;
  }
  if (place != side.incoming.end()) place->second.tell = true;  // the sender has missed our last word, or we one of its messages
  return {};
}

void Channels::handled(const std::string& peer, const Envelope& head) {
  if (is_control(head.type)) return;
  const auto side = sides_.find(peer);
  if (side == sides_.end()) return;
  const auto place = side->second.incoming.find({head.session, head.stream});
  if (place == side->second.incoming.end()) return;
  place->second.handled = std::max(place->second.handled, head.sequence);
  place->second.tell = true;
  if (head.type != MessageType::close) return;
  // Both directions of the stream end here: what we still have to say is said, then nothing of it is kept.
  place->second.closing = true;
  if (const auto back = outgoing_.find({peer, {head.session, head.stream}}); back != outgoing_.end()) back->second.closing = true;
}

std::vector<Channels::Due> Channels::due(Time now) {
  std::vector<Due> out;
  for (auto& [peer, side] : sides_)
    for (auto it = side.incoming.begin(); it != side.incoming.end();) {
      const auto key = it->first;
      auto& in = it->second;
      const bool tell = std::exchange(in.tell, false), closing = in.closing;
      const auto handled = in.handled;
      if (closing) {
        side.inbox.forget(key.first, key.second);
        it = side.incoming.erase(it);
      } else {
        ++it;
      }
      if (!tell) continue;
      Message m;
      m.head.type = MessageType::window, m.head.session = key.first, m.head.stream = key.second;
      m.body = fmt::format(R"({{"ack":{},"limit":{}}})", handled, handled + limits_.window_messages);
      out.push_back({peer, std::move(m)});
    }
  std::erase_if(outgoing_, [](const auto& o) { return o.second.closing && o.second.box.unacknowledged() == 0; });
  for (auto& [key, o] : outgoing_) {
    const bool late = o.box.unacknowledged() > 0 && now - o.last_progress >= limits_.resend_after;
    if (late) {
      o.box.replay({});
      o.last_progress = now;
    } else if (!o.fresh) {
      continue;
    }
    o.fresh = false;
    auto messages = o.box.take();
    if (late) counters_.resent += messages.size();
    for (auto& m : messages) out.push_back({key.first, std::move(m)});
  }
  return out;
}

void Channels::forget(const std::string& peer) {
  sides_.erase(peer);
  std::erase_if(outgoing_, [&](const auto& o) { return o.first.first == peer; });
}

std::size_t Channels::streams() const {
  auto n = outgoing_.size();
  for (const auto& [peer, side] : sides_) n += side.incoming.size();
  return n;
}

}  // namespace parlando::transport
