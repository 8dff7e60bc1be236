#pragma once
/// Everything about the turn under way, as a value: ending a turn is assigning a new one, and a copy is a second turn
/// that may be thought through in advance. It knows no streams and no replicas; what it knows is enough to say
/// everything again to any of them.
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "services/controller/sound_log.hpp"
#include "services/controller/text_chunker.hpp"

namespace parlando::controller {

/// A text that arrives in parts, perhaps again from the start or from elsewhere, and is told to the client once.
struct TextTrack {
  std::string text;
  std::int64_t told_bytes = 0;  ///< what the client has of it, in this or an earlier telling
  struct News {
    std::string fresh;          ///< not known before
    std::string telling;        ///< of that, what the client has not had
    std::int64_t at_bytes = 0;  ///< of `telling`
  };
  /// @return nothing when text is missing before `at_bytes`
  std::optional<News> push(std::int64_t at_bytes, std::string_view part);
};

struct ToolCall {
  std::string name;
  nlohmann::json arguments, result;
};
nlohmann::json to_json(const ToolCall& call);

/// A piece of the answer's text and how much of its sound the client was sent.
struct Piece {
  std::string text;
  std::int64_t samples = 0;
  bool done = false;
};

/// What the client had got of the turn when this controller took it over.
struct Told {
  std::int64_t tool_calls = 0, pieces = 0, piece_samples = 0;
  std::int64_t whole_samples = 0;  ///< of those pieces in all; how long each of them is only its controller knew
  std::vector<nlohmann::json> tool_results;
  bool anything = false;  ///< some text or sound: the client knows that its speech was heard
};

struct Turn {
  enum class Stage {
    listening,  ///< nothing was said yet; `sound` is a short memory
    hearing,    ///< the user speaks
    thinking,   ///< codes, answer and sound are made
    closing,    ///< the answer is complete and waits to be durable
  };
  Stage stage = Stage::listening;
  TurnId id;
  std::uint64_t seed = 0;

  // What the user said.
  SoundLog sound;                  ///< in `listening` the last moments, else the utterance with its pre-roll
  bool sealed = false;             ///< no more sound counts: the client flushed, or some is missing
  bool flushed = false;            ///< sealed because the client said so: it waits for an answer
  std::int64_t flush_sample = -1;  ///< where, as the client said
  std::optional<std::string> typed;
  std::uint64_t last_input = 0;  ///< the one that it took to know where the utterance ended
  std::vector<std::int32_t> codes;
  bool codes_done = false;
  std::int64_t paused_sample = -1;  ///< speech is silent since then; -1: it is not
  std::uint32_t attempt = 0;        ///< whose codes these are (`Flush::attempt`)
  int trials = 0;                   ///< begun in its pauses and dropped again

  // What the model answers.
  std::vector<std::int32_t> ids;  ///< all of them, for another replica to go on behind
  TextTrack transcript, reply;
  std::vector<ToolCall> tool_calls;
  bool text_done = false;
  TextChunker chunker;
  std::vector<Piece> pieces;
  std::int64_t samples = 0;  ///< of the answer, sent to the client
  std::int64_t skip = 0;     ///< samples that the client has already and that are made again: dropped as they come
  std::uint32_t rate = 22050;
  Told told;

  // What the user's voice did to it, or to the turn before.
  bool interrupted = false;  ///< `reply` is what was heard of it
  struct Cut {
    std::int64_t turn = 0;
    std::string heard;
  };
  std::optional<Cut> cut;  ///< a turn that was stored already when its sound was interrupted

  // Its end.
  bool durable = false;         ///< its record was in the store before this controller had the session
  bool committing = false;      ///< its record was handed to the ledger
  bool cancel_asked = false;    ///< too late: it is answered behind the turn's end
  Time ended_at{};              ///< of speech; estimated as the decision minus the silence it took
  Time deadline = Time::max();  ///< of the answer
  nlohmann::json stages = nlohmann::json::object();  ///< milliseconds from the end of speech

  bool is_open() const { return stage != Stage::listening || sealed; }
  bool is_complete() const;
  void mark(const char* stage_name, Time now);
  /// The client has no more than this of the sound: what lies behind it is to be made again.
  void rewind(std::int64_t samples_had);
  /// The text of its pieces up to this sample of its sound: whole words, judged by their share of their piece.
  std::string heard_text(std::int64_t samples_heard) const;
  /// What is stored: nothing that depends on time or on who did the work.
  nlohmann::json record() const;
};

/// A session's seed makes those of its turns, and a turn's those of its pieces.
std::uint64_t mix_seed(std::uint64_t seed, std::uint64_t number);

}  // namespace parlando::controller
