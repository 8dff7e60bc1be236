#include "kernels/attention/paged_attention.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/vector/bf16.hpp"
#include "kernels/vector/dispatch.hpp"

namespace parlando::kernels {
namespace {

constexpr std::int64_t kTilePositions = 128, kTileBlocks = kTilePositions / KvLayout::kBlock;
constexpr std::int64_t kRowsMax = 48;       // of an item of work: with 128 positions they stay in the first cache
constexpr std::int64_t kRowsOfTiles = 192;  // more of them are worth the values' other layout

/// Tokens [first, last) of a sequence, for one group of heads.
struct Item {
  const PagedAttention* a;
  std::int64_t group, first, last;
};

/// What a thread needs for an item of work; keeps its memory.
struct Scratch {
  std::vector<std::uint32_t> q;
  std::vector<float> out, roots, top, sum;
  alignas(64) float scores[12 * kTilePositions];
  float factors[12];
  float sum_rest = 0;

  void prepare(std::int64_t rows, std::int64_t words, std::int64_t dims, std::int64_t limit) {
    q.resize(static_cast<std::size_t>(rows * words));
    out.assign(static_cast<std::size_t>(rows * dims), 0.0f);
    top.resize(static_cast<std::size_t>(rows)), sum.resize(static_cast<std::size_t>(rows));
    if (static_cast<std::int64_t>(roots.size()) >= limit + kTilePositions) return;
    // Roots of the distances, the largest first, so that positions read them in their order; grows by doubling.
    auto size = std::max<std::int64_t>(1024, static_cast<std::int64_t>(roots.size()));
    while (size < limit + kTilePositions) size *= 2;
    roots.resize(static_cast<std::size_t>(size));
    const auto zero_at = size - kTilePositions;
    for (std::int64_t i = 0; i < size; ++i)
      roots[static_cast<std::size_t>(i)] = i <= zero_at ? std::sqrt(static_cast<float>(zero_at - i)) : 0.0f;
  }
  /// Where the root of the distance from `position` to 0 stands; behind it those to 1, 2, …
  const float* roots_before(std::int64_t position) const {
    return roots.data() + (static_cast<std::int64_t>(roots.size()) - kTilePositions - position);
  }
};

}  // namespace
}  // namespace parlando::kernels

#define PARLANDO_BODY "kernels/attention/paged_attention.inc"
#include "kernels/vector/for_each_isa.inc"
#define PARLANDO_BODY "kernels/attention/paged_attention_tiles.inc"
#include "kernels/vector/tiles.inc"

