#pragma once
/// Paged key/value cache with reference-counted blocks: sequences share blocks, fork in O(blocks), truncate and release
/// at once. Between `reserve` and `commit` or `unreserve` a sequence holds blocks behind its end; at any other time it
/// holds ⌈length/16⌉.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::llm {

inline constexpr std::int64_t kBlockTokens = 16;

class KvPool {
 public:
  /// @param blocks  capacity; each holds 16 tokens of every layer
  KvPool(std::int64_t layers, std::int64_t groups, std::int64_t dim, std::int64_t blocks, at::ScalarType dtype);

  /// A sequence's view of the pool. Move-only owner of references to blocks.
  class Sequence {
   public:
    Sequence() = default;
    explicit Sequence(KvPool* pool) : pool_(pool) {}
    Sequence(Sequence&& other) noexcept { swap(other); }
    Sequence& operator=(Sequence&& other) noexcept {
      swap(other);
      return *this;
    }
    ~Sequence() { release(); }
    std::int64_t length() const { return length_; }
    const std::vector<std::int32_t>& blocks() const { return blocks_; }
    /// A second sequence with the same content; nothing is copied until one of them grows.
    Sequence fork() const;
    /// Forgets everything from position `length` on, room that was reserved behind it included.
    void truncate(std::int64_t length);
    void release();

   private:
    friend class KvPool;
    void swap(Sequence& other) noexcept {
      std::swap(pool_, other.pool_), std::swap(blocks_, other.blocks_), std::swap(length_, other.length_);
    }
    KvPool* pool_ = nullptr;
    std::vector<std::int32_t> blocks_;
    std::int64_t length_ = 0;
  };

  Sequence open() { return Sequence(this); }
  /// Room that one sequence of a batch needs behind its end. Each sequence stands in a batch once.
  struct Want {
    Sequence* sequence = nullptr;
    std::int64_t count = 0;
  };
  /// Makes room for all of a batch or for none of it. A block that will be written and is shared is copied first, so
  /// that the others keep theirs.
  /// @error Errc::overloaded when the pool is full; nothing changes then
  Result<void> reserve(std::span<const Want> wants);
  /// Gives room back that was reserved and not committed.
  void unreserve(Sequence& sequence) { sequence.truncate(sequence.length_); }
  /// Writes rows [count, groups, dim] of one layer behind the sequence's end; `commit` moves the end.
  void write(Sequence& sequence, std::int64_t layer, const at::Tensor& keys, const at::Tensor& values);
  void commit(Sequence& sequence, std::int64_t count);

  const at::Tensor& keys() const { return keys_; }  ///< [layers, blocks, 16, groups, dim]
  const at::Tensor& values() const { return values_; }
  std::int64_t blocks_total() const { return static_cast<std::int64_t>(references_.size()); }
  std::int64_t blocks_free() const { return static_cast<std::int64_t>(free_.size()); }

 private:
  void add_reference(std::int32_t block) { ++references_[static_cast<std::size_t>(block)]; }
  void drop_reference(std::int32_t block);
  std::int32_t take();
  at::Tensor keys_, values_;
  std::vector<std::int32_t> references_, free_;
};

}  // namespace parlando::llm
