#include "services/cli/language.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/nn/threads.hpp"
#include "services/llm/model/engine.hpp"
#include "services/llm/model/rank_backend.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using llm::Step1;
using llm::WeightFormat;
using nlohmann::json;

namespace {
Result<std::vector<std::int32_t>> ids_of(const std::string& text) {
  std::vector<std::int32_t> out;
  const char *at = text.data(), *end = at + text.size();
  while (at != end) {
    std::int32_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || (next != end && *next != ',') || (next != end && next + 1 == end))
      return fail(Errc::invalid_argument, "ids are '{}', expected numbers with commas between them",
                  text.substr(0, 60));
    out.push_back(id);
    at = next == end ? end : next + 1;
  }
  if (out.empty()) return fail(Errc::invalid_argument, "no ids are given, expected at least one");
  return out;
}

Result<WeightFormat> format_of(const std::string& text, const fs::path& model) {
  if (text.empty()) {
    PARLANDO_TRY(const auto config, llm::Step1Config::load(model / "config.json"));
    return config.dtype == "float32" ? WeightFormat::f32 : WeightFormat::bf16;
  }
  for (const auto format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4})
    if (text == kernels::name(format)) return format;
  return fail(Errc::invalid_argument, "format is '{}', expected f32, bf16, int8 or int4", text);
}

double error_of(const at::Tensor& got, const at::Tensor& want) {
  const auto w = want.to(at::kFloat);
  const double size = w.norm().item<double>();
  return size == 0 ? 0.0 : (got.to(at::kFloat) - w).norm().item<double>() / size;
}

/// Log-probabilities [n, V] of what follows each of the ids.
Result<at::Tensor> log_probabilities(const Step1& model, std::span<const std::int32_t> ids) {
  auto pool = model.make_pool(static_cast<std::int64_t>(ids.size()));
  auto sequence = pool->open();
  Step1::Chunk chunk{&sequence, ids};
  PARLANDO_TRY(const auto hidden, model.forward(*pool, {&chunk, 1}));
  return model.logits(hidden).log_softmax(-1);
}

Result<json> compared(const std::shared_ptr<const Step1>& source, const Step1& packed, std::int64_t tokens) {
  const auto length = std::min(tokens, source->config().length_max - 1);
  llm::LmEngine engine(source, {.cache_tokens = length + 2 * llm::kBlockTokens});
  const llm::Sampling as_it_is{.temperature = 1, .top_k = {}, .seed = 1};
  const std::int32_t first = source->config().bos;
  PARLANDO_DO(engine.open("text"));
  PARLANDO_DO(engine.append("text", 0, {&first, 1}));
  PARLANDO_DO(engine.generate("text", 1, {as_it_is, length}));
  std::vector<std::int32_t> ids = {first};
  while (!engine.idle())
    for (const auto& event : engine.step()) {
      if (event.error) return tl::make_unexpected(*event.error);
      if (event.id >= 0) ids.push_back(event.id);
    }
  const auto count = static_cast<std::int64_t>(ids.size()) - 1;
  const auto inputs = std::span<const std::int32_t>(ids).first(static_cast<std::size_t>(count));
  PARLANDO_TRY(const auto a, log_probabilities(*source, inputs));
  PARLANDO_TRY(const auto b, log_probabilities(packed, inputs));
  std::vector<std::int64_t> next(ids.begin() + 1, ids.end());
  const auto index = at::tensor(next).unsqueeze(1);
  auto perplexity = [&](const at::Tensor& p) { return std::exp(-p.gather(1, index).mean().item<double>()); };
  return json{{"tokens", count},
              {"perplexity", perplexity(a)},
              {"perplexity_packed", perplexity(b)},
              {"divergence", (a.exp() * (a - b)).sum(-1).mean().item<double>()},
              {"same_first", (a.argmax(-1) == b.argmax(-1)).to(at::kFloat).mean().item<double>()}};
}

/// Everything beside the weights: configuration, tokenizer, voices.
Result<void> copy_rest(const fs::path& source, const fs::path& target) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(source, error)) {
    const auto name = entry.path().filename().string();
    if (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") || name.ends_with(".so") ||
        name.ends_with(".bin"))
      continue;
    fs::copy(entry.path(), target / name, fs::copy_options::recursive, error);
    if (error) break;
  }
  if (error)
    return fail(Errc::io, "'{}' could not be copied to '{}': {}", source.string(), target.string(), error.message());
  return {};
}
}  // namespace

