#pragma once
/// Keys and values of one rank: memory, no bookkeeping. Blocks of 16 positions as `kernels::KvLayout` lays them.
#include "kernels/attention/paged_attention.hpp"
#include "kernels/memory/large_memory.hpp"
#include "services/llm/model/block_ledger.hpp"

namespace parlando::llm {

class KvStore {
 public:
  /// @throws std::bad_alloc
  KvStore(std::int64_t layers, std::int64_t blocks, const kernels::KvLayout& layout);
  const kernels::KvLayout& layout() const { return layout_; }
  std::int64_t blocks() const { return blocks_; }
  /// All blocks of a layer.
  std::byte* keys(std::int64_t layer) const { return keys_.data() + layer * blocks_ * layout_.key_bytes(); }
  std::byte* values(std::int64_t layer) const { return values_.data() + layer * blocks_ * layout_.value_bytes(); }
  void copy(std::span<const BlockCopy> copies);
  /// Rows [count, groups, dim] of positions [first, first + count) of a sequence, rows `stride` apart.
  void write(std::span<const std::int32_t> blocks, std::int64_t layer, std::int64_t first, std::int64_t count,
             const float* keys, const float* values, std::int64_t stride);
  /// One position. @return keys, then values, [groups, dim] each
  std::pair<std::vector<float>, std::vector<float>> read(std::span<const std::int32_t> blocks, std::int64_t layer,
                                                         std::int64_t position) const;

 private:
  std::int64_t layers_, blocks_;
  kernels::KvLayout layout_;
  kernels::LargeMemory keys_, values_;
};

}  // namespace parlando::llm
