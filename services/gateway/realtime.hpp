#pragma once
/// The realtime API (`/v1/realtime`) as a translator: the events of one client become messages and sound of a
/// conversation in the text form of `/v1/dialogue` (client_message.hpp), and what that conversation tells becomes
/// events. A plain class: no sockets, no clock. README.md says what is supported.
///
/// It speaks to one conversation, number 0, for as long as its socket lives, and to a further one for each response
/// that is out of band: that one gets a history of its own and is gone with its answer.
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "services/gateway/realtime_response.hpp"

namespace parlando::gateway {

struct RealtimeOptions {
  std::string model = "parlando";  ///< as the client called it
  bool transcription = false;      ///< `intent=transcription`: utterances are transcribed, nothing is answered
  std::string id_prefix;           ///< of all ids: letters and digits, another one for each socket
  std::int64_t expires_at = 0;     ///< Unix time
  std::string session;             ///< JSON: what `session.created` has already, as if updated; empty: nothing
  /// Asked before a conversation beside the socket's own begins; its error is what the client is told. None: it may.
  std::function<std::optional<RealtimeError>()> admit_side = {};
};

/// What a conversation is told, in order.
struct ToTalk {
  enum class Kind : std::uint8_t { begin, text, sound, end };
  int talk;
  Kind kind;
  std::string data = {};  ///< text: JSON; sound: s16le at 16 kHz, at most 32 KiB
};

class Realtime {
 public:
  using json = nlohmann::json;
  static constexpr std::size_t kSideTalksMax = 4;    ///< responses out of band at a time
  static constexpr std::size_t kUtterancesMax = 64;  ///< that wait for their transcript
  static constexpr std::size_t kDroppedMax = 64;     ///< turns that were cancelled and are not over yet
  static constexpr std::size_t kLateSoundMax = 60 * kSpeechRate * kSampleBytes;  ///< of a turn that waits for a tool

  explicit Realtime(RealtimeOptions options);
  /// `session.created`, and the conversation is opened.
  void start();

  // ---- from the client
  /// Whatever is wrong is answered by an `error` event; nothing ends the session.
  void client_message(std::string_view message, bool binary);
  /// An event that the published API does not have, for clients that have asked for it.
  void tell_extension(std::string_view type, json body) { events_.send(type, std::move(body)); }
  /// Each append holds one packet.
  bool takes_packets() const { return settings_.input() == SoundFormat::opus; }
  /// An append, read away from its session: what is large is not to hold up others.
  struct Append {
    std::string event_id;
    RealtimeResult<std::vector<std::byte>> sound;
  };
  /// On any thread. @return nothing: it is another event, for `client_message`
  static std::optional<Append> read_append(std::string_view message);
  /// Takes part of an append's sound, or tells what is wrong with it. Parts of PCM and G.711 may be of any size.
  void take_append(const Append& append, std::size_t from, std::size_t count);

  // ---- from conversations
  void talk_event(int talk, std::string_view event);
  void talk_sound(int talk, std::uint32_t turn, std::string_view pcm);
  /// The gateway has ended it.
  void talk_closed(int talk, std::uint16_t code, const std::string& reason);

  // ---- what is to be done
  std::vector<RealtimeEvent> take_for_client() { return events_.take(); }
  std::vector<ToTalk> take_for_talks() { return std::exchange(to_talks_, {}); }
  struct Ending {
    std::uint16_t code;  ///< of RFC 6455
    std::string reason;
  };
  /// Set: the socket is to be closed, behind the last event.
  const std::optional<Ending>& ending() const { return ending_; }

 private:
  using Done = RealtimeResult<void>;

  /// What the user says: from its start to its transcript.
  struct Utterance {
    std::string item;
    std::int64_t begin = 0, end = 0;  ///< samples at 16 kHz
    std::uint32_t turn = 0;           ///< that understands it; 0: not known yet
    std::string transcript;
    bool discarded = false;  ///< the client has cleared it
  };
  /// A call of the model that the client executes.
  struct PendingCall {
    std::string id;    ///< the client's
    std::string name;  ///< its id in the conversation, whose numbers may come again
    std::optional<std::string> output = {};
    bool asked = false;  ///< the client has asked for the answer; it comes when this is here
  };
  struct SideTalk {
    std::unique_ptr<RealtimeResponse> response;
    bool remembered = false;  ///< its answer belongs to the conversation
  };