Result<json> generate(const GenerateOptions& o) try {
  nn::use_threads(o.threads);
  PARLANDO_TRY(const auto ids, ids_of(o.ids));
  if (o.tokens_max < 1) return fail(Errc::invalid_argument, "max-tokens is {}, expected at least 1", o.tokens_max);
  PARLANDO_TRY(const auto format, format_of(o.format, o.model));
  PARLANDO_TRY(const auto config, llm::Step1Config::load(o.model / "config.json"));
  const auto size = static_cast<std::int64_t>(ids.size());
  const auto length = std::min(config.length_max, size + o.tokens_max), room = length + 2 * llm::kBlockTokens;
  std::shared_ptr<const Step1> model;
  std::unique_ptr<llm::Backend> backend;
  if (o.ranks > 1) {
    const auto blocks = (room + llm::kBlockTokens - 1) / llm::kBlockTokens;
    PARLANDO_TRY(auto group, llm::RankBackend::start({o.model, format, o.ranks, o.threads, blocks, {}}));
    model = group->part();
    backend = std::move(group);
  } else {
    PARLANDO_TRY(model, Step1::load(o.model, format));
  }
  llm::LmEngine engine(model, {.cache_tokens = room}, std::make_shared<SteadyClock>(), std::move(backend));
  auto sampling = o.greedy ? llm::Sampling::greedy() : llm::Sampling::chat();
  sampling.seed = o.seed;
  PARLANDO_DO(engine.open("ids"));
  PARLANDO_DO(engine.append("ids", 0, ids));
  PARLANDO_DO(engine.generate("ids", size, {sampling, o.tokens_max, {model->config().eos}}));
  json out = {{"ids", json::array()}, {"finish", "length"}, {"format", kernels::name(model->format())}};
  while (!engine.idle())
    for (const auto& event : engine.step()) {
      if (event.error) return tl::make_unexpected(*event.error);
      if (event.finish == llm::Finish::stop) {
        out["finish"] = "stop";
        return out;
      }
      if (event.id >= 0) out["ids"].push_back(event.id);
      if (event.finish != llm::Finish::none) return out;
    }
  return out;
} catch (const std::exception& e) {
  return fail(Errc::internal, "generating failed: {}", e.what());
}

Result<json> quantize(const QuantizeOptions& o) try {
  const c10::InferenceMode guard;
  nn::use_threads(o.threads);
  PARLANDO_TRY(const auto format, format_of(o.format, o.source));
  if (format == WeightFormat::f32) return fail(Errc::invalid_argument, "format is 'f32', expected bf16, int8 or int4");
  if (fs::exists(o.target))
    return fail(Errc::invalid_argument, "'{}' is there already, expected a name for a new directory",
                o.target.string());
  PARLANDO_TRY(const auto own, format_of("", o.source));
  PARLANDO_TRY(const auto source, Step1::load(o.source, own));
  if (source->format() != own)
    return fail(Errc::invalid_argument, "'{}' is packed as {} already", o.source.string(),
                kernels::name(source->format()));
  const auto inside = fs::weakly_canonical(o.target).lexically_relative(fs::weakly_canonical(o.source));
  if (!inside.empty() && *inside.begin() != "..")
    return fail(Errc::invalid_argument, "'{}' is inside of '{}', expected a directory beside it", o.target.string(),
                o.source.string());
  PARLANDO_TRY(const auto packed, Step1::load(o.source, format));
  if (packed->format() != format)
    return fail(Errc::unsupported, "'{}' is packed as {} already: quantize the original", o.source.string(),
                kernels::name(packed->format()));
  // Written beside its place and renamed: what has the name is whole.
  const auto part = fs::path(o.target.string() + ".part");
  std::error_code error;
  fs::remove_all(part, error);
  fs::create_directories(part, error);
  if (error) return fail(Errc::io, "'{}' could not be made: {}", part.string(), error.message());
  PARLANDO_DO(copy_rest(o.source, part));
  PARLANDO_DO(packed->save(part));
  fs::rename(part, o.target, error);
  if (error) return fail(Errc::io, "'{}' could not be renamed: {}", part.string(), error.message());
  json tensors = json::object();
  for (std::int64_t l = 0; l < source->layers(); ++l) {
    const auto a = source->layer(l), b = packed->layer(l);
    for (const auto& [name, got, want] : {std::tuple{"qkv", &b.qkv, &a.qkv},
                                          {"out", &b.out, &a.out},
                                          {"gate_up", &b.gate_up, &a.gate_up},
                                          {"down", &b.down, &a.down}})
      tensors[fmt::format("model.layers.{}.{}", l, name)] = error_of(*got, *want);
  }
  tensors["lm_head"] = error_of(packed->head(), source->head());
  json out = {{"format", kernels::name(format)},
              {"bytes", packed->weight_bytes()},
              {"source_bytes", source->weight_bytes()},
              {"tensors", std::move(tensors)},
              {"check", nullptr}};
  if (o.check_tokens > 0) {
    PARLANDO_TRY(out["check"], compared(source, *packed, o.check_tokens));
  }
  return out;
} catch (const std::exception& e) {
  return fail(Errc::internal, "quantizing failed: {}", e.what());
}

}  // namespace parlando::cli
