#include "services/cli/capacity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace parlando::cli {

namespace {

/// Rows of a pass; a longer prompt goes in pieces, so the work space does not grow with it.
constexpr std::int64_t kRowsMax = 512;

double gigabytes(std::int64_t bytes) { return static_cast<double>(bytes) / 1e9; }

/// A linear weight of one rank.
struct Linear {
  std::int64_t rows, columns;
  std::int64_t count() const { return rows * columns; }
};

}  // namespace

Result<WeightFormat> weight_format(const std::string& name) {
  if (name == "f32") return WeightFormat::f32;
  if (name == "bf16") return WeightFormat::bf16;
  if (name == "int8") return WeightFormat::int8;
  if (name == "int4") return WeightFormat::int4;
  return fail(Errc::invalid_argument, "format '{}', expected f32, bf16, int8 or int4", name);
}

std::int64_t linear_bytes(WeightFormat format, std::int64_t rows, std::int64_t columns) {
  return kernels::PackedShape{format, rows, columns}.bytes();
}

Result<llm::Step1Config> published_shape(const std::string& name) {
  llm::Step1Config c;
  if (name == "chat-130b")
    c.hidden = 12288, c.inner = 31232, c.heads = 96, c.groups = 8, c.layers = 88;
  else if (name == "tts-3b")
    c.hidden = 3072, c.inner = 8192, c.heads = 48, c.groups = 4, c.layers = 32;
  else
    return fail(Errc::invalid_argument, "shape '{}', expected chat-130b or tts-3b", name);
  c.vocabulary = 74752, c.length_max = 32768;
  return c;
}

Result<Capacity> plan_capacity(const llm::Step1Config& model, const RankMachine& machine, const CapacityLoad& load) {
  for (const auto& [name, value] :
       {std::pair{"streams", load.streams}, {"context", load.context}, {"prefill", load.prefill}})
    if (value <= 0) return fail(Errc::invalid_argument, "{} is {}, expected more than 0", name, value);
  for (const auto& [name, value] : {std::pair{"memory", machine.memory_gb},
                                    {"share of the memory", machine.memory_share},
                                    {"bandwidth", machine.bandwidth_gb_s},
                                    {"share of the bandwidth", machine.bandwidth_share},
                                    {"tflops", machine.tflops},
                                    {"link", machine.link_gb_s}})
    if (!(value > 0)) return fail(Errc::invalid_argument, "{} is {}, expected more than 0", name, value);
  if (load.context > model.length_max)
    return fail(Errc::invalid_argument, "a context of {} tokens, the model has at most {}", load.context,
                model.length_max);
  PARLANDO_TRY(const auto shard, llm::Shard::plan(model, 0, load.ranks));

  const auto hidden = model.hidden, layers = model.layers;
  const auto q = shard.q_rows.count(), kv = shard.kv_rows.count(), inner = shard.inner_rows.count();
  const auto vocabulary = shard.vocabulary_rows.count();
  const Linear per_layer[] = {{q + 2 * kv, hidden}, {hidden, q}, {2 * inner, hidden}, {hidden, inner}};
  const Linear head{vocabulary, hidden};
  const std::int64_t norms = (2 * layers + 1) * hidden;

  Capacity out;
  const auto whole_layer = 2 * hidden * hidden + 2 * model.groups * model.dim() * hidden + 3 * model.inner * hidden;
  out.parameters = layers * whole_layer + 2 * model.vocabulary * hidden + norms;

  const std::int64_t element = load.weights == WeightFormat::f32 ? 4 : 2;  // of the embedding
  std::int64_t layer_bytes = 0, layer_products = 0;
  for (const auto& w : per_layer) {
    layer_bytes += linear_bytes(load.weights, w.rows, w.columns);
    layer_products += w.count();
  }
  const auto read_weights = layers * layer_bytes +
                            linear_bytes(llm::head_format(load.weights), head.rows, head.columns) +
                            norms * static_cast<std::int64_t>(sizeof(float));
  out.weights = read_weights + vocabulary * hidden * element;  // of the embedding only a row a token is read
  out.kv_per_token = 2 * layers * kv * load.kv_element_bytes;
  out.kv = out.kv_per_token * load.context * load.streams;
  // Fixed buffers of a pass: residual, normed and projected rows, the widest product, logits of the rows that sample.
  const auto rows = std::max(std::min(load.prefill, kRowsMax), load.streams);
  out.work_space = 4 * (rows * (3 * hidden + q + 2 * kv + 2 * inner) + load.streams * vocabulary);
  const auto usable = static_cast<std::int64_t>(machine.memory_gb * 1e9 * machine.memory_share);
  out.free = usable - out.weights - out.kv - out.work_space;
  out.cache_tokens_max = std::max<std::int64_t>(0, usable - out.weights - out.work_space) / out.kv_per_token;

  const auto attention = [&](std::int64_t tokens, double keys) {
    return 4.0 * static_cast<double>(layers * q * tokens) * keys;
  };
  const auto products = [&](std::int64_t tokens, std::int64_t sampled) {
    return 2.0 * static_cast<double>(layers * layer_products * tokens + head.count() * sampled);
  };
  const auto exchange_ms = [&](std::int64_t tokens) {
    if (load.ranks == 1) return 0.0;
    // A ring sends 2 (n - 1) / n of the values through each link; in bfloat16.
    const auto bytes = 2.0 * static_cast<double>(tokens * hidden) * 2.0 * (load.ranks - 1) / load.ranks;
    return static_cast<double>(2 * layers + 1) * (machine.all_reduce_us / 1e3 + bytes / (machine.link_gb_s * 1e6));
  };
  out.step_bytes = read_weights + out.kv;
  out.read_ms = gigabytes(out.step_bytes) / (machine.bandwidth_gb_s * machine.bandwidth_share) * 1e3;
  out.compute_ms = (products(load.streams, load.streams) + attention(load.streams, static_cast<double>(load.context))) /
                   (machine.tflops * 1e9);
  out.exchange_ms = exchange_ms(load.streams);
  out.step_ms = std::max(out.read_ms, out.compute_ms) + out.exchange_ms;
  out.tokens_per_s = 1e3 / out.step_ms;
  const auto passes = (load.prefill + kRowsMax - 1) / kRowsMax;
  const auto compute = (products(load.prefill, 1) + attention(load.prefill, static_cast<double>(load.prefill) / 2)) /
                       (machine.tflops * 1e9);
  const auto read =
      gigabytes(read_weights) * static_cast<double>(passes) / (machine.bandwidth_gb_s * machine.bandwidth_share) * 1e3;
  out.prefill_ms = std::max(compute, read) + exchange_ms(load.prefill);
  return out;
}

