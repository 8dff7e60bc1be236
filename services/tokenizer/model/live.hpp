#pragma once
/// Tokens while the user speaks. Every 240 ms both branches run over the audio so far, normalised by its peak so far; a
/// group is frozen when it was equal in two successive runs and is older than a guard. At the end the last run gives
/// the rest; `exact` answers what the offline path would. See ARCHITECTURE.md, "Live tokens".
#include "services/tokenizer/model/speech_tokenizer.hpp"

namespace parlando::tokenizer {

struct LiveUpdate {
  std::int64_t first_group = 0;     ///< where `codes` begins
  std::vector<std::int32_t> codes;  ///< whole groups of five; those at or past `final_groups` may still change
  std::int64_t final_groups = 0;    ///< groups before this one will not change any more (in `stable` mode)
};

class LiveTokenizer {
 public:
  struct Options {
    std::int64_t interval_samples = kChunkSamples, guard_ms = 400;
  };
  LiveTokenizer(std::shared_ptr<const SpeechTokenizer> tokenizer, Options options)
      : tokenizer_(std::move(tokenizer)), options_(options) {}

  /// Adds samples at 16 kHz; an update per completed interval, the last one if several passed.
  Result<std::optional<LiveUpdate>> push(std::span<const float> wave);
  /// Adds samples without a pass over them: for an end whose one pass is `exact`.
  void add(std::span<const float> wave) { wave_.insert(wave_.end(), wave.begin(), wave.end()); }
  /// The utterance ends at this sample; what came after it is forgotten, and frozen groups that reach past it, too.
  void cut(std::size_t samples);
  std::size_t samples() const { return wave_.size(); }
  /// Ends the utterance: all codes in `stable` mode, frozen ones as they were.
  Result<std::vector<std::int32_t>> finish();
  /// What the offline path gives for the same audio; `llm` truncates to the first difference.
  Result<std::vector<std::int32_t>> exact() const;

 private:
  Result<std::vector<std::int32_t>> run() const;
  std::shared_ptr<const SpeechTokenizer> tokenizer_;
  Options options_;
  std::vector<float> wave_;
  std::vector<std::int32_t> frozen_, previous_;
  std::size_t done_ = 0;
};

}  // namespace parlando::tokenizer
