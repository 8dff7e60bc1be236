#pragma once
/// The OpenAI-compatible HTTP API: routes, who may use them, and the requests under way, each a client of the sessions.
/// No sockets and no threads; `gateway_core.hpp` gives it both. README.md lists the endpoints.
#include <set>

#include "services/gateway/http_chat.hpp"
#include "services/gateway/http_keys.hpp"
#include "services/gateway/sessions.hpp"

namespace parlando::gateway {

/// How answers reach HTTP clients; false: the client has gone. See `http::Server`.
struct HttpReplies {
  std::function<bool(std::uint64_t, http::Response)> respond, begin;
  std::function<bool(std::uint64_t, std::string_view)> write;
  std::function<bool(std::uint64_t)> finish;
  std::function<void(std::uint64_t)> abort;
};

enum class Endpoint { chat, speech, transcriptions, models, other };
inline constexpr std::array<std::string_view, 5> kEndpointNames{"chat", "speech", "transcriptions", "models", "other"};

struct HttpApiCounters {
  std::array<std::uint64_t, kEndpointNames.size()> requests{};
  std::uint64_t refused = 0;       ///< answered by 400 to 499
  std::uint64_t failed = 0;        ///< answered by 500 and above, or broken off
  std::uint64_t left = 0;          ///< whose client went before the end
  std::uint64_t unauthorised = 0;  ///< of `refused`: no key, or a wrong one
  std::uint64_t limited = 0;       ///< of `refused`: a limit of the key
};

class HttpApi {
 public:
  /// @param origins  pages besides our own that may use the API; "*": all
  /// @param why_not_ready  what `/readyz` says; empty: ready
  HttpApi(Sessions& sessions, HttpReplies replies, ApiKeys keys, std::vector<std::string> origins,
          std::function<std::string()> why_not_ready);

  /// Is this path ours? Others are the page's.
  static bool serves(std::string_view path);
  /// See http::RequestHandlers; WebSockets of the page and of Realtime, too.
  std::optional<http::Response> admit(const http::Request& request, std::size_t& body_bytes_max, Time now);
  http::Response handle(const http::Request& request, Time now);
  http::Response shape(const http::Request& request, http::Response given) const;
  void gone(std::uint64_t id, Time now);
  /// A WebSocket of a key counts as one of its sessions. @return false: the key has as many as it may
  bool socket_opened(std::uint64_t id);
  void socket_closed(std::uint64_t id);

  bool has(ClientId id) const { return running_.contains(id); }
  void on_action(ToClient& action, Time now);
  /// Says a little of what requests have to say: a second of sound each at most.
  void pump(Time now);
  /// `pump` has more to do.
  bool wants_to_say() const { return !talking_.empty(); }
  void on_tick(Time now);
  void drain() { draining_ = true; }

  std::size_t running() const { return running_.size(); }
  const HttpApiCounters& counters() const { return counters_; }

 private:
  struct Running {
    std::unique_ptr<HttpRequest> request;
    std::optional<KeyId> key;
    std::vector<std::pair<std::string, std::string>> headers;  ///< of every answer
  };
  struct Upgrading {
    KeyId key;
    Time since;
  };
  std::optional<KeyId> key_of(const http::Request& request) const;
  std::optional<http::Response> admit_key(const http::Request& request, Time now);
  http::Response start(const http::Request& request, Endpoint endpoint, Time now);
  ApiResult<std::unique_ptr<HttpRequest>> make(const http::Request& request, Endpoint endpoint, RequestHead head);
  http::Response models(std::string_view path) const;
  http::Response refuse(const http::Request& request, const ApiError& error);
  http::Response with_headers(const http::Request& request, http::Response response) const;
  std::vector<std::pair<std::string, std::string>> common_headers(const http::Request& request) const;
  void deliver(ClientId id, Time now);
  void end(ClientId id, Time now);
  void count(int status);

  Sessions& sessions_;
  HttpReplies replies_;
  ApiKeys keys_;
  std::vector<std::string> origins_;
  std::function<std::string()> why_not_ready_;
  std::int64_t started_;  ///< Unix time
  std::map<ClientId, Running> running_;
  std::set<ClientId> talking_;
  std::map<std::uint64_t, Upgrading> upgrading_;  ///< WebSockets that were admitted and are not open yet
  std::map<std::uint64_t, KeyId> sockets_;
  SpokenAnswers spoken_;
  bool draining_ = false;
  HttpApiCounters counters_;
};

/// The API's own description, OpenAPI 3.1.
std::string_view openapi_document();

}  // namespace parlando::gateway
