#include "common/checkpoint/import.hpp"

#include <openssl/evp.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/base/hex.hpp"
#include "common/base/mapped_file.hpp"
#include "common/checkpoint/npy.hpp"
#include "common/checkpoint/onnx.hpp"
#include "common/checkpoint/safetensors.hpp"
#include "common/checkpoint/torch_zip.hpp"

namespace parlando::checkpoint {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

Result<std::string> sha256_of(const fs::path& path) {
  PARLANDO_TRY(const auto file, MappedFile::open(path));
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_Digest(file.bytes().data(), file.bytes().size(), digest, &size, EVP_sha256(), nullptr) != 1)
    return fail(Errc::internal, "SHA-256 of '{}' failed", path.string());
  return to_hex({digest, size});
}

/// Resolves `!ref <key>` and `!ref <a> * <b>` and turns tagged YAML into JSON.
json to_json(const YAML::Node& node, const YAML::Node& root, int depth = 0) {
  if (depth > 24) raise(Errc::bad_format, "YAML is nested too deeply");
  if (node.IsMap()) {
    json out = json::object();
    for (const auto& item : node) {
      const auto value = item.second;
      if (value.Tag().starts_with("!apply:")) continue;
      out[item.first.as<std::string>()] = to_json(value, root, depth + 1);
    }
    return out;
  }
  if (node.IsSequence()) {
    json out = json::array();
    for (const auto& item : node) out.push_back(to_json(item, root, depth + 1));
    return out;
  }
  if (!node.IsScalar()) return nullptr;
  auto text = node.Scalar();
  if (node.Tag() == "!ref") {
    auto resolve = [&](std::string name) -> double {
      const auto open = name.find('<'), close = name.find('>');
      if (open == std::string::npos || close == std::string::npos || close < open) return std::stod(name);
      const auto key = name.substr(open + 1, close - open - 1);
      if (!root[key]) raise(Errc::bad_format, "YAML refers to '{}', which does not exist", key);
      return root[key].as<double>();
    };
    try {
      double value = 1;
      std::stringstream parts(text);
      for (std::string part; std::getline(parts, part, '*');) value *= resolve(part);
      return value == std::floor(value) ? json(static_cast<std::int64_t>(value)) : json(value);
    } catch (const std::logic_error&) {
      raise(Errc::bad_format, "YAML reference '{}' is not a number", text);
    }
  }
  if (text == "True" || text == "true") return true;
  if (text == "False" || text == "false") return false;
  if (text == "null" || text == "~" || text.empty()) return nullptr;
  if (node.Tag() != "!") {  // unquoted: a number if it reads as one
    std::int64_t integer = 0;
    if (YAML::convert<std::int64_t>::decode(node, integer)) return integer;
    double number = 0;
    if (YAML::convert<double>::decode(node, number)) return number;
  }
  return text;
}

Result<json> read_yaml(const fs::path& path) try {
  PARLANDO_TRY(const auto text, read_file(path, 4u << 20));
  const auto root = YAML::Load(text);
  return to_json(root, root);
} catch (const YAML::Exception& e) {
  return fail(Errc::bad_format, "'{}' is not valid YAML: {}", path.string(), e.what());
} catch (const Failure& failure) {
  return fail(failure.error.code, "'{}': {}", path.string(), failure.error.message);
}

Result<json> read_json(const fs::path& path) {
  PARLANDO_TRY(const auto text, read_file(path, 64u << 20));
  json out = json::parse(text, nullptr, false);
  if (!out.is_object()) return fail(Errc::bad_json, "'{}' is not a JSON object", path.string());
  return out;
}

template <class T>
json get_or(const json& from, const char* key, T fallback) {
  return from.is_object() && from.contains(key) && !from[key].is_null() ? from[key] : json(fallback);
}

