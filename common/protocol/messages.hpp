#pragma once
/// Every message between services: one sentence each (what it asks, what it is answered), one field list each. The list
/// writes, reads and validates the body (`fields.hpp`); docs/protocol.md holds the same tables and a test compares
/// them. Positions carry their unit. A payload is raw: `pcm` is s16le mono, `codes` and `ids` are int32, `float32` are
/// samples.
#include "common/protocol/codec.hpp"
#include "common/protocol/fields.hpp"

namespace parlando::protocol {

/// What a payload holds, for the table.
enum class PayloadKind { none, pcm, codes, ids, float32, json };

// ------------------------------------------------------------------------------------------------ the link

/// First word on a connection, both ways. The caller says which incarnation of the link it holds and what it has
/// received of it; the callee answers with the same incarnation (both go on) or with 0 (it does not know it: both begin
/// anew). `call` and `attempt` come back in the answer: a HELLO or an answer from before the latest one is known as
/// such, and two calls of one instance as two.
struct Hello {
  static constexpr MessageType kType = MessageType::hello;
  std::string role, instance;
  std::uint32_t version_min = 0, version_max = 0;
  std::uint64_t incarnation = 0;
  std::uint64_t call = 0;               ///< of the caller's instance: which of its connections
  std::uint64_t attempt = 0;            ///< HELLOs said on this call
  bool answer = false;                  ///< it is the callee who speaks
  bool fresh = true;                    ///< the caller never had an answer under this incarnation
  std::uint64_t received = 0;           ///< the last number taken in of this incarnation
  std::uint32_t window_messages = 256;  ///< what a stream may be ahead at first
  bool ready = true, draining = false;
  std::int64_t slots = 1;
  template <class V>
  void fields(V&& v) {
    v("role", role, bytes_at_most(40));
    v("instance", instance, bytes_at_most(100));
    v("version_min", version_min, within(0, 65535));
    v("version_max", version_max, within(0, 65535));
    v("incarnation", incarnation);
    v("call", call);
    v("attempt", attempt);
    v("answer", answer);
    v("fresh", fresh);
    v("received", received);
    v("window_messages", window_messages, within(1, 65536));
    v("ready", ready);
    v("draining", draining);
    v("slots", slots, at_least(0));
  }
};

/// The caller is alive; answered by HeartbeatReply. `sent`: numbers that have left on this connection; who has received
/// less has lost some.
struct Heartbeat {
  static constexpr MessageType kType = MessageType::heartbeat;
  bool ready = true, draining = false;
  std::int64_t slots = 0;
  std::uint64_t sent = 0;
  template <class V>
  void fields(V&& v) {
    v("ready", ready);
    v("draining", draining);
    v("slots", slots, at_least(0));
    v("sent", sent);
  }
};

/// How the callee's work goes on: the caller turns elsewhere when `progress` stands still for `step_limit_ms` while it
/// is busy.
struct HeartbeatReply {
  static constexpr MessageType kType = MessageType::heartbeat_reply;
  bool ready = true, draining = false, busy = false;
  std::int64_t slots = 0, load = 0;
  std::uint64_t progress = 0;
  std::uint32_t step_limit_ms = 2000;
  std::uint64_t sent = 0;
  template <class V>
  void fields(V&& v) {
    v("ready", ready);
    v("draining", draining);
    v("busy", busy);
    v("slots", slots, at_least(0));
    v("load", load, at_least(0));
    v("progress", progress);
    v("step_limit_ms", step_limit_ms, at_least(1));
    v("sent", sent);
  }
};

/// What has been taken in (nothing before it is sent again) and, in the payload, how far each stream that moved may go:
/// records of {session 16, stream 4, limit 8 bytes}.
struct Window {
  static constexpr MessageType kType = MessageType::window;
  static constexpr std::size_t kRecordBytes = 28;
  std::uint64_t received = 0;
  template <class V>
  void fields(V&& v) {
    v("received", received);
  }
};

/// The frames were no message, or this HELLO cannot be: why. Nothing of them counts.
struct Refused {
  static constexpr MessageType kType = MessageType::refused;
  std::string code, message;
  template <class V>
  void fields(V&& v) {
    if (message.size() > 2000) message = std::string(cut(message, 2000));
    v("code", code, bytes_at_most(40));
    v("message", message, bytes_at_most(2000));
  }
};

/// Something is missing on this connection: the caller says HELLO again and both send what the other has not received.
struct Resync {
  static constexpr MessageType kType = MessageType::resync;
  template <class V>
  void fields(V&&) {}
};

// ------------------------------------------------------------------------------------------------ every stream

/// A stream's work cannot go on. Ordered with the stream's other messages; the caller answers with Close.
struct ErrorMessage {
  static constexpr MessageType kType = MessageType::error;
  std::string code = "internal", message;
  std::int64_t retry_ms = 0;  ///< when trying again makes sense; 0: no hint
  JsonText settled = {};      ///< to a gateway, as in TurnDone
  std::int64_t sound_from = -1;
  template <class V>
  void fields(V&& v) {
    // What a library says of its failure may be long; an error that cannot be read would be one that nobody hears of.
    if (message.size() > 4000) message = std::string(cut(message, 4000));
    v("code", code, bytes_at_most(40));
    v("message", message, bytes_at_most(4000));
    v("retry_ms", retry_ms, within(0, 3600000));
    v("settled", settled);
    v("sound_from", sound_from, at_least(-1));
  }
};

/// The stream ends here. Only callers begin and end streams; the link answers Close by itself once it was handled. A
/// callee's link ends the streams of a fenced owner, after an ErrorMessage with Errc::stale_epoch; the caller's link
/// answers that by itself.
struct Close {
  static constexpr MessageType kType = MessageType::close;
  bool detached = false;  ///< of a gateway: the client is lost rather than gone, and may resume its session
  bool moves = false;     ///< of a gateway: the session goes on at another controller
  template <class V>
  void fields(V&& v) {
    v("detached", detached);
    v("moves", moves);
  }
};

// ------------------------------------------------------------------------------------------------ gateway ->
// controller

enum class Detection : std::uint8_t { silence, semantic, none };
template <>
inline std::span<const std::string_view> names_of<Detection>() {
  static constexpr std::string_view kNames[] = {"silence", "semantic", "none"};
  return kNames;
}

/// How soon a semantic detector ends a turn: the longest silence that it waits is 8, 4 and 2 s; automatic: 4 s.
enum class Eagerness : std::uint8_t { automatic, low, medium, high };
template <>
inline std::span<const std::string_view> names_of<Eagerness>() {
  static constexpr std::string_view kNames[] = {"auto", "low", "medium", "high"};
  return kNames;
}

/// How a conversation is led. Numbers of -1, and texts that are empty, leave it to the service's configuration.
struct Settings {
  std::string system, speaker;
  bool speak = true;

