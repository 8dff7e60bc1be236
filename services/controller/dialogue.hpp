#pragma once
/// One conversation: the state machine of a turn, the turn's log, replay when a service dies. A plain class without sockets or a clock; the
/// controller's core gives it an outlet and feeds it what arrives. Turn-based: what is said over an answer is not heard yet.
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "common/base/clock.hpp"
#include "common/config/fields.hpp"
#include "common/protocol/codec.hpp"
#include "services/controller/text_chunker.hpp"

namespace parlando::controller {

struct DialogueConfig {
  int preroll_ms = 300, tail_ms = 200;  ///< audio kept in front of and behind detected speech
  int turn_seconds_max = 30;            ///< of one turn's audio; the turn ends there
  int reply_seconds_max = 60;           ///< from the end of speech to the committed turn
  int history_turns = 20;
  std::string tokenizer_mode = "stable";  ///< or exact: the turn is tokenised again at its end
  std::string tools = "demo";             ///< or none
  int sessions_max = 64;
  template <class V>
  void fields(V&& v) {
    v("preroll_ms", preroll_ms), v("tail_ms", tail_ms), v("turn_seconds_max", turn_seconds_max), v("reply_seconds_max", reply_seconds_max),
        v("history_turns", history_turns), v("tokenizer_mode", tokenizer_mode), v("tools", tools), v("sessions_max", sessions_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

/// Where a dialogue's messages go.
class Outlet {
 public:
  virtual ~Outlet() = default;
  virtual void to_client(protocol::MessageType type, const nlohmann::json& body, std::vector<std::byte> payload) = 0;
  /// To the session's replica of a role. @return false when none is live
  virtual bool to_service(const std::string& role, protocol::Message message) = 0;
};

class Dialogue {
 public:
  Dialogue(protocol::SessionId id, const DialogueConfig& config, Outlet& outlet) : id_(id), config_(config), outlet_(outlet) {}

  // What the client says.
  void open(const nlohmann::json& options, Time now);
  void audio(std::vector<std::byte> pcm, Time now);  ///< s16le at 16 kHz
  void flush(Time now);                              ///< "I have finished speaking"
  void text(const std::string& text, Time now);      ///< a typed turn
  void cancel(Time now);                             ///< drops the turn under way
  void close();
  // What services say. Messages of streams that are not current are ignored: they come from before a replay.
  void on_service(const std::string& role, const protocol::Message& message, Time now);
  void service_lost(const std::string& role, Time now);
  void service_back(const std::string& role, Time now);
  void tick(Time now);

  enum class State { listening, hearing, thinking, speaking, committing };
  State state() const { return state_; }
  std::int64_t turns_committed() const { return turns_; }
  std::uint64_t replays() const { return replays_; }

 private:
  struct Spoken {
    std::string text;
    std::int64_t samples = 0;
    bool done = false;
  };
  protocol::Message message(const std::string& role, protocol::MessageType type, nlohmann::json body, std::vector<std::byte> payload = {}) const;
  bool send(const std::string& role, protocol::MessageType type, nlohmann::json body, std::vector<std::byte> payload = {});
  void send_audio(const std::string& role, std::size_t first, std::size_t last);
  /// Opens a stream to a role and says everything the turn knows so far; at the turn's start, and again when a replica has died.
  void start(const std::string& role);
  void finish(const std::string& role);
  void send_record();
  void begin_speech(std::int64_t sample, Time now);
  void end_speech(std::int64_t sample, Time now);
  void speak(std::vector<std::string> pieces, bool last);
  void on_text(const nlohmann::json& body, Time now);
  void on_speech(const nlohmann::json& body, const protocol::Message& message, Time now);
  void maybe_commit(Time now);
  void fail_turn(const std::string& code, const std::string& text);
  void reset();
  double ms_since_end(Time now) const { return std::chrono::duration<double, std::milli>(now - ended_at_).count(); }

  protocol::SessionId id_;
  const DialogueConfig& config_;
  Outlet& outlet_;
  State state_ = State::listening;
  std::uint32_t epoch_ = 0, next_stream_ = 2;     ///< 1 is the client's
  std::map<std::string, std::uint32_t> streams_;  ///< role -> stream of the turn
  std::set<std::string> wanted_;                  ///< roles that have no live replica and are needed
  std::string system_, speaker_;
  bool speak_ = true, history_known_ = false;
  std::deque<nlohmann::json> history_;  ///< records of committed turns
  std::int64_t turns_ = 0;
  std::uint64_t replays_ = 0;
  // The turn under way.
  std::vector<std::byte> log_;        ///< its PCM, from the first frame on
  std::int64_t begin_ = 0, end_ = 0;  ///< samples of speech within the log
  bool flushed_ = false, tokens_done_ = false, text_done_ = false, all_spoken_ = false;
  std::optional<std::string> typed_;
  std::vector<std::int32_t> codes_;
  std::string transcript_, reply_;
  nlohmann::json tool_calls_ = nlohmann::json::array(), timings_ = nlohmann::json::object(), record_;
  TextChunker chunker_;
  std::vector<Spoken> spoken_;
  std::int64_t samples_sent_ = 0;
  Time ended_at_{}, now_{};  ///< end of speech; latest time that was told
};

}  // namespace parlando::controller
