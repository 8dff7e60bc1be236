#pragma once
/// Random checkpoints of any size, to measure memory and speed without the official weights.
#include <nlohmann/json_fwd.hpp>

#include "common/checkpoint/tensor_data.hpp"

namespace parlando::cli {

/// Tensors of each network for a configuration (keys as in configs/official/*.json).
checkpoint::TensorMap random_linguistic(const nlohmann::json& config);
checkpoint::TensorMap random_semantic(const nlohmann::json& config);
checkpoint::TensorMap random_flow(const nlohmann::json& config);
checkpoint::TensorMap random_hift(const nlohmann::json& config);
checkpoint::TensorMap random_campplus(const nlohmann::json& config);

}  // namespace parlando::cli
