#include "services/llm/model/step1.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "common/checkpoint/safetensors.hpp"
#include "common/tensor/weights.hpp"
#include "kernels/attention/paged_attention.hpp"
#include "kernels/gemv/gemv.hpp"

namespace parlando::llm {

namespace {
/// Up to this many rows a product reads the weights once per row through our own kernel; above, libtorch's GEMM wins.
constexpr std::int64_t kGemvRowsMax = 4;
}  // namespace

Result<std::shared_ptr<const Step1>> Step1::load(const std::filesystem::path& directory, at::ScalarType dtype, int rank,
                                                 int ranks) try {
  PARLANDO_TRY(const auto config, Step1Config::load(directory / "config.json"));
  PARLANDO_TRY(const auto shard, Shard::plan(config, rank, ranks));
  PARLANDO_TRY(auto file, checkpoint::read_safetensors_model(directory));
  tensor::Weights w(std::move(file.tensors), directory.string(), dtype);
  std::shared_ptr<Step1> m(new Step1);
  m->config_ = config, m->shard_ = shard, m->ranks_ = ranks, m->dtype_ = dtype;
  const auto H = config.hidden, I = config.inner, KV = config.groups * config.dim(), V = config.vocabulary;
  const auto vocabulary = shard.vocabulary_rows;
  auto rows_of = [&](const char* name) {
    return ranks == 1 ? w.take(name, {V, H}) : w.take_slice(name, {V, H}, 0, vocabulary.first, vocabulary.count());
  };
  m->embedding_ = rows_of("model.embed_tokens.weight");
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const auto at = fmt::format("model.layers.{}.", l);
    using Part = tensor::Weights::Part;
    Layer layer;
    layer.input_norm = w.take(at + "input_layernorm.weight", {H});
    layer.post_norm = w.take(at + "post_attention_layernorm.weight", {H});
    layer.qkv = w.stack({Part{at + "self_attn.q_proj.weight", {H, H}, shard.q_rows.first, shard.q_rows.count()},
                         Part{at + "self_attn.k_proj.weight", {KV, H}, shard.kv_rows.first, shard.kv_rows.count()},
                         Part{at + "self_attn.v_proj.weight", {KV, H}, shard.kv_rows.first, shard.kv_rows.count()}});
    layer.gate_up =
        w.stack({Part{at + "mlp.gate_proj.weight", {I, H}, shard.inner_rows.first, shard.inner_rows.count()},
                 Part{at + "mlp.up_proj.weight", {I, H}, shard.inner_rows.first, shard.inner_rows.count()}});
    layer.out = ranks == 1
                    ? w.take(at + "self_attn.o_proj.weight", {H, H})
                    : w.take_slice(at + "self_attn.o_proj.weight", {H, H}, 1, shard.q_rows.first, shard.q_rows.count());
    layer.down = ranks == 1 ? w.take(at + "mlp.down_proj.weight", {H, I})
                            : w.take_slice(at + "mlp.down_proj.weight", {H, I}, 1, shard.inner_rows.first,
                                           shard.inner_rows.count());
    m->layers_.push_back(std::move(layer));
  }
  m->final_norm_ = w.take("model.norm.weight", {H});
  m->head_ = w.has("lm_head.weight") ? rows_of("lm_head.weight") : m->embedding_;
  w.finish();
  return m;
} catch (const Failure& failure) {
  return tl::make_unexpected(failure.error);
} catch (const std::exception& e) {
  return fail(Errc::internal, "loading '{}' failed: {}", directory.string(), e.what());
}

