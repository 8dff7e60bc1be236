#pragma once
/// Client of the parlando engine: spoken dialogue over ZeroMQ. A `Client` is a connection to one gateway or several, on
/// a thread of its own; a `Conversation` finds itself a gateway, and when that is lost another one, where it goes on.
/// JSON is text here: what `open` and `configure` take and what events hold is listed in services/gateway/README.md.
/// Nothing but the standard library is needed to include this.
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace parlando::sdk {

using std::chrono::milliseconds;

/// `code` is one of the engine's names: invalid_argument, overloaded, unavailable, deadline_exceeded, …
class Error : public std::runtime_error {
 public:
  Error(std::string error_code, std::string error_message, std::int64_t retry = 0)
      : std::runtime_error(error_code + ": " + error_message),
        code(std::move(error_code)),
        message(std::move(error_message)),
        retry_ms(retry) {}
  std::string code, message;
  std::int64_t retry_ms;  ///< > 0: the same may succeed after that time
};

/// CURVE keys in Z85, 40 characters each. The engine's `keys_file` says which public keys are clients'.
struct Keys {
  std::string public_key, secret_key;
  std::string server_key;  ///< public, of the gateways
  /// @throw Error not_found, bad_format naming the file
  static Keys read(const std::string& public_file, const std::string& secret_file, const std::string& server_file);
};

struct ClientOptions {
  std::vector<std::string> endpoints;  ///< of gateways: tcp://host:port, ipc://path
  std::optional<Keys> keys;            ///< for tcp; none: in the clear
  std::string name = "client";         ///< the engine may have bound the key to it; 1 to 60 characters
  /// A conversation without a gateway for so long ends. A gateway that falls silent is given up by the engine after
  /// 30 s, and what it had can be resumed from then on.
  milliseconds reconnect{40000};
};

struct Event {
  std::string type;
  std::string json;  ///< the whole event
  /// A field as text; empty when it is missing or no text.
  std::string text(std::string_view name) const;
  /// A field as a whole number.
  std::int64_t number(std::string_view name, std::int64_t otherwise = 0) const;
  bool flag(std::string_view name) const;
};

/// A part of an answer: mono, 16 bit.
struct Sound {
  std::uint32_t turn = 0;
  std::int64_t first_sample = 0;  ///< from the start of the turn's sound
  std::int32_t rate = 0;
  std::vector<std::int16_t> samples;
};

using Told = std::variant<Event, Sound>;

/// A turn that is over.
struct Turn {
  std::int64_t number = 0;
  std::string user, assistant;
  std::vector<std::int16_t> sound;
  std::int32_t rate = 0;
  Event record;
  std::vector<Told> events;  ///< all that was told of it
};

/// What the model may call and this program executes.
struct Tool {
  std::string name, description;
  std::string parameters = R"({"type":"object","properties":{}})";  ///< JSON schema
  /// @param arguments  JSON. @return the output; what is thrown is told to the model
  std::function<std::string(const std::string& arguments)> function;
};

/// Of a conversation. Latencies in milliseconds, medians of the last 1,000; they count from the end of what the user
/// said.
struct Metrics {
  double sound_sent_seconds = 0, sound_received_seconds = 0;
  std::uint64_t turns = 0, errors = 0, resumed = 0, said_again = 0;
  double first_text_ms = 0, first_sound_ms = 0, whole_turn_ms = 0;
};

class Core;
class Talk;

/// Any thread may speak; one thread at a time takes what is told. What nobody takes stops the gateway (at 256
/// messages).
class Conversation {
 public:
  Conversation(Conversation&&) noexcept;
  Conversation& operator=(Conversation&&) noexcept;
  /// Closes it.
  ~Conversation();

  std::string session() const;
  std::int32_t rate() const;     ///< of the answers' sound
  std::string endpoint() const;  ///< of the gateway that has it now; empty while it looks for one
  Metrics metrics() const;
  /// JSON for `Client::resume` of another program. A token counts once.
  std::string resume_token() const;
  /// JSON that opens this session again, hours later and at any gateway (among the settings of `Client::open`), or
  /// erases it (`Client::erase`). @throw Error unsupported: its gateway gives none
  std::string session_token() const;

  // ---- speaking. @throw Error overloaded (later), cancelled (it has ended), invalid_argument (too large)
  /// The user's sound at 16 kHz. Waits while the gateway takes no more.
  void send_audio(std::span<const std::int16_t> samples, milliseconds timeout = milliseconds(30000));
  void flush();
  void say(std::string_view text);
  /// @param role  user, assistant, system, tool   @param calls  JSON
  void item(std::string_view role, std::string_view text, std::string_view id = {}, std::string_view calls = {});
  void respond(std::string_view settings = "{}");
  void utter(std::string_view text);
  void configure(std::string_view settings);
  void tool_output(std::string_view call, std::string_view output);
  void truncate(std::uint32_t turn, std::int64_t samples);
  void forget(std::string_view item);
  void forget(std::uint32_t turn, std::string_view part = "all");
  void cancel(std::uint32_t turn = 0);  ///< 0: the one under way
  /// Everything that was said here is deleted, for good, and the conversation ends; what was told before is dropped.
  /// @return turns that were stored
  std::int64_t erase(milliseconds timeout = milliseconds(30000));

  // ---- listening
  /// Nothing when the conversation has ended. Tools are called here. @throw Error deadline_exceeded
  std::optional<Told> next(milliseconds timeout);
  /// Takes what is told until the turn under way, or the next one, is over. @throw Error when it fails
  Turn turn(milliseconds timeout = milliseconds(120000));

  /// @param detach  the session waits to be resumed
  void close(bool detach = false);

 private:
  friend class Client;
  Conversation(std::shared_ptr<Core> core, std::shared_ptr<Talk> talk, std::vector<Tool> tools);
  void call_tool(const Event& event);
  std::int64_t wait_erased(milliseconds timeout);
  std::shared_ptr<Core> core_;
  std::shared_ptr<Talk> talk_;
  std::vector<Tool> tools_;
};

class Client {
 public:
  /// @throw Error invalid_argument naming an endpoint
  explicit Client(ClientOptions options);
  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;
  /// Ends all its conversations.
  ~Client();

  /// @param settings  JSON: the fields of `open`   @throw Error what the engine says, or unavailable
  Conversation open(std::string_view settings = "{}", std::vector<Tool> tools = {},
                    milliseconds timeout = milliseconds(30000));
  /// @param token  as `Conversation::resume_token` gave it
  Conversation resume(std::string_view token, std::vector<Tool> tools = {}, milliseconds timeout = milliseconds(30000));
  /// Everything that was said in a session is deleted, for good. @param token  as `Conversation::session_token` gave it
  /// @return turns that were stored. @throw Error not_found: nothing is stored of it
  std::int64_t erase(std::string_view token, milliseconds timeout = milliseconds(30000));
  void close();

 private:
  Conversation begin(std::string opening, std::vector<Tool> tools, milliseconds timeout);
  std::shared_ptr<Core> core_;
};

}  // namespace parlando::sdk
