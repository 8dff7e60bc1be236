#pragma once
/// The OpenAI-compatible HTTP API: routes, who may use them, and the requests under way, each a client of the sessions.
/// No sockets and no threads; `gateway_core.hpp` gives it both. README.md lists the endpoints.
#include <set>

#include "services/gateway/client_secrets.hpp"
#include "services/gateway/helper.hpp"
#include "services/gateway/http_chat.hpp"
#include "services/gateway/http_keys.hpp"
#include "services/gateway/sessions.hpp"
#include "services/gateway/voice_store.hpp"

namespace parlando::gateway {

/// How answers reach HTTP clients; false: the client has gone. See `http::Server`.
struct HttpReplies {
  std::function<bool(std::uint64_t, http::Response)> respond, begin;
  std::function<bool(std::uint64_t, std::string_view)> write;
  std::function<bool(std::uint64_t)> finish;
  std::function<void(std::uint64_t)> abort;
  /// Reads a large body elsewhere; what that gives is done here, later. None: it is read at once.
  std::function<void(Helper::Work)> help = {};
};

enum class Endpoint { chat, speech, transcriptions, models, voices, secrets, other };
inline constexpr std::array<std::string_view, 7> kEndpointNames{"chat",   "speech",  "transcriptions", "models",
                                                                "voices", "secrets", "other"};

/// Who may do what, and what is kept for them.
struct HttpApiSetup {
  ApiKeys keys = {};
  ClientSecrets secrets = {};
  VoiceStore voices{"", 0};
  std::vector<std::string> origins = {};  ///< pages besides our own that may use the API; "*": all
};

/// Of a WebSocket that was admitted.
struct SocketRights {
  std::string owner;    ///< name of its key; empty: it needed none
  std::string session;  ///< that its client secret brings: JSON; empty: none
};

struct HttpApiCounters {
  std::array<std::uint64_t, kEndpointNames.size()> requests{};
  std::uint64_t refused = 0;       ///< answered by 400 to 499
  std::uint64_t failed = 0;        ///< answered by 500 and above, or broken off
  std::uint64_t left = 0;          ///< whose client went before the end
  std::uint64_t unauthorised = 0;  ///< of `refused`: no key, or a wrong one
  std::uint64_t limited = 0;       ///< of `refused`: a limit of the key
  std::uint64_t full = 0;          ///< of `failed`: no controller had a place
};

class HttpApi {
 public:
  /// @param why_not_ready  what `/readyz` says; empty: ready
  HttpApi(Sessions& sessions, HttpReplies replies, HttpApiSetup setup, std::function<std::string()> why_not_ready);

  /// Is this path ours? Others are the page's.
  static bool serves(std::string_view path);
  /// See http::RequestHandlers; WebSockets of the page and of Realtime, too.
  std::optional<http::Response> admit(const http::Request& request, std::size_t& body_bytes_max, Time now);
  /// @param request  its body is taken
  http::Response handle(http::Request& request, Time now);
  http::Response shape(const http::Request& request, http::Response given) const;
  void gone(std::uint64_t id, Time now);
  /// A WebSocket of a key counts as one of its sessions, from its admission on.
  SocketRights socket_opened(std::uint64_t id);
  void socket_closed(std::uint64_t id);
  /// A conversation beside that of a WebSocket is a request and a session of its key like any other.
  /// @return why it may not be; else `side_closed` follows
  std::optional<ApiError> side_opened(std::uint64_t socket, Time now);
  void side_closed(std::uint64_t socket);

  bool has(ClientId id) const { return running_.contains(id); }
  void on_action(ToClient& action, Time now);
  /// Says a little of what requests have to say: a second of sound each at most.
  void pump(Time now);
  /// `pump` has more to do.
  bool wants_to_say() const { return !talking_.empty(); }
  void on_tick(Time now);
  void drain() { draining_ = true; }

  std::size_t running() const { return running_.size() + reading_.size(); }
  const HttpApiCounters& counters() const { return counters_; }

 private:
  struct Running {
    std::unique_ptr<HttpRequest> request;
    std::optional<KeyId> key;
    std::vector<std::pair<std::string, std::string>> headers;  ///< of every answer
  };
  /// A WebSocket that was admitted and is not open yet: its place is kept.
  struct Upgrading {
    std::optional<KeyId> key;
    Time since;
    bool opens_session = false;
    std::string session = {};
  };
  /// Whom a request comes from.
  struct Caller {
    std::optional<KeyId> key;
    std::optional<SecretClaims> secret;  ///< instead of a key
  };
  /// A request whose body is being read elsewhere.
  struct Reading {
    std::optional<KeyId> key;
    http::Request request;  ///< without its body
  };
  Caller caller_of(const http::Request& request) const;
  std::string owner_of(const http::Request& request) const;
  std::optional<http::Response> admit_key(const http::Request& request, Time now);
  std::optional<http::Response> admit_socket(const http::Request& request, Time now);
  std::optional<http::Response> refuse_if_full(const http::Request& request, Time now);
  http::Response start(http::Request& request, Endpoint endpoint, Time now);
  using Made = ApiResult<std::unique_ptr<HttpRequest>>;
  static Made make(const http::Request& request, Endpoint endpoint, RequestHead head, SpokenAnswers& spoken);
  std::optional<http::Response> begin(const http::Request& request, Made made, std::optional<KeyId> key, Time now);
  void was_read(std::uint64_t id, Made made, Time now);
  std::size_t jobs_ = 0;  ///< requests that the helper has, also of clients that have gone
  http::Response manage_voices(http::Request& request);
  http::Response models(std::string_view path) const;
  std::optional<http::Response> refuse_if_busy(const http::Request& request);
  http::Response refuse(const http::Request& request, const ApiError& error);
  http::Response with_headers(const http::Request& request, http::Response response) const;
  std::vector<std::pair<std::string, std::string>> common_headers(const http::Request& request) const;
  void deliver(ClientId id, Time now);
  void end(ClientId id, Time now);
  void count(int status);

  Sessions& sessions_;
  HttpReplies replies_;
  ApiKeys keys_;
  const ClientSecrets secrets_;
  const VoiceStore voices_;  ///< on the helper's thread
  std::vector<std::string> origins_;
  std::function<std::string()> why_not_ready_;
  std::int64_t started_;  ///< Unix time
  std::map<ClientId, Running> running_;
  std::set<ClientId> talking_;
  std::map<ClientId, Reading> reading_;
  std::map<std::uint64_t, Upgrading> upgrading_;
  std::map<std::uint64_t, KeyId> sockets_;
  SpokenAnswers spoken_;
  bool draining_ = false;
  HttpApiCounters counters_;
};

/// The API's own description, OpenAPI 3.1.
std::string_view openapi_document();

}  // namespace parlando::gateway