Result<std::shared_ptr<const Step1>> Step1::random(const Step1Config& config, at::ScalarType dtype,
                                                   std::uint64_t seed) try {
  PARLANDO_TRY(const auto shard, Shard::plan(config, 0, 1));
  std::shared_ptr<Step1> m(new Step1);
  m->config_ = config, m->shard_ = shard, m->dtype_ = dtype;
  const auto H = config.hidden, I = config.inner, KV = config.groups * config.dim(), V = config.vocabulary;
  at::manual_seed(seed);
  // One random block repeated: filling billions of values one by one would take minutes and measure nothing.
  const auto pattern = at::randn({1 << 20}, dtype).mul_(0.02);
  auto make = [&](std::int64_t rows, std::int64_t columns) {
    auto out = at::empty({rows * columns}, dtype);
    for (std::int64_t at = 0; at < out.numel(); at += pattern.numel()) {
      const auto n = std::min(pattern.numel(), out.numel() - at);
      out.narrow(0, at, n).copy_(pattern.narrow(0, 0, n));
    }
    return out.view({rows, columns});
  };
  m->embedding_ = make(V, H);
  for (std::int64_t l = 0; l < config.layers; ++l)
    m->layers_.push_back(
        {at::ones({H}, dtype), make(H + 2 * KV, H), make(H, H), at::ones({H}, dtype), make(2 * I, H), make(H, I)});
  m->final_norm_ = at::ones({H}, dtype);
  m->head_ = make(V, H);
  return m;
} catch (const std::exception& e) {
  return fail(Errc::internal, "random weights could not be made: {}", e.what());
}

std::unique_ptr<KvPool> Step1::make_pool(std::int64_t tokens) const {
  return std::make_unique<KvPool>(config_.layers, shard_.kv_groups.count(), config_.dim(),
                                  (tokens + kBlockTokens - 1) / kBlockTokens, dtype_);
}

std::int64_t Step1::weight_bytes() const {
  std::int64_t total = embedding_.nbytes() + (head_.is_same(embedding_) ? 0 : head_.nbytes()) + final_norm_.nbytes();
  for (const auto& l : layers_)
    for (const auto* t : {&l.input_norm, &l.qkv, &l.out, &l.post_norm, &l.gate_up, &l.down})
      total += static_cast<std::int64_t>(t->nbytes());
  return total;
}

std::int64_t Step1::decode_bytes() const {
  return weight_bytes() - (head_.is_same(embedding_) ? 0 : static_cast<std::int64_t>(embedding_.nbytes()));
}

at::Tensor Step1::linear(const at::Tensor& x, const at::Tensor& w) const {
  if (x.size(0) > kGemvRowsMax) return at::linear(x, w);
  const auto in = x.to(at::kFloat).contiguous();
  const auto rows = w.size(0), columns = w.size(1);
  auto out = at::empty({x.size(0), rows}, at::kFloat);
  const float* from = in.data_ptr<float>();
  float* to = out.data_ptr<float>();
  const auto tokens = x.size(0);
  at::parallel_for(0, rows, 256, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (dtype_ == at::kFloat)
        kernels::gemv_f32(w.data_ptr<float>() + first * columns, last - first, columns, from + t * columns, nullptr,
                          to + t * rows + first);
      else
        kernels::gemv_bf16(reinterpret_cast<const std::uint16_t*>(w.data_ptr()) + first * columns, last - first,
                           columns, from + t * columns, to + t * rows + first);
    }
  });
  return out.to(dtype_);
}

at::Tensor Step1::norm(const at::Tensor& x, const at::Tensor& w) const {
  // The factor is rounded to the activation type, then each product: the order only shows in bf16.
  const auto r = at::rsqrt(x.to(at::kFloat).pow(2).mean(-1, true) + config_.norm_eps).to(x.scalar_type());
  return x * r * w;
}

