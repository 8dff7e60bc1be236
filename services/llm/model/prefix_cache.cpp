#include "services/llm/model/prefix_cache.hpp"

#include <algorithm>

#include "common/base/assert.hpp"

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
PrefixCache::Near PrefixCache::nearest(const Branches& among, const Place& wanted) const {
  Near out;
  const auto look = [&](Node* node) {
    if (node->scope != wanted.scope) return;
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

/// From the end to the front, so that the front is the newer one.
void PrefixCache::use(Node* node, Time now) {
  for (; node != nullptr; node = node->parent) {
    node->used = now;
    newest_first_.splice(newest_first_.begin(), newest_first_, node->self);
  }
}

void PrefixCache::erase(Node* node) {
  while (!node->branches.empty()) erase(*node->branches.begin());
  siblings(*node).erase(node);
  --held_[static_cast<std::size_t>(node->hold.block())];
  newest_first_.erase(node->self);
}

PrefixCache::Match PrefixCache::find(std::span<const std::int32_t> ids, const Beginning& whose, Time now) {
  Match out;
  Node* last = nullptr;
  for (;;) {
    const auto& among = last == nullptr ? roots_ : last->branches;
    const auto rest = ids.subspan(static_cast<std::size_t>(out.length));
    const auto wanted = rest.first(std::min(rest.size(), kBlock));
    const auto operators =
        std::clamp<std::int64_t>(whose.operators - out.length, 0, static_cast<std::int64_t>(wanted.size()));
    Near best;
    if (operators > 0) best = nearest(among, {kEverybody, wanted.first(static_cast<std::size_t>(operators))});
    if (best.common < kBlock && whose.session)
      if (const auto own = nearest(among, {whose.session, wanted}); own.common > best.common) best = own;
    if (best.node == nullptr) break;
    last = best.node;
    out.blocks.push_back(best.node->hold.block());
    out.length += static_cast<std::int64_t>(best.common);
    if (best.common < kBlock) break;
  }
  use(last, now);
  return out;
}

PrefixCache::Node* PrefixCache::add(Node* parent, const Place& place, std::int32_t block, Time now) {
  auto& among = parent == nullptr ? roots_ : parent->branches;
  const auto near = nearest(among, place);
  if (near.node != nullptr && near.common == place.ids.size()) {  // it is there, perhaps longer
    use(near.node, now);
    return near.node;
  }
  // A shorter one is part of this one: it has no branches, and its place is taken.
  if (near.node != nullptr && near.common == near.node->count) erase(near.node);
  use(parent, now);
  while (entries() >= limits_.blocks) {
    // Where everything that is left is in front of this one, there is no place behind it.
    auto* const oldest = &newest_first_.back();
    for (auto* p = parent; p != nullptr; p = p->parent)
      if (p == oldest) return nullptr;
    evict();
  }
  newest_first_.emplace_front();
  auto* const node = &newest_first_.front();
  node->self = newest_first_.begin();
  node->scope = place.scope;
  node->count = place.ids.size();
  std::copy(place.ids.begin(), place.ids.end(), node->ids.begin());
  node->hold = ledger_->hold(block);
  ++held_[static_cast<std::size_t>(block)];
  node->parent = parent;
  (parent == nullptr ? roots_ : parent->branches).insert(node);
  use(node, now);
  return node;
}

void PrefixCache::enter(std::span<const std::int32_t> ids, const BlockLedger::Sequence& cache, std::int64_t length,
                        const Beginning& whose, Time now) {
  length = std::min({length, cache.length(), static_cast<std::int64_t>(ids.size()), whose.most});
  if (!is_on()) return;
  Node* parent = nullptr;
  for (std::int64_t first = 0; first < length; first += kBlockTokens) {
    const auto count = std::min(kBlockTokens, length - first);
    const auto part = ids.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    const auto block = cache.blocks()[static_cast<std::size_t>(first / kBlockTokens)];
    const auto operators = std::clamp<std::int64_t>(whose.operators - first, 0, count);
    if (operators > 0) {
      auto* const node = add(parent, {kEverybody, part.first(static_cast<std::size_t>(operators))}, block, now);
      if (node == nullptr) return;
      if (operators == kBlockTokens) {
        parent = node;
        continue;
      }
    }
    if (!whose.session || operators == count) return;
    parent = add(parent, {whose.session, part}, block, now);
    if (parent == nullptr || count < kBlockTokens) return;
  }
}

bool PrefixCache::evict() {
  if (newest_first_.empty()) return false;
  auto& oldest = newest_first_.back();
  PARLANDO_ASSERT(oldest.branches.empty(), "what stands in front of others is newer than they are");
  erase(&oldest);
  ++counts_.evicted;
  return true;
}

bool PrefixCache::free_block() {
  const auto free = ledger_->blocks_free();
  for (auto at = newest_first_.end(); at != newest_first_.begin() && ledger_->blocks_free() == free;) {
    auto& node = *--at;
    if (!is_unused(node)) continue;
    ++at;  // what was behind it: the front of this one may be an end now, and is newer
    erase(&node);
    ++counts_.evicted;
  }
  return ledger_->blocks_free() > free;
}

void PrefixCache::expire(Time now) {
  while (!newest_first_.empty() && newest_first_.back().used + limits_.idle <= now) {
    erase(&newest_first_.back());
    ++counts_.expired;
  }
}

void PrefixCache::forget(std::span<const std::int32_t> ids) {
  const auto first = ids.first(std::min(ids.size(), kBlock));
  for (auto at = roots_.begin(); at != roots_.end();) {
    auto* const node = *at++;
    const auto have = node->place().ids;
    const auto common = std::min(have.size(), first.size());
    if (std::equal(have.begin(), have.begin() + static_cast<std::ptrdiff_t>(common), first.begin())) erase(node);
  }
}

}  // namespace parlando::llm
