#pragma once
/// safetensors: 8-byte little-endian header length, JSON header, raw data. Reading maps the file; nothing is copied.
#include <filesystem>

#include "common/checkpoint/tensor_data.hpp"

namespace parlando::checkpoint {

struct Safetensors {
  TensorMap tensors;
  std::map<std::string, std::string> metadata;
};

/// Checks the header completely: known types, non-overlapping offsets inside the file, sizes that match the shapes.
/// @error Errc::bad_format naming the file, the tensor and both values; Errc::not_found; Errc::io.
Result<Safetensors> read_safetensors(const std::filesystem::path& path);

/// The same on bytes in memory; `owner` keeps them alive.
Result<Safetensors> parse_safetensors(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                      const std::string& name);

/// A directory with `model.safetensors.index.json` (the index is authoritative) or `model.safetensors`, or one file.
Result<Safetensors> read_safetensors_model(const std::filesystem::path& path);

Result<void> write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                               const std::map<std::string, std::string>& metadata = {});

}  // namespace parlando::checkpoint
