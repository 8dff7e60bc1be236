#pragma once
/// Scheduler of one Step-1 model: named sequences over a shared paged cache, continuous batching, chunked prefill. A
/// plain class: the caller turns `step()`; no threads.
///
/// A step takes one token of everything that generates, then pieces of prompts: by class, then by what is due first,
/// then by age. When more generate than a step has tokens, they take turns, and a little room is left to prompts. How
/// long the pieces may be is measured (`StepCost`), so that a prompt does not hold up those who speak.
///
/// When the cache is full, what is kept for later (`PrefixCache`) goes first, then the newest sequence of the lowest
/// class gives way: its blocks are free at once and the same step goes on without it, until the rest fits. One that
/// generates ends with Errc::overloaded; one that only waits (no generation) is parked: it keeps its ids without a word
/// and is computed again by the next `append` or `generate`. The sequence that stands first always proceeds unless it
/// alone is too large. When a pass fails for another reason, all sequences of its batch end at once with its error:
/// nobody knows whose fault it was, and blaming one after the other would end all of them one step at a time.
#include <map>
#include <optional>
#include <string>

#include "common/base/clock.hpp"
#include "services/llm/model/cpu_backend.hpp"
#include "services/llm/model/prefix_cache.hpp"
#include "services/llm/model/sampler.hpp"
#include "services/llm/model/step1.hpp"
#include "services/llm/model/step_cost.hpp"

namespace parlando::llm {

/// Lower runs first. A sequence that does not generate is of class `background`.
/// `aside`: nobody waits for it, so those who listen go first.
enum class Priority : int { speech = 0, reply = 1, background = 2, aside = 3 };

struct Generation {
  Sampling sampling;
  std::int64_t tokens_max = 2048;
  std::vector<std::int32_t> stops = {};  ///< usually the checkpoint's end of a turn, `Step1Config::eos`
  Priority priority = Priority::reply;
};

enum class Finish { none, stop, length, error };

struct TokenEvent {
  std::string sequence;
  std::int32_t id = -1;  ///< -1 when only `finish` is told
  Finish finish = Finish::none;
  std::optional<Error> error = {};  ///< when and only when `finish` is error; overloaded: try again later
};

class LmEngine {
 public:
  struct Limits {
    std::int64_t cache_tokens = 32768, prefill_chunk = 256, batch_tokens = 512, sequences = 256;
    std::int64_t prefix_blocks = 0;  ///< of beginnings that stay computed for sequences to come, see `share`; 0: none
    milliseconds prefix_idle{600'000};  ///< so long they stay when nobody uses them
    /// Time of a step, or `step_growth` of one without prompts, whichever is more; prompts are cut to it.
    milliseconds step_max{50};
    double step_growth = 1.25;
  };
  /// @param backend  what runs the passes; null: this process, with a cache of its own
  LmEngine(std::shared_ptr<const Step1> model, Limits limits,
           std::shared_ptr<const Clock> clock = std::make_shared<SteadyClock>(),
           std::unique_ptr<Backend> backend = nullptr);

  const Step1& model() const { return *model_; }
  const Limits& limits() const { return limits_; }
  /// A new, empty sequence. @error Errc::overloaded at the limit, Errc::invalid_argument when the name is taken
  Result<void> open(const std::string& name);
  /// With whom the ids of a sequence may be shared, before any are appended; else with nobody. What has been computed
  /// already of a beginning that may be met is not computed again, and what the sequence computes is kept for others:
  /// the operator's ids as they are computed, all of them when a generation or the sequence ends. Its ids are the same
  /// with and without.
  void share(const std::string& name, Beginning whose);
  /// Queues ids behind position `at`. Repeating a message that was applied is a no-op. @return the length after all
  /// queued ids
  /// @error Errc::position_mismatch with the true length
  Result<std::int64_t> append(const std::string& name, std::int64_t at, std::span<const std::int32_t> ids);
  /// A copy of the first `at` tokens under another name; shares blocks.
  Result<void> fork(const std::string& name, std::int64_t at, const std::string& as);
  Result<void> truncate(const std::string& name, std::int64_t to);
  /// Starts generating after everything queued. @error Errc::invalid_argument when the sequence has the model's length
  /// already. The stop id is not appended to the sequence's reply but is part of its cache only when fed again.
  Result<void> generate(const std::string& name, std::int64_t at, Generation generation);
  /// When the first answer of a sequence is wanted: of one class, the earliest goes first.
  void due(const std::string& name, Time at);
  /// Ends a running generation; what was generated stays in the sequence.
  void cancel(const std::string& name);
  /// `fork` takes the place of `name`.
  Result<void> adopt(const std::string& fork, const std::string& name);
  void release(const std::string& name);
  /// The session is over: nothing that it alone may meet is kept any longer, and nothing more of its sequences.
  void forget(SessionId session);

