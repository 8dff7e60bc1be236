#include "services/cli/language.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/nn/threads.hpp"
#include "services/cli/task_accuracy.hpp"
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

/// Of packed rows against the file's, piece by piece: no second copy of a matrix is made.
double error_of(const kernels::PackedMatrix& got, std::span<const at::Tensor> want) {
  constexpr std::int64_t kRows = 256;
  const auto& shape = got.shape();
  const auto panel = shape.panel_bytes();
  double wrong = 0, all = 0;
  std::int64_t row = 0;  // of the matrix
  for (const auto& part : want)
    for (std::int64_t r = 0, n = 0; r < part.size(0); r += n, row += n) {
      // Up to the end of a panel, so that the next piece begins with one.
      n = std::min(kRows - row % kRows, part.size(0) - r);
      const auto first = row / kernels::kPanelRows;
      auto piece = shape;
      piece.rows = std::min(shape.rows - first * kernels::kPanelRows, row % kernels::kPanelRows + n);
      auto values = at::empty({piece.rows, shape.columns});
      kernels::unpack(piece, got.bytes().data() + first * panel, values.data_ptr<float>());
      const auto w = part.narrow(0, r, n).to(at::kFloat);
      const auto d = values.narrow(0, row % kernels::kPanelRows, n) - w;
      wrong += d.square().sum().item<double>(), all += w.square().sum().item<double>();
    }
  return all == 0 ? 0.0 : std::sqrt(wrong / all);
}

/// Log-probabilities [n, V] of what follows each of the ids.
Result<at::Tensor> log_probabilities(const Step1& model, std::span<const std::int32_t> ids) {
  auto pool = model.make_pool(static_cast<std::int64_t>(ids.size()));
  auto sequence = pool->open();
  Step1::Chunk chunk{&sequence, ids};
  PARLANDO_TRY(const auto hidden, model.forward(*pool, {&chunk, 1}));
  return model.logits(hidden).log_softmax(-1);
}

/// Text that a model has written, and how likely it found what it could have written.
struct Written {
  std::vector<std::int32_t> ids;
  at::Tensor log_probabilities;
  std::span<const std::int32_t> inputs() const { return std::span(ids).first(ids.size() - 1); }
};

Result<Written> written_by(const std::shared_ptr<const Step1>& source, std::int64_t tokens) {
  const auto length = std::min(tokens, source->config().length_max - 1);
  llm::LmEngine engine(source, {.cache_tokens = length + 2 * llm::kBlockTokens});
  const llm::Sampling as_it_is{.temperature = 1, .top_k = {}, .seed = 1};
  const std::int32_t first = source->config().bos;
  PARLANDO_DO(engine.open("text"));
  PARLANDO_DO(engine.append("text", 0, {&first, 1}));
  PARLANDO_DO(engine.generate("text", 1, {as_it_is, length}));
  Written out{{first}, {}};
  while (!engine.idle())
    for (const auto& event : engine.step()) {
      if (event.error) return tl::make_unexpected(*event.error);
      if (event.id >= 0) out.ids.push_back(event.id);
    }
  PARLANDO_TRY(out.log_probabilities, log_probabilities(*source, out.inputs()));
  return out;
}

Result<json> compared(const Written& text, const Step1& packed) {
  const auto& a = text.log_probabilities;
  PARLANDO_TRY(const auto b, log_probabilities(packed, text.inputs()));
  std::vector<std::int64_t> next(text.ids.begin() + 1, text.ids.end());
  const auto index = at::tensor(next).unsqueeze(1);
  auto perplexity = [&](const at::Tensor& p) { return std::exp(-p.gather(1, index).mean().item<double>()); };
  return json{{"tokens", next.size()},
              {"perplexity", perplexity(a)},
              {"perplexity_packed", perplexity(b)},
              {"divergence", (a.exp() * (a - b)).sum(-1).mean().item<double>()},
              {"same_first", (a.argmax(-1) == b.argmax(-1)).to(at::kFloat).mean().item<double>()}};
}