  // realtime.cpp: what clients say
  void on_client_event(const json& event);
  Done dispatch(const std::string& type, const json& event);
  Done append(std::string_view base64);
  Done append(std::span<const std::byte> sound);
  Done update_session(const json& event);
  Done commit();
  Done clear();
  Done create_item(const json& event);
  Done truncate_item(const json& event);
  Done delete_item(const json& event);
  Done retrieve_item(const json& event);
  Done create_response(const json& event);
  Done cancel_response(const json& event);
  Done respond_aside(const json& options, ResponseSettings settings, json metadata, bool remembered);
  void go_on_with_turn(RealtimeResponse::Options options);
  void take_tool_output(const RealtimeItem& item);
  void ask(json respond);
  void end_sound();
  void flush(Utterance utterance);
  bool answer_is_coming() const;

  // realtime_talk.cpp: what the conversation tells
  void on_main_event(const std::string& type, const json& event);
  void on_side_event(int talk, const std::string& type, const json& event);
  void on_speech_started(std::int64_t sample);
  void on_speech_ended(std::int64_t sample);
  void on_text(const json& event);
  void on_transcript(std::uint32_t turn, const std::string& text);
  void on_call(RealtimeResponse& response, const std::string& text, bool pending);
  void on_waiting(std::uint32_t turn);
  void on_noted(const json& event);
  void on_interrupted(const json& event);
  void on_turn(const json& event);
  void on_cancelled(std::uint32_t turn);
  void on_error(const json& event);
  RealtimeResponse* response_of(std::uint32_t turn);
  void add_utterance(Utterance utterance);
  void understood(std::uint32_t turn, const std::string& transcript);
  void complete_transcript(const Utterance& utterance);
  void fail_transcript(const Utterance& utterance, const std::string& code, const std::string& message);
  bool drops(std::uint32_t turn);
  void turn_over(std::uint32_t turn);
  void tell_output(const PendingCall& call);
  void finish_active(const ResponseEnd& end);
  static ResponseEnd end_of(const json& turn_event);

  void tell(int talk, const json& message);
  void tell_sound(std::string pcm);
  RealtimeResponse::Options response_options(const std::string& conversation, ResponseSettings settings, json metadata);

  RealtimeEvents events_;
  std::string session_;
  std::function<std::optional<RealtimeError>()> admit_side_;
  RealtimeSettings settings_;
  RealtimeItems items_;
  json told_;  ///< settings of the conversation
  std::string conversation_;
  std::vector<ToTalk> to_talks_;
  std::optional<Ending> ending_;

  // What the user says.
  SoundIn sound_in_;
  std::int64_t position_ = 0;   ///< samples at 16 kHz that the conversation was told
  std::int64_t buffered_ = 0;   ///< position behind what was committed or cleared last
  std::int64_t committed_ = 0;  ///< position at the client's last commit or clear
  std::optional<Utterance> hearing_;
  std::deque<Utterance> utterances_;  ///< that wait for their transcript

  // What is answered.
  std::unique_ptr<RealtimeResponse> active_;
  std::uint32_t open_turn_ = 0;   ///< under way below; 0: none that is known
  std::optional<json> asked_;     ///< a `respond` that waits for the end of the turn before
  std::uint32_t sound_turn_ = 0;  ///< `turn_samples_` are of this one
  std::int64_t turn_samples_ = 0;
  std::deque<std::uint32_t> dropped_;  ///< turns that the client has cancelled; 0: not known which
  std::vector<PendingCall> calls_;     ///< whose outputs the turn has not got
  std::uint32_t calls_turn_ = 0, waiting_turn_ = 0;
  std::string late_sound_;  ///< of the waiting turn, behind its response
  std::map<int, SideTalk> sides_;
  int talks_ = 0;
};

}  // namespace parlando::gateway
