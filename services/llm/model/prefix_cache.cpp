#include "services/llm/model/prefix_cache.hpp"

namespace parlando::llm {

namespace {
const std::optional<SessionId> kEverybody;
constexpr auto kBlock = static_cast<std::size_t>(kBlockTokens);
}  // namespace

bool PrefixCache::Order::less(const Place& a, const Place& b) {
  if (a.scope != b.scope) return a.scope < b.scope;
  return std::lexicographical_compare(a.ids.begin(), a.ids.end(), b.ids.begin(), b.ids.end());
}

/// Of those in one scope the one that has most in common with these ids: sorted, it stands beside their place.
PrefixCache::Near PrefixCache::nearest(const Branches& among, const Place& wanted) {
  ++compared_;
  Near out;
  const auto look = [&](Node* node) {
    if (node->owner->scope != wanted.scope) return;
    const auto have = node->place().ids;
    const auto common = static_cast<std::size_t>(
        std::mismatch(have.begin(), have.end(), wanted.ids.begin(), wanted.ids.end()).first - have.begin());
    if (common > out.common) out = {node, common};
  };
  const auto at = among.lower_bound(wanted);
  if (at != among.end()) look(*at);
  if (at != among.begin()) look(*std::prev(at));
  return out;
}

PrefixCache::Node* PrefixCache::at(const Stand& stand) const {
  const auto found = nodes_.find(stand.entry);
  return found == nodes_.end() ? nullptr : found->second;
}

/// Where a sequence goes on: at the root when the entry has gone, or when what it says next does not belong behind it.
/// Behind what a session said stands nothing but what it said itself: the operator's words are looked for, and stay
/// and go, without regard to sessions.
PrefixCache::Node* PrefixCache::resume(Stand& stand, const Beginning& whose) const {
  auto* const node = at(stand);
  const bool good =
      node != nullptr && (node->owner->scope ? node->owner->scope == whose.session && whose.operators <= stand.length
                                             : whose.operators >= stand.length);
  if (good) return node;
  stand = {};
  return nullptr;
}

/// From the end to the front, so that the front is the newer one.
void PrefixCache::use(Node* node, Time now) {
  for (; node != nullptr; node = node->parent) {
    auto& owner = *node->owner;
    node->used = now;
    owner.newest_first.splice(owner.newest_first.begin(), owner.newest_first, node->self);
    if (!owner.scope) continue;
    auto& owners = owner.came_back ? returned_ : once_;
    owners.splice(owners.begin(), owners, owner.self);
  }
}

PrefixCache::Owner& PrefixCache::owner_of(const Scope& scope) {
  if (!scope) return operators_;
  auto& owner = sessions_[*scope];
  if (owner == nullptr) {
    once_.push_front({scope});
    owner = &once_.front();
    owner->self = once_.begin();
  }
  return *owner;
}

PrefixCache::Owner* PrefixCache::known(const Scope& scope) {
  if (!scope) return &operators_;
  const auto found = sessions_.find(*scope);
  return found == sessions_.end() ? nullptr : found->second;
}

void PrefixCache::come_back(Owner& owner) {
  if (!owner.scope || std::exchange(owner.came_back, true)) return;
  once_entries_ -= owner.entries();
  returned_.splice(returned_.begin(), once_, owner.self);
}

void PrefixCache::erase(Node* node) {
  while (!node->branches.empty()) erase(*node->branches.begin());
  auto& owner = *node->owner;
  branches_of(node->parent).erase(node);
  nodes_.erase(node->number);
  --entries_;
  owner.newest_first.erase(node->self);
  if (!owner.scope) return;
  if (!owner.came_back) --once_entries_;
  if (owner.entries() == share()) std::erase(large_, &owner);
  if (owner.entries() > 0) return;
  sessions_.erase(*owner.scope);
  (owner.came_back ? returned_ : once_).erase(owner.self);
}

PrefixCache::Match PrefixCache::find(std::span<const std::int32_t> ids, const Beginning& whose, std::int64_t have,
                                     Stand& stand, Time now) {
  auto* last = resume(stand, whose);
  Match out{stand.length, {}, stand.length};
  // Until then the operator's ids are where they belong. A session that has said the same words itself meets its own;
  // what is entered goes on from in front of those.
  bool stands = true;
  while (out.length < static_cast<std::int64_t>(ids.size())) {
    const auto& among = branches_of(last);
    const auto rest = ids.subspan(static_cast<std::size_t>(out.length));
    const auto wanted = rest.first(std::min(rest.size(), kBlock));
    const auto operators =
        std::clamp<std::int64_t>(whose.operators - out.length, 0, static_cast<std::int64_t>(wanted.size()));
    Near best;
    if (operators > 0) best = nearest(among, {kEverybody, wanted.first(static_cast<std::size_t>(operators))});
    stands = stands && static_cast<std::int64_t>(best.common) == operators;
    if (best.common < kBlock && whose.session)
      if (const auto own = nearest(among, {whose.session, wanted}); own.common > best.common) best = own;
    if (best.node == nullptr) break;
    last = best.node;
    out.blocks.push_back(best.node->hold.block());
    out.length += static_cast<std::int64_t>(best.common);
    if (best.common < kBlock) break;
    if (stands) stand = {last->number, out.length};
  }
  if (last == nullptr || out.length <= have) return out;
  come_back(*last->owner);
  use(last, now);
  return out;
}

/// An end with fewer ids that is there grows, and needs no room. @return null where there is none
PrefixCache::Node* PrefixCache::add(Node* parent, const Place& place, std::int32_t block, bool drawn, Time now) {
  auto& among = branches_of(parent);
  const auto near = nearest(among, place);
  if (near.node != nullptr && near.common == place.ids.size()) {  // it is there, perhaps longer
    if (drawn && near.node->hold.block() == block) near.node->believed = true;
    return near.node;
  }
  // A shorter one is part of this one; it has no branches, and nobody stands there.
  const bool grows = near.node != nullptr && near.common == near.node->count;
  if (!grows && !make_room(place.scope, parent)) return nullptr;
  auto* const node = grows ? near.node : new_node(place.scope, parent);
  if (grows) among.erase(node);
  node->count = place.ids.size();
  std::copy(place.ids.begin(), place.ids.end(), node->ids.begin());
  node->hold = ledger_->hold(block);
  node->used = now;
  node->believed = drawn;
  among.insert(node);
  oldest_ = std::min(oldest_, now);
  return node;
}

/// The newest of its owner; not yet among its siblings.
PrefixCache::Node* PrefixCache::new_node(const Scope& scope, Node* parent) {
  auto& owner = owner_of(scope);
  owner.newest_first.emplace_front();
  auto* const node = &owner.newest_first.front();
  node->number = ++numbers_;
  node->owner = &owner;
  node->self = owner.newest_first.begin();
  node->parent = parent;
  ++entries_;
  nodes_.emplace(node->number, node);
  if (!scope) return node;
  if (!owner.came_back) ++once_entries_;
  if (owner.entries() == share() + 1) large_.push_back(&owner);
  return node;
}

/// For one more entry of a scope behind this one, which is the last to stay of all in front of it.
bool PrefixCache::make_room(const Scope& scope, const Node* parent) {
  const auto may = [&](const Node& node) { return &node != parent; };
  while (entries_ >= limits_.blocks) {
    auto* const own = scope ? known(scope) : nullptr;
    const bool has_share = own != nullptr && own->entries() >= share();
    if (!(has_share ? end_of(*own, may) : give_way(share(), may))) return false;
  }
  return true;
}

void PrefixCache::enter(std::span<const std::int32_t> ids, const BlockLedger::Sequence& cache, std::int64_t length,
                        std::int64_t drawn, const Beginning& whose, Stand& stand, Time now) {
  length = std::min({length, cache.length(), static_cast<std::int64_t>(ids.size()), whose.most});
  if (!is_on()) return;
  auto* parent = resume(stand, whose);
  for (auto first = stand.length; first < length; first += kBlockTokens) {
    const auto count = std::min(kBlockTokens, length - first);
    const auto part = ids.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    const auto block = cache.blocks()[static_cast<std::size_t>(first / kBlockTokens)];
    const auto operators = std::clamp<std::int64_t>(whose.operators - first, 0, count);
    Node* node = nullptr;
    if (operators > 0) {
      node = add(parent, {kEverybody, part.first(static_cast<std::size_t>(operators))}, block,
                 first + operators <= drawn, now);
      if (node == nullptr) break;
    }
    if (operators < count) {
      if (node != nullptr) use(node, now);  // the end of the operator's words
      if (!whose.session) break;
      node = add(parent, {whose.session, part}, block, first + count <= drawn, now);
      if (node == nullptr) break;
    }
    parent = node;
    if (count < kBlockTokens) break;
    stand = {node->number, first + kBlockTokens};
  }
  use(parent, now);
}

void PrefixCache::end_branch(Node* node) {
  erase(node);
  ++counts_.evicted;
}

/// The oldest end of this owner's that may go, of those from `next` on which were used before then. What was looked at
/// in vain is behind `next`.
template <class F>
bool PrefixCache::end_of(Owner& owner, Oldest& next, F&& may, Time before) {
  for (; next != owner.newest_first.rend() && next->used < before; ++next) {
    ++looked_at_;
    if (!next->branches.empty() || !may(*next)) continue;
    end_branch(&*next);
    return true;
  }
  return false;
}

template <class F>
bool PrefixCache::end_of(Owner& owner, F&& may) {
  auto next = owner.newest_first.rbegin();
  return end_of(owner, next, may);
}

/// Ends one branch, of whoever is the first that may. @param spared  so many entries of those who came once go last
/// @return false when nobody may
template <class F>
bool PrefixCache::give_way(std::int64_t spared, F&& may) {
  // An owner goes with its last entry: behind that nobody looks at the list any more.
  const auto any = [&](Owners& owners) {
    for (auto owner = owners.rbegin(); owner != owners.rend(); ++owner)
      if (end_of(*owner, may)) return true;
    return false;
  };
  for (auto* owner : large_)
    if (end_of(*owner, may)) return true;
  const bool many = once_entries_ > spared;
  if (many && any(once_)) return true;
  auto next = operators_.newest_first.rbegin();
  for (auto owner = returned_.rbegin(); owner != returned_.rend(); ++owner)
    if (end_of(operators_, next, may, owner->newest_first.front().used) || end_of(*owner, may)) return true;
  return end_of(operators_, next, may) || (!many && any(once_));
}

bool PrefixCache::evict() {
  return give_way(share(), [](const Node&) { return true; });
}

bool PrefixCache::free_block() {
  const auto free = ledger_->blocks_free();
  while (ledger_->blocks_free() == free)
    if (ledger_->blocks_only_held() == 0 ||
        !give_way(0, [this](const Node& node) { return ledger_->is_only_held(node.hold.block()); }))
      return false;
  return true;
}

void PrefixCache::expire(Time now) {
  if (entries_ == 0 || now - oldest_ < limits_.idle) return;
  const auto before = entries_;
  oldest_ = Time::max();
  for (auto* owners : {&once_, &returned_})
    for (auto next = owners->begin(); next != owners->end();) expire((next++)->scope, now);
  expire(kEverybody, now);
  counts_.expired += before - entries_;
}

/// What stands behind an entry was used no later, so that it has gone before, or goes with it. An owner goes with its
/// last entry, and nobody else does: behind a session's entries stand its own alone.
void PrefixCache::expire(Scope scope, Time now) {
  for (auto* owner = known(scope); owner != nullptr && owner->entries() > 0; owner = known(scope)) {
    auto& oldest = owner->newest_first.back();
    if (now - oldest.used < limits_.idle) {
      oldest_ = std::min(oldest_, oldest.used);
      return;
    }
    erase(&oldest);
  }
}

void PrefixCache::forget(SessionId session) {
  const auto before = entries_;
  for (auto* owner = known(session); owner != nullptr; owner = known(session)) erase(&owner->newest_first.back());
  counts_.forgotten += before - entries_;
}

std::int64_t PrefixCache::entries(SessionId session) const {
  const auto found = sessions_.find(session);
  return found == sessions_.end() ? 0 : found->second->entries();
}

void PrefixCache::believe(const Stand& stand, std::span<const std::int32_t> blocks) {
  auto length = static_cast<std::size_t>(stand.length / kBlockTokens);
  for (auto* node = at(stand); node != nullptr; node = node->parent)
    if (node->hold.block() == blocks[--length]) node->believed = true;
}

void PrefixCache::doubt(std::span<const std::int32_t> ids, const Beginning& whose) {
  const auto before = entries_;
  Node* parent = nullptr;
  for (std::size_t first = 0; first < ids.size(); first += kBlock) {
    const auto part = ids.subspan(first, std::min(kBlock, ids.size() - first));
    const auto operators = std::clamp<std::int64_t>(whose.operators - static_cast<std::int64_t>(first), 0,
                                                    static_cast<std::int64_t>(part.size()));
    Near met[] = {{}, {}};
    if (operators > 0)
      met[0] = nearest(branches_of(parent), {kEverybody, part.first(static_cast<std::size_t>(operators))});
    if (met[0].common < kBlock && whose.session) met[1] = nearest(branches_of(parent), {whose.session, part});
    Node* next = nullptr;
    for (const auto& near : met) {
      if (near.node == nullptr) continue;
      if (std::exchange(near.node->believed, false)) {
        if (near.common == kBlock) next = near.node;
      } else {
        erase(near.node);
      }
    }
    if (next == nullptr) break;
    parent = next;
  }
  counts_.forgotten += before - entries_;
}

}  // namespace parlando::llm
