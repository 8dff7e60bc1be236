#include "services/llm/model/block_ledger.hpp"

#include <algorithm>

#include "common/base/assert.hpp"

namespace parlando::llm {

namespace {
std::int64_t blocks_for(std::int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }
}  // namespace

BlockLedger::BlockLedger(std::int64_t blocks)
    : references_(static_cast<std::size_t>(blocks), 0), holds_(static_cast<std::size_t>(blocks), 0) {
  for (std::int64_t b = blocks; b-- > 0;) free_.push_back(static_cast<std::int32_t>(b));
}

void BlockLedger::change(std::int32_t block, int references, int holds) {
  only_held_ -= is_only_held(block);
  references_[static_cast<std::size_t>(block)] += references;
  holds_[static_cast<std::size_t>(block)] += holds;
  only_held_ += is_only_held(block);
}

void BlockLedger::drop_reference(std::int32_t block, int holds) {
  PARLANDO_ASSERT(references(block) > 0, "a block is released once per reference");
  change(block, -1, -holds);
  if (references(block) == 0) free_.push_back(block);
}

std::int32_t BlockLedger::take() {
  const auto block = free_.back();
  free_.pop_back();
  references_[static_cast<std::size_t>(block)] = 1;
  return block;
}

BlockLedger::Sequence BlockLedger::Sequence::fork() const {
  PARLANDO_ASSERT(ledger_ == nullptr || static_cast<std::int64_t>(blocks_.size()) == blocks_for(length_),
                  "room under way is not shared");
  Sequence out(ledger_);
  out.blocks_ = blocks_;
  out.length_ = length_;
  for (const auto b : blocks_) ledger_->add_reference(b);
  return out;
}

BlockLedger::Sequence BlockLedger::open_on(std::span<const std::int32_t> blocks, std::int64_t length) {
  PARLANDO_ASSERT(static_cast<std::int64_t>(blocks.size()) == blocks_for(length), "a sequence holds what it needs");
  Sequence out(this);
  out.blocks_.assign(blocks.begin(), blocks.end());
  out.length_ = length;
  for (const auto b : blocks) {
    PARLANDO_ASSERT(references(b) > 0, "a block that nobody holds has no content");
    add_reference(b);
  }
  return out;
}

void BlockLedger::Sequence::truncate(std::int64_t length) {
  PARLANDO_ASSERT(length >= 0 && length <= length_, "callers check the position");
  const auto keep = static_cast<std::size_t>(blocks_for(length));
  while (blocks_.size() > keep) {
    ledger_->drop_reference(blocks_.back());
    blocks_.pop_back();
  }
  length_ = length;
}

void BlockLedger::Sequence::release() {
  if (ledger_ != nullptr) truncate(0);
}

Result<std::vector<BlockCopy>> BlockLedger::reserve(std::span<const Want> wants) {
  // Count first, so that a full pool changes nothing. Of `n` writers of a block with `r` references the last one keeps
  // it when nobody else holds it.
  std::int64_t need = 0;
  std::vector<std::int32_t> written;
  for (const auto& [s, count] : wants) {
    need += std::max<std::int64_t>(0, blocks_for(s->length_ + count) - static_cast<std::int64_t>(s->blocks_.size()));
    if (count > 0 && s->length_ % kBlockTokens != 0)
      written.push_back(s->blocks_[static_cast<std::size_t>(s->length_ / kBlockTokens)]);
  }
  std::sort(written.begin(), written.end());
  for (std::size_t i = 0, next = 0; i < written.size(); i = next) {
    while (next < written.size() && written[next] == written[i]) ++next;
    need += std::min(static_cast<std::int64_t>(next - i),
                     static_cast<std::int64_t>(references_[static_cast<std::size_t>(written[i])]) - 1);
  }
  if (need > blocks_free())
    return fail(Errc::overloaded, "the key/value cache is full: {} blocks are needed, {} of {} are free", need,
                blocks_free(), blocks_total());
  std::vector<BlockCopy> copies;
  for (const auto& [s, count] : wants) {
    if (count > 0 && s->length_ % kBlockTokens != 0) {
      auto& block = s->blocks_[static_cast<std::size_t>(s->length_ / kBlockTokens)];
      if (references_[static_cast<std::size_t>(block)] > 1) {
        copies.push_back({block, take()});
        drop_reference(block);
        block = copies.back().to;
      }
    }
    while (static_cast<std::int64_t>(s->blocks_.size()) < blocks_for(s->length_ + count)) s->blocks_.push_back(take());
  }
  return copies;
}

void BlockLedger::commit(Sequence& s, std::int64_t count) {
  PARLANDO_ASSERT(static_cast<std::int64_t>(s.blocks_.size()) == blocks_for(s.length_ + count),
                  "what is committed was reserved");
  s.length_ += count;
}

}  // namespace parlando::llm
