#pragma once
/// What a Step-1 model needs on a group of ranks, and how fast it can be at best: weights, key/value cache, work space,
/// bytes to read and sums to exchange in a decode step. A model of arithmetic, not a measurement: the rates of the
/// machine are given, and what no machine avoids is counted (weights and keys read once a step, every token's
/// products).
#include <nlohmann/json.hpp>
#include <string>

#include "services/llm/model/step1.hpp"

namespace parlando::cli {

using kernels::WeightFormat;
/// @error Errc::invalid_argument that lists the names
Result<WeightFormat> weight_format(const std::string& name);
/// Bytes of a [rows, columns] linear weight as it is packed: whole panels of 16 rows, scales included.
std::int64_t linear_bytes(WeightFormat format, std::int64_t rows, std::int64_t columns);

/// One rank's device, and what a sum over all ranks costs.
struct RankMachine {
  double memory_gb = 80;         ///< 10⁹ bytes
  double memory_share = 0.92;    ///< that may be used
  double bandwidth_gb_s = 3350;  ///< measured read bandwidth
  double bandwidth_share = 0.8;  ///< that kernels reach
  double tflops = 400;           ///< of products with many rows, as reached
  double link_gb_s = 200;        ///< between ranks, one direction
  double all_reduce_us = 15;     ///< of the smallest sum
};

struct CapacityLoad {
  int ranks = 1;
  std::int64_t streams = 1;     ///< that decode at once
  std::int64_t context = 2000;  ///< tokens of each
  std::int64_t prefill = 512;   ///< tokens of a prompt, for its time
  WeightFormat weights = WeightFormat::bf16;
  std::int64_t kv_element_bytes = 2;
};

/// Bytes are of one rank (the largest); times are milliseconds.
struct Capacity {
  std::int64_t parameters = 0;  ///< of the whole model
  std::int64_t weights = 0, kv_per_token = 0, kv = 0, work_space = 0;
  std::int64_t free = 0;              ///< of what may be used; negative: it does not fit
  std::int64_t cache_tokens_max = 0;  ///< what the rest behind weights and work space holds
  std::int64_t step_bytes = 0;        ///< read in a decode step
  double read_ms = 0, compute_ms = 0, exchange_ms = 0, step_ms = 0;
  double tokens_per_s = 0;  ///< of one stream
  double prefill_ms = 0;
  bool fits() const { return free >= 0; }
};

/// Sizes of a model whose files one may not have: `chat-130b`, `tts-3b`. Source: docs/lm.md §1, where those that are
/// inferred say so. @error Errc::invalid_argument that lists the names
Result<llm::Step1Config> published_shape(const std::string& name);

/// @error Errc::invalid_argument when the model cannot be divided or a number is not positive
Result<Capacity> plan_capacity(const llm::Step1Config& model, const RankMachine& machine, const CapacityLoad& load);

nlohmann::json to_json(const Capacity& capacity);
/// A table for people, one line a quantity.
std::string to_text(const Capacity& capacity, const RankMachine& machine, const CapacityLoad& load);

}  // namespace parlando::cli
