#pragma once
/// NPY version 1 and 2, little-endian, C order.
#include <filesystem>

#include "common/checkpoint/tensor_data.hpp"

namespace parlando::checkpoint {
Result<TensorData> read_npy(const std::filesystem::path& path);
Result<TensorData> parse_npy(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                             const std::string& name);
}  // namespace parlando::checkpoint
