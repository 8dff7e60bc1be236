#pragma once
/// Turns official model directories, as they are on disk, into directories of safetensors that services load.
///
/// | kind | recognised by | becomes |
/// |---|---|---|
/// | tokenizer | `linguistic_tokenizer.npy` | `tokenizer.json`, `linguistic.safetensors`, `semantic.safetensors` |
/// | vocoder | `cosyvoice.yaml` or a `config.json` with the key `flow` | `config.json`, `flow.safetensors`,
/// `hift.safetensors`, `campplus.safetensors` | | lm | `config.json` with `num_attention_groups` | the same files,
/// safetensors untouched | | vad | `silero_vad_16k_op15.onnx` | `silero_vad.safetensors` | | bundle | sub-directories
/// of the kinds above | the same sub-directories |
///
/// Every output directory gets a `manifest.json` with source, size, SHA-256 and the shape and type of each tensor.
#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>

#include "common/checkpoint/tensor_data.hpp"

namespace parlando::checkpoint {

/// Called with what is being done and the share of the work done, in [0, 1].
using Progress = std::function<void(const std::string& what, double done)>;

/// @error names the missing or malformed file and what was expected where.
Result<void> import_directory(const std::filesystem::path& source, const std::filesystem::path& target,
                              const Progress& progress = {});

/// The vocoder's configuration in one normal form, from `config.json` or from the tagged `cosyvoice.yaml`.
Result<nlohmann::json> read_vocoder_config(const std::filesystem::path& directory);

/// `am.mvn`: {shift, rescale}. @error Errc::bad_format when a section is missing or not a number.
struct Cmvn {
  std::vector<float> shift, rescale;
};
Result<Cmvn> parse_cmvn(std::string_view text, const std::string& name);

/// Reads flow.safetensors, or flow.pt when there is no safetensors file; likewise hift.
Result<TensorMap> read_tensors(const std::filesystem::path& stem);

}  // namespace parlando::checkpoint
