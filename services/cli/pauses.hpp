#pragma once
/// `parlando pauses`: a recording as the engine hears a user. Where speech pauses the tokenizer is asked as in a
/// conversation, and says how complete the utterance sounds there.
#include <filesystem>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

struct PausesOptions {
  std::filesystem::path model_path, vad_weights;
  std::vector<std::string> recordings;
  std::filesystem::path list;    ///< more of them, one a line
  std::filesystem::path states;  ///< float32 [pauses, TurnEnd::kRows, width], zeros in front of short ones
  bool live = false;             ///< mode `stable` instead of `exact`
  int tail_ms = 200;             ///< of sound behind the pause that count, as the controller's key of that name
};

/// One JSON object a recording, or a line of text a pause. An utterance ends where nothing is said for four seconds or
/// the recording, which is followed by a second of silence, ends.
/// @error of the first recording that cannot be read
Result<void> print_pauses(const PausesOptions& options, bool as_json);

}  // namespace parlando::cli
