#pragma once
/// A paged key/value cache on one machine: the ledger of its blocks and the memory they stand for.
#include "services/llm/model/kv_store.hpp"

namespace parlando::llm {

class KvPool {
 public:
  using Sequence = BlockLedger::Sequence;
  using Want = BlockLedger::Want;
  /// @param blocks  capacity; each holds 16 tokens of every layer   @throws std::bad_alloc
  KvPool(std::int64_t layers, std::int64_t blocks, const kernels::KvLayout& layout)
      : ledger_(blocks), store_(layers, blocks, layout) {}

  Sequence open() { return ledger_.open(); }
  /// Room for all of a batch or for none of it; shared blocks that will be written are copied, so that the others keep
  /// theirs. @error Errc::overloaded when the pool is full; nothing changes then
  Result<void> reserve(std::span<const Want> wants) {
    PARLANDO_TRY(const auto copies, ledger_.reserve(wants));
    store_.copy(copies);
    return {};
  }
  void unreserve(Sequence& sequence) { ledger_.unreserve(sequence); }
  void commit(Sequence& sequence, std::int64_t count) { ledger_.commit(sequence, count); }

  KvStore& store() { return store_; }
  const KvStore& store() const { return store_; }
  std::int64_t blocks_total() const { return ledger_.blocks_total(); }
  std::int64_t blocks_free() const { return ledger_.blocks_free(); }

 private:
  BlockLedger ledger_;
  KvStore store_;
};

}  // namespace parlando::llm
