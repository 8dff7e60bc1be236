#pragma once
/// Part of `parlando bench tts`: from a sentence's text to its first sound. The services' own cores run in this one
/// thread, so that the figure is what one quiet core needs; links between services come on top (`parlando bench mesh`).
#include <filesystem>
#include <nlohmann/json_fwd.hpp>

#include "common/base/result.hpp"

namespace parlando::cli {

/// Prints a table. @param runs  of each sentence, at least 5; the first sentence of all warms up and does not count
/// @return {median, low, high} of the first audio by the clock and in processor time, of its parts, of whole sentences,
/// and of the least time by which a chunk came before what was there had played
Result<nlohmann::json> bench_first_audio(const std::filesystem::path& model_path, int threads, int runs);

}  // namespace parlando::cli
