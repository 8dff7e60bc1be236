#pragma once
/// The whole chain in one process: recording or text in, transcript, reply text and speech out. What `parlando talk`,
/// `tts` and `clone` run on; the same model classes serve behind the services.
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "common/base/speech_tags.hpp"
#include "services/llm/llm_core.hpp"
#include "services/tokenizer/model/speech_tokenizer.hpp"
#include "services/tts/model/voices.hpp"
#include "services/vad/model/silero.hpp"

namespace parlando::cli {

struct EngineOptions {
  std::filesystem::path model_path;  ///< holds Step-Audio-Tokenizer, Step-Audio-Chat, Step-Audio-TTS-3B
  std::filesystem::path vad_weights;
  bool bf16 = false;
  bool chat = true, speech = true;  ///< which parts to load
  std::uint64_t seed = 1;
};

/// Milliseconds of the stages of one turn, each from the end of the user's speech (= start of processing).
struct Timings {
  double vad = 0, tokenizer = 0, first_text = 0, text = 0, first_code = 0, first_audio = 0, total = 0;
};

struct TurnResult {
  std::string transcript, reply;
  nlohmann::json tool_calls = nlohmann::json::array();  ///< [{name, arguments, result}]
  std::vector<float> wave;                              ///< 22.05 kHz
  double question_seconds = 0;
  Timings timings;
};

struct Spoken {
  std::vector<float> wave;
  double first_code_ms = 0, first_audio_ms = 0, total_ms = 0;
  std::int64_t codes = 0;
};

class LocalEngine {
 public:
  /// @error Errc::not_found naming what is expected where
  static Result<std::unique_ptr<LocalEngine>> load(const EngineOptions& options);

  struct Question {
    std::optional<std::string> text;
    std::vector<float> wave;
    int rate = 0;
  };
  /// One turn. `history` grows by the exchange, so that the next turn knows it.
  Result<TurnResult> talk(const Question& question, const std::string& system, const std::string& speaker,
                          std::vector<llm::Message>& history, bool speak = true);

  struct SpeakOptions {
    double speed = 1, volume = 1;
    std::optional<llm::Sampling> sampling;
    std::uint64_t seed = 1;
    bool stream = true;
  };
  /// Text with optional leading tags, in a built-in voice. `music` voices are chosen by the tag.
  Result<Spoken> speak(const std::string& text, const std::string& speaker, const SpeakOptions& options);
  /// The same in the voice of a recording.
  Result<Spoken> speak_as(const std::string& text, const tts::Voice& voice, const SpeakOptions& options);
  Result<std::shared_ptr<const tts::Voice>> clone(const std::string& name, const std::string& text,
                                                  std::span<const float> wave, int rate);

  std::vector<std::string> voices() const { return voices_ ? voices_->names() : std::vector<std::string>{}; }
  std::string default_speaker() const { return voices_ ? voices_->default_name() : std::string(); }
  const tokenizer::SpeechTokenizer& tokenizer() const { return *tokenizer_; }

 private:
  Result<Spoken> synthesise(const std::string& text, const tts::Voice& voice, const TtsMode& mode,
                            const SpeakOptions& options);

  EngineOptions options_;
  std::shared_ptr<const tokenizer::SpeechTokenizer> tokenizer_;
  std::shared_ptr<const vad::SileroWeights> vad_;
  llm::LlmModel chat_, speech_;
  std::shared_ptr<const tts::SpeechDecoder> common_, music_;
  std::shared_ptr<tts::Voices> voices_;
  std::int64_t names_ = 0;
};

/// Speech in a recording at 16 kHz by the voice-activity detector: [first, last) samples with 300 ms in front.
struct Segment {
  std::size_t first = 0, last = 0;
};
Result<Segment> find_speech(std::span<const float> wave16k, const std::shared_ptr<const vad::SileroWeights>& weights);

}  // namespace parlando::cli