Result<at::Tensor> Step1::forward(KvPool& pool, std::span<Chunk> chunks, const Trace& trace) const try {
  const c10::InferenceMode guard;
  if (ranks_ != 1)
    return fail(Errc::unsupported, "a forward pass over {} ranks needs a communicator; this build loads shards only",
                ranks_);
  std::int64_t total = 0;
  for (const auto& chunk : chunks) {
    const auto n = static_cast<std::int64_t>(chunk.ids.size());
    if (chunk.sequence->length() + n > config_.length_max)
      return fail(Errc::invalid_argument, "the sequence would have {} tokens, the model takes {}",
                  chunk.sequence->length() + n, config_.length_max);
    for (const auto id : chunk.ids)
      if (id < 0 || id >= config_.vocabulary)
        return fail(Errc::token_out_of_range, "token id {} is outside the vocabulary of {}", id, config_.vocabulary);
    total += n;
  }
  if (total == 0) return at::empty({0, config_.hidden}, dtype_);
  std::vector<KvPool::Want> wants;
  for (const auto& chunk : chunks) wants.push_back({chunk.sequence, static_cast<std::int64_t>(chunk.ids.size())});
  // Whatever fails below, the sequences keep their length and no room behind it.
  struct Room {
    KvPool& pool;
    std::span<const KvPool::Want> wants;
    bool used = false;
    ~Room() {
      for (const auto& want : wants)
        if (!used) pool.unreserve(*want.sequence);
    }
  } room{pool, wants};
  PARLANDO_DO(pool.reserve(wants));
  auto ids = at::empty({total}, at::kInt);
  {
    auto* to = ids.data_ptr<std::int32_t>();
    for (const auto& chunk : chunks) to = std::copy(chunk.ids.begin(), chunk.ids.end(), to);
  }
  auto x = at::embedding(embedding_, ids);
  if (trace) trace(0, x);
  const auto N = config_.heads, G = config_.groups, D = config_.dim(), q_rows = N * D, kv_rows = G * D;
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const auto& layer = layers_[l];
    const auto qkv = linear(norm(x, layer.input_norm), layer.qkv);
    const auto q = qkv.narrow(1, 0, q_rows).to(at::kFloat).contiguous();
    const auto k = qkv.narrow(1, q_rows, kv_rows).view({total, G, D}),
               v = qkv.narrow(1, q_rows + kv_rows, kv_rows).view({total, G, D});
    auto attended = at::empty({total, q_rows}, at::kFloat);
    const auto keys = pool.keys()[static_cast<std::int64_t>(l)], values = pool.values()[static_cast<std::int64_t>(l)];
    std::int64_t at = 0;
    for (auto& chunk : chunks) {
      const auto n = static_cast<std::int64_t>(chunk.ids.size());
      if (n == 0) continue;
      pool.write(*chunk.sequence, static_cast<std::int64_t>(l), k.narrow(0, at, n), v.narrow(0, at, n));
      kernels::PagedAttention a;
      a.keys = keys.data_ptr(), a.values = values.data_ptr(), a.bf16 = dtype_ == at::kBFloat16;
      a.blocks = chunk.sequence->blocks().data(), a.block_size = kBlockTokens;
      a.heads = N, a.groups = G, a.dim = D, a.slopes = shard_.slopes.data();
      const float* q_data = q.data_ptr<float>() + at * q_rows;
      float* out = attended.data_ptr<float>() + at * q_rows;
      const auto start = chunk.sequence->length();
      at::parallel_for(0, n, 8, [&](std::int64_t first, std::int64_t last) {
        auto part = a;
        part.q = q_data + first * q_rows, part.out = out + first * q_rows, part.tokens = last - first,
        part.first_position = start + first;
        kernels::paged_attention(part);
      });
      at += n;
    }
    x = x + linear(attended.to(dtype_), layer.out);
    const auto gate_up = linear(norm(x, layer.post_norm), layer.gate_up).chunk(2, 1);
    x = x + linear(at::silu(gate_up[0]) * gate_up[1], layer.down);
    if (trace) trace(static_cast<int>(l) + 1, x);
  }
  x = norm(x, final_norm_);
  if (trace) trace(static_cast<int>(layers_.size()) + 1, x);
  for (const auto& want : wants) pool.commit(*want.sequence, want.count);
  room.used = true;
  return x;
} catch (const std::exception& e) {
  return fail(Errc::internal, "the forward pass failed: {}", e.what());
}

at::Tensor Step1::logits(const at::Tensor& hidden) const {
  const c10::InferenceMode guard;
  return linear(hidden, head_).to(at::kFloat);
}

}  // namespace parlando::llm