/// A directory that is being written, beside its place: what has the name is whole.
class Part {
 public:
  /// @error Errc::invalid_argument when something has that name: whose it is nobody knows
  static Result<Part> make(const fs::path& target) {
    const fs::path path = target.string() + ".part";
    std::error_code error;
    if (fs::exists(fs::symlink_status(path, error)))
      return fail(Errc::invalid_argument,
                  "'{}' is there already: it is yours, or what an interrupted run has left; move or remove it",
                  path.string());
    if (fs::create_directories(path, error); error)
      return fail(Errc::io, "'{}' could not be made: {}", path.string(), error.message());
    return Part(path);
  }
  Part(Part&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  Part& operator=(Part&&) = delete;
  ~Part() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }
  Result<void> rename_to(const fs::path& target) {
    std::error_code error;
    if (fs::rename(path_, target, error); error)
      return fail(Errc::io, "'{}' could not be renamed: {}", path_.string(), error.message());
    path_.clear();
    return {};
  }

 private:
  explicit Part(fs::path path) : path_(std::move(path)) {}
  fs::path path_;
};

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
  const auto inside = fs::weakly_canonical(o.target).lexically_relative(fs::weakly_canonical(o.source));
  if (!inside.empty() && *inside.begin() != "..")
    return fail(Errc::invalid_argument, "'{}' is inside of '{}', expected a directory beside it", o.target.string(),
                o.source.string());
  PARLANDO_TRY(auto part, Part::make(o.target));
  std::vector<LabelledCodes> recordings;
  if (is_judged(o.source) && !o.dialogues.empty()) {
    PARLANDO_TRY(recordings, labelled_codes(o.dialogues, o.source.parent_path() / kTokenizer, o.task_max));
  }
  std::optional<Written> text;
  std::vector<std::string> before;
  if (o.check_tokens > 0 || !recordings.empty()) {
    PARLANDO_TRY(const auto source, Step1::load(o.source, own));
    if (source->format() != own)
      return fail(Errc::invalid_argument, "'{}' is packed as {} already", o.source.string(),
                  kernels::name(source->format()));
    if (o.check_tokens > 0) {
      PARLANDO_TRY(text, written_by(source, o.check_tokens));
    }
    if (!recordings.empty()) {
      PARLANDO_TRY(before, transcripts_of(source, o.source, recordings));
    }
  }
  json out = {{"format", kernels::name(format)}, {"tensors", json::object()}, {"check", nullptr}, {"task", nullptr}};
  {
    std::int64_t source_bytes = 0;
    const auto note = [&](const std::string& name, std::span<const at::Tensor> rows, const kernels::PackedMatrix& as) {
      out["tensors"][name] = error_of(as, rows);
      auto shape = as.shape();
      shape.format = own;
      source_bytes += shape.bytes();
    };
    PARLANDO_TRY(const auto packed, Step1::load(o.source, format, 0, 1, note));
    if (out["tensors"].empty())
      return fail(Errc::unsupported, "'{}' is packed as {} already: quantize the original", o.source.string(),
                  kernels::name(packed->format()));
    out["bytes"] = packed->weight_bytes();
    const auto& config = packed->config();
    source_bytes += packed->embedding().numel() * (own == WeightFormat::f32 ? 4 : 2) +
                    (2 * config.layers + 1) * config.hidden * static_cast<std::int64_t>(sizeof(float));  // norms
    out["source_bytes"] = source_bytes;
    PARLANDO_DO(copy_rest(o.source, part.path()));
    PARLANDO_DO(packed->save(part.path()));
  }
  if (text || !recordings.empty()) {
    PARLANDO_TRY(const auto packed, Step1::load(part.path(), format));
    if (text) {
      PARLANDO_TRY(out["check"], compared(*text, *packed));
    }
    if (!recordings.empty()) {
      PARLANDO_TRY(const auto after, transcripts_of(packed, part.path(), recordings));
      out["task"] = judged(recordings, before, after);
    }
  }
  PARLANDO_DO(part.rename_to(o.target));
  return out;
} catch (const std::exception& e) {
  return fail(Errc::internal, "quantizing failed: {}", e.what());
}

}  // namespace parlando::cli
