#pragma once
/// `parlando tts` and `parlando clone`: a text read out, in a voice of the engine or in that of a recording.
#include <string>

#include "services/cli/client.hpp"
#include "services/cli/command.hpp"

namespace parlando::cli {

struct SpeechJob {
  std::string text, speaker, prompt_text, wav_path, output;
  double speed = 1, volume = 1;
};

struct SpeakOptions {
  EngineAddress address;
  SpeechJob job;
  bool clone = false;
  bool whole = false;  ///< decoded at once instead of as it comes
  std::string batch_file, out_dir = "out";
};

/// @return the exit code
int speak(const Common& common, const SpeakOptions& options);
/// One JSON object a line: {text, speaker?, output?, speed?, volume?, prompt_text?, wav_path?}. Lines whose output
/// exists are skipped; one that fails does not end the batch.
int speak_batch(const Common& common, const SpeakOptions& options);

}  // namespace parlando::cli
