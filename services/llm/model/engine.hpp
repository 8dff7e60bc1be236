#pragma once
/// Scheduler of one Step-1 model: named sequences over a shared paged cache, continuous batching, chunked prefill, earliest deadline
/// first between priorities. A plain class: the caller turns `step()`; no threads, no clock.
#include <deque>
#include <map>
#include <string>

#include "services/llm/model/sampler.hpp"
#include "services/llm/model/step1.hpp"

namespace parlando::llm {

/// Lower runs first.
enum class Priority : int { speech = 0, reply = 1, background = 2 };

struct Generation {
  Sampling sampling;
  std::int64_t tokens_max = 2048;
  std::vector<std::int32_t> stops = {3};
  Priority priority = Priority::reply;
};

enum class Finish { none, stop, length, error };

struct TokenEvent {
  std::string sequence;
  std::int32_t id = -1;  ///< -1 when only `finish` is told
  Finish finish = Finish::none;
  std::string error;
};

class LmEngine {
 public:
  struct Limits {
    std::int64_t cache_tokens = 32768, prefill_chunk = 256, batch_tokens = 512, sequences = 256;
  };
  LmEngine(std::shared_ptr<const Step1> model, Limits limits);

  const Step1& model() const { return *model_; }
  /// A new, empty sequence. @error Errc::overloaded at the limit, Errc::invalid_argument when the name is taken
  Result<void> open(const std::string& name);
  /// Queues ids behind position `at`. Repeating a message that was applied is a no-op. @return the length after all queued ids
  /// @error Errc::position_mismatch with the true length
  Result<std::int64_t> append(const std::string& name, std::int64_t at, std::span<const std::int32_t> ids);
  /// A copy of the first `at` tokens under another name; shares blocks.
  Result<void> fork(const std::string& name, std::int64_t at, const std::string& as);
  Result<void> truncate(const std::string& name, std::int64_t to);
  /// Starts generating after everything queued. The stop id is not appended to the sequence's reply but is part of its cache only when fed again.
  Result<void> generate(const std::string& name, std::int64_t at, Generation generation);
  /// Ends a running generation; what was generated stays in the sequence.
  void cancel(const std::string& name);
  /// `fork` takes the place of `name`.
  Result<void> adopt(const std::string& fork, const std::string& name);
  void release(const std::string& name);

  /// One forward pass over everything that can run; the new tokens. Empty when there is nothing to do.
  std::vector<TokenEvent> step();
  bool idle() const;
  std::optional<std::int64_t> length(const std::string& name) const;
  std::int64_t tokens_computed() const { return tokens_computed_; }
  std::int64_t blocks_free() const { return pool_->blocks_free(); }

 private:
  struct Sequence {
    KvPool::Sequence cache;
    std::vector<std::int32_t> history;  ///< all ids, computed or queued
    std::optional<Generation> generation;
    std::int64_t generated = 0, order = 0;
  };
  Sequence* find(const std::string& name);
  std::shared_ptr<const Step1> model_;
  Limits limits_;
  std::unique_ptr<KvPool> pool_;
  std::map<std::string, Sequence> sequences_;
  std::int64_t orders_ = 0, tokens_computed_ = 0;
};

}  // namespace parlando::llm
