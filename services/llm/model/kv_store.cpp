#include "services/llm/model/kv_store.hpp"

#include <cstring>

namespace parlando::llm {

static_assert(kBlockTokens == kernels::KvLayout::kBlock, "the ledger counts the blocks that the kernels read");

KvStore::KvStore(std::int64_t layers, std::int64_t blocks, const kernels::KvLayout& layout)
    : layers_(layers),
      blocks_(blocks),
      layout_(layout),
      keys_(static_cast<std::size_t>(layers * blocks * layout.key_bytes())),
      values_(static_cast<std::size_t>(layers * blocks * layout.value_bytes())) {}

void KvStore::copy(std::span<const BlockCopy> copies) {
  const auto k = layout_.key_bytes(), v = layout_.value_bytes();
  for (const auto& [from, to] : copies)
    for (std::int64_t l = 0; l < layers_; ++l) {
      std::memcpy(keys(l) + to * k, keys(l) + from * k, static_cast<std::size_t>(k));
      std::memcpy(values(l) + to * v, values(l) + from * v, static_cast<std::size_t>(v));
    }
}

void KvStore::write(std::span<const std::int32_t> blocks, std::int64_t layer, std::int64_t first, std::int64_t count,
                    const float* keys, const float* values, std::int64_t stride) {
  for (std::int64_t n = 0; n < count; ++n) {
    const auto position = first + n;
    const auto block = static_cast<std::int64_t>(blocks[static_cast<std::size_t>(position / kBlockTokens)]);
    kernels::write_position(layout_, this->keys(layer) + block * layout_.key_bytes(),
                            this->values(layer) + block * layout_.value_bytes(), position % kBlockTokens,
                            keys + n * stride, values + n * stride);
  }
}

std::pair<std::vector<float>, std::vector<float>> KvStore::read(std::span<const std::int32_t> blocks,
                                                                std::int64_t layer, std::int64_t position) const {
  const auto size = static_cast<std::size_t>(layout_.groups * layout_.dim);
  std::pair out{std::vector<float>(size), std::vector<float>(size)};
  const auto block = static_cast<std::int64_t>(blocks[static_cast<std::size_t>(position / kBlockTokens)]);
  kernels::read_position(layout_, keys(layer) + block * layout_.key_bytes(),
                         values(layer) + block * layout_.value_bytes(), position % kBlockTokens, out.first.data(),
                         out.second.data());
  return out;
}

}  // namespace parlando::llm
