#pragma once
/// Tokens while the user speaks. The cost of a second of speech does not depend on how much was said before it.
///
/// `stable` codes: speech is read in blocks of 480 ms, the first one twice as long. Every block goes through both
/// encoders once, behind the state that the blocks before it left: the linguistic branch as in `LinguisticEncoder`, the
/// semantic one with the rows that are settled as they are and those younger than a guard once more. The level is that
/// of the loudest sample so far. An end reads what is left in the same way. So the codes of an utterance depend on its
/// samples alone, neither on packets nor on what came behind its end nor on what was asked before; states of the latest
/// blocks are kept, so that an end within the last 1.5 s costs no more than its own block.
///
/// `exact` codes: those of the offline path.
///
/// What several streams have to read goes through both encoders side by side (`LiveTokenizer::read`): the weights come
/// from memory once for all of them, and each gets, bit for bit, what it would get alone.
///
/// Beside the codes of an end stands how complete the utterance sounds there (`TurnEnd`), of the same states that the
/// codes were made of.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>

#include "services/tokenizer/model/speech_tokenizer.hpp"

namespace parlando::tokenizer {

struct LiveUpdate {
  std::int64_t first_group = 0;     ///< where `codes` begins
  std::vector<std::int32_t> codes;  ///< whole groups of five; those at or past `final_groups` may still change
  std::int64_t final_groups = 0;    ///< groups before this one will not change while the utterance goes on
};

/// An utterance up to an end.
struct LiveEnd {
  std::vector<std::int32_t> codes;
  at::Tensor states;                        ///< of the linguistic encoder, the latest rows; undefined: there is none
  double completeness = TurnEnd::kUnknown;  ///< in [0, 1]
};

/// Frames of a front end by index, made once and kept as long as somebody may need them.
class FrameStore {
 public:
  explicit FrameStore(std::int64_t bins) : bins_(bins) {}
  /// Appends frames [from, to) to `out`. @param make  (from, to) -> their values
  template <class Make>
  void read(std::int64_t from, std::int64_t to, std::vector<float>& out, Make&& make);
  void forget(std::int64_t before);

 private:
  std::int64_t end() const { return first_ + static_cast<std::int64_t>(values_.size()) / bins_; }
  std::int64_t bins_, first_ = 0;
  std::vector<float> values_;
};

class LiveTokenizer {
  static constexpr float kWhisperTopMin = -30;
  /// After a block.
  struct State {
    std::size_t samples = 0, linguistic_ids = 0, semantic_ids = 0;
    float peak = 0, top = kWhisperTopMin;  ///< `top`: of the log-mel of the piece, before the level
    std::int64_t piece = 0;
    LinguisticState linguistic;
    SemanticState semantic;
    at::Tensor latest;  ///< as in `LiveEnd::states`; replaced, never written to
  };

 public:
  struct Options {
    std::int64_t guard_ms = 400;  ///< of sound that a semantic id must have heard behind it before it is settled
  };
  LiveTokenizer(std::shared_ptr<const SpeechTokenizer> tokenizer, Options options);

  /// Takes samples at 16 kHz.
  void add(std::span<const float> wave) { wave_.insert(wave_.end(), wave.begin(), wave.end()); }
  std::size_t samples() const { return wave_.size(); }
  /// A block that ends there or before is complete and has not been read.
  bool is_behind(std::size_t end = SIZE_MAX) const {
    return block_end(latest().samples) <= std::min(end, wave_.size());
  }
  /// Blocks that are complete and have not been read.
  std::size_t blocks_behind() const;

  /// A way through an utterance that is under way: a block, or all that is left before an end. It goes on part by part,
  /// none longer than the first block.
  class Reading {
   public:
    bool is_done() const { return done_; }
    /// Of the larger encoder, in the next part; about.
    std::int64_t rows() const;

   private:
    friend class LiveTokenizer;
    Reading(State from, std::size_t end, bool block) : state_(std::move(from)), end_(end), is_block_(block) {}
    bool is_last_part() const { return !is_block_ && block_end(state_.samples) > end_; }
    std::size_t part_end() const { return is_last_part() ? end_ : block_end(state_.samples); }
    State state_;
    std::size_t end_;
    bool is_block_, done_ = false;
    std::vector<std::int32_t> linguistic_, semantic_;  ///< of an end: from the first on; of a block: with open ones
    std::optional<Error> error_;                       ///< why it could not go on; told when it is taken
  };
  /// One part of a reading, of one stream.
  struct Work {
    LiveTokenizer* live = nullptr;
    Reading* reading = nullptr;
  };
  /// Takes each reading on by a part, all side by side. The streams share one tokenizer; no stream comes twice. When
  /// that fails, each is read alone: an error is the error of the reading that has it, which is done then.
  static void read(std::span<const Work> work);

  /// The next block; only where one is complete (`is_behind`).
  Reading block() const { return {latest(), block_end(latest().samples), true}; }
  /// What is left up to this sample, or where the stream is.
  Reading until(std::size_t end) const;
  /// Of a block that is done, begun after the last one was taken: the stream goes on behind it. @return what is new
  Result<LiveUpdate> take_block(Reading reading);
  /// Of an end that is done; the stream is as it was.
  Result<LiveEnd> take_end(const Reading& reading) const;

  /// A block, read alone.
  Result<LiveUpdate> step();
  /// `add`, and `step` as long as a block is there: what is new since the last update, if anything.
  Result<std::optional<LiveUpdate>> push(std::span<const float> wave);
  /// What is known if the utterance ended at this sample, or where it is, read alone; the stream goes on untouched.
  Result<LiveEnd> stable(std::size_t end);
  Result<LiveEnd> exact(std::size_t end) const;

 private:
  struct Part;
  static std::size_t block_end(std::size_t begin);
  static std::int64_t final_groups(const State& state);
  static void begin_piece(State& state);
  static void read_linguistic(std::vector<Part>& parts);
  static void read_semantic(std::vector<Part>& parts);
  template <class F>
  Result<void> guarded(F&& work) const;
  const State& latest() const { return states_.back(); }
  at::Tensor linguistic_rows(std::int64_t from, std::int64_t to, std::size_t usable, float gain);
  std::optional<SemanticEncoder::Growth> next_growth(Part& part);
  void forget_frames();
  std::shared_ptr<const SpeechTokenizer> tokenizer_;
  std::int64_t guard_rows_;
  std::vector<float> wave_;
  audio::Fbank fbank_;
  FrameStore fbank_frames_, mel_frames_;
  std::vector<std::int32_t> linguistic_, semantic_;  ///< settled
  std::deque<State> states_;                         ///< of the latest blocks; the last one is where reading goes on
};

}  // namespace parlando::tokenizer
