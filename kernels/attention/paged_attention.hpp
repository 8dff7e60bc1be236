#pragma once
/// Causal attention over a paged key/value cache with the square-root ALiBi bias, sums in fp32:
///   score(h, i, j) = (q_i · k_j) / sqrt(D) − slope(h) · sqrt(i − j),  j ≤ i;   out = Σ softmax(score) · v.
/// Query head h reads group floor(h / (N/G)). The cache is read once for all heads of a group and all tokens of a tile;
/// no mask and no bias matrix ever exists in memory. Source: docs/lm.md §2.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/team/team.hpp"

namespace parlando::kernels {

/// How a block of 16 positions lies in the cache: group by group, keys as [dim][16 positions] (bf16: pairs of
/// dimensions, [dim/2][16][2]), values as [16 positions][dim], dim filled up to whole vectors.
struct KvLayout {
  static constexpr std::int64_t kBlock = 16;
  bool bf16 = false;
  std::int64_t groups = 0, dim = 0;
  std::int64_t key_dims() const { return (dim + 1) / 2 * 2; }
  std::int64_t value_dims() const { return (dim + 15) / 16 * 16; }
  std::int64_t element_bytes() const { return bf16 ? 2 : 4; }
  std::int64_t group_key_bytes() const { return kBlock * key_dims() * element_bytes(); }
  std::int64_t group_value_bytes() const { return kBlock * value_dims() * element_bytes(); }
  /// Of one block of one layer.
  std::int64_t key_bytes() const { return groups * group_key_bytes(); }
  std::int64_t value_bytes() const { return groups * group_value_bytes(); }
};

/// Writes one position of a block. @param k, v  [groups, dim], rounded to the cache's type
/// @param keys, values  the block; whatever else it holds
void write_position(const KvLayout& layout, std::byte* keys, std::byte* values, std::int64_t offset, const float* k,
                    const float* v);
/// Reads it again.
void read_position(const KvLayout& layout, const std::byte* keys, const std::byte* values, std::int64_t offset,
                   float* k, float* v);

/// Some tokens at the end of one sequence.
struct PagedAttention {
  const float* q = nullptr;                     ///< [tokens, heads, dim]; with a bf16 cache rounded to bf16
  float* out = nullptr;                         ///< [tokens, heads, dim]
  std::int64_t q_stride = 0, out_stride = 0;    ///< from token to token
  std::int64_t tokens = 0, first_position = 0;  ///< token t stands at first_position + t
  const std::byte* keys = nullptr;              ///< of one layer: blocks of layout.key_bytes()
  const std::byte* values = nullptr;
  const std::int32_t* blocks = nullptr;  ///< of the sequence, as many as its positions need
  std::int64_t heads = 0;
  const float* slopes = nullptr;  ///< [heads]
};

/// About the time of one thread for all of a batch, on the instruction set in use.
/// @param positions  looked at by all tokens and groups together
Cost attention_cost(const KvLayout& layout, std::int64_t heads, std::int64_t positions);
/// All sequences of a batch; threads share them by sequence, group and tokens, each about as many products. The bits of
/// a token do not depend on the number of threads, nor on what else is in the batch or in its sequence's piece.
void paged_attention(Team& team, const KvLayout& layout, std::span<const PagedAttention> batch);
/// What part of the products each of so many threads has, in 0…1.
std::vector<double> attention_shares(const KvLayout& layout, std::span<const PagedAttention> batch, int threads);
/// The same in double precision, for tests.
void paged_attention_reference(const KvLayout& layout, const PagedAttention& a);

}  // namespace parlando::kernels
