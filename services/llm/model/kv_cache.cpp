#include "services/llm/model/kv_cache.hpp"

#include <ATen/ATen.h>

#include "common/base/assert.hpp"

namespace parlando::llm {

KvPool::KvPool(std::int64_t layers, std::int64_t groups, std::int64_t dim, std::int64_t blocks, at::ScalarType dtype)
    : keys_(at::empty({layers, blocks, kBlockTokens, groups, dim}, dtype)), values_(at::empty_like(keys_)), references_(static_cast<std::size_t>(blocks), 0) {
  for (std::int64_t b = blocks; b-- > 0;) free_.push_back(static_cast<std::int32_t>(b));
}

void KvPool::drop_reference(std::int32_t block) {
  auto& count = references_[static_cast<std::size_t>(block)];
  PARLANDO_ASSERT(count > 0, "a block is released once per reference");
  if (--count == 0) free_.push_back(block);
}

KvPool::Sequence KvPool::Sequence::fork() const {
  Sequence out(pool_);
  out.blocks_ = blocks_;
  out.length_ = length_;
  for (const auto b : blocks_) pool_->add_reference(b);
  return out;
}

void KvPool::Sequence::truncate(std::int64_t length) {
  PARLANDO_ASSERT(length >= 0 && length <= length_, "callers check the position");
  const auto keep = static_cast<std::size_t>((length + kBlockTokens - 1) / kBlockTokens);
  while (blocks_.size() > keep) {
    pool_->drop_reference(blocks_.back());
    blocks_.pop_back();
  }
  length_ = length;
}

void KvPool::Sequence::release() {
  if (pool_ != nullptr) truncate(0);
}

Result<void> KvPool::reserve(Sequence& s, std::int64_t count) {
  const auto need = (s.length_ + count + kBlockTokens - 1) / kBlockTokens - static_cast<std::int64_t>(s.blocks_.size());
  const bool copy = s.length_ % kBlockTokens != 0 && references_[static_cast<std::size_t>(s.blocks_.back())] > 1;
  if (need + (copy ? 1 : 0) > blocks_free())
    return fail(Errc::overloaded, "the key/value cache is full: {} blocks are needed, {} of {} are free", need + copy, blocks_free(), blocks_total());
  auto take = [&] {
    const auto block = free_.back();
    free_.pop_back();
    references_[static_cast<std::size_t>(block)] = 1;
    return block;
  };
  if (copy) {
    const auto old = s.blocks_.back(), fresh = take();
    keys_.select(1, fresh).copy_(keys_.select(1, old));
    values_.select(1, fresh).copy_(values_.select(1, old));
    drop_reference(old);
    s.blocks_.back() = fresh;
  }
  for (std::int64_t i = 0; i < need; ++i) s.blocks_.push_back(take());
  return {};
}

void KvPool::write(Sequence& s, std::int64_t layer, const at::Tensor& keys, const at::Tensor& values) {
  const auto count = keys.size(0);
  const auto layer_keys = keys_[layer], layer_values = values_[layer];
  for (std::int64_t done = 0; done < count;) {
    const auto at = s.length_ + done, offset = at % kBlockTokens, n = std::min(kBlockTokens - offset, count - done);
    const auto block = s.blocks_[static_cast<std::size_t>(at / kBlockTokens)];
    layer_keys[block].narrow(0, offset, n).copy_(keys.narrow(0, done, n));
    layer_values[block].narrow(0, offset, n).copy_(values.narrow(0, done, n));
    done += n;
  }
}

}  // namespace parlando::llm
