#pragma once
/// `parlando talk`: a recorded or typed question, and its spoken answer.
#include <string>

#include "services/cli/client.hpp"
#include "services/cli/command.hpp"

namespace parlando::cli {

struct TalkOptions {
  EngineAddress address;
  std::string recording, text, output, system, speaker;
  bool live = false;                 ///< the recording in real time, in front of a detector
  std::string detector = "silence";  ///< of `live`: silence or semantic
  bool trace = false;                ///< draw the parts of the turn's time
  std::string batch_file, out_dir = "out";
  bool no_speech = false;
};

/// @return the exit code
int talk(const Common& common, const TalkOptions& options);
/// One JSON object a line: {wav | text, history?: [{role, content}], system?, speaker?, output?}; answers one JSON
/// object a line, in order. A line that fails does not end the batch.
int talk_batch(const Common& common, const TalkOptions& options);

}  // namespace parlando::cli
