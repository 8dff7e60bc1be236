#include "common/service/replicas.hpp"

namespace parlando::service {
using transport::PeerState;

std::uint64_t rendezvous_weight(SessionId session, std::string_view instance) {
  // FNV-1a over the bytes, then the finaliser of MurmurHash3.
  std::uint64_t h = 0xcbf29ce484222325ull;
  const auto add = [&h](std::uint64_t byte) { h = (h ^ byte) * 0x100000001b3ull; };
  for (const char c : instance) add(static_cast<unsigned char>(c));
  for (int shift = 0; shift < 64; shift += 8) add(session.high >> shift & 0xff);
  for (int shift = 0; shift < 64; shift += 8) add(session.low >> shift & 0xff);
  h ^= h >> 33;
  h *= 0xff51afd7ed558ccdull;
  h ^= h >> 33;
  h *= 0xc4ceb9fe1a85ec53ull;
  h ^= h >> 33;
  return h;
}

const Replicas::Replica* Replicas::find(const std::string& instance) const {
  const auto found =
      std::find_if(replicas_.begin(), replicas_.end(), [&](const Replica& r) { return r.peer.instance == instance; });
  return found == replicas_.end() ? nullptr : &*found;
}

void Replicas::on_peer(const transport::Peer& peer, PeerState state) {
  std::erase_if(replicas_, [&](const Replica& r) { return r.peer.instance == peer.instance; });
  if (state != PeerState::down) replicas_.push_back({peer, state == PeerState::suspect});
}

std::optional<std::string> Replicas::choose(SessionId session, const std::set<std::string>& except) const {
  return best(session, except, &can_take);
}

std::optional<std::string> Replicas::choose_at_last(SessionId session, const std::set<std::string>& except) const {
  const auto chosen = choose(session, except);
  return chosen ? chosen : best(session, except, &works);
}

std::optional<std::string> Replicas::best(SessionId session, const std::set<std::string>& except,
                                          bool (*fits)(const Replica&)) const {
  const Replica* best = nullptr;
  std::uint64_t best_weight = 0;
  for (const auto& r : replicas_) {
    if (!fits(r) || except.contains(r.peer.instance)) continue;
    const auto weight = rendezvous_weight(session, r.peer.instance);
    if (best == nullptr || weight > best_weight) {
      best = &r;
      best_weight = weight;
    }
  }
  return best == nullptr ? std::nullopt : std::optional(best->peer.instance);
}

bool Replicas::is_up(const std::string& instance) const {
  const auto* r = find(instance);
  return r != nullptr && !r->suspect;
}
bool Replicas::is_linked(const std::string& instance) const { return find(instance) != nullptr; }
bool Replicas::is_draining(const std::string& instance) const {
  const auto* r = find(instance);
  return r != nullptr && r->peer.draining;
}
bool Replicas::any_up() const {
  return std::any_of(replicas_.begin(), replicas_.end(), [](const Replica& r) { return !r.suspect; });
}
std::int64_t Replicas::slots() const {
  std::int64_t out = 0;
  for (const auto& r : replicas_)
    if (r.peer.ready && !r.peer.draining) out += r.peer.slots;
  return out;
}
bool Replicas::any() const {
  return std::any_of(replicas_.begin(), replicas_.end(), [](const Replica& r) { return can_take(r); });
}
bool Replicas::any_live() const {
  return std::any_of(replicas_.begin(), replicas_.end(), [](const Replica& r) { return is_live(r); });
}

}  // namespace parlando::service
