#pragma once
/// Everything about the turn under way, as a value: ending a turn is assigning a new one, and a copy is a second turn
/// that may be thought through in advance. It knows no streams and no replicas; what it knows is enough to say
/// everything again to any of them.
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "services/controller/items.hpp"
#include "services/controller/lead.hpp"
#include "services/controller/sound_log.hpp"
#include "services/controller/text_chunker.hpp"

namespace parlando::controller {

/// A vad hears on for so long behind the last sound of speech (`turn.lag_ms` of the vad).
inline constexpr milliseconds kVadHearsOn{108};

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
  nlohmann::json arguments, result = nullptr;
  std::string id = {};       ///< call_<turn>_<its first input>_<place>: the same whoever leads the turn
  std::int64_t left = 0;     ///< calls of the same round that follow
  bool was_made = false;     ///< the model has gone on behind it before, under another owner or replica
  bool is_clients = false;   ///< executed by the client
  bool is_answered = false;  ///< `result` is what the model is told
  bool is_settled = false;   ///< by what a gateway knew: the output that is said again is this one
};
/// {id, name, arguments} and, when it is answered, {result}.
nlohmann::json to_json(const ToolCall& call);

/// A piece of the answer's text and how much of its sound the client was sent.
struct Piece {
  std::string text;
  std::int64_t samples = 0;
  bool done = false;
  std::size_t tag_bytes = 0;  ///< of the text: a style that is not spoken
  std::size_t end = 0;        ///< where it ends in the reply, in bytes
};

/// What the client had got of the turn when this controller took it over.
struct Told {
  std::int64_t tool_calls = 0, pieces = 0, piece_samples = 0;
  std::int64_t whole_samples = 0;            ///< of those pieces in all
  std::vector<std::int64_t> lengths;         ///< of each of them, if the client's gateway knew all
  std::vector<nlohmann::json> tool_results;  ///< null: none was known
  std::vector<std::string> call_ids;         ///< under which the client knows its calls
  bool anything = false;                     ///< some text or sound: the client knows that its speech was heard
};

/// A moment of silence in an utterance, which may be its end.
struct Pause {
  std::int64_t sample = -1;    ///< speech has ended there if it has
  std::uint32_t attempt = 0;   ///< asks a tokenizer whether it has; 0: not asked yet
  std::int32_t permille = -2;  ///< how likely the utterance is complete; -1: nobody knows, -2: no answer yet
  bool lasts = false;          ///< it is judged once more, behind a longer silence
  bool is_judged() const { return permille > -2; }
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
  LeadPtr lead;                         ///< how it is led
  std::vector<WaitingItem> before;      ///< what stands in front of it
  std::vector<Correction> corrections;  ///< of earlier turns, in its record
  std::int64_t history_from = 1;        ///< the first turn that the model is told of
  bool notes = false;                   ///< the utterance is understood and not answered
  bool responds = false;                ///< what stands in front is answered, or the conversation as it is
  bool remember = true;                 ///< else nothing of it is stored, and its number is used again
  std::optional<std::string> given;     ///< the answer, from the client
  std::vector<std::uint64_t> inputs;    ///< besides sound, that it answers or has taken up: settled with its end
  std::uint64_t answers_input = 0;      ///< of these the one that has begun it; 0: it is an utterance
  std::uint64_t settings_input = 0;     ///< the last one that has changed how it is led
  /// Of a turn that is taken over: what is said to be changed behind this input is for the next one.
  std::optional<std::uint64_t> settings_until;

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
  std::int64_t begin_sample = -1;   ///< speech starts there
  std::int64_t end_sample = -1;     ///< and ends there; of an utterance that only the client ends, as far as is known
  std::int64_t sound_end = -1;      ///< what comes from here on is no part of it; -1: nothing was said
  std::uint64_t end_input = 0;      ///< the flush that has ended it; 0: none has
  std::uint64_t begin_input = 0;    ///< what came before this input stands in front of the turn
  std::deque<Pause> pauses;         ///< with a semantic detector: those that are not judged, and those behind them
  std::int64_t paused_until = -1;   ///< the last one that was added
  bool paused_lasts = false;        ///< and once more
  bool ended = false;               ///< at `end_sample`, if none of `pauses` was the end
  std::int32_t last_permille = -1;  ///< of the latest pause that was judged
  Patience patience = Patience::likely;  ///< a pause that asked for more has been: so much from then on
  Pause hint;                            ///< the latest pause, asked about early: is a trial worth it?
  bool is_full = false;                  ///< no more sound is taken in, and the client was told

  // What the model answers.
  std::vector<std::int32_t> ids;  ///< all of them, for another replica to go on behind
  TextTrack transcript, reply;
  std::vector<ToolCall> tool_calls;
  std::size_t calls_made = 0;      ///< of them, by the chat as it is now
  std::size_t results_said = 0;    ///< to it
  std::size_t calls_told = 0;      ///< to the client
  Time waits_since = Time::max();  ///< for results; the turn's time stands still meanwhile
  bool text_done = false;
  std::string finish;    ///< stop or length
  nlohmann::json usage;  ///< tokens, as the model counts them; null: not known
  TextChunker chunker;
  std::vector<std::size_t> call_ends;  ///< where a call has ended a piece: bytes of the reply in front of it
  std::vector<Piece> pieces;
  std::size_t pieces_asked = 0;  ///< of them, of the tts as it is now
  std::int64_t samples = 0;      ///< of the answer, sent to the client
  std::int64_t skip = 0;         ///< samples that the client has already and that are made again: dropped as they come
  std::uint32_t rate = 22050;
  Told told;

  // What the user's voice did to it.
  bool interrupted = false;  ///< `reply` is what was heard of it

  // Its end.
  bool durable = false;         ///< its record was in the store before this controller had the session
  bool committing = false;      ///< its record was handed to the ledger
  bool cancel_asked = false;    ///< too late: it is answered behind the turn's end
  Time ended_at{};              ///< of speech; estimated as the decision minus the silence it took
  Time deadline = Time::max();  ///< of the answer
  nlohmann::json stages = nlohmann::json::object();  ///< milliseconds from the end of speech

  bool is_open() const { return stage != Stage::listening || sealed; }
  bool is_waiting() const { return waits_since != Time::max(); }
  bool is_complete() const;
  void mark(const char* stage_name, Time now);
  /// The client has no more than this of the sound: what lies behind it is to be made again.
  void rewind(std::int64_t samples_had);
  /// The reply up to this sample of its sound: a beginning of it that ends behind a word, judged by the word's share of
  /// its piece.
  std::string heard_text(std::int64_t samples_heard) const;
  /// The pieces of a whole reply, as they were when calls have ended some at `call_ends`.
  std::vector<TextChunk> cut_again(std::string_view whole);
  /// The name of the item that the utterance becomes when it is noted.
  std::string noted_id() const;
  /// What is stored: nothing that depends on time or on who did the work, but for the lengths of pieces, which are left
  /// out where a former owner's are not known. Corrections are the session's.
  nlohmann::json record() const;
};

/// A session's seed makes those of its turns, and a turn's those of its pieces.
std::uint64_t mix_seed(std::uint64_t seed, std::uint64_t number);

}  // namespace parlando::controller
