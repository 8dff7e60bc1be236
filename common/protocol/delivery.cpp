#include "common/protocol/delivery.hpp"

#include <algorithm>

namespace parlando::protocol {

Inbox::Verdict Inbox::judge(const Envelope& head) {
  const Key key{head.session, head.stream};
  auto found = streams_.find(key);
  const bool start = (head.flags & kFlagStart) != 0;
  if (found == streams_.end()) {
    if (!start) return Verdict::gap;  // the beginning was lost; it will be sent again
    if (streams_.size() >= streams_max_)
      streams_.erase(std::min_element(streams_.begin(), streams_.end(), [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
    streams_[key] = {head.epoch, head.sequence, ++clock_};
    return Verdict::accept;
  }
  auto& s = found->second;
  s.used = ++clock_;
  if (head.epoch < s.epoch) return Verdict::stale;
  if (head.epoch > s.epoch) {
    // A replay under a new attempt starts at the oldest unacknowledged message; what was taken already is still a duplicate.
    const bool new_owner = head.epoch.session() != s.epoch.session();
    if (new_owner && !start) return Verdict::gap;
    s.epoch = head.epoch;
    if (new_owner) {
      s.last = head.sequence;
      return Verdict::accept;
    }
  }
  if (head.sequence <= s.last) return Verdict::duplicate;
  if (head.sequence != s.last + 1) return Verdict::gap;
  s.last = head.sequence;
  return Verdict::accept;
}

std::optional<std::uint64_t> Inbox::acknowledged(SessionId session, std::uint32_t stream) const {
  const auto found = streams_.find({session, stream});
  return found == streams_.end() ? std::nullopt : std::optional(found->second.last);
}

void Inbox::forget(SessionId session) {
  std::erase_if(streams_, [&](const auto& s) { return s.first.first == session; });
}

Result<void> Outbox::push(Message message) {
  const auto size = kEnvelopeBytes + message.body.size() + message.payload.size();
  if (bytes_ + size > bytes_max_) return fail(Errc::overloaded, "{} unacknowledged bytes and {} more would pass the limit of {}", bytes_, size, bytes_max_);
  bytes_ += size;
  message.head.sequence = next_++;
  message.head.epoch = epoch_ = std::max(epoch_, message.head.epoch);
  kept_.push_back(std::move(message));
  return {};
}

std::vector<Message> Outbox::take() {
  std::vector<Message> out;
  for (const auto& message : kept_)
    if (message.head.sequence > handed_ && message.head.sequence <= limit_) {
      handed_ = message.head.sequence;
      out.push_back(message);
      if (message.head.sequence == ack_ + 1) out.back().head.flags |= kFlagStart;
    }
  return out;
}

void Outbox::window(std::uint64_t ack, std::uint64_t limit) {
  ack_ = std::max(ack_, std::min(ack, next_ - 1));
  limit_ = std::max(limit_, limit);
  while (!kept_.empty() && kept_.front().head.sequence <= ack_) {
    bytes_ -= kEnvelopeBytes + kept_.front().body.size() + kept_.front().payload.size();
    kept_.pop_front();
  }
}

void Outbox::replay(Epoch epoch) {
  epoch_ = std::max(epoch_, epoch);
  handed_ = ack_;
  for (auto& message : kept_) message.head.epoch = epoch_;
}

std::optional<std::size_t> rendezvous(SessionId session, const std::vector<std::string>& replicas) {
  std::optional<std::size_t> best;
  std::uint64_t best_score = 0;
  for (std::size_t i = 0; i < replicas.size(); ++i) {
    std::uint64_t h = 0xcbf29ce484222325ull;
    auto add = [&h](std::uint64_t byte) { h = (h ^ byte) * 0x100000001b3ull; };
    for (const char c : replicas[i]) add(static_cast<unsigned char>(c));
    for (int k = 0; k < 64; k += 8) add(session.high >> k & 0xff), add(session.low >> k & 0xff);
    h ^= h >> 33, h *= 0xff51afd7ed558ccdull, h ^= h >> 33, h *= 0xc4ceb9fe1a85ec53ull, h ^= h >> 33;
    if (!best || h > best_score) best = i, best_score = h;
  }
  return best;
}

}  // namespace parlando::protocol
