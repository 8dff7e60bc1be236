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

/// The same once more as another day has it: each pause lasts 300 to 900 ms, what is said over an answer begins 300 to
/// 700 ms behind its first sound, and murmurs and interruptions have changed places among themselves.
std::vector<Utterance> redrawn(std::vector<Utterance> dialogues, unsigned seed);

/// A recording as it is said at a rate, and where its first word begins and its last one ends: the 10 ms that are
/// louder than a fiftieth of its loudest sample. @error Errc::not_found, Errc::bad_format naming the file
Result<Utterance> read_recording(const std::filesystem::path& file, int rate = 16000);
/// All WAVs of a folder, by name. @error Errc::not_found when there is none
Result<std::vector<Utterance>> read_recordings(const std::filesystem::path& folder, int rate = 16000);

/// s16le of samples in [-1, 1] and, added to them, the sound of a quiet room.
std::string in_a_room(std::span<const float> wave);

}  // namespace parlando::cli