  // What ends an utterance, and what follows.
  Detection detection = Detection::silence;
  Eagerness eagerness = Eagerness::automatic;
  std::int32_t threshold_permille = -1;  ///< speech probability that starts an utterance
  std::int32_t prefix_ms = -1;           ///< sound kept in front of it
  std::int32_t silence_ms = -1;          ///< that ends it, with Detection::silence
  bool answers = true;         ///< an utterance is answered; else it is Noted, and Respond asks for the answer
  bool interrupts = true;      ///< a voice over an answer may take the word
  std::string tokenizer_mode;  ///< stable or exact

  // What the model may do.
  JsonText tools;  ///< array of {name, description?, parameters?}: the client executes them; null: the engine's own
  std::string tool_choice = "auto";  ///< auto, none, required, or the name of a tool
  std::int32_t temperature_milli = -1, top_p_milli = -1, top_k = -1;
  std::int64_t tokens_max = -1;  ///< of a reply
  JsonText stop;                 ///< array of at most 4 texts that end a reply; they are not told

  // How it sounds.
  std::string style;                ///< a tag of the speaking model, without brackets
  std::int32_t speed_milli = 1000;  ///< tempo ratio
  std::int32_t volume_milli = 1000;
  template <class V>
  void fields(V&& v) {
    v("system", system, bytes_at_most(32768));
    v("speaker", speaker, bytes_at_most(200));
    v("speak", speak);
    v("detection", detection);
    v("eagerness", eagerness);
    v("threshold_permille", threshold_permille, within(-1, 1000));
    v("prefix_ms", prefix_ms, within(-1, 5000));
    v("silence_ms", silence_ms, within(-1, 10000));
    v("answers", answers);
    v("interrupts", interrupts);
    v("tokenizer_mode", tokenizer_mode, bytes_at_most(20));
    v("tools", tools);
    v("tool_choice", tool_choice, bytes_at_most(100));
    v("temperature_milli", temperature_milli, within(-1, 100000));
    v("top_p_milli", top_p_milli, within(-1, 1000));
    v("top_k", top_k, within(-1, 1000000));
    v("tokens_max", tokens_max, within(-1, 1000000));
    v("stop", stop);
    v("style", style, bytes_at_most(100));
    v("speed_milli", speed_milli, within(250, 4000));
    v("volume_milli", volume_milli, within(100, 10000));
  }
};

/// What whoever goes on with a conversation must know. What follows `open_turn` tells how far the client has got in the
/// turn under way; payload: ids of the language model in that turn.
struct Conversation : Settings {
  static constexpr PayloadKind kPayload = PayloadKind::ids;
  bool plays = false;  ///< the gateway keeps time with the client's loudspeaker: it answers Hold and tells Played
  std::uint64_t seed = 0;
  std::uint64_t first_input = 1;                       ///< number of the first input behind this message
  TurnId open_turn;                                    ///< 0: none
  std::int64_t transcript_bytes = 0, reply_bytes = 0;  ///< of the open turn's texts, told to the client
  std::int64_t tool_calls = 0;
  JsonText tool_results;           ///< array of the results of those calls
  JsonText call_ids;               ///< and of the names under which the client knows them
  std::int64_t pieces = 0;         ///< spoken wholly
  std::int64_t piece_samples = 0;  ///< of the next one
  std::int64_t turn_samples = 0;   ///< of the turn, in all
  JsonText piece_lengths;          ///< array of the samples of each piece that is spoken wholly
  Bytes payload;
  template <class V>
  void fields(V&& v) {
    Settings::fields(v);
    v("plays", plays);
    v("seed", seed);
    v("first_input", first_input);
    v("open_turn", open_turn);
    v("transcript_bytes", transcript_bytes, at_least(0));
    v("reply_bytes", reply_bytes, at_least(0));
    v("tool_calls", tool_calls, within(0, 1000));
    v("tool_results", tool_results);
    v("pieces", pieces, at_least(0));
    v("piece_samples", piece_samples, at_least(0));
    v("turn_samples", turn_samples, at_least(0));
    v("call_ids", call_ids);
    v("piece_lengths", piece_lengths);
  }
};

/// What a turn is, as far as that is certain: the answer to an input, or to what was said from one sample to another.
struct TurnFacts {
  TurnId of_turn;                   ///< 0: nothing is certain
  std::uint64_t answers_input = 0;  ///< Say, Respond or Utter; 0: the turn is an utterance
  std::uint64_t begin_input = 0;    ///< what came before this input stands in front of the turn
  std::uint64_t end_input = 0;      ///< the Flush that has ended the utterance; 0: none has
  /// Where the utterance begins; with `answers_input` what was being said then and is the next turn; -1: nothing was.
  std::int64_t begin_sample = -1;
  std::int64_t end_sample = -1;      ///< where it ends; -1: it goes on
  std::int64_t sound_end = -1;       ///< and the silence behind it that belongs to it
  std::uint64_t settings_input = 0;  ///< the last Configure that holds for the turn
  template <class V>
  void fields(V&& v) {
    v("of_turn", of_turn);
    v("answers_input", answers_input);
    v("begin_input", begin_input);
    v("end_input", end_input);
    v("begin_sample", begin_sample, at_least(-1));
    v("end_sample", end_sample, at_least(-1));
    v("sound_end", sound_end, at_least(-1));
    v("settings_input", settings_input);
  }
};

/// A conversation begins, or goes on at another controller. Answered by Opened; what is told of the open turn comes
/// from what the former controller said. Errc::not_found: the client has resumed it at another gateway.
struct Open : Conversation {
  static constexpr MessageType kType = MessageType::open;
  Epoch expected_epoch;      ///< what the store must hold; 0: a new session
  bool inputs_kept = true;   ///< those of the open turn follow; else nobody but its controller can go on with it
  std::string token_digest;  ///< SHA-256 of the token that resumes the session, in hexadecimal digits; empty: none does
  bool stored = true;  ///< its turns are; else it has no history but its Items, and nothing of it outlives its stream
  std::uint64_t last_input = 0;  ///< inputs up to this were said to a former owner, and are said again
  std::int64_t turn_told = -1;   ///< the last turn whose end the client was told, and which was durable; -1: not known
  std::int64_t sound_from = 0;   ///< the sound before this sample belongs to turns that are over
  TurnFacts decided;             ///< by a former owner
  template <class V>
  void fields(V&& v) {
    Conversation::fields(v);
    v("expected_epoch", expected_epoch);
    v("inputs_kept", inputs_kept);
    v("token_digest", token_digest, bytes_at_most(64));
    v("stored", stored);
    v("last_input", last_input);
    v("turn_told", turn_told, at_least(-1));
    v("sound_from", sound_from, at_least(0));
    decided.fields(v);
  }
};

/// A client resumes its session behind the death of its gateway. Answered by Attached of the controller where the
/// session waits for this token; Errc::not_found of all others, and whatever is wrong.
struct Attach {
  static constexpr MessageType kType = MessageType::attach;
  std::string token_digest;  ///< of the token that the client gave
  std::string next_digest;   ///< of the one that it gets: the former is void with the answer
  TurnId turn;               ///< what follows is of this turn, which the client has no end of; 0: it has nothing
  std::int64_t samples = 0;  ///< of the answer's sound
  std::int64_t transcript_bytes = -1, reply_bytes = -1, tool_calls = -1;  ///< -1: what was told before
  template <class V>
  void fields(V&& v) {
    v("token_digest", token_digest, bytes_at_most(64));
    v("next_digest", next_digest, bytes_at_most(64));
    v("turn", turn);
    v("samples", samples, at_least(0));
    v("transcript_bytes", transcript_bytes, at_least(-1));
    v("reply_bytes", reply_bytes, at_least(-1));
    v("tool_calls", tool_calls, at_least(-1));
  }
};

/// The user's sound, s16le at 16 kHz. To vad and tokenizer alike.
struct Audio {
  static constexpr MessageType kType = MessageType::audio;
  static constexpr PayloadKind kPayload = PayloadKind::pcm;
  std::int64_t first_sample = 0;  ///< position of the payload's first sample in its session
  Bytes payload;
  template <class V>
  void fields(V&& v) {
    v("first_sample", first_sample, at_least(0));
  }
};

/// "The user has finished": the utterance ends at this position; -1: at what was sent. To a tokenizer with an
/// `attempt`: the codes are wanted that it would have if it ended there; the stream itself goes on as if nothing had
/// been asked.
struct Flush {
  static constexpr MessageType kType = MessageType::flush;
  std::int64_t end_sample = -1;
  std::uint32_t attempt = 0;  ///< 0: the end
  template <class V>
  void fields(V&& v) {
    v("end_sample", end_sample, at_least(-1));
    v("attempt", attempt);
  }
};

/// A typed turn; to llm-chat: the same.
struct Say {
  static constexpr MessageType kType = MessageType::say;
  std::string text;
  template <class V>
  void fields(V&& v) {
    v("text", text, bytes_at_most(60000));
  }
};

/// From the next turn on the conversation is led like this.
struct Configure : Settings {
  static constexpr MessageType kType = MessageType::configure;
};

enum class ItemRole : std::uint8_t { user, assistant, system, tool };
template <>
inline std::span<const std::string_view> names_of<ItemRole>() {
  static constexpr std::string_view kNames[] = {"user", "assistant", "system", "tool"};
  return kNames;
}

/// Something that belongs to the conversation and is no turn of its own: it stands in front of the next one and is
/// stored with that. A user's Item is what that turn answers when nothing else is said.
struct Item {
  static constexpr MessageType kType = MessageType::item;
  std::string id;  ///< the client's name for it
  ItemRole role = ItemRole::user;
  std::string text;  ///< of a tool: the result
  JsonText calls;    ///< of an assistant: array of {id, name, arguments}; of a tool: the id of the call that it answers
  template <class V>
  void fields(V&& v) {
    v("id", id, bytes_at_most(100));
    v("role", role);
    v("text", text, bytes_at_most(60000));
    v("calls", calls);
  }
};

/// Answer now: what was noted and not answered yet, or else the conversation as it stands. `settings` changes this
/// answer alone.
struct Respond {
  static constexpr MessageType kType = MessageType::respond;
  JsonText settings;     ///< object with the fields of Settings that differ; null: none
  bool remember = true;  ///< else the answer is told and forgotten: no later turn knows of it
  template <class V>
  void fields(V&& v) {
    v("settings", settings);
    v("remember", remember);
  }
};

/// What a tool that the client executes has answered. Of a call that waits no more: an Item of that role.
struct ToolOutput {
  static constexpr MessageType kType = MessageType::tool_output;
  std::string call;  ///< its id
  std::string output;
  template <class V>
  void fields(V&& v) {
    v("call", call, bytes_at_most(100));
    v("output", output, bytes_at_most(60000));
  }
};

/// A turn whose answer is given: it is spoken and remembered as if the model had made it.
struct Utter {
  static constexpr MessageType kType = MessageType::utter;
  std::string text;
  template <class V>
  void fields(V&& v) {
    v("text", text, bytes_at_most(60000));
  }
};

/// The client has played no more than this of a turn's sound: what lies behind it was not heard. Later and earlier
/// claims only shorten.
struct Truncate {
  static constexpr MessageType kType = MessageType::truncate;
  TurnId turn;
  std::int64_t samples = 0;
  template <class V>
  void fields(V&& v) {
    v("turn", turn);
    v("samples", samples, at_least(0));
  }
};

enum class TurnPart : std::uint8_t { all, user, assistant };
template <>
inline std::span<const std::string_view> names_of<TurnPart>() {
  static constexpr std::string_view kNames[] = {"all", "user", "assistant"};
  return kNames;
}

/// The model is not told of this any more. The store keeps it: the next turn's record says what was forgotten.
struct Forget {
  static constexpr MessageType kType = MessageType::forget;
  std::string item;  ///< an Item's id, or empty:
  TurnId turn;
  TurnPart part = TurnPart::all;
  template <class V>
  void fields(V&& v) {
    v("item", item, bytes_at_most(100));
    v("turn", turn);
    v("part", part);
  }
};

/// How far the client has heard the sound of a turn: its answer to Hold, and unasked when all of it was heard. No
/// input: it has no number and is not said again.
struct Played {
  static constexpr MessageType kType = MessageType::played;
  TurnId turn;
  std::int64_t samples = 0;
  bool over = false;  ///< all of the turn's sound was heard, or nothing of it is kept any more
  template <class V>
  void fields(V&& v) {
    v("turn", turn);
    v("samples", samples, at_least(0));
    v("over", over);
  }
};

/// Drops the turn under way; answered by Cancelled, behind which nothing of that turn follows.
struct Cancel {
  static constexpr MessageType kType = MessageType::cancel;
  TurnId turn;  ///< 0: whichever is under way
  template <class V>
  void fields(V&& v) {
    v("turn", turn);
  }
};

// ------------------------------------------------------------------------------------------------ controller ->
// gateway

/// The conversation stands: committed turns so far, under this epoch.
struct Opened {
  static constexpr MessageType kType = MessageType::opened;
  std::int64_t turns = 0;
  std::uint64_t seed = 0;
  bool degraded = false;  ///< turns wait to be made durable
  template <class V>
  void fields(V&& v) {
    v("turns", turns, at_least(0));
    v("seed", seed);
    v("degraded", degraded);
  }
};

/// The session goes on with this client: what the gateway's Open to another controller would say, with all that is
/// needed to serve it.
struct Attached : Conversation {
  static constexpr MessageType kType = MessageType::attached;
  std::int64_t turns = 0;
  bool degraded = false;
  std::int64_t position_samples = 0;  ///< of the session's sound so far: where Audio goes on
  template <class V>
  void fields(V&& v) {
    Conversation::fields(v);
    v("turns", turns, at_least(0));
    v("degraded", degraded);
    v("position_samples", position_samples, at_least(0));
  }
};

/// Where a user started to speak, by position in the stream of Audio. From vad, and to the client.
struct SpeechStarted {
  static constexpr MessageType kType = MessageType::speech_started;
  std::int64_t sample = 0;
  template <class V>
  void fields(V&& v) {
    v("sample", sample, at_least(0));
  }
};

/// Speech is silent for a moment and may have ended there: SpeechEnded confirms it, SpeechResumed takes it back.
struct SpeechPaused {
  static constexpr MessageType kType = MessageType::speech_paused;
  std::int64_t sample = 0;
  template <class V>
  void fields(V&& v) {
    v("sample", sample, at_least(0));
  }
};

/// The user goes on behind a pause.
struct SpeechResumed {
  static constexpr MessageType kType = MessageType::speech_resumed;
  std::int64_t sample = 0;
  template <class V>
  void fields(V&& v) {
    v("sample", sample, at_least(0));
  }
};

/// Where the user stopped.
struct SpeechEnded {
  static constexpr MessageType kType = MessageType::speech_ended;
  std::int64_t sample = 0;
  template <class V>
  void fields(V&& v) {
    v("sample", sample, at_least(0));
  }
};

enum class TextKind : std::uint8_t { transcript, text, tool_call, done };
template <>
inline std::span<const std::string_view> names_of<TextKind>() {
  static constexpr std::string_view kNames[] = {"transcript", "text", "tool_call", "done"};
  return kNames;
}

/// What the language model says. `at_bytes` counts the bytes of its kind before this message, so that a repetition is
/// known as one. Payload: the ids that were generated since the message before; all of them together let another
/// replica go on (`GoOn`).
struct Text {
  static constexpr MessageType kType = MessageType::text;
  static constexpr PayloadKind kPayload = PayloadKind::ids;
  TextKind kind = TextKind::text;
  std::int64_t at_bytes = 0;  ///< for tool_call: calls before this one
  /// Of a tool_call: JSON {name, arguments}, to clients with {id} and, when the engine has executed it, {result}; of
  /// done: JSON {finish: stop | length, prompt_tokens, cached_tokens, output_tokens}.
  std::string text;
  Bytes payload;
  template <class V>
  void fields(V&& v) {
    v("kind", kind);
    v("at_bytes", at_bytes, at_least(0));
    v("text", text);
  }
};

/// Spoken sound, s16le at `rate`. Pieces are numbered within a turn; positions count within a piece.
struct Speech {
  static constexpr MessageType kType = MessageType::speech;
  static constexpr PayloadKind kPayload = PayloadKind::pcm;
  std::uint32_t piece = 0;
  std::int64_t first_sample = 0;
  std::uint32_t rate = 22050;
  bool last = false;  ///< of its piece
  Bytes payload;
  template <class V>
  void fields(V&& v) {
    v("piece", piece);
    v("first_sample", first_sample, at_least(0));
    v("rate", rate, within(8000, 192000));
    v("last", last);
  }
};

/// The turn is over and durable (or queued, when `degraded`). Payload: JSON of its record with `stages` and
/// `audio_seconds`.
struct TurnDone {
  static constexpr MessageType kType = MessageType::turn_done;
  static constexpr PayloadKind kPayload = PayloadKind::json;
  std::int64_t turn = 0;
  bool degraded = false;
  Bytes payload;
  bool remembered = true;        ///< else it was told and forgotten (`Respond`), and the next turn has its number
  JsonText settled = {};         ///< array of the inputs that this answers: nobody is to be asked for them again
  std::int64_t sound_from = -1;  ///< nor is the sound before this sample to be heard again; -1: as before
  template <class V>
  void fields(V&& v) {
    v("turn", turn, at_least(1));
    v("degraded", degraded);
    v("remembered", remembered);
    v("settled", settled);
    v("sound_from", sound_from, at_least(-1));
  }
};

/// The turn was dropped on request; nothing of it follows.
struct Cancelled {
  static constexpr MessageType kType = MessageType::cancelled;
  TurnId turn;
  JsonText settled = {};  ///< as in TurnDone
  std::int64_t sound_from = -1;
  template <class V>
  void fields(V&& v) {
    v("turn", turn);
    v("settled", settled);
    v("sound_from", sound_from, at_least(-1));
  }
};

/// The user speaks over the sound of this turn: it stands still until Release or Interrupted. Answered by Played.
struct Hold {
  static constexpr MessageType kType = MessageType::hold;
  TurnId turn;
  template <class V>
  void fields(V&& v) {
    v("turn", turn);
  }
};

/// The voice was none that asks for an answer (a cough, "mhm"): the sound goes on.
struct Release {
  static constexpr MessageType kType = MessageType::release;
  TurnId turn;
  template <class V>
  void fields(V&& v) {
    v("turn", turn);
  }
};

/// The user has taken the word: nothing further of the turn's sound is played. A turn that was not over is so now, with
/// TurnDone behind this.
struct Interrupted {
  static constexpr MessageType kType = MessageType::interrupted;
  TurnId turn;
  std::int64_t samples = 0;  ///< heard of its sound
  std::string heard;         ///< of its text
  template <class V>
  void fields(V&& v) {
    v("turn", turn);
    v("samples", samples, at_least(0));
    v("heard", heard);
  }
};

/// The model has made its calls and waits for the ToolOutputs of those that the client executes: `calls` of the turn's
/// tool calls have no result yet.
struct Waiting {
  static constexpr MessageType kType = MessageType::waiting;
  TurnId turn;
  std::int64_t calls = 0;
  template <class V>
  void fields(V&& v) {
    v("turn", turn);
    v("calls", calls, at_least(1));
  }
};

/// An utterance was understood (its transcript was told) and is an Item now: it waits for Respond.
struct Noted {
  static constexpr MessageType kType = MessageType::noted;
  std::string id;  ///< of the Item
  std::string text;
  std::int64_t first_sample = 0, end_sample = 0;  ///< of the utterance
  JsonText settled = {};                          ///< as in TurnDone
  std::int64_t sound_from = -1;
  bool degraded = false;
  template <class V>
  void fields(V&& v) {
    v("id", id, bytes_at_most(100));
    v("text", text);
    v("first_sample", first_sample, at_least(0));
    v("end_sample", end_sample, at_least(0));
    v("settled", settled);
    v("sound_from", sound_from, at_least(-1));
    v("degraded", degraded);
  }
};

/// Inputs up to `input` will never be asked for again; of later ones, audio behind `keep_until` neither (0: all is
/// kept), but for the last `recent_samples` of it. Said, too, when what was told as `degraded` is stored.
struct Checkpoint {
  static constexpr MessageType kType = MessageType::checkpoint;
  std::uint64_t input = 0, keep_until = 0;
  std::int64_t recent_samples = 0;
  bool degraded = false;  ///< turns that were told wait to be made durable
  template <class V>
  void fields(V&& v) {
    v("input", input);
    v("keep_until", keep_until);
    v("recent_samples", recent_samples, at_least(0));
    v("degraded", degraded);
  }
};

/// What the turn under way is, as soon as that is certain, and again when more of it is. Another owner is told so with
/// Open and goes by it, instead of finding out once more. It holds until the turn's end is told.
struct Decided : TurnFacts {
  static constexpr MessageType kType = MessageType::decided;
};

/// Between a client and its gateway, both ways: a message in the text form of `/v1/dialogue` (payload). What a client
/// says has at most kClientEventBytesMax.
struct Event {
  static constexpr MessageType kType = MessageType::event;
  static constexpr PayloadKind kPayload = PayloadKind::json;
  static constexpr std::size_t kClientEventBytesMax = 128 * 1024;
  Bytes payload;
  template <class V>
  void fields(V&&) {}
};

// ------------------------------------------------------------------------------------------------ vad, tokenizer

/// Finds where a user starts and stops speaking in the Audio that follows, turn after turn. Answered by SpeechStarted,
/// SpeechPaused (the same one once more when it lasts), SpeechResumed and SpeechEnded; a Flush without speech answers
/// Errc::no_speech. Positions are those of Audio.
struct OpenVad {
  static constexpr MessageType kType = MessageType::open_vad;
  std::int32_t threshold_permille = -1, silence_ms = -1;  ///< -1: as configured
  template <class V>
  void fields(V&& v) {
    v("threshold_permille", threshold_permille, within(-1, 1000));
    v("silence_ms", silence_ms, within(-1, 10000));
  }
};

enum class TokenizerMode : std::uint8_t { stable, exact };
template <>
inline std::span<const std::string_view> names_of<TokenizerMode>() {
  static constexpr std::string_view kNames[] = {"stable", "exact"};
  return kNames;
}

/// Codes for the Audio that follows. Answered by Tokens while it comes and by the last Tokens after Flush.
struct OpenTokenizer {
  static constexpr MessageType kType = MessageType::open_tokenizer;
  TokenizerMode mode = TokenizerMode::stable;
  template <class V>
  void fields(V&& v) {
    v("mode", mode);
  }
};

/// Codes of a whole recording, trimmed and with its energy normalised. Answered by one Tokens.
struct Tokenize {
  static constexpr MessageType kType = MessageType::tokenize;
  static constexpr PayloadKind kPayload = PayloadKind::float32;
  std::int32_t rate = 0;
  Bytes payload;
  template <class V>
  void fields(V&& v) {
    v("rate", rate, within(16000, 192000));
  }
};

/// Codes from a group on; those at or past `final_groups` may still change.
struct Tokens {
  static constexpr MessageType kType = MessageType::tokens;
  static constexpr PayloadKind kPayload = PayloadKind::codes;
  std::int64_t first_group = 0, final_groups = 0;
  bool last = false;
  Bytes payload;
  std::uint32_t attempt = 0;            ///< of the Flush that asked for them; 0: the stream's own
  std::int32_t complete_permille = -1;  ///< of an attempt: how likely the utterance ends there; -1: nobody knows
  template <class V>
  void fields(V&& v) {
    v("first_group", first_group, at_least(0));
    v("final_groups", final_groups, at_least(0));
    v("last", last);
    v("attempt", attempt);
    v("complete_permille", complete_permille, within(-1, 1000));
  }
};

// ------------------------------------------------------------------------------------------------ llm

/// A chat of one turn. Payload: the history as a JSON array of {role, content, calls?}. Answered by Text after
/// Generate.
struct OpenChat {
  static constexpr MessageType kType = MessageType::open_chat;
  static constexpr PayloadKind kPayload = PayloadKind::json;
  std::string system;            ///< empty: the model's own
  bool operator_system = false;  ///< `system` is configuration: what is computed of it may serve every session
  std::uint64_t seed = 1;
  // As in Settings.
  JsonText tools;
  std::string tool_choice = "auto";
  std::int32_t temperature_milli = -1, top_p_milli = -1, top_k = -1;
  std::int64_t tokens_max = -1;
  JsonText stop;
  Bytes payload;
  template <class V>
  void fields(V&& v) {
    v("system", system, bytes_at_most(32768));
    v("operator_system", operator_system);
    v("seed", seed);
    v("tools", tools);
    v("tool_choice", tool_choice, bytes_at_most(100));
    v("temperature_milli", temperature_milli, within(-1, 100000));
    v("top_p_milli", top_p_milli, within(-1, 1000));
    v("top_k", top_k, within(-1, 1000000));
    v("tokens_max", tokens_max, within(-1, 1000000));
    v("stop", stop);
  }
};

/// A chat that begins as a copy of another one of the same caller and session, as that is now: the answer is thought
/// through on it while the other goes on listening. Errc::not_found, and Errc::invalid_argument when the other's answer
/// has begun.
struct ForkChat {
  static constexpr MessageType kType = MessageType::fork_chat;
  StreamId from;
  template <class V>
  void fields(V&& v) {
    v("from", from);
  }
};

/// The user's codes from a group on; what was there is replaced. Prefilled as they come.
struct Hear {
  static constexpr MessageType kType = MessageType::hear;
  static constexpr PayloadKind kPayload = PayloadKind::codes;
  std::int64_t first_group = 0;
  Bytes payload;
  template <class V>
  void fields(V&& v) {
    v("first_group", first_group, at_least(0));
  }
};

/// Ids that the reply under way has already (payload): Generate goes on behind them and tells their texts again from
/// the start.
struct GoOn {
  static constexpr MessageType kType = MessageType::go_on;
  static constexpr PayloadKind kPayload = PayloadKind::ids;
  Bytes payload;
  template <class V>
  void fields(V&&) {}
};

/// The user's turn is over: answer it.
struct Generate {
  static constexpr MessageType kType = MessageType::generate;
  bool transcribe = false;    ///< only what was heard is wanted: the transcript, then done
  bool as_it_stands = false;  ///< nobody has said anything in this turn: the history is answered
  bool background = false;    ///< nobody waits for it: everything else goes first
  template <class V>
  void fields(V&& v) {
    v("transcribe", transcribe);
    v("as_it_stands", as_it_stands);
    v("background", background);
  }
};

/// Answers a Text of kind tool_call; the model goes on.
struct ToolResult {
  static constexpr MessageType kType = MessageType::tool_result;
  JsonText result;
  template <class V>
  void fields(V&& v) {
    v("result", result);
  }
};

enum class SpeechMode : std::uint8_t { with_speaker, without_speaker, rap, vocal };
template <>
inline std::span<const std::string_view> names_of<SpeechMode>() {
  static constexpr std::string_view kNames[] = {"with_speaker", "without_speaker", "rap", "vocal"};
  return kNames;
}

/// Codes that speak a text, to a checkpoint of the speech kind. Payload: the voice's codes. Answered by Tokens.
struct Synthesise {
  static constexpr MessageType kType = MessageType::synthesise;
  static constexpr PayloadKind kPayload = PayloadKind::codes;
  SpeechMode mode = SpeechMode::with_speaker;
  std::string speaker, prompt_text, text;
  std::uint64_t seed = 1;
  bool operator_voice = false;  ///< not a user's: what is computed of it may serve every session
  Bytes payload;
  template <class V>
  void fields(V&& v) {
    v("mode", mode);
    v("speaker", speaker, bytes_at_most(200));
    v("prompt_text", prompt_text, bytes_at_most(8000));
    v("text", text, bytes_at_most(60000));
    v("seed", seed);
    v("operator_voice", operator_voice);
  }
};

// ------------------------------------------------------------------------------------------------ tts

/// A piece of text to be spoken; any number on one stream, spoken in order. Answered by Speech.
struct Speak {
  static constexpr MessageType kType = MessageType::speak;
  std::uint32_t piece = 0;
  std::string text, speaker;
  std::int64_t skip_samples = 0;  ///< of the piece, heard already
  std::uint64_t seed = 1;
  std::string style;  ///< as in Settings
  std::int32_t speed_milli = 1000, volume_milli = 1000;
  template <class V>
  void fields(V&& v) {
    v("piece", piece);
    v("text", text, bytes_at_most(60000));
    v("speaker", speaker, bytes_at_most(200));
    v("skip_samples", skip_samples, at_least(0));
    v("seed", seed);
    v("style", style, bytes_at_most(100));
    v("speed_milli", speed_milli, within(250, 4000));
    v("volume_milli", volume_milli, within(100, 10000));
  }
};

// ------------------------------------------------------------------------------------------------ context

/// Asks for the session: compare-and-set of its epoch. Answered by Granted with the new one, or Errc::stale_epoch with
/// the true one in its text. A repetition by the same owner under the epoch it was granted is granted again unchanged.
struct Claim {
  static constexpr MessageType kType = MessageType::claim;
  Epoch expected;
  std::string owner;  ///< instance
  std::int64_t lease_ms = 0;
  template <class V>
  void fields(V&& v) {
    v("expected", expected);
    v("owner", owner, bytes_at_most(100));
    v("lease_ms", lease_ms, within(0, 3600000));
  }
};

/// The session is yours under this epoch, for this long. Also the answer to Renew.
struct Granted {
  static constexpr MessageType kType = MessageType::granted;
  Epoch epoch;
  std::int64_t lease_ms = 0;
  template <class V>
  void fields(V&& v) {
    v("epoch", epoch);
    v("lease_ms", lease_ms, at_least(0));
  }
};

/// Is the session still mine? Answered by Granted or Errc::stale_epoch.
struct Renew {
  static constexpr MessageType kType = MessageType::renew;
  Epoch epoch;
  std::int64_t lease_ms = 0;
  template <class V>
  void fields(V&& v) {
    v("epoch", epoch);
    v("lease_ms", lease_ms, within(0, 3600000));
  }
};

/// Asks for the session's latest committed turns. Answered by Records.
struct History {
  static constexpr MessageType kType = MessageType::history;
  std::int32_t turns_max = 20;
  template <class V>
  void fields(V&& v) {
    v("turns_max", turns_max, within(0, 1000));
  }
};

/// Payload: JSON array of {turn, record}, oldest first.
struct Records {
  static constexpr MessageType kType = MessageType::records;
  static constexpr PayloadKind kPayload = PayloadKind::json;
  std::int64_t turns = 0;  ///< number of the last committed turn
  Bytes payload;
  template <class V>
  void fields(V&& v) {
    v("turns", turns, at_least(0));
  }
};

/// Makes a turn durable. Payload: its record, a JSON object. Answered by Committed; writing the same turn again is a
/// no-op.
struct Commit {
  static constexpr MessageType kType = MessageType::commit;
  static constexpr PayloadKind kPayload = PayloadKind::json;
  std::int64_t turn = 0;
  Epoch epoch;
  Bytes payload;
  template <class V>
  void fields(V&& v) {
    v("turn", turn, at_least(1));
    v("epoch", epoch);
  }
};

/// The turn is durable; its digest continues the session's chain.
struct Committed {
  static constexpr MessageType kType = MessageType::committed;
  std::int64_t turn = 0;
  std::string digest;
  template <class V>
  void fields(V&& v) {
    v("turn", turn, at_least(1));
    v("digest", digest, bytes_at_most(200));
  }
};

/// Deletes everything that was said in the session, for good. Its epoch stays as a tombstone: nobody writes to it
/// again. Answered by Erased. To a controller, on a stream of its own: by a client that may; whoever leads the session
/// stops, and Errc::not_found says that nothing is stored under this name. To an llm: it is over; not answered.
struct Erase {
  static constexpr MessageType kType = MessageType::erase;
  template <class V>
  void fields(V&&) {}
};

struct Erased {
  static constexpr MessageType kType = MessageType::erased;
  std::int64_t turns = 0;
  template <class V>
  void fields(V&& v) {
    v("turns", turns, at_least(0));
  }
};

// ------------------------------------------------------------------------------------------------ reading and writing

template <class T>
concept WireMessage = requires {
  { T::kType } -> std::convertible_to<MessageType>;
};
template <class T>
concept HasPayload = requires(T t) {
  t.payload;
};

/// A struct as a message of a stream. `head` gives session, stream, turn, epoch and trace; its type is the struct's.
/// Payloads are moved.
template <WireMessage T>
Message pack(T body, const Envelope& head = {}) {
  Message out;
  out.head = head;
  out.head.type = T::kType;
  if (is_packed(T::kType)) {
    PackWriter writer;
    body.fields(writer);
    out.body = writer.take();
  } else {
    JsonWriter writer;
    body.fields(writer);
    out.body = writer.text();
  }
  if constexpr (HasPayload<T>) out.payload = std::move(body.payload);
  return out;
}

/// A message as its struct; the payload is moved out of it. @error Errc::bad_json, Errc::invalid_argument naming
/// message and field
template <WireMessage T>
Result<T> read(Message& message) {
  T out;
  if (is_packed(T::kType)) {
    PackReader reader(message.body);
    out.fields(reader);
    PARLANDO_DO(reader.done(T::kType));
  } else {
    JsonReader reader(message.body);
    out.fields(reader);
    PARLANDO_DO(reader.done(T::kType));
  }
  if constexpr (HasPayload<T>) out.payload = std::move(message.payload);
  return out;
}

/// One row a message for docs/protocol.md: number, name, struct, fields with their ranges, payload.
std::string describe_messages();

}  // namespace parlando::protocol
