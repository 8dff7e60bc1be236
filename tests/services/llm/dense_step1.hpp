#pragma once
/// Step-1 as its paper reads, for tests: all positions at once, full [T, T] attention with the square-root bias, no
/// pages, nothing shared. Where the cache is bf16, queries, keys and values are rounded to it; everything else is fp32.
#include <ATen/ATen.h>

#include "services/llm/model/step1.hpp"

namespace parlando::llm {

struct Dense {
  at::Tensor hidden;        ///< [T, H] after the final norm
  at::Tensor keys, values;  ///< [layers, T, G, D]
};

inline Dense dense(const Step1& m, std::span<const std::int32_t> ids) {
  const auto& c = m.config();
  const auto T = static_cast<std::int64_t>(ids.size()), N = c.heads, G = c.groups, D = c.dim();
  auto norm = [&](const at::Tensor& x, const at::Tensor& w) {
    return x * at::rsqrt(x.pow(2).mean(-1, true) + c.norm_eps) * w;
  };
  std::vector<std::int64_t> wide(ids.begin(), ids.end());
  auto x = at::embedding(m.embedding(), at::tensor(wide, at::kLong)).to(at::kFloat);
  const auto position = at::arange(T, at::kFloat), distance = position.unsqueeze(1) - position.unsqueeze(0);
  const auto slopes = at::tensor(alibi_slopes(N)).view({N, 1, 1});
  const auto bias = -slopes * distance.clamp_min(0).sqrt();
  std::vector<at::Tensor> keys, values;
  for (std::int64_t l = 0; l < m.layers(); ++l) {
    auto layer = m.layer(l);
    for (auto* t : {&layer.input_norm, &layer.qkv, &layer.out, &layer.post_norm, &layer.gate_up, &layer.down})
      *t = t->to(at::kFloat);
    auto qkv = at::linear(norm(x, layer.input_norm), layer.qkv);
    if (m.embedding().scalar_type() == at::kBFloat16) qkv = qkv.to(at::kBFloat16).to(at::kFloat);
    const auto q = qkv.narrow(1, 0, N * D).view({T, N, D});
    keys.push_back(qkv.narrow(1, N * D, G * D).reshape({T, G, D}));
    values.push_back(qkv.narrow(1, (N + G) * D, G * D).reshape({T, G, D}));
    const auto k = keys.back().repeat_interleave(N / G, 1), v = values.back().repeat_interleave(N / G, 1);
    auto scores = at::matmul(q.transpose(0, 1), k.permute({1, 2, 0})) / std::sqrt(static_cast<double>(D)) + bias;
    scores = scores.masked_fill((distance < 0).unsqueeze(0), -std::numeric_limits<float>::infinity());
    const auto mixed = at::matmul(scores.softmax(-1), v.transpose(0, 1)).transpose(0, 1).reshape({T, N * D});
    x = x + at::linear(mixed, layer.out);
    const auto parts = at::linear(norm(x, layer.post_norm), layer.gate_up).chunk(2, 1);
    x = x + at::linear(at::silu(parts[0]) * parts[1], layer.down);
  }
  return {norm(x, m.final_norm().to(at::kFloat)), at::stack(keys), at::stack(values)};
}

}  // namespace parlando::llm
