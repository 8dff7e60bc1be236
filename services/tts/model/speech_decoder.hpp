#pragma once
/// Codes -> wave: one variant of flow + vocoder, offline and streamed. Source: docs/vocoder.md §10, §11.
#include <filesystem>
#include <optional>

#include "services/tts/model/campplus.hpp"
#include "services/tts/model/flow.hpp"
#include "services/tts/model/hift.hpp"

namespace parlando::tts {

/// What a voice contributes: codes, mel and embedding of its recording. Computed once per voice.
struct VoicePrompt {
  std::vector<std::int32_t> codes;  ///< interleaved, 0…5119
  at::Tensor mel;                   ///< [1, F, 80]
  at::Tensor embedding;             ///< [1, 192]
};

/// Mel and embedding of a recording at `rate` Hz (untrimmed); the codes come from the tokenizer.
/// @error Errc::invalid_argument when the recording is too short or its rate is below 16 kHz
Result<VoicePrompt> make_prompt(std::span<const float> wave, int rate, const CamPlus& speaker);

class SpeechDecoder {
 public:
  /// @param directory  config.json (or cosyvoice.yaml) with flow.safetensors and hift.safetensors
  static Result<std::shared_ptr<const SpeechDecoder>> load(const std::filesystem::path& directory,
                                                           at::ScalarType flow_dtype);
  const Flow& flow() const { return *flow_; }
  const std::shared_ptr<const Hift>& hift() const { return hift_; }
  /// Null when the directory has no campplus file (the music variant).
  const std::shared_ptr<const CamPlus>& speaker() const { return speaker_; }

  /// Whole utterance; noise by absolute frame and sample from the seed.
  Result<std::vector<float>> synthesise(const std::vector<std::int32_t>& codes, const VoicePrompt& prompt,
                                        std::uint64_t seed) const;

 private:
  std::shared_ptr<const Flow> flow_;
  std::shared_ptr<const Hift> hift_;
  std::shared_ptr<const CamPlus> speaker_;
};

/// Initial noise of the flow by absolute frame: columns [first, first + frames) of table `stream`, [1, 80, frames].
at::Tensor flow_noise(std::uint64_t seed, std::uint64_t stream, std::int64_t first, std::int64_t frames);

/// Linear tempo-free cross-fade of the reference: the first half of `window` fades `fresh` in, the second half `old`
/// out. fresh [.., n], old [.., m], window [2k]: the first k columns become fresh·w[:k] + old[m−k:]·w[k:].
at::Tensor fade_in_out(const at::Tensor& fresh, const at::Tensor& old, const at::Tensor& window);

/// Memory that streams may keep between their windows, shared by them. All calls come from one thread.
class PastMemory {
 public:
  explicit PastMemory(std::int64_t bytes) : left_(bytes) {}
  bool take(std::int64_t bytes) {
    if (bytes > left_) return false;
    left_ -= bytes;
    return true;
  }
  void give(std::int64_t bytes) { left_ += bytes; }
  std::int64_t left() const { return left_; }

 private:
  std::int64_t left_;
};

/// Low-latency streaming (docs/vocoder.md §11.3): the window is prompt | context | hop | look-ahead, chunk edges lie on
/// groups, a token's frames are fixed by its absolute position, so the sample count never depends on the chunking.
/// Of a voice prompt that is longer than `kPromptFramesMax`, the end is used. The first window computes it; to later
/// ones it is what it was there (`FlowPast`). Without memory to keep that, the first window is computed again for each:
/// the samples are the same.
class SpeechStream {
 public:
  static constexpr std::int64_t kPromptFramesMax = 344;  ///< 4 s
  struct Options {
    int first_hop_groups = 1, hop_groups_max = 32, context_groups = 13, lookahead_groups = 2;
    double speed = 2.5;  ///< codes and sound are made at least so many times as fast as they are played
    std::uint64_t seed = 0;
    std::shared_ptr<PastMemory> memory = {};  ///< null: as much as there is
  };
  SpeechStream(std::shared_ptr<const SpeechDecoder> decoder, VoicePrompt prompt, Options options);
  ~SpeechStream() { forget_past(); }
  SpeechStream(const SpeechStream&) = delete;
  SpeechStream& operator=(const SpeechStream&) = delete;