  /// One forward pass over everything that can run; the new tokens. Empty when there is nothing to do.
  std::vector<TokenEvent> step();
  bool idle() const;
  std::optional<std::int64_t> length(const std::string& name) const;
  /// How many of its ids need not be computed any more; 0 when it is not open.
  std::int64_t computed(const std::string& name) const;
  std::int64_t tokens_computed() const { return tokens_computed_; }
  struct Counts {
    std::int64_t bad_logits = 0;  ///< sequences ended because their logits were no numbers
    std::int64_t gave_way = 0;    ///< generations ended by a full cache
    std::int64_t parked = 0;      ///< waiting sequences whose blocks a full cache took
  };
  const Counts& counts() const { return counts_; }
  std::int64_t blocks_free() const { return ledger_.blocks_free(); }
  std::int64_t blocks_total() const { return ledger_.blocks_total(); }
  /// For sequences that come: nobody's, and those of beginnings alone, which give way.
  std::int64_t blocks_left() const { return ledger_.blocks_free() + ledger_.blocks_only_held(); }
  const PrefixCache& prefixes() const { return prefixes_; }
  /// Lets beginnings go that nobody has used for long; a step does it, too.
  void expire_prefixes() { prefixes_.expire(clock_->now()); }

 private:
  struct Sequence {
    BlockLedger::Sequence cache;
    std::vector<std::int32_t> history;  ///< all ids, computed or queued
    std::optional<Generation> generation;
    std::int64_t generated = 0, order = 0;
    std::int64_t served = 0;  ///< the batch that had its last token
    Time due = Time::max();
    bool parked = false;  ///< not computed before somebody appends or generates
    Beginning beginning;
    PrefixCache::Stand stand;  ///< in the tree; never behind what is computed
    std::int64_t entered = 0;  ///< of the operator's ids those that are kept already
    std::int64_t drawn = 0;    ///< so many ids have had logits behind them that are numbers
    bool doubted = false;      ///< it shares blocks with one that had none: it keeps nothing before it draws itself
    std::int64_t left() const { return static_cast<std::int64_t>(history.size()) - cache.length(); }
    bool waiting() const { return !parked && left() > 0; }
    /// One token a step: nothing is to be computed but what it said last.
    bool speaking() const { return waiting() && generation && generated > 0 && left() == 1; }
  };
  using Entry = std::pair<const std::string, Sequence>;
  Sequence* find(const std::string& name);
  static int rank(const Sequence& s) {
    return static_cast<int>(s.generation ? s.generation->priority : Priority::background);
  }
  std::vector<Entry*> in_order(bool (*wanted)(const Sequence&));
  struct Batch {
    std::vector<BlockLedger::Want> wants;
    std::vector<Entry*> entries;
    std::int64_t speaking = 0, prefilled = 0;
  };
  bool shares(const Sequence& s) const {
    return prefixes_.is_on() && (s.beginning.session || s.beginning.operators > 0);
  }
  static void cut(Sequence& s, std::int64_t length);
  void look_up(Sequence& s, bool first);
  void enter(Sequence& s, std::int64_t length);
  void enter_operators(Sequence& s);
  Batch next_batch();
  bool make_way(std::vector<TokenEvent>& events);
  void believe(Sequence& s);
  void doubt(const Sequence& s);
  static void drop(Sequence& s);
  static void fail_sequence(Entry& entry, const Error& error, std::vector<TokenEvent>& events);
  StepPlan plan_of(const Batch& batch, std::vector<BlockCopy> copies) const;
  void tell(const Batch& batch, std::span<const Drawn> drawn, std::vector<TokenEvent>& events);
  std::shared_ptr<const Step1> model_;
  Limits limits_;
  std::shared_ptr<const Clock> clock_;
  StepCost cost_;
  std::unique_ptr<Backend> backend_;
  BlockLedger ledger_;
  PrefixCache prefixes_;
  std::map<std::string, Sequence> sequences_;
  std::int64_t orders_ = 0, batches_ = 0, tokens_computed_ = 0;
  Counts counts_;
};

}  // namespace parlando::llm
