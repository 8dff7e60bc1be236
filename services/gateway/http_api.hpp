#pragma once
/// The OpenAI-compatible HTTP API: routes, who may use them, and the requests under way, each a client of the sessions.
/// No sockets and no threads; `gateway_core.hpp` gives it both. README.md lists the endpoints.
#include <atomic>
#include <set>

#include "services/gateway/client_secrets.hpp"
#include "services/gateway/helper.hpp"
#include "services/gateway/http_chat.hpp"
#include "services/gateway/http_keys.hpp"
#include "services/gateway/sessions.hpp"
#include "services/gateway/voice_store.hpp"
#include "services/gateway/wrong_keys.hpp"

namespace parlando::gateway {

/// How answers reach HTTP clients; false: the client has gone. See `http::Server`.
struct HttpReplies {
  std::function<bool(std::uint64_t, http::Response)> respond, begin;
  std::function<bool(std::uint64_t, std::string_view)> write;
  std::function<bool(std::uint64_t)> finish;
  std::function<void(std::uint64_t)> abort;
  /// Reads a large body elsewhere; what that gives is done here, later. None: it is read at once.
  std::function<void(Helper::Work, Helper::Then failed)> help = {};
};

enum class Endpoint { chat, speech, transcriptions, models, voices, secrets, sessions, other };
inline constexpr std::array<std::string_view, 8> kEndpointNames{"chat",   "speech",  "transcriptions", "models",
                                                                "voices", "secrets", "sessions",       "other"};

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
  std::optional<http::Response> admit(const http::Request& request, http::Admission& admission, Time now);
  /// @param request  its body is taken
  http::Response handle(http::Request& request, Time now);
  http::Response shape(const http::Request& request, http::Response given) const;
  void gone(std::uint64_t id, Time now);
  /// A WebSocket of a key counts as one of its sessions, from its admission on until `socket_over`, under its number.
  /// One that resumes a session does not: that session counts already, under the number of its first socket.
  SocketRights socket_opened(std::uint64_t id);
  void socket_over(std::uint64_t session);
  /// A conversation beside that of a WebSocket is a request and a session of its key like any other.
  /// @return why it may not be; else `side_closed` follows
  std::optional<ApiError> side_opened(std::uint64_t session, Time now);
  void side_closed(std::uint64_t session);

  bool has(ClientId id) const { return running_.contains(id); }
  void on_action(ToClient& action, Time now);
  /// Says a little of what requests have to say: a second of sound each at most.
  void pump(Time now);
  /// `pump` has more to do.
  bool wants_to_say() const { return !talking_.empty(); }
  void drain() { draining_ = true; }

  std::size_t running() const { return running_.size(); }
  /// Bodies that are read elsewhere, also of clients that have gone.
  std::size_t reading() const { return jobs_.size(); }
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
    bool opens_session = false;  ///< it needs a place at a controller
    bool resumes = false;        ///< its session counts already
    std::string session = {};
  };
  /// Whom a request comes from.
  struct Caller {
    std::optional<KeyId> key;
    std::optional<SecretClaims> secret;  ///< instead of a key
    bool came_with_one = false;          ///< known or not
  };
  /// A request that the helper has. It stays when its client goes, because its body does.
  struct Job {
    std::optional<KeyId> key;  ///< whose session it is; of one that has gone: none
    bool opens_session = false;
    http::Request request;                       ///< without its body, which is counted here
    std::shared_ptr<std::atomic<bool>> is_left;  ///< its client has gone: nothing has to be made of it
  };
  Caller caller_of(const http::Request& request) const;
  std::string owner_of(const http::Request& request) const;
  std::string owner_of(std::optional<KeyId> key) const;
  std::optional<http::Response> admit_key(const http::Request& request, const std::string& address, Time now);
  std::optional<http::Response> admit_socket(const http::Request& request, Time now);
  std::optional<http::Response> refuse_if_full(const http::Request& request, Time now);
  http::Response start(http::Request& request, Endpoint endpoint, Time now);
  using Made = ApiResult<std::unique_ptr<HttpRequest>>;
  static Made make(const http::Request& request, Endpoint endpoint, RequestHead head, SpokenAnswers& spoken);
  std::optional<http::Response> begin(const http::Request& request, Made made, std::optional<KeyId> key,
                                      const std::string& owner, Time now);
  http::Response erase_session(const http::Request& request, Time now);
  void was_read(std::uint64_t id, Made made, Time now);
  std::shared_ptr<std::atomic<bool>> begin_job(http::Request& request, std::optional<KeyId> key, bool opens_session);
  std::optional<Job> end_job(std::uint64_t id);
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
  WrongKeys wrong_keys_;
  const ClientSecrets secrets_;
  const VoiceStore voices_;  ///< on the helper's thread
  std::vector<std::string> origins_;
  std::function<std::string()> why_not_ready_;
  std::int64_t started_;  ///< Unix time
  std::map<ClientId, Running> running_;
  std::set<ClientId> talking_;
  std::map<std::uint64_t, Job> jobs_;  ///< by their request
  std::map<std::uint64_t, Upgrading> upgrading_;
  std::map<std::uint64_t, KeyId> sockets_;  ///< by the number of their first one
  SpokenAnswers spoken_;
  bool draining_ = false;
  HttpApiCounters counters_;
};

/// The API's own description, OpenAPI 3.1.
std::string_view openapi_document();

}  // namespace parlando::gateway
