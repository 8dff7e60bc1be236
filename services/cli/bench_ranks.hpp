#pragma once
/// Two ranks against one in threads of this process: what `parlando bench lm` tells of a model that is shared.
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "common/base/result.hpp"
#include "services/llm/model/step1.hpp"

namespace parlando::cli {

struct RankBenchOptions {
  llm::Step1Config config;  ///< random weights of this shape, held twice: whole and in two parts
  llm::WeightFormat format = llm::WeightFormat::bf16;
  int threads = 1;  ///< of each rank
  int runs = 5;
  std::int64_t context = 256, prefill = 512;  ///< of the decode steps, at most that of the prefill
  int calls = 20'000;                         ///< of the all-reduce, in each run
};

/// A figure of several runs.
struct Figure {
  std::string name;  ///< in the JSON, with dots
  double value = 0, low = 0, median = 0, high = 0;
  const char* unit = "";
};

/// `ranks_2_speedup`: decode steps, one row; `ranks_2_prefill_speedup`; the fastest runs of two ranks against those of
/// one, measured by turns. `ranks_2_bandwidth_ratio`: reads of twice the threads against reads, what a decode step can
/// gain at most. `all_reduce_us.p50` and `.p99`: 3072 floats, medians of the runs.
/// @param memory  what is read for the bandwidth, far larger than the caches
/// @error those of groups and passes
Result<std::vector<Figure>> bench_ranks(const RankBenchOptions& options, std::span<const float> memory);

/// Puts a figure into the JSON of a benchmark, its spread into `spread`.
void put(const Figure& figure, nlohmann::json& out, nlohmann::json& spread);

}  // namespace parlando::cli
