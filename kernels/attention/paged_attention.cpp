#include "kernels/attention/paged_attention.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/paged_attention.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace parlando::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline float widen(std::uint16_t h) {
  const std::uint32_t bits = static_cast<std::uint32_t>(h) << 16;
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

HWY_INLINE float dot(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, std::int64_t n) {
  const hn::ScalableTag<float> d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto s = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) s = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), s);
  float sum = hn::GetLane(hn::SumOfLanes(d, s));
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

HWY_INLINE void add_scaled(float* HWY_RESTRICT out, const float* HWY_RESTRICT v, float p, std::int64_t n) {
  const hn::ScalableTag<float> d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto scale = hn::Set(d, p);
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::MulAdd(scale, hn::LoadU(d, v + i), hn::LoadU(d, out + i)), d, out + i);
  for (; i < n; ++i) out[i] += p * v[i];
}

void Attend(const PagedAttention& a) {
  const std::int64_t per_group = a.heads / a.groups, last = a.first_position + a.tokens;
  thread_local std::vector<float> scores, row, roots;
  scores.resize(static_cast<std::size_t>(per_group * last));
  row.resize(static_cast<std::size_t>(a.dim));
  roots.resize(static_cast<std::size_t>(last));
  for (std::int64_t n = 0; n < last; ++n) roots[n] = std::sqrt(static_cast<float>(n));
  const float scale = 1.0f / std::sqrt(static_cast<float>(a.dim));
  auto load = [&](const void* base, std::int64_t j, std::int64_t g) -> const float* {
    const std::int64_t at =
        ((static_cast<std::int64_t>(a.blocks[j / a.block_size]) * a.block_size + j % a.block_size) * a.groups + g) *
        a.dim;
    if (!a.bf16) return static_cast<const float*>(base) + at;
    const auto* half = static_cast<const std::uint16_t*>(base) + at;
    for (std::int64_t i = 0; i < a.dim; ++i) row[i] = widen(half[i]);
    return row.data();
  };
  for (std::int64_t t = 0; t < a.tokens; ++t) {
    const std::int64_t i = a.first_position + t;
    for (std::int64_t g = 0; g < a.groups; ++g) {
      const float* q = a.q + (t * a.heads + g * per_group) * a.dim;
      float* out = a.out + (t * a.heads + g * per_group) * a.dim;
      for (std::int64_t j = 0; j <= i; ++j) {
        const float* k = load(a.keys, j, g);
        for (std::int64_t h = 0; h < per_group; ++h)
          scores[h * last + j] = dot(q + h * a.dim, k, a.dim) * scale - a.slopes[g * per_group + h] * roots[i - j];
      }
      for (std::int64_t h = 0; h < per_group; ++h) {
        float* s = scores.data() + h * last;
        float top = s[0], sum = 0;
        for (std::int64_t j = 1; j <= i; ++j) top = s[j] > top ? s[j] : top;
        for (std::int64_t j = 0; j <= i; ++j) sum += s[j] = std::exp(s[j] - top);
        for (std::int64_t j = 0; j <= i; ++j) s[j] /= sum;
        for (std::int64_t n = 0; n < a.dim; ++n) out[h * a.dim + n] = 0;
      }
      for (std::int64_t j = 0; j <= i; ++j) {
        const float* v = load(a.values, j, g);
        for (std::int64_t h = 0; h < per_group; ++h) add_scaled(out + h * a.dim, v, scores[h * last + j], a.dim);
      }
    }
  }
}

}  // namespace parlando::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parlando::kernels {
HWY_EXPORT(Attend);
void paged_attention(const PagedAttention& a) { HWY_DYNAMIC_DISPATCH(Attend)(a); }

void paged_attention_reference(const PagedAttention& a) {
  auto value = [&](const void* base, std::int64_t j, std::int64_t g, std::int64_t n) -> double {
    const std::int64_t at =
        ((static_cast<std::int64_t>(a.blocks[j / a.block_size]) * a.block_size + j % a.block_size) * a.groups + g) *
            a.dim +
        n;
    if (!a.bf16) return static_cast<const float*>(base)[at];
    const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(base)[at]) << 16;
    float out;
    __builtin_memcpy(&out, &bits, 4);
    return out;
  };
  for (std::int64_t t = 0; t < a.tokens; ++t)
    for (std::int64_t h = 0; h < a.heads; ++h) {
      const std::int64_t i = a.first_position + t, g = h / (a.heads / a.groups);
      std::vector<double> s(static_cast<std::size_t>(i + 1));
      double top = -INFINITY, sum = 0;
      for (std::int64_t j = 0; j <= i; ++j) {
        for (std::int64_t n = 0; n < a.dim; ++n) s[j] += a.q[(t * a.heads + h) * a.dim + n] * value(a.keys, j, g, n);
        s[j] = s[j] / std::sqrt(static_cast<double>(a.dim)) - a.slopes[h] * std::sqrt(static_cast<double>(i - j));
        top = std::max(top, s[j]);
      }
      for (auto& x : s) sum += x = std::exp(x - top);
      for (std::int64_t n = 0; n < a.dim; ++n) {
        double out = 0;
        for (std::int64_t j = 0; j <= i; ++j) out += s[j] / sum * value(a.values, j, g, n);
        a.out[(t * a.heads + h) * a.dim + n] = static_cast<float>(out);
      }
    }
}
}  // namespace parlando::kernels
#endif
