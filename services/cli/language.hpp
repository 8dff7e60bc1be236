#pragma once
/// `parlando generate`: ids that a language model puts behind others, so that formats of its weights can be compared
/// from outside. `parlando quantize`: a checkpoint with packed weights and what that cost.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>

#include "common/base/result.hpp"

namespace parlando::cli {

struct GenerateOptions {
  std::filesystem::path model;
  std::string ids;     ///< "1,4,17"
  std::string format;  ///< f32, bf16, int8, int4; empty: as the file's type says
  std::int64_t tokens_max = 64;
  bool greedy = false;
  std::uint64_t seed = 1;
  int threads = 1;  ///< of each rank
  int ranks = 1;    ///< threads of this process that share the model
};
/// @return {ids, finish, format}; finish is stop (the end of a turn, not among the ids) or length
/// @error Errc::invalid_argument (ids, format), those of loading and of the engine
Result<nlohmann::json> generate(const GenerateOptions& options);

struct QuantizeOptions {
  std::filesystem::path source, target;
  std::string format = "int8";      ///< bf16, int8 or int4
  std::int64_t check_tokens = 512;  ///< of the comparison; 0 makes none
  std::filesystem::path dialogues;  ///< labelled recordings that both write down; empty: none
  int task_max = 1 << 20;           ///< of them, at most
  int threads = 1;
};
/// Writes the packed weights and what else the directory holds into a new one. Source and target are never both in
/// memory: what is compared of the source is kept, and of the target the file is read that was written. @return
/// {format, bytes, source_bytes, tensors: {name: relative error}, check: {tokens, perplexity, perplexity_packed,
/// divergence, same_first}, task: {recordings, words, source: {word_errors, word_error_rate, exact}, packed: {…},
/// same}}: of text that the source itself wrote, and how often both put the same id first; of the recordings' labels,
/// transcripts behind a greedy choice, and how often both are the same. `source_bytes`: in the type of the
/// file. task is
/// null where there is nothing to judge: no dialogues, a model for speech, or no speech tokenizer beside it
/// @error Errc::invalid_argument (the target, or TARGET.part, is there; the format), Errc::io, those of loading
Result<nlohmann::json> quantize(const QuantizeOptions& options);

}  // namespace parlando::cli
