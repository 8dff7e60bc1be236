#pragma once
/// An HTTP request is a client of a session like any socket: it says messages of `/v1/dialogue` and sound, and makes
/// its answer of what it is told. Plain values, without sockets and threads; `http_api.hpp` carries both ways.
#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.hpp"
#include "services/gateway/http_error.hpp"
#include "services/gateway/http_sound.hpp"

namespace parlando::gateway {

class HttpRequest {
 public:
  /// For the session: a text message, or s16le sound at 16 kHz.
  struct Said {
    bool sound = false;
    std::string data;
  };
  /// For the HTTP client.
  struct Answered {
    enum class Kind { whole, begin, part, finish, abort };
    Kind kind;
    http::Response response = {};  ///< whole, begin
    std::string part = {};
  };

  virtual ~HttpRequest() = default;
  /// Says what can be said before anything is answered.
  virtual void start() = 0;
  /// What it says is a recording, which is read as fast as it is understood.
  virtual bool is_of_file() const { return false; }

  /// An event of the session, as a socket would be told.
  void event(std::string_view text);
  /// s16le at kSpeechRate
  void sound(std::string_view pcm);
  /// The session has closed the socket: what is not answered yet has failed.
  void closed(std::uint16_t code, const std::string& reason);
  /// Too much was said at once: no sound until `resume`.
  void pause() { paused_ = true; }
  void resume() { paused_ = false; }

  /// What is to be said next: texts up to and including one message of sound, or nothing while it is paused.
  std::vector<Said> take_said();
  std::vector<Answered> take_answered() { return std::exchange(answered_, {}); }
  /// The answer is complete: the session is not needed any more.
  bool is_over() const { return over_; }

 protected:
  virtual void on_event(const std::string& type, const nlohmann::json& event) = 0;
  virtual void on_sound(std::string_view) {}

  void say(const nlohmann::json& message);
  void say_sound(std::unique_ptr<SoundSource> sound);
  bool has_said_all() const { return waiting_.empty(); }
  /// Of sound, so far.
  double said_seconds() const { return static_cast<double>(said_samples_) / static_cast<double>(kInputRate); }

  bool has_begun() const { return begun_; }
  void answer(http::Response response);
  void begin(http::Response head);
  void part(std::string data);
  void finish();
  /// Before the first part an answer of its own; behind it the last event of a stream of events, or an answer that
  /// breaks off.
  void fail(const ApiError& error);

  /// Server-sent events: `data: …` and an empty line. Only for answers that `begin_events` has begun.
  void begin_events();
  void send_event(const nlohmann::json& data);
  void finish_events(bool done_mark);

 private:
  struct Waiting {
    std::string text;
    std::unique_ptr<SoundSource> sound;  ///< instead of a text
  };
  std::deque<Waiting> waiting_;
  std::int64_t said_samples_ = 0;
  std::vector<Answered> answered_;
  bool paused_ = false, begun_ = false, events_ = false, over_ = false;
};

}  // namespace parlando::gateway
