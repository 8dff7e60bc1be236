#pragma once
/// `parlando pauses`: a recording as the engine hears a user. Where speech pauses the tokenizer is asked as in a
/// conversation, and says how complete the utterance sounds there.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.hpp"
#include "services/tokenizer/model/speech_tokenizer.hpp"
#include "services/vad/model/silero.hpp"

namespace parlando::cli {

struct PausesOptions {
  std::filesystem::path model_path, vad_weights;
  std::vector<std::string> recordings;
  std::filesystem::path list;      ///< more of them, one a line
  std::filesystem::path states;    ///< float32 [pauses × tails, TurnEnd::kRows, width], zeros in front of short ones
  bool live = false;               ///< mode `stable` instead of `exact`
  int pause_ms = 160;              ///< of silence that the vad tells as a pause
  std::vector<int> tails_ms{200};  ///< rising: of sound behind the pause that count, each judged by itself
};

/// A pause as a vad tells it, and what is thought of it.
struct HeardPause {
  struct Heard {
    at::Tensor rows;  ///< what the network sees; undefined: nothing
    double completeness = tokenizer::TurnEnd::kUnknown;
  };
  std::int64_t begun = 0, sample = 0;        ///< where the utterance begins with its pre-roll, where speech ends
  std::optional<std::int64_t> resumed = {};  ///< where it goes on in the same utterance
  std::vector<Heard> heard = {};             ///< for each tail; fewer where a longer silence has ended the utterance
};
/// Every pause of a recording at 16 kHz, heard as far as each of `options.tails_ms` behind it.
Result<std::vector<HeardPause>> pauses_of(std::vector<float> wave, const std::shared_ptr<const vad::SileroWeights>& vad,
                                          const std::shared_ptr<const tokenizer::SpeechTokenizer>& model,
                                          const PausesOptions& options);

/// One JSON object a recording, or a line of text a pause. An utterance ends where nothing is said for four seconds or
/// the recording, which is followed by a second of silence, ends.
/// @error of the first recording that cannot be read
Result<void> print_pauses(const PausesOptions& options, bool as_json);

}  // namespace parlando::cli
