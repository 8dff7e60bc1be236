#pragma once
/// Who holds which block of a paged key/value cache: integers only, no tensor, no device. Sequences share blocks by
/// reference counts; a shared block that will be written is named with the one that it is copied to. Between `reserve`
/// and `commit` or `unreserve` a sequence holds blocks behind its end; at any other time it holds ⌈length/16⌉.
#include <cstdint>
#include <span>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::llm {

inline constexpr std::int64_t kBlockTokens = 16;

/// The content of one block goes to another one, in all layers, before anything is written.
struct BlockCopy {
  std::int32_t from = 0, to = 0;
  bool operator==(const BlockCopy&) const = default;
};

class BlockLedger {
 public:
  /// @param blocks  capacity; each holds 16 tokens of every layer
  explicit BlockLedger(std::int64_t blocks);
  BlockLedger(const BlockLedger&) = delete;
  BlockLedger& operator=(const BlockLedger&) = delete;

  /// A sequence's view of the ledger. Move-only owner of references to blocks.
  class Sequence {
   public:
    Sequence() = default;
    explicit Sequence(BlockLedger* ledger) : ledger_(ledger) {}
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
    friend class BlockLedger;
    void swap(Sequence& other) noexcept {
      std::swap(ledger_, other.ledger_), std::swap(blocks_, other.blocks_), std::swap(length_, other.length_);
    }
    BlockLedger* ledger_ = nullptr;
    std::vector<std::int32_t> blocks_;
    std::int64_t length_ = 0;
  };

  Sequence open() { return Sequence(this); }

  /// One reference to one block, whatever becomes of the sequences that use it. Move-only.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept { swap(other); }
    Hold& operator=(Hold&& other) noexcept {
      swap(other);
      return *this;
    }
    ~Hold() {
      if (ledger_ != nullptr) ledger_->drop_reference(block_, 1);
    }
    std::int32_t block() const { return block_; }

   private:
    friend class BlockLedger;
    Hold(BlockLedger* ledger, std::int32_t block) : ledger_(ledger), block_(block) { ledger->add_reference(block, 1); }
    void swap(Hold& other) noexcept { std::swap(ledger_, other.ledger_), std::swap(block_, other.block_); }
    BlockLedger* ledger_ = nullptr;
    std::int32_t block_ = -1;
  };
  /// @param block  of a sequence that is there
  Hold hold(std::int32_t block) { return {this, block}; }
  /// A sequence that begins with blocks that somebody holds. @param blocks  ⌈length/16⌉
  Sequence open_on(std::span<const std::int32_t> blocks, std::int64_t length);
  std::int64_t references(std::int32_t block) const { return references_[static_cast<std::size_t>(block)]; }
  /// Of no sequence: without its holds it would be free.
  bool is_only_held(std::int32_t block) const {
    const auto at = static_cast<std::size_t>(block);
    return holds_[at] > 0 && holds_[at] == references_[at];
  }

  /// Room that one sequence of a batch needs behind its end. Each sequence stands in a batch once.
  struct Want {
    Sequence* sequence = nullptr;
    std::int64_t count = 0;
  };
  /// Makes room for all of a batch or for none of it. @return what is to be copied before anything is written: of `n`
  /// writers of a block the last one keeps it when nobody else holds it
  /// @error Errc::overloaded when too few blocks are free; nothing changes then
  Result<std::vector<BlockCopy>> reserve(std::span<const Want> wants);
  /// Gives room back that was reserved and not committed.
  void unreserve(Sequence& sequence) { sequence.truncate(sequence.length_); }
  void commit(Sequence& sequence, std::int64_t count);

  std::int64_t blocks_total() const { return static_cast<std::int64_t>(references_.size()); }
  std::int64_t blocks_free() const { return static_cast<std::int64_t>(free_.size()); }
  std::int64_t blocks_only_held() const { return only_held_; }

 private:
  void change(std::int32_t block, int references, int holds);
  void add_reference(std::int32_t block, int holds = 0) { change(block, 1, holds); }
  void drop_reference(std::int32_t block, int holds = 0);
  std::int32_t take();
  std::vector<std::int32_t> references_, holds_;  ///< of each block; a hold is a reference, too
  std::vector<std::int32_t> free_;
  std::int64_t only_held_ = 0;
};

}  // namespace parlando::llm
