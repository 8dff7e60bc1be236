#pragma once
/// `parlando tokenize`: the dual-codebook tokens of a recording, on the model's own classes.
#include <string>

#include "services/cli/command.hpp"

namespace parlando::cli {

struct TokenizeOptions {
  std::string recording;
  bool trim = false;         ///< silence at both ends is cut, as for voice prompts
  bool no_norm = false;      ///< the level stays as it is
  bool live = false;         ///< as if spoken now: how many ids differ from the exact ones
  bool speech_only = false;  ///< only what a conversation would hear as speech
};

/// @return the exit code
int tokenize(const Common& common, const TokenizeOptions& options);

}  // namespace parlando::cli
