#pragma once
#include <filesystem>

namespace parlando::cli {
/// Prints what this machine offers and which models are in place. @return 0 when the engine can run here
int doctor(const std::filesystem::path& model_path, bool as_json);
}  // namespace parlando::cli
