#pragma once
/// Which beginnings of prompts are computed already, and in which blocks: integers only, as the ledger. A tree whose
/// nodes are blocks: a node holds one reference to its block and the ids that stand in it, sixteen of them or, at the
/// end of a branch, fewer. The way from the root to a node is the beginning; ids are compared along it, so that nothing
/// is believed because a digest agrees. A lookup takes one search among the branches per block.
///
/// Who may meet what: the operator's ids (`Beginning::operators`) serve everybody whose own prompt begins with as many
/// of them from the operator; what stands behind them serves the same session alone. Nobody learns from the time of an
/// answer what others have said.
///
/// Each use makes a beginning the newest, its front newer than its end: what goes first is always the end of the branch
/// that was used longest ago. Not for several threads.
#include <array>
#include <list>
#include <optional>
#include <set>

#include "common/base/clock.hpp"
#include "common/base/ids.hpp"
#include "services/llm/model/block_ledger.hpp"

namespace parlando::llm {

/// Whom the ids of a prompt may be shared with.
struct Beginning {
  std::int64_t operators = 0;                 ///< so many in front are configuration: with everybody
  std::optional<SessionId> session;           ///< with whom the others are; none: with nobody
  std::int64_t most = std::int64_t{1} << 40;  ///< nothing behind these is worth keeping
};

class PrefixCache {
 public:
  struct Limits {
    std::int64_t blocks = 0;  ///< entries, each with one block; 0: nothing is kept
    milliseconds idle{600'000};
  };
  struct Counts {
    std::int64_t lookups = 0, hit_tokens = 0;
    std::int64_t evicted = 0;  ///< entries that gave way, to a limit or to a full cache
    std::int64_t expired = 0;  ///< entries that nobody has used for `idle`
  };
  PrefixCache(BlockLedger& ledger, Limits limits)
      : ledger_(&ledger), limits_(limits), held_(static_cast<std::size_t>(ledger.blocks_total())) {}
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  bool is_on() const { return limits_.blocks > 0; }
  struct Match {
    std::vector<std::int32_t> blocks;
    std::int64_t length = 0;  ///< of the last block perhaps a part: who writes behind it gets a copy
  };
  /// The longest beginning of `ids` that is there and may be met; it is used by that. Valid until the next call.
  Match find(std::span<const std::int32_t> ids, const Beginning& whose, Time now);
  /// `find`, counted as one prompt that was looked for, and as the tokens that need not be computed.
  void count(std::int64_t lookups, std::int64_t hit_tokens) {
    counts_.lookups += lookups, counts_.hit_tokens += hit_tokens;
  }
  /// Keeps the first `length` ids of a sequence, whose values are computed. What is there already stays as it is.
  void enter(std::span<const std::int32_t> ids, const BlockLedger::Sequence& cache, std::int64_t length,
             const Beginning& whose, Time now);
  /// Lets the end of the oldest branch go. @return false when there is none
  bool evict();
  /// Lets ends go, oldest first, until a block of the ledger is free; those whose block somebody uses stay, for they
  /// would free nothing. @return false when none could be freed
  bool free_block();
  void expire(Time now);
  /// Nothing that begins as these ids do is believed any more.
  void forget(std::span<const std::int32_t> ids);
  std::int64_t entries() const { return static_cast<std::int64_t>(newest_first_.size()); }
  const Counts& counts() const { return counts_; }

 private:
  using Scope = std::optional<SessionId>;  ///< none: everybody
  struct Node;
  /// Where a node stands among its siblings: by scope, then by ids.
  struct Place {
    const Scope& scope;
    std::span<const std::int32_t> ids;
  };
  struct Order {
    using is_transparent = void;
    static bool less(const Place& a, const Place& b);
    bool operator()(const Node* a, const Node* b) const { return less(a->place(), b->place()); }
    bool operator()(const Node* a, const Place& b) const { return less(a->place(), b); }
    bool operator()(const Place& a, const Node* b) const { return less(a, b->place()); }
  };
  using Branches = std::set<Node*, Order>;
  struct Node {
    Scope scope;
    std::array<std::int32_t, kBlockTokens> ids{};
    std::size_t count = 0;
    BlockLedger::Hold hold;
    Node* parent = nullptr;
    Branches branches;
    std::list<Node>::iterator self;
    Time used{};
    Place place() const { return {scope, std::span(ids).first(count)}; }
  };
  struct Near {
    Node* node = nullptr;
    std::size_t common = 0;
  };
  Near nearest(const Branches& among, const Place& wanted) const;
  Branches& siblings(const Node& node) { return node.parent == nullptr ? roots_ : node.parent->branches; }
  void use(Node* node, Time now);
  void erase(Node* node);
  Node* add(Node* parent, const Place& place, std::int32_t block, Time now);

  /// Nobody but entries has its block.
  bool is_unused(const Node& node) const {
    const auto block = node.hold.block();
    return node.branches.empty() && ledger_->references(block) == held_[static_cast<std::size_t>(block)];
  }

  BlockLedger* ledger_;
  Limits limits_;
  std::vector<std::int32_t> held_;  ///< entries of each block: the operator's ids of one and a session's, perhaps
  std::list<Node> newest_first_;
  Branches roots_;
  Counts counts_;
};

}  // namespace parlando::llm