  /// Adds codes (any number) and decodes at most one chunk; answers the samples that became final.
  Result<std::vector<float>> push(std::span<const std::int32_t> codes);
  /// Another chunk could be decoded now: `push` again, with or without codes.
  bool pending() const;
  /// The rest.
  Result<std::vector<float>> finish();
  std::int64_t dropped() const { return dropped_; }
  std::int64_t frames() const { return committed_frames_; }
  /// Frames of all windows so far, each of which the estimator has seen in every step; offline: prompt + utterance.
  std::int64_t evaluated_frames() const { return evaluated_frames_; }
  /// Pairs of a frame and one that it attends to, likewise.
  std::int64_t evaluated_pairs() const { return evaluated_pairs_; }
  /// What is kept between windows.
  std::int64_t past_bytes() const { return past_.bytes(); }

 private:
  /// What the estimator is given of a window.
  struct Window {
    at::Tensor z, mu, cond;
  };
  void cut_prompt();
  at::Tensor solve(Window window, bool last);
  at::Tensor first_window(FlowPast& past);
  void keep_past(FlowPast past);
  void forget_past();
  std::int64_t waiting() const;
  std::int64_t frame_of(std::int64_t token) const;
  std::vector<float> chunk(std::int64_t hop_tokens, std::int64_t lookahead_tokens);

  std::shared_ptr<const SpeechDecoder> decoder_;
  VoicePrompt prompt_;
  Options options_;
  HiftStream vocoder_;
  at::Tensor speaker_, prompt_tokens_, prompt_noise_;
  std::vector<std::int64_t> tokens_;  ///< from `token_first_` on
  Window first_window_;               ///< kept as long as there are later ones
  FlowPast past_;                     ///< the prompt in it; none: there was no memory
  std::int64_t past_bytes_taken_ = 0;
  at::Tensor context_mel_;  ///< mel of the committed context, [80, frames]
  std::int64_t token_first_ = 0, committed_tokens_ = 0, committed_frames_ = 0, evaluated_frames_ = 0,
               evaluated_pairs_ = 0, dropped_ = 0;
  int per_group_ = 5, hop_groups_;
  double affordable_groups_ = 0;  ///< made before what was sent has played, behind the hop that is next
};

/// The v1 rules of the reference (and their `aligned` variant), kept as a compatibility mode. Source: docs/vocoder.md
/// §11.1.
class SpeechStreamV1 {
 public:
  /// Noise of chunk `i`: flow noise for a number of frames, initial phases, source noise for a number of samples.
  struct Noise {
    std::function<at::Tensor(int chunk, std::int64_t frames)> flow;
    std::function<std::array<float, kHarmonics>(int chunk)> phase;
    std::function<at::Tensor(int chunk, std::int64_t samples)> source;
  };
  struct Options {
    std::int64_t token_hop = 0, token_overlap = 20, mel_overlap = 0, flow_cache_tail = 0, mel_cache = 20,
                 source_cache = 5120;
  };
  /// The published constants for a token rate; `aligned` makes the flow cache as long as the mel overlap, v1 literally
  /// 34 frames.
  static Options options_for(double rate, bool aligned);

  SpeechStreamV1(std::shared_ptr<const SpeechDecoder> decoder, VoicePrompt prompt, Options options, Noise noise);
  using Trace = std::function<void(const std::string&, const at::Tensor&)>;
  /// Chunks that can be made now. @param last  no more tokens will come
  Result<std::vector<std::vector<float>>> push(std::span<const std::int64_t> tokens, bool last,
                                               const Trace& trace = {});

 private:
  std::vector<float> chunk(const at::Tensor& tokens, bool last, const Trace& trace);
  std::shared_ptr<const SpeechDecoder> decoder_;
  VoicePrompt prompt_;
  Options options_;
  Noise noise_;
  std::vector<std::int64_t> queue_;
  at::Tensor speaker_, prompt_tokens_, z_cache_, mu_cache_, mel_tail_, mel_cache_, source_cache_, speech_cache_,
      mel_window_, speech_window_;
  int count_ = 0;
};

}  // namespace parlando::tts