nlohmann::json to_json(const Capacity& c) {
  return {{"parameters", c.parameters},
          {"weights_bytes", c.weights},
          {"kv_bytes_per_token", c.kv_per_token},
          {"kv_bytes", c.kv},
          {"work_space_bytes", c.work_space},
          {"free_bytes", c.free},
          {"fits", c.fits()},
          {"cache_tokens_max", c.cache_tokens_max},
          {"step",
           {{"bytes", c.step_bytes},
            {"read_ms", c.read_ms},
            {"compute_ms", c.compute_ms},
            {"exchange_ms", c.exchange_ms},
            {"ms", c.step_ms}}},
          {"tokens_per_s", c.tokens_per_s},
          {"prefill_ms", c.prefill_ms}};
}

std::string to_text(const Capacity& c, const RankMachine& machine, const CapacityLoad& load) {
  std::string out;
  const auto line = [&](const std::string& name, const std::string& value) {
    out += fmt::format("{:<28}{}\n", name, value);
  };
  line("parameters", fmt::format("{:.2f} billion", static_cast<double>(c.parameters) / 1e9));
  line("ranks, streams, context", fmt::format("{}, {}, {} tokens", load.ranks, load.streams, load.context));
  line("weights a rank", fmt::format("{:.3f} GB", gigabytes(c.weights)));
  line("keys and values a rank",
       fmt::format("{:.3f} GB ({:.1f} KiB a token)", gigabytes(c.kv), static_cast<double>(c.kv_per_token) / 1024));
  line("work space a rank", fmt::format("{:.3f} GB", gigabytes(c.work_space)));
  line(c.fits() ? "left a rank" : "MISSING a rank",
       fmt::format("{:.3f} GB of {:.1f}", std::abs(gigabytes(c.free)), machine.memory_gb * machine.memory_share));
  line("cache holds at most", fmt::format("{} tokens", c.cache_tokens_max));
  line("decode step at best", fmt::format("{:.2f} ms: read {:.2f}, products {:.2f}, sums between ranks {:.2f}",
                                          c.step_ms, c.read_ms, c.compute_ms, c.exchange_ms));
  line("tokens a second and stream", fmt::format("{:.1f}", c.tokens_per_s));
  line(fmt::format("prefill of {} tokens", load.prefill), fmt::format("{:.1f} ms", c.prefill_ms));
  return out;
}

}  // namespace parlando::cli
