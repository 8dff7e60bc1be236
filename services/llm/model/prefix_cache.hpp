#pragma once
/// Which beginnings of prompts are computed already, and in which blocks: integers only, as the ledger. A tree whose
/// nodes are blocks: a node holds one reference to its block and the ids that stand in it, sixteen of them or, at the
/// end of a branch, fewer. The way from the root to a node is the beginning; ids are compared along it, so that nothing
/// is believed because a digest agrees. A lookup takes one search among the branches per block, and goes on from where
/// it ended the last time.
///
/// Who may meet what: the operator's ids (`Beginning::operators`) serve everybody whose own prompt begins with as many
/// of them from the operator; what stands behind them serves the same session alone. Nobody learns from the time of an
/// answer what others have said.
///
/// Who gives way: always the end of a branch. Of a session that has more than a quarter of the limit first its own, of
/// what it used longest ago; then of sessions that never came back, as long as they have more than a quarter of it
/// together; then of whoever was used longest ago, the operator's ids or a session that came back. A session that has
/// its quarter takes nothing from others. So neither many sessions of one prompt nor a long one push out the beginnings
/// of those who go on. What belonged to a session that is over goes at once (`forget`).
///
/// Who is believed: a beginning behind which logits were numbers. When they are none, of what their sequence stood on
/// the entries that nobody has drawn behind yet go, with all that is behind them; the others lose their good name, and
/// go when that happens again before somebody draws numbers behind them: a block that was spoiled later ends two
/// answers at most. Not for several threads.
#include <algorithm>
#include <array>
#include <list>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

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
  static constexpr std::int64_t kShares = 4;  ///< of the limit; one is a session's, and that of all who came once
  struct Limits {
    std::int64_t blocks = 0;  ///< entries, each with one block; 0: nothing is kept
    milliseconds idle{600'000};
  };
  struct Counts {
    std::int64_t lookups = 0, hit_tokens = 0;
    std::int64_t evicted = 0;    ///< entries that gave way, to a limit or to a full cache
    std::int64_t expired = 0;    ///< entries that nobody has used for `idle`
    std::int64_t forgotten = 0;  ///< entries of sessions that are over, and those that are not believed any more
  };
  PrefixCache(BlockLedger& ledger, Limits limits) : ledger_(&ledger), limits_(limits) {}
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  bool is_on() const { return limits_.blocks > 0; }
  /// Where a sequence stands in the tree: the whole blocks of its ids that were there. It is kept with the sequence,
  /// as long as its ids only grow; when the entry is gone meanwhile, a lookup begins at the root again. It is never
  /// behind what a session said where the operator's ids would belong: the operator's stand behind the operator's
  /// alone.
  struct Stand {
    std::uint64_t entry = 0;  ///< 0: at the root
    std::int64_t length = 0;  ///< ids in front of it, its own included
  };
  struct Match {
    std::int64_t first = 0;            ///< ids in front of `blocks`: those of the stand it went on from
    std::vector<std::int32_t> blocks;  ///< from there on
    std::int64_t length = 0;  ///< from the root; of the last block perhaps a part: who writes behind it gets a copy
  };
  /// The longest beginning of `ids` that is there and may be met, from `stand` on, which moves. What is longer than
  /// `have` is used by that. Valid until the next call.
  Match find(std::span<const std::int32_t> ids, const Beginning& whose, std::int64_t have, Stand& stand, Time now);
  /// From the root on.
  Match find(std::span<const std::int32_t> ids, const Beginning& whose, Time now) {
    Stand root;
    return find(ids, whose, -1, root, now);
  }
  /// `find`, counted as one prompt that was looked for, and as the tokens that need not be computed.
  void count(std::int64_t lookups, std::int64_t hit_tokens) {
    counts_.lookups += lookups, counts_.hit_tokens += hit_tokens;
  }
  /// Keeps the first `length` ids of a sequence, whose values are computed. What is there already stays as it is.
  /// @param drawn  so many of them have had logits behind them that are numbers
  void enter(std::span<const std::int32_t> ids, const BlockLedger::Sequence& cache, std::int64_t length,
             std::int64_t drawn, const Beginning& whose, Stand& stand, Time now);
  void enter(std::span<const std::int32_t> ids, const BlockLedger::Sequence& cache, std::int64_t length,
             const Beginning& whose, Time now) {
    Stand root;
    enter(ids, cache, length, 0, whose, root, now);
  }
  /// Lets the end of a branch go, as above. @return false when there is none
  bool evict();
  /// Lets ends go in the same order, but nothing is spared of sessions that came once, until a block of the ledger is
  /// free; those whose block somebody uses stay, for they would free nothing. @return false when none could be freed
  bool free_block();
  void expire(Time now);
  /// The session is over: what it alone may meet goes.
  void forget(SessionId session);
  /// Logits behind a sequence of these blocks, which stands there, were numbers.
  void believe(const Stand& stand, std::span<const std::int32_t> blocks);
  /// Logits behind these ids were none.
  void doubt(std::span<const std::int32_t> ids, const Beginning& whose);
  std::int64_t entries() const { return entries_; }
  /// Of them those of one session.
  std::int64_t entries(SessionId session) const;
  const Counts& counts() const { return counts_; }
  /// Blocks that were compared with ids so far.
  std::int64_t compared() const { return compared_; }
  /// Entries of which it was asked whether they may go.
  std::int64_t looked_at() const { return looked_at_; }

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
  /// Whose entries they are. Each use makes them the newest, fronts newer than ends, and their owner, too.
  struct Owner {
    Scope scope;
    std::list<Node> newest_first = {};
    bool came_back = false;
    std::list<Owner>::iterator self = {};
    std::int64_t entries() const { return static_cast<std::int64_t>(newest_first.size()); }
  };
  using Owners = std::list<Owner>;
  struct Node {
    std::uint64_t number = 0;
    Owner* owner = nullptr;
    std::array<std::int32_t, kBlockTokens> ids{};
    std::size_t count = 0;
    BlockLedger::Hold hold;
    Node* parent = nullptr;
    Branches branches;
    std::list<Node>::iterator self;
    Time used{};
    bool believed = false;
    Place place() const { return {owner->scope, std::span(ids).first(count)}; }
  };
  struct Near {
    Node* node = nullptr;
    std::size_t common = 0;
  };
  Near nearest(const Branches& among, const Place& wanted);
  Branches& branches_of(Node* node) { return node == nullptr ? roots_ : node->branches; }
  Node* at(const Stand& stand) const;
  Node* resume(Stand& stand, const Beginning& whose) const;
  void use(Node* node, Time now);
  void erase(Node* node);
  Node* add(Node* parent, const Place& place, std::int32_t block, bool drawn, Time now);
  Node* new_node(const Scope& scope, Node* parent);
  bool make_room(const Scope& scope, const Node* parent);
  template <class F>
  bool give_way(std::int64_t spared, F&& may);
  using Oldest = std::list<Node>::reverse_iterator;  ///< and what is newer behind it
  template <class F>
  bool end_of(Owner& owner, Oldest& next, F&& may, Time before = Time::max());
  template <class F>
  bool end_of(Owner& owner, F&& may);
  void end_branch(Node* node);
  Owner& owner_of(const Scope& scope);
  Owner* known(const Scope& scope);  ///< null where a session has no entry
  void come_back(Owner& owner);
  std::int64_t share() const { return std::max<std::int64_t>(1, limits_.blocks / kShares); }
  void expire(Scope scope, Time now);

  BlockLedger* ledger_;
  Limits limits_;
  Owner operators_;
  Owners once_, returned_;  ///< sessions, the newest first
  std::unordered_map<SessionId, Owner*> sessions_;
  std::vector<Owner*> large_;                       ///< sessions with more than a share: few can have one
  std::unordered_map<std::uint64_t, Node*> nodes_;  ///< by number, for who stands on them
  Branches roots_;
  std::uint64_t numbers_ = 0;
  std::int64_t entries_ = 0, once_entries_ = 0;
  std::int64_t compared_ = 0, looked_at_ = 0;
  Time oldest_ = Time::max();  ///< no entry was used before
  Counts counts_;
};

}  // namespace parlando::llm
