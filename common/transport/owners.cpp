#include "common/transport/owners.hpp"

namespace parlando::transport {

Owners::Judgement Owners::judge(const std::string& peer, SessionId session, Epoch epoch, Time now) {
  if (epoch.value == 0) return {Verdict::same, {}, {}};
  while (!order_.empty() && now - order_.front().heard > idle_max_) {
    entries_.erase(order_.front().session);
    order_.pop_front();
  }
  const auto found = entries_.find(session);
  if (found == entries_.end()) {
    if (entries_.size() >= sessions_max_) {
      entries_.erase(order_.front().session);
      order_.pop_front();
    }
    order_.push_back({session, epoch, peer, now});
    entries_[session] = std::prev(order_.end());
    return {Verdict::raised, {}, epoch};
  }
  auto& entry = *found->second;
  if (epoch < entry.epoch) return {Verdict::stale, entry.peer, entry.epoch};
  entry.heard = now;
  order_.splice(order_.end(), order_, found->second);
  if (epoch == entry.epoch) return {Verdict::same, {}, epoch};
  entry.epoch = epoch;
  return {Verdict::raised, std::exchange(entry.peer, peer), epoch};
}

}  // namespace parlando::transport
