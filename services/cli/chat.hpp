#pragma once
/// `parlando chat`: a conversation in a terminal, typed or spoken.
#include <string>

#include "services/cli/client.hpp"
#include "services/cli/command.hpp"

namespace parlando::cli {

struct ChatOptions {
  EngineAddress address;
  std::string system, speaker;
  bool speaks = false;   ///< answers are heard, too
  bool listens = false;  ///< to the microphone; answers are heard
  bool mutes = false;    ///< the microphone while an answer is heard: for loudspeakers without headphones
  std::string detector = "semantic";
  std::string microphone, loudspeaker;  ///< devices of ALSA; empty: its default
  bool trace = false;
};

/// Until the end of the input, or Ctrl-C; during an answer Ctrl-C stops that. @return the exit code
int chat(const Common& common, const ChatOptions& options);

}  // namespace parlando::cli
