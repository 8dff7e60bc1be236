#pragma once
/// `parlando bench NAME`: real-time factor, latency, share of bandwidth or FLOP/s, with spread. Warm-up first, at least
/// five runs.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

struct BenchOptions {
  std::string name;                      ///< tokenizer | lm | flow | vocoder | tts | speaker
  std::filesystem::path model_path;      ///< measured when no random weights are asked for
  std::filesystem::path random_weights;  ///< a configuration: random weights of that size
  std::filesystem::path source;          ///< of the repository: configurations, and the commit that is measured
  std::filesystem::path output;          ///< lm: file for the figures; empty: none
  std::filesystem::path baseline;        ///< lm: earlier figures, which these are compared with; empty: none
  std::vector<std::string> only;         ///< lm: parts of `kLmParts`; empty: all
  int threads = 1, runs = 5;
  int sessions = 0;    ///< tokenizer: streams that are read one after the other and side by side; 0: not measured
  double seconds = 3;  ///< of audio
  double prompt_seconds = 0;  ///< flow, tts: of a voice prompt in front of it
  bool bf16 = false;          ///< flow, tts: the estimator in bf16
};

/// @return one JSON object with the figures that were also printed
Result<nlohmann::json> run_bench(const BenchOptions& options);

/// Largest resident size of this process, bytes.
std::int64_t peak_memory_bytes();

}  // namespace parlando::cli
