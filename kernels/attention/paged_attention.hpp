#pragma once
/// Causal attention of some query tokens over a paged key/value cache with the square-root ALiBi bias, all sums in
/// fp32:
///   score(h, i, j) = (q_i · k_j) / sqrt(D) − slope(h) · sqrt(i − j),  j ≤ i;   out = Σ softmax(score) · v.
/// Query head h reads group floor(h / (N/G)). No mask and no bias matrix ever exists in memory. Source: docs/lm.md §2.
#include <cstdint>

namespace parlando::kernels {

struct PagedAttention {
  const float* q = nullptr;                     ///< [tokens, heads, dim]
  float* out = nullptr;                         ///< [tokens, heads, dim]
  std::int64_t tokens = 0, first_position = 0;  ///< token t stands at first_position + t
  const void* keys = nullptr;                   ///< [blocks, block_size, groups, dim] fp32 or bf16
  const void* values = nullptr;
  bool bf16 = false;
  const std::int32_t* blocks = nullptr;  ///< block table of the sequence
  std::int64_t block_size = 0, heads = 0, groups = 0, dim = 0;
  const float* slopes = nullptr;  ///< [heads]
};

void paged_attention(const PagedAttention& a);
/// The same in double precision, for tests.
void paged_attention_reference(const PagedAttention& a);

}  // namespace parlando::kernels
