#pragma once
/// One question to an engine and its answer, as any client would have it: over a conversation of the SDK.
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/audio/audio_file.hpp"
#include "common/base/result.hpp"
#include "sdk/cpp/include/parlando/client.hpp"

namespace parlando::cli {

/// Something that is said: one of text, recording and a text that is read out as it stands.
struct Question {
  std::optional<std::string> text;
  std::vector<std::int16_t> pcm;  ///< mono, 16 kHz
  bool live = false;              ///< the recording is said in real time, and silence behind it until it is answered
  std::optional<std::string> utter;
};

/// A recording of any rate as it is sent. Of silence in front and behind (samples of zero) no more than a second each.
/// @error Errc::no_speech when it is too short to hold any
Result<Question> question_of(const audio::Recording& recording);

struct Answer {
  nlohmann::json record;           ///< of `turn`: user, assistant, tool_calls, stages, trace, …
  std::vector<std::int16_t> wave;  ///< mono
  int rate = 0;
  // Milliseconds since the question was begun to be said, by our clock; those that did not happen are negative.
  double end_found = -1;  ///< the engine has told where speech ends
  double first_audio = -1;
  double total = -1;
};

/// Stages of a turn, in milliseconds since the question was begun to be said: vad, tokenizer, first_text, text,
/// first_audio, total (all with `_ms`). Those of a typed turn begin with first_text.
nlohmann::json stages_of(const Answer& answer);

/// @param on_text  a part of the answer's text, as it comes
/// @error what the engine says, or that it has said nothing for too long
Result<Answer> ask(sdk::Conversation& conversation, const Question& question,
                   const std::function<void(const std::string&)>& on_text = {});

}  // namespace parlando::cli
