#pragma once
/// Reads tensors out of a `torch.save` file (zip archive with stored entries + pickle). A fixed, small set of pickle
/// opcodes is interpreted as data; every other opcode or global is refused, so nothing in the file is ever executed.
#include <filesystem>

#include "common/checkpoint/tensor_data.hpp"

namespace parlando::checkpoint {

/// Tensors by name, contiguous; views of shared storages are resolved. Accepts a bare OrderedDict or one nested under
/// `state_dict`, and strips a `module.` prefix that every key has, as the official loaders do.
/// @error Errc::bad_format naming the file and what was found; Errc::unsupported for another global, opcode or
/// compression.
Result<TensorMap> read_torch_file(const std::filesystem::path& path);
Result<TensorMap> parse_torch_file(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                   const std::string& name);

}  // namespace parlando::checkpoint
