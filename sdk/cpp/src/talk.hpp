#pragma once
/// One conversation, without sockets, threads or waiting: what the user says goes in, what is told comes out. It finds
/// itself a gateway, and another one when that is lost. The same as `sdk/python/parlando/talk.py`.
#include <array>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "common/protocol/messages.hpp"
#include "sdk/cpp/include/parlando/client.hpp"

namespace parlando::sdk {

/// A gateway, as conversations see it.
class Place {
 public:
  virtual ~Place() = default;
  virtual Result<void> send(protocol::Message message) = 0;
  virtual void handled(const protocol::Envelope& head) = 0;
  virtual bool is_suspect() const = 0;
};

/// The client, as conversations see it.
class Finder {
 public:
  virtual ~Finder() = default;
  /// @param nor  others that are not to be found
  virtual Place* find(const Place* but, const std::set<const Place*>& nor = {}) = 0;
  /// Gateways that are there, whether they have room or not.
  virtual int standing() const = 0;
  virtual void wake() = 0;
};

class Latency {
 public:
  void add(milliseconds time);
  double median_ms() const;

 private:
  std::array<double, 1000> last_{};
  std::size_t count_ = 0;
};

class Talk {
 public:
  using json = nlohmann::json;
  /// @param opening  `open`, or the user's own `resume`   @param reconnect  without a gateway for so long it ends
  Talk(Finder& finder, json opening, milliseconds reconnect, std::uint64_t seed, Time now);

  bool is_open() const { return state_ == State::open; }
  bool is_ended() const { return state_ == State::ended; }
  bool was_opened() const { return was_opened_; }
  const std::optional<Error>& failure() const { return failure_; }
  const std::string& session() const { return session_; }
  const std::string& session_token() const { return session_token_; }
  std::int32_t rate() const { return rate_; }
  const Place* place() const { return place_; }
  Metrics metrics() const;
  json resume_token() const;

  // ---- what the user says
  /// @error Errc::overloaded, Errc::cancelled, Errc::invalid_argument
  Result<void> say(json fields, Time now);
  /// At most kMessageSamples.
  Result<void> hear(std::span<const std::int16_t> samples);
  void close(bool detached);
  static constexpr std::size_t kMessageSamples = 1600;  ///< 100 ms

  // ---- what happens
  void on_tick(Time now);
  void on_message(const Place& place, protocol::Message& message, Time now);
  void on_down(const Place& place, Time now);
  bool owns(const Place& place, const protocol::Envelope& head) const {
    return &place == place_ && head.key() == head_.key();
  }
  void fail(Error error);

  /// Until it is taken, its place in the window is not free: who takes nothing is sent nothing.
  std::optional<Told> take();

 private:
  enum class State { placing, asking, open, ended };
  struct Input {
    std::int64_t position = 0;  ///< samples before it
    json fields;                ///< null: sound
    std::string type;           ///< of the fields
    protocol::Bytes pcm;
    std::size_t bytes = 0;  ///< of the fields
    bool sent = false;
    std::int64_t samples() const { return static_cast<std::int64_t>(pcm.size() / 2); }
    bool is_sound() const { return fields.is_null(); }
  };
  struct Waiting {
    Told told;
    Place* place = nullptr;  ///< whose window it stands in
    protocol::Envelope head;
  };
  static bool asks(const Input& input);
  Result<void> must_go_on() const;
  Result<void> offer(Input input);
  Result<void> send(Input& input);
  void keep(Input input);
  void say_unsent();
  using Log = std::deque<Input>;
  Log::iterator sent_end() { return log_.end() - static_cast<std::ptrdiff_t>(unsent_); }
  Log::iterator first_cancel();
  void drop(Log::iterator input);
  void count_unsent(const Input& input, int sign);
  void drop_through(Log::iterator last);
  void ask(Time now);
  void look_for_place(Time now);
  void give_up();
  void leave(bool detached);
  void lost(Time now, const Place* avoid, milliseconds wait = milliseconds(0));
  milliseconds pause();
  void on_answer(const json& fields, Time now);
  void on_opened(const json& fields, Time now);
  bool is_new() const { return !was_opened_ && !resumes_; }
  bool is_refused(const Error& error, Time now);
  void on_stream_ended(const json& fields, Time now);
  void on_event(const json& fields, const protocol::Envelope& head, Time now);
  bool on_error(const json& fields, const protocol::Envelope& head);
  void on_sound(protocol::Message& message, Time now);
  void repeat(const json& fields);
  void nothing_of(std::int64_t turn);
  void forget_ask(std::int64_t turn, bool is_noted = false);
  void forget_cancelled(std::int64_t turn);
  void no_more_of(std::int64_t turn);
  void on_turn(const json& fields, Time now);
  void on_noted(const json& fields);
  bool reach(std::int64_t turn);
  void note(const char* kind, Latency& latency, Time now);
  void tell(Told told, Place* place = nullptr, const protocol::Envelope& head = {});

  Finder& finder_;
  json opening_;
  milliseconds reconnect_;
  std::uint64_t random_;
  State state_ = State::placing;
  bool resumes_ = false, was_opened_ = false, swallow_no_speech_ = false;
  Place* place_ = nullptr;
  const Place* avoid_ = nullptr;
  std::set<const Place*> refusers_;  ///< have no room for it
  std::optional<Error> refusal_;     ///< the last one
  std::optional<Error> answer_;      ///< the last one for which it looks elsewhere, or asks again
  protocol::Envelope head_;
  Time not_before_, ask_by_{}, lost_at_, opened_at_{};
  int failures_ = 0;         ///< attempts in a row, from the loss of a gateway that has served
  bool was_served_ = false;  ///< by this gateway: it has told something behind `opened`
  std::optional<Error> failure_;
  std::string session_, token_, session_token_;
  std::int32_t rate_ = 0;
  std::map<std::string, std::int64_t> had_;  ///< of the turn whose end was not told yet: what `resume` claims
  std::int64_t noted_turn_ = 0;              ///< the last number that an utterance has which was noted
  Log log_;                                  ///< what was sent, then what was not
  std::int64_t log_samples_ = 0, unsent_samples_ = 0;
  std::size_t log_bytes_ = 0, log_events_ = 0;
  std::size_t unsent_ = 0;  ///< inputs, the last of the log
  std::size_t unsent_events_ = 0, unsent_bytes_ = 0;
  std::int64_t came_turn_ = 0;  ///< up to this one, what asked for turns has left the log
  std::int64_t position_ = 0;
  std::deque<Waiting> told_;
  std::optional<Time> asked_at_;
  std::map<std::string, bool> noted_;
  Metrics metrics_;
  Latency first_text_, first_sound_, whole_turn_;
};

}  // namespace parlando::sdk