namespace parlando::kernels {

namespace {
/// Where an element of a group's keys lies.
std::int64_t key_element(const KvLayout& l, std::int64_t d, std::int64_t offset) {
  return l.bf16 ? (d / 2 * KvLayout::kBlock + offset) * 2 + d % 2 : d * KvLayout::kBlock + offset;
}
float element(const KvLayout& l, const std::byte* base, std::int64_t at) {
  return l.bf16 ? float_of_bf16(reinterpret_cast<const std::uint16_t*>(base)[at])
                : reinterpret_cast<const float*>(base)[at];
}
float key_of(const KvLayout& l, const std::byte* keys, std::int64_t g, std::int64_t d, std::int64_t offset) {
  return element(l, keys + g * l.group_key_bytes(), key_element(l, d, offset));
}
float value_of(const KvLayout& l, const std::byte* values, std::int64_t g, std::int64_t d, std::int64_t offset) {
  return element(l, values + g * l.group_value_bytes(), offset * l.value_dims() + d);
}
}  // namespace

void write_position(const KvLayout& layout, std::byte* keys, std::byte* values, std::int64_t offset, const float* k,
                    const float* v) {
  PARLANDO_DISPATCH(write, layout, keys, values, offset, k, v);
}

void read_position(const KvLayout& l, const std::byte* keys, const std::byte* values, std::int64_t offset, float* k,
                   float* v) {
  for (std::int64_t g = 0; g < l.groups; ++g)
    for (std::int64_t d = 0; d < l.dim; ++d) {
      *k++ = key_of(l, keys, g, d, offset);
      *v++ = value_of(l, values, g, d, offset);
    }
}

namespace {
struct Items {
  std::vector<Item> all;
  std::vector<std::int64_t> until;  ///< positions that are looked at for all items up to this one
};

void cut(const KvLayout& layout, std::span<const PagedAttention> batch, Items& out) {
  out.all.clear(), out.until.clear();
  std::int64_t positions = 0;
  const auto rows = isa() == Isa::amx && layout.bf16 ? kRowsOfTiles : kRowsMax;
  for (const auto& a : batch) {
    const auto tokens = std::max<std::int64_t>(1, rows / std::max<std::int64_t>(1, a.heads / layout.groups));
    // Group by group: what a group has cached is read again by its next tokens while it is near.
    for (std::int64_t g = 0; g < layout.groups; ++g)
      for (std::int64_t first = 0; first < a.tokens; first += tokens) {
        const auto last = std::min(a.tokens, first + tokens);
        out.all.push_back({&a, g, first, last});
        positions += (last - first) * (2 * a.first_position + first + last + 1) / 2;
        out.until.push_back(positions);
      }
  }
}
}  // namespace

Cost attention_cost(const KvLayout& layout, std::int64_t heads, std::int64_t positions) {
  const auto each = static_cast<double>(layout.group_key_bytes() + layout.group_value_bytes()) / KvLayout::kBlock;
  // A key and a value for each head; an exponential is as much as some forty products.
  const auto products = static_cast<double>(heads / layout.groups * (2 * layout.dim + 40));
  const double per_nanosecond = isa() == Isa::plain ? 2 : isa() == Isa::avx2 ? 25 : isa() == Isa::amx ? 100 : 50;
  return Cost::of(static_cast<double>(positions) * each, static_cast<double>(positions) * products, per_nanosecond);
}

void paged_attention(Team& team, const KvLayout& layout, std::span<const PagedAttention> batch) {
  thread_local Items items;
  cut(layout, batch, items);
  const auto count = static_cast<std::int64_t>(items.all.size());
  if (count == 0) return;
  const auto* all = items.all.data();
  auto attend = [&](std::int64_t first, std::int64_t last) {
    thread_local Scratch scratch;
    for (auto i = first; i < last; ++i)
      PARLANDO_DISPATCH_TILES(attend, layout, all[i], i + 1 < last ? &all[i + 1] : nullptr, scratch);
  };
  const auto parts = std::min<std::int64_t>(
      count, threads_worth(attention_cost(layout, batch.front().heads, items.until.back()), team.size()));
  if (parts <= 1) return attend(0, count);
  const auto borders = cut_by_work(items.until, parts);
  team.run(parts, 1, [&](std::int64_t first, std::int64_t last) {
    attend(borders[static_cast<std::size_t>(first)], borders[static_cast<std::size_t>(last)]);
  });
}

std::vector<double> attention_shares(const KvLayout& layout, std::span<const PagedAttention> batch, int threads) {
  Items items;
  cut(layout, batch, items);
  std::vector<double> out;
  const auto borders = cut_by_work(items.until, threads);
  auto work = [&](std::int64_t i) {
    return i == 0 ? 0.0 : static_cast<double>(items.until[static_cast<std::size_t>(i - 1)]);
  };
  for (int n = 0; n < threads; ++n)
    out.push_back((work(borders[static_cast<std::size_t>(n) + 1]) - work(borders[static_cast<std::size_t>(n)])) /
                  std::max(1.0, work(static_cast<std::int64_t>(items.all.size()))));
  return out;
}

void paged_attention_reference(const KvLayout& l, const PagedAttention& a) {
  for (std::int64_t t = 0; t < a.tokens; ++t)
    for (std::int64_t h = 0; h < a.heads; ++h) {
      const std::int64_t i = a.first_position + t, g = h / (a.heads / l.groups);
      const float* q = a.q + t * a.q_stride + h * l.dim;
      std::vector<double> s(static_cast<std::size_t>(i + 1));
      double top = -INFINITY, sum = 0;
      for (std::int64_t j = 0; j <= i; ++j) {
        const auto* keys = a.keys + a.blocks[j / KvLayout::kBlock] * l.key_bytes();
        for (std::int64_t d = 0; d < l.dim; ++d) s[j] += q[d] * double{key_of(l, keys, g, d, j % KvLayout::kBlock)};
        s[j] = s[j] / std::sqrt(static_cast<double>(l.dim)) - a.slopes[h] * std::sqrt(static_cast<double>(i - j));
        top = std::max(top, s[j]);
      }
      for (auto& x : s) sum += x = std::exp(x - top);
      for (std::int64_t d = 0; d < l.dim; ++d) {
        double out = 0;
        for (std::int64_t j = 0; j <= i; ++j) {
          const auto* values = a.values + a.blocks[j / KvLayout::kBlock] * l.value_bytes();
          out += s[j] / sum * value_of(l, values, g, d, j % KvLayout::kBlock);
        }
        a.out[t * a.out_stride + h * l.dim + d] = static_cast<float>(out);
      }
    }
}

}  // namespace parlando::kernels
