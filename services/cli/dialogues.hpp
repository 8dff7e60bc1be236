#pragma once
/// Labelled dialogues (`models/nano/dialogues`): recordings with their true ends of speech, their pauses that are no
/// ends, and what is said over the answer to them.
#include <filesystem>
#include <span>
#include <vector>

#include "services/cli/ws_load.hpp"

namespace parlando::cli {

/// `dialogues.json` of the folder as a list to be said, in its order.
/// @error naming the file, the snippet and what is wrong with it
Result<std::vector<Utterance>> read_dialogues(const std::filesystem::path& folder);

/// s16le of samples in [-1, 1] and, added to them, the sound of a quiet room.
std::string in_a_room(std::span<const float> wave);

}  // namespace parlando::cli
