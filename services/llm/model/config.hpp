#pragma once
/// Shape of a Step-1 checkpoint and the part of it that one tensor-parallel rank holds. Source: docs/lm.md §1, §10.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::llm {

struct Step1Config {
  std::int64_t hidden = 0, inner = 0, heads = 0, groups = 0, layers = 0, vocabulary = 0, length_max = 0;
  double norm_eps = 0;
  std::int32_t bos = 1, eos = 3, pad = 0;
  std::string dtype;                    ///< torch_dtype of the file
  std::string reply_format = "direct";  ///< direct | transcript_first (ARCHITECTURE.md, "One spoken turn offline")
  bool tool_calls = false;              ///< the model was trained on <|CALL_START|>…<|CALL_END|>
  /// How tools are told: in a turn of this role behind the system's. Empty: the model knows its own and reads no
  /// others.
  std::string tool_prompt;
  /// What is answered in place of the model where it gave nothing to say; empty: an empty reply. Part of a model, never
  /// of the engine.
  struct FallbackReplies {
    std::string no_reply;  ///< a transcript and nothing after it
    std::string bad_call;  ///< a tool call that is no call
  } fallback_replies;
  std::int64_t dim() const { return hidden / heads; }

  /// @error Errc::bad_json or Errc::checkpoint_mismatch; a missing size is an error, never a default
  static Result<Step1Config> load(const std::filesystem::path& file);
};

/// Slopes of the attention bias for all heads of the model: 2^(−8(h+1)/c) for the first c = 2^⌊log2 N⌋, then the odd
/// half steps.
std::vector<float> alibi_slopes(std::int64_t heads);

struct Range {
  std::int64_t first = 0, last = 0;
  std::int64_t count() const { return last - first; }
  bool operator==(const Range&) const = default;
};

/// What rank `rank` of `ranks` loads. @error Errc::invalid_argument when the sizes do not divide
struct Shard {
  Range query_heads, kv_groups, q_rows, kv_rows, inner_rows, vocabulary_rows;
  std::vector<float> slopes;  ///< of the global head count, sliced
  static Result<Shard> plan(const Step1Config& config, int rank, int ranks);
};

}  // namespace parlando::llm