json tensors_json(const TensorMap& tensors) {
  json out = json::object();
  for (const auto& [name, tensor] : tensors) out[name] = {{"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}};
  return out;
}

/// Trap: the package's own safetensors file holds other weights than this one.
constexpr const char* kSileroOnnx = "silero_vad_16k_op15.onnx";

/// A bundle holds models, a speech model its vocoders: nothing official is deeper.
constexpr int kDepthMax = 4;

class Importer {
 public:
  Importer(fs::path source, fs::path target, Progress progress, int depth = 0)
      : source_(std::move(source)), target_(std::move(target)), progress_(std::move(progress)), depth_(depth) {}

  Result<void> run() {
    std::error_code code;
    if (!fs::is_directory(source_)) return fail(Errc::not_found, "'{}' is not a directory", source_.string());
    PARLANDO_DO(expect_apart());
    fs::create_directories(target_, code);
    if (code) return fail(Errc::io, "cannot create '{}': {}", target_.string(), code.message());
    manifest_ = {{"format", 1}, {"source", source_.filename().string()}, {"files", json::object()}};
    if (fs::exists(source_ / "linguistic_tokenizer.npy")) {
      PARLANDO_DO(tokenizer());
    } else if (fs::exists(source_ / "cosyvoice.yaml") || fs::exists(source_ / "flow.safetensors") ||
               fs::exists(source_ / "flow.pt")) {
      PARLANDO_DO(vocoder());
    } else if (fs::exists(source_ / kSileroOnnx)) {
      PARLANDO_DO(vad());
    } else if (fs::exists(source_ / "config.json") &&
               (fs::exists(source_ / "model.safetensors") || fs::exists(source_ / "model.safetensors.index.json"))) {
      PARLANDO_DO(lm());
    } else {
      return bundle();
    }
    return write_file(target_ / "manifest.json", manifest_.dump(1) + "\n");
  }

 private:
  /// A target inside its source would be found there as one more thing to import, without end. Links and `..` are
  /// followed before comparing.
  Result<void> expect_apart() const {
    std::error_code code;
    const auto from = fs::canonical(source_, code);
    if (code) return fail(Errc::io, "cannot resolve '{}': {}", source_.string(), code.message());
    const auto to = fs::weakly_canonical(fs::absolute(target_), code);
    if (code) return fail(Errc::io, "cannot resolve '{}': {}", target_.string(), code.message());
    if (from == to) return fail(Errc::invalid_argument, "source and target are both '{}'", from.string());
    if (std::mismatch(from.begin(), from.end(), to.begin(), to.end()).first == from.end())
      return fail(Errc::invalid_argument, "the target '{}' lies inside the source '{}': choose a folder outside of it",
                  target_.string(), source_.string());
    if (depth_ > kDepthMax)
      return fail(Errc::invalid_argument, "'{}' is nested more than {} deep: is a link of the source a loop?",
                  source_.string(), kDepthMax);
    return {};
  }

  void tell(const std::string& what, double done) const {
    if (progress_) progress_((source_ / what).string(), done);
  }

  Result<void> save(const std::string& file, const TensorMap& tensors,
                    const std::map<std::string, std::string>& metadata, const std::string& from) {
    PARLANDO_DO(write_safetensors(target_ / file, tensors, metadata));
    PARLANDO_TRY(const auto digest, sha256_of(target_ / file));
    manifest_["files"][file] = {{"from", from},
                                {"sha256", digest},
                                {"bytes", fs::file_size(target_ / file)},
                                {"tensors", tensors_json(tensors)}};
    return {};
  }

  Result<void> tokenizer() {
    fs::path asr;
    for (const auto& entry : fs::recursive_directory_iterator(source_))
      if (entry.path().filename() == "am.mvn") asr = entry.path().parent_path();
    if (asr.empty())
      return fail(Errc::not_found, "'{}' holds no FunASR directory (one with am.mvn, config.yaml, model.pt)",
                  source_.string());
    tell("linguistic encoder", 0.0);
    PARLANDO_TRY(const auto yaml, read_yaml(asr / "config.yaml"));
    const auto encoder = get_or(yaml, "encoder_conf", json::object());
    const auto front = get_or(yaml, "frontend_conf", json::object());
    for (const char* key : {"output_size", "attention_heads"})
      if (!encoder.contains(key))
        return fail(Errc::bad_format, "'{}' has no encoder_conf.{}", (asr / "config.yaml").string(), key);
    for (const auto& [key, want] : {std::pair{"lfr_m", 7}, {"lfr_n", 6}, {"n_mels", 80}, {"fs", 16000}})
      if (get_or(front, key, want) != want)
        return fail(Errc::unsupported, "frontend_conf.{} is {}, only {} is supported", key, front[key].dump(), want);
    PARLANDO_TRY(auto all, read_tensors(asr / "model"));
    TensorMap linguistic;
    for (auto& [name, tensor] : all)
      if (name.starts_with("encoder.")) linguistic.emplace(name, std::move(tensor));
    PARLANDO_TRY(const auto mvn_text, read_file(asr / "am.mvn", 4u << 20));
    PARLANDO_TRY(auto cmvn, parse_cmvn(mvn_text, (asr / "am.mvn").string()));
    const auto width = static_cast<std::int64_t>(cmvn.shift.size());
    linguistic["cmvn.shift"] = make_f32({width}, std::move(cmvn.shift));
    linguistic["cmvn.rescale"] = make_f32({width}, std::move(cmvn.rescale));
    PARLANDO_TRY(auto centroids, read_npy(source_ / "linguistic_tokenizer.npy"));
    if (centroids.shape.size() != 2 || centroids.dtype != Dtype::f32)
      return fail(Errc::bad_format, "linguistic_tokenizer.npy is {} {}, a float32 matrix is expected",
                  name_of(centroids.dtype), to_string(centroids.shape));
    linguistic["kmeans.centroids"] = std::move(centroids);
    PARLANDO_DO(save("linguistic.safetensors", linguistic, {}, fs::relative(asr, source_).string()));
    tell("semantic encoder", 0.5);
    const auto torch_form = source_ / "speech_tokenizer_v1.safetensors",
               onnx_form = source_ / "speech_tokenizer_v1.onnx";
    TensorMap semantic;
    std::string heads;
    if (fs::exists(onnx_form)) {
      PARLANDO_TRY(const auto graph, read_onnx(onnx_form));
      PARLANDO_TRY(auto weights, semantic_weights_of(graph, onnx_form.string()));
      semantic = std::move(weights.tensors);
      heads = std::to_string(weights.heads);
    } else {
      PARLANDO_TRY(auto file, read_safetensors(torch_form));
      semantic = std::move(file.tensors);
      heads = file.metadata["n_head"];
      if (heads.empty()) return fail(Errc::bad_format, "'{}' lacks the metadata key n_head", torch_form.string());
    }
    PARLANDO_DO(save("semantic.safetensors", semantic, {{"n_head", heads}},
                     fs::exists(onnx_form) ? "speech_tokenizer_v1.onnx" : "speech_tokenizer_v1.safetensors"));
    const json config = {
        {"linguistic",
         {{"heads", encoder["attention_heads"]}, {"dither", 0.0}, {"dither_official", get_or(front, "dither", 1.0)}}},
        {"semantic", {{"heads", std::stoll(heads)}}}};
    tell("done", 1.0);
    return write_file(target_ / "tokenizer.json", config.dump(1) + "\n");
  }

  Result<void> vad() {
    PARLANDO_TRY(const auto graph, read_onnx(source_ / kSileroOnnx));
    TensorMap tensors;
    for (const auto& [name, tensor] : graph.initializers)
      if (name.starts_with("model.")) tensors.emplace(name, tensor);
    return save("silero_vad.safetensors", tensors, {}, kSileroOnnx);
  }

  Result<void> vocoder() {
    PARLANDO_TRY(const auto config, read_vocoder_config(source_));
    PARLANDO_DO(write_file(target_ / "config.json", config.dump(1) + "\n"));
    double done = 0;
    for (const char* part : {"flow", "hift"}) {
      tell(part, done += 0.3);
      PARLANDO_TRY(const auto tensors, read_tensors(source_ / part));
      PARLANDO_DO(save(std::string(part) + ".safetensors", tensors, {},
                       fs::exists(source_ / (std::string(part) + ".pt")) ? std::string(part) + ".pt"
                                                                         : std::string(part) + ".safetensors"));
    }
    if (fs::exists(source_ / "campplus.onnx")) {
      tell("speaker encoder", 0.9);
      PARLANDO_TRY(const auto graph, read_onnx(source_ / "campplus.onnx"));
      PARLANDO_TRY(const auto tensors, campplus_weights_of(graph, (source_ / "campplus.onnx").string()));
      PARLANDO_DO(save("campplus.safetensors", tensors, {}, "campplus.onnx"));
    } else if (fs::exists(source_ / "campplus.safetensors")) {
      PARLANDO_TRY(const auto file, read_safetensors(source_ / "campplus.safetensors"));
      PARLANDO_DO(save("campplus.safetensors", file.tensors, file.metadata, "campplus.safetensors"));
    }
    return {};
  }

  Result<void> lm() {
    PARLANDO_TRY(const auto model, read_safetensors_model(source_));
    std::error_code code;
    for (const auto& entry : fs::directory_iterator(source_)) {
      const auto extension = entry.path().extension();
      if (!entry.is_regular_file() || (extension != ".json" && extension != ".safetensors" && extension != ".model"))
        continue;
      tell(entry.path().filename().string(), 0.5);
      fs::copy_file(entry.path(), target_ / entry.path().filename(), fs::copy_options::overwrite_existing, code);
      if (code) return fail(Errc::io, "cannot copy '{}': {}", entry.path().string(), code.message());
      PARLANDO_TRY(const auto digest, sha256_of(target_ / entry.path().filename()));
      manifest_["files"][entry.path().filename().string()] = {{"sha256", digest}, {"bytes", entry.file_size()}};
    }
    manifest_["tensors"] = tensors_json(model.tensors);
    for (const char* sub : {"CosyVoice-300M-25Hz", "CosyVoice-300M-25Hz-Music"})
      if (fs::is_directory(source_ / sub))
        PARLANDO_DO(Importer(source_ / sub, target_ / sub, progress_, depth_ + 1).run());
    return copy_plain_directories();
  }

  Result<void> copy_plain_directories() {
    std::error_code code;
    if (fs::is_directory(source_ / "speakers")) {
      fs::copy(source_ / "speakers", target_ / "speakers",
               fs::copy_options::recursive | fs::copy_options::overwrite_existing, code);
      if (code) return fail(Errc::io, "cannot copy '{}': {}", (source_ / "speakers").string(), code.message());
    }
    return {};
  }

  Result<void> bundle() {
    int count = 0;
    for (const auto& entry : fs::directory_iterator(source_)) {
      if (!entry.is_directory() || entry.path().filename() == "speakers") continue;
      PARLANDO_DO(Importer(entry.path(), target_ / entry.path().filename(), progress_, depth_ + 1).run());
      ++count;
    }
    if (count == 0)
      return fail(Errc::not_found,
                  "'{}' is no model directory: expected linguistic_tokenizer.npy (tokenizer), cosyvoice.yaml "
                  "(vocoder), config.json + model.safetensors (language "
                  "model), or sub-directories Step-Audio-Tokenizer, Step-Audio-Chat, Step-Audio-TTS-3B",
                  source_.string());
    return copy_plain_directories();
  }

  fs::path source_, target_;
  Progress progress_;
  int depth_;
  json manifest_;
};

}  // namespace

Result<TensorMap> read_tensors(const fs::path& stem) {
  const fs::path safe = stem.string() + ".safetensors", torch = stem.string() + ".pt";
  if (fs::exists(torch)) return read_torch_file(torch);
  if (!fs::exists(safe)) return fail(Errc::not_found, "neither '{}' nor '{}' exists", torch.string(), safe.string());
  PARLANDO_TRY(auto file, read_safetensors(safe));
  return std::move(file.tensors);
}

Result<Cmvn> parse_cmvn(std::string_view text, const std::string& name) {
  auto section = [&](std::string_view tag) -> Result<std::vector<float>> {
    const auto at = text.find(tag);
    const auto open = at == std::string_view::npos ? at : text.find('[', at),
               close = open == std::string_view::npos ? open : text.find(']', open);
    if (close == std::string_view::npos) return fail(Errc::bad_format, "'{}' has no {} section", name, tag);
    std::vector<float> values;
    std::istringstream stream{std::string(text.substr(open + 1, close - open - 1))};
    for (std::string word; stream >> word;) {
      char* end = nullptr;
      const float value = std::strtof(word.c_str(), &end);
      if (end == word.c_str() || *end != '\0' || !std::isfinite(value))
        return fail(Errc::bad_format, "'{}': '{}' in {} is not a number", name, word, tag);
      values.push_back(value);
    }
    return values;
  };
  PARLANDO_TRY(auto shift, section("<AddShift>"));
  PARLANDO_TRY(auto rescale, section("<Rescale>"));
  if (shift.size() != 560 || rescale.size() != 560)
    return fail(Errc::bad_format, "'{}' has {} shifts and {} scales, 560 are expected", name, shift.size(),
                rescale.size());
  return Cmvn{std::move(shift), std::move(rescale)};
}

Result<json> read_vocoder_config(const fs::path& directory) {
  json raw;
  if (fs::exists(directory / "config.json")) {
    PARLANDO_TRY(raw, read_json(directory / "config.json"));
    if (raw.contains("flow") && raw["flow"].contains("cfm")) return raw;  // already the normal form
  } else {
    PARLANDO_TRY(raw, read_yaml(directory / "cosyvoice.yaml"));
  }
  if (!raw.contains("flow") || !raw["flow"].is_object() || !raw.contains("hift") || !raw["hift"].is_object())
    return fail(Errc::bad_format, "'{}' describes no flow and hift", directory.string());
  const auto& flow = raw["flow"];
  const auto encoder = get_or(flow, "encoder", json::object()), decoder = get_or(flow, "decoder", json::object());
  auto cfm = get_or(decoder, "cfm_params", json::object());
  if (cfm.contains("content")) cfm = cfm["content"];
  const auto estimator = get_or(decoder, "estimator", json::object());
  const auto& hift = raw["hift"];
  if (!flow.contains("input_frame_rate"))
    return fail(Errc::bad_format, "'{}' has no flow.input_frame_rate", directory.string());
  json out;
  out["sample_rate"] = get_or(raw, "sample_rate", 22050);
  out["spk_embed_dim"] = get_or(raw, "spk_embed_dim", 192);
  out["flow"] = {{"input_size", get_or(flow, "input_size", 512)},
                 {"output_size", get_or(flow, "output_size", 80)},
                 {"vocab_size", get_or(flow, "vocab_size", 4096)},
                 {"input_frame_rate", flow["input_frame_rate"]},
                 {"encoder",
                  {{"input_size", get_or(encoder, "input_size", 512)},
                   {"output_size", get_or(encoder, "output_size", 512)},
                   {"attention_heads", get_or(encoder, "attention_heads", 8)},
                   {"linear_units", get_or(encoder, "linear_units", 2048)},
                   {"num_blocks", get_or(encoder, "num_blocks", 6)}}},
                 {"cfm",
                  {{"sigma_min", get_or(cfm, "sigma_min", 1e-6)},
                   {"solver", get_or(cfm, "solver", "euler")},
                   {"t_scheduler", get_or(cfm, "t_scheduler", "cosine")},
                   {"inference_cfg_rate", get_or(cfm, "inference_cfg_rate", 0.7)},
                   {"n_timesteps", get_or(cfm, "n_timesteps", 10)}}},
                 {"estimator",
                  {{"in_channels", get_or(estimator, "in_channels", 320)},
                   {"out_channels", get_or(estimator, "out_channels", 80)},
                   {"channels", get_or(estimator, "channels", json::array({256, 256}))},
                   {"attention_head_dim", get_or(estimator, "attention_head_dim", 64)},
                   {"n_blocks", get_or(estimator, "n_blocks", 4)},
                   {"num_mid_blocks", get_or(estimator, "num_mid_blocks", 12)},
                   {"num_heads", get_or(estimator, "num_heads", 8)},
                   {"act_fn", get_or(estimator, "act_fn", "gelu")}}}};
  auto& h = out["hift"];
  h = hift;
  for (const auto& [key, value] : std::initializer_list<std::pair<const char*, json>>{
           {"in_channels", 80},
           {"base_channels", 512},
           {"nb_harmonics", 8},
           {"sampling_rate", 22050},
           {"nsf_alpha", 0.1},
           {"nsf_sigma", 0.003},
           {"nsf_voiced_threshold", 10},
           {"upsample_rates", {8, 8}},
           {"upsample_kernel_sizes", {16, 16}},
           {"istft_params", {{"n_fft", 16}, {"hop_len", 4}}},
           {"resblock_kernel_sizes", {3, 7, 11}},
           {"resblock_dilation_sizes", {{1, 3, 5}, {1, 3, 5}, {1, 3, 5}}},
           {"source_resblock_kernel_sizes", {7, 11}},
           {"source_resblock_dilation_sizes", {{1, 3, 5}, {1, 3, 5}}},
           {"lrelu_slope", 0.1},
           {"audio_limit", 0.99}})
    if (!h.contains(key)) h[key] = value;
  return out;
}

Result<void> import_directory(const fs::path& source, const fs::path& target, const Progress& progress) try {
  return Importer(source, target, progress).run();
} catch (const fs::filesystem_error& e) {
  return fail(Errc::io, "import of '{}' failed: {}", source.string(), e.what());
} catch (const json::exception& e) {
  return fail(Errc::bad_format, "import of '{}' failed: {}", source.string(), e.what());
}

}  // namespace parlando::checkpoint
