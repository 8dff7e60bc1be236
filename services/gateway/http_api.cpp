#include "services/gateway/http_api.hpp"

#include <ctime>

#include "common/base/random_id.hpp"
#include "common/http/guards.hpp"
#include "services/gateway/http_client_secrets.hpp"
#include "services/gateway/http_fields.hpp"
#include "services/gateway/http_own_voices.hpp"
#include "services/gateway/http_sessions.hpp"
#include "services/gateway/http_speech.hpp"
#include "services/gateway/http_transcription.hpp"
#include "services/gateway/realtime_query.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr std::size_t kJsonBytesMax = 1 << 20, kChatBytesMax = 12 << 20;
constexpr std::size_t kUploadBytesMax = (25 << 20) + (64 << 10);  // as published, and what a form needs around it
constexpr std::array<std::string_view, 3> kModels{"parlando-chat", "parlando-tts", "parlando-transcribe"};
constexpr std::size_t kJobsMax = 16;           // that the helper has at a time
constexpr std::size_t kLargeBytes = 64 << 10;  // of a body that is read elsewhere: 2 ms and more
constexpr std::size_t kVoiceBytesMax = (10 << 20) + (64 << 10), kSecretBodyMax = 64 << 10;
constexpr std::string_view kSessionsPath = "/v1/sessions/", kSessionTokenHeader = "x-session-token";
constexpr std::string_view kModelsPath = "/v1/models", kVoicesPath = "/v1/audio/voices";
constexpr std::string_view kDialoguePath = "/v1/dialogue", kRealtimePath = "/v1/realtime";
constexpr std::string_view kProtocolKey = "openai-insecure-api-key.";  // of browsers, which cannot send other headers

struct Route {
  std::string_view path, methods;
  Endpoint endpoint;
  std::size_t body_bytes_max = 0;
  std::string_view content_type = {};
};
constexpr std::array<Route, 11> kRoutes{{
    {"/v1/chat/completions", "POST", Endpoint::chat, kChatBytesMax, "application/json"},
    {"/v1/audio/speech", "POST", Endpoint::speech, kJsonBytesMax, "application/json"},
    {"/v1/audio/transcriptions", "POST", Endpoint::transcriptions, kUploadBytesMax, "multipart/form-data"},
    {kVoicesPath, "GET, POST", Endpoint::voices, kVoiceBytesMax, "multipart/form-data"},
    {"/v1/audio/voices/", "GET, DELETE", Endpoint::voices},
    {"/v1/realtime/client_secrets", "POST", Endpoint::secrets, kSecretBodyMax},
    {kSessionsPath, "DELETE", Endpoint::sessions},
    {kModelsPath, "GET", Endpoint::models},
    {"/healthz", "GET", Endpoint::other},
    {"/readyz", "GET", Endpoint::other},
    {"/openapi.json", "GET", Endpoint::other},
}};

const Route* find_route(std::string_view path) {
  for (const auto& route : kRoutes)
    if (path == route.path || (route.path.ends_with('/') && path.starts_with(route.path)) ||
        (route.path == kModelsPath && path.starts_with("/v1/models/")))
      return &route;
  return nullptr;
}

bool takes(const Route& route, std::string_view method) {
  for (auto rest = route.methods; !rest.empty();) {
    const auto one = rest.substr(0, rest.find(','));
    if (one == method) return true;
    rest.remove_prefix(std::min(rest.size(), one.size() + 2));  // ", "
  }
  return false;
}

bool is_api(std::string_view path) { return path == "/v1" || path.starts_with("/v1/"); }

/// As the server has judged it: only sockets have a number before they are answered.
bool is_upgrade(const http::Request& request) { return request.id != 0; }

bool is_type(std::string_view header, std::string_view type) {
  if (header.size() < type.size()) return false;
  for (std::size_t i = 0; i < type.size(); ++i)
    if ((header[i] | 0x20) != (type[i] | 0x20)) return false;
  return header.size() == type.size() || header[type.size()] == ';' || header[type.size()] == ' ';
}

std::string new_id() { return fmt::format("{:016x}{:016x}", random_u64(), random_u64()); }

}  // namespace

HttpApi::HttpApi(Sessions& sessions, HttpReplies replies, HttpApiSetup setup,
                 std::function<std::string()> why_not_ready)
    : sessions_(sessions),
      replies_(std::move(replies)),
      keys_(std::move(setup.keys)),
      secrets_(std::move(setup.secrets)),
      voices_(std::move(setup.voices)),
      origins_(std::move(setup.origins)),
      why_not_ready_(std::move(why_not_ready)),
      started_(std::time(nullptr)) {
  if (voices_.is_kept()) voices_.sweep();
}

bool HttpApi::serves(std::string_view path) { return is_api(path) || find_route(path) != nullptr; }

// ------------------------------------------------------------------------------------------------ who may

HttpApi::Caller HttpApi::caller_of(const http::Request& request) const {
  auto key = bearer_of(request.header("authorization"));
  auto offered = request.header("sec-websocket-protocol");
  while (key.empty() && !offered.empty()) {
    const auto end = offered.find(',');
    auto name = offered.substr(0, end);
    offered.remove_prefix(end == std::string_view::npos ? offered.size() : end + 1);
    name.remove_prefix(std::min(name.find_first_not_of(' '), name.size()));
    name = name.substr(0, name.find_last_not_of(' ') + 1);
    if (name.starts_with(kProtocolKey)) key = name.substr(kProtocolKey.size());
  }
  const bool one = !key.empty();
  if (!key.starts_with(ClientSecrets::kPrefix)) return {keys_.empty() ? std::nullopt : keys_.find_key(key), {}, one};
  auto secret = secrets_.find(key, std::time(nullptr));
  if (!secret) return {{}, {}, one};
  const auto of = keys_.empty() ? std::nullopt : keys_.find_name(secret->key);
  return {of, std::move(secret), one};
}

std::string HttpApi::owner_of(std::optional<KeyId> key) const { return key ? keys_.name(*key) : std::string(); }
std::string HttpApi::owner_of(const http::Request& request) const { return owner_of(caller_of(request).key); }

/// @param address  empty where addresses are not told apart (behind a proxy)
std::optional<http::Response> HttpApi::admit_key(const http::Request& request, const std::string& address, Time now) {
  if (keys_.empty()) return {};
  const auto caller = caller_of(request);
  if (!address.empty() && caller.came_with_one && !caller.key)
    if (const auto wait = wrong_keys_.take(address, now)) {
      ++counters_.limited;
      return refuse(request, {429,
                              "this address has come with too many keys that are not known",
                              {},
                              "rate_limit_exceeded",
                              wait->count()});
    }
  if (caller.secret && !(is_upgrade(request) && request.path() == kRealtimePath)) {
    ++counters_.unauthorised;
    return refuse(request, {401, "a client secret opens WebSockets of /v1/realtime only", {}, "invalid_api_key"});
  }
  const auto key = caller.key;
  if (!key) {
    ++counters_.unauthorised;
    const bool none = request.header("authorization").empty();
    auto out =
        refuse(request, {401,
                         none ? "an API key is needed: send 'Authorization: Bearer KEY'" : "this API key is not known",
                         {},
                         "invalid_api_key"});
    out.headers.emplace_back("WWW-Authenticate", "Bearer");
    return out;
  }
  if (const auto wait = keys_.take_request(*key, now)) {
    ++counters_.limited;
    return refuse(
        request,
        {429, "this key has sent too many requests within a minute", {}, "rate_limit_exceeded", wait->count()});
  }
  return {};
}

/// Everything that can refuse a WebSocket does so before its upgrade, where its client is told in words.
std::optional<http::Response> HttpApi::admit_socket(const http::Request& request, Time now) {
  const auto path = request.path();
  const auto origin = request.header("origin");
  if (path != kDialoguePath && path != kRealtimePath) return {};                                      // the server
  if (!origin.empty() && !http::origin_allowed(origin, request.header("host"), origins_)) return {};  // refuses it
  if (draining_) return refuse(request, {503, "the gateway is going away", {}, "unavailable"});
  // A socket of `/v1/dialogue` may resume a session that has its place already.
  const bool resumes = path == kRealtimePath && !resume_fields(request.target).token.empty();
  const bool opens_session = path == kRealtimePath && !resumes;
  if (opens_session)
    if (auto full = refuse_if_full(request, now)) return full;
  auto caller = caller_of(request);
  if (!resumes && caller.key && !keys_.begin_session(*caller.key)) {
    ++counters_.limited;
    return refuse(request, {429, "this key has as many sessions as it may", {}, "rate_limit_exceeded", 1000});
  }
  upgrading_[request.id] = {caller.key, opens_session, resumes, caller.secret ? std::move(caller.secret->session) : ""};
  return {};
}

/// A place at a controller is looked for before anything of a client is taken in.
std::optional<http::Response> HttpApi::refuse_if_full(const http::Request& request, Time now) {
  const auto coming =
      std::count_if(upgrading_.begin(), upgrading_.end(), [](const auto& entry) { return entry.second.opens_session; });
  const auto read =
      std::count_if(jobs_.begin(), jobs_.end(), [](const auto& entry) { return entry.second.opens_session; });
  const auto why = sessions_.why_full(static_cast<std::size_t>(coming + read), now);
  if (!why) return {};
  ++counters_.full;
  return refuse(request, api_error(why->code, why->message, why->retry_ms));
}

std::optional<http::Response> HttpApi::admit(const http::Request& request, http::Admission& admission, Time now) {
  const auto path = request.path();
  const auto* route = find_route(path);
  admission.body_bytes_max = route != nullptr && request.method != "OPTIONS" ? route->body_bytes_max : 0;
  if (!is_api(path) || request.method == "OPTIONS") return {};
  // A page of somebody else would use its visitor's right to this address. WebSockets the server asks itself.
  const auto origin = request.header("origin");
  if (!is_upgrade(request) && !origin.empty() && !http::origin_allowed(origin, request.header("host"), origins_))
    return refuse(request,
                  {403, fmt::format("pages of '{}' may not use this server", origin.substr(0, 100)), {}, "origin"});
  if (auto refused = admit_key(request, admission.share, now)) return refused;
  if (const auto owner = owner_of(request); !owner.empty()) admission.share = "key " + owner;
  if (is_upgrade(request)) return admit_socket(request, now);
  if (route == nullptr)
    return refuse(request, {404, fmt::format("there is no '{}' here", path.substr(0, 100)), {}, "unknown_url"});
  if (!takes(*route, request.method)) {
    auto out = refuse(request, {405, fmt::format("'{}' takes {}", path, route->methods), {}, "method_not_allowed"});
    out.headers.emplace_back("Allow", fmt::format("{}, OPTIONS", route->methods));
    return out;
  }
  if (request.method == "POST" && !route->content_type.empty() &&
      !is_type(request.header("content-type"), route->content_type))
    return refuse(request, {415,
                            fmt::format("the content type is '{}', expected {}",
                                        request.header("content-type").substr(0, 100), route->content_type),
                            {},
                            "unsupported_media_type"});
  if (draining_) return refuse(request, {503, "the gateway is going away", {}, "unavailable"});
  const bool opens_session = route->endpoint == Endpoint::chat || route->endpoint == Endpoint::speech ||
                             route->endpoint == Endpoint::transcriptions;
  if (opens_session) return refuse_if_full(request, now);
  return {};
}

SocketRights HttpApi::socket_opened(std::uint64_t id) {
  const auto found = upgrading_.find(id);
  if (found == upgrading_.end()) return {};
  SocketRights out{{}, std::move(found->second.session)};
  if (const auto key = found->second.key) {
    if (!found->second.resumes) sockets_[id] = *key;
    out.owner = keys_.name(*key);
  }
  upgrading_.erase(found);
  return out;
}

std::optional<ApiError> HttpApi::side_opened(std::uint64_t session, Time now) {
  const auto found = sockets_.find(session);
  if (found == sockets_.end()) return {};
  const auto wait = keys_.take_request(found->second, now);
  if (!wait && keys_.begin_session(found->second)) return {};
  ++counters_.limited;
  return ApiError{
      429,
      wait ? "this key has sent too many requests within a minute" : "this key has as many sessions as it may",
      {},
      "rate_limit_exceeded",
      wait ? wait->count() : 1000};
}

void HttpApi::side_closed(std::uint64_t session) {
  if (const auto found = sockets_.find(session); found != sockets_.end()) keys_.end_session(found->second);
}

void HttpApi::socket_over(std::uint64_t session) {
  const auto found = sockets_.find(session);
  if (found == sockets_.end()) return;
  keys_.end_session(found->second);
  sockets_.erase(found);
}

// ------------------------------------------------------------------------------------------------ answers

std::vector<std::pair<std::string, std::string>> HttpApi::common_headers(const http::Request& request) const {
  std::vector<std::pair<std::string, std::string>> out{{"X-Request-Id", "req_" + new_id()}};
  const auto origin = request.header("origin");
  if (origin.empty() || !http::origin_allowed(origin, request.header("host"), origins_)) return out;
  out.emplace_back("Access-Control-Allow-Origin", origin);
  out.emplace_back("Access-Control-Expose-Headers", "X-Request-Id");
  out.emplace_back("Vary", "Origin");
  return out;
}

http::Response HttpApi::with_headers(const http::Request& request, http::Response response) const {
  for (auto& header : common_headers(request)) response.headers.push_back(std::move(header));
  return response;
}

void HttpApi::count(int status) {
  if (status >= 500) ++counters_.failed;
  if (status >= 400 && status < 500) ++counters_.refused;
}

http::Response HttpApi::refuse(const http::Request& request, const ApiError& error) {
  count(error.status);
  return with_headers(request, error_response(error));
}

http::Response HttpApi::shape(const http::Request& request, http::Response given) const {
  if (!is_api(request.path())) return given;
  auto text = given.body;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  auto out = error_response({given.status, std::move(text), {}, given.status == 413 ? "too_large" : ""});
  for (auto& header : given.headers) out.headers.push_back(std::move(header));
  return with_headers(request, std::move(out));
}

http::Response HttpApi::models(std::string_view path) const {
  const auto describe = [&](std::string_view id) {
    return json{{"id", id}, {"object", "model"}, {"created", started_}, {"owned_by", "parlando"}};
  };
  if (path == kModelsPath) {
    auto list = json::array();
    for (const auto id : kModels) list.push_back(describe(id));
    return {200, "application/json", dump({{"object", "list"}, {"data", std::move(list)}})};
  }
  const auto id = path.substr(kModelsPath.size() + 1);
  if (std::find(kModels.begin(), kModels.end(), id) != kModels.end())
    return {200, "application/json", dump(describe(id))};
  return error_response(
      {404, fmt::format("there is no model '{}' here", id.substr(0, 100)), "model", "model_not_found"});
}

namespace {
/// Clients of pages bring headers of their own; none of them means anything here.
std::string allowed_headers(const http::Request& request) {
  constexpr std::size_t kMost = 1000;
  const auto wanted = request.header("access-control-request-headers");
  return wanted.empty() || wanted.size() > kMost ? "Authorization, Content-Type" : std::string(wanted);
}
}  // namespace

http::Response HttpApi::handle(http::Request& request, Time now) {
  const auto path = request.path();
  const auto* route = find_route(path);
  if (route == nullptr)
    return refuse(request, {404, fmt::format("there is no '{}' here", path.substr(0, 100)), {}, "unknown_url"});
  if (request.method == "OPTIONS") {
    http::Response out{204, "text/plain", {}};
    out.headers = {{"Allow", fmt::format("{}, OPTIONS", route->methods)},
                   {"Access-Control-Allow-Methods", std::string(route->methods)},
                   {"Access-Control-Allow-Headers", allowed_headers(request)},
                   {"Access-Control-Max-Age", "600"}};
    return with_headers(request, std::move(out));
  }
  ++counters_.requests[static_cast<std::size_t>(route->endpoint)];
  switch (route->endpoint) {
    case Endpoint::models: {
      auto out = models(path);
      count(out.status);
      return with_headers(request, std::move(out));
    }
    case Endpoint::other: {
      if (request.method != "GET") return refuse(request, {405, "only GET", {}, "method_not_allowed"});
      if (path == "/openapi.json") return {200, "application/json", std::string(openapi_document())};
      if (path == "/healthz") return {200, "text/plain", "alive\n"};
      const auto why = draining_ ? "draining" : why_not_ready_();
      return why.empty() ? http::Response{200, "text/plain", "ready\n"} : http::Response{503, "text/plain", why + "\n"};
    }
    case Endpoint::voices:
      return manage_voices(request);
    case Endpoint::sessions:
      return erase_session(request, now);
    case Endpoint::secrets: {
      auto out = answer_client_secret(request.body, secrets_, owner_of(request), new_id(), std::time(nullptr));
      count(out.status);
      return with_headers(request, std::move(out));
    }
    default:
      return start(request, route->endpoint, now);
  }
}

// ------------------------------------------------------------------------------------------------ requests

/// On any thread.
HttpApi::Made HttpApi::make(const http::Request& request, Endpoint endpoint, RequestHead head,
                            SpokenAnswers& spoken) try {
  if (endpoint == Endpoint::chat) return ChatCompletion::make(request.body, std::move(head), spoken);
  if (endpoint == Endpoint::speech) return SpeechRequest::make(request.body, std::move(head));
  return TranscriptionRequest::make(request.header("content-type"), request.body, std::move(head));
} catch (const std::exception& e) {
  return tl::unexpected(ApiError{500, fmt::format("the request could not be read: {}", e.what()), {}, "internal"});
}

http::Response HttpApi::start(http::Request& request, Endpoint endpoint, Time now) {
  if (draining_) return refuse(request, {503, "the gateway is going away", {}, "unavailable"});
  if (request.body.size() > kLargeBytes)
    if (auto busy = refuse_if_busy(request)) return std::move(*busy);
  const auto key = caller_of(request).key;
  if (key && !keys_.begin_session(*key)) {
    ++counters_.limited;
    return refuse(request, {429, "this key has as many sessions as it may", {}, "rate_limit_exceeded", 1000});
  }
  RequestHead head{new_id(), std::time(nullptr)};
  if (request.body.size() <= kLargeBytes || !replies_.help) {
    auto refused = begin(request, make(request, endpoint, std::move(head), spoken_), key, owner_of(key), now);
    return refused ? std::move(*refused) : http::Response::given_later();
  }
  const auto id = request.id;
  const auto is_left = begin_job(request, key, true);
  auto read = [this, id, endpoint, head, is_left,
               whole = std::make_shared<http::Request>(std::move(request))]() -> Helper::Then {
    auto made = std::make_shared<Made>(tl::unexpected(ApiError{}));
    if (!*is_left) *made = make(*whole, endpoint, head, spoken_);
    return [this, id, made](Time then) { was_read(id, std::move(*made), then); };
  };
  replies_.help(std::move(read), [this, id](Time then) {
    was_read(id, tl::unexpected(ApiError{500, "the request could not be read", {}, "internal"}), then);
  });
  return http::Response::given_later();
}

/// Too many large requests wait for the helper. What a client has left behind counts: its body is still there.
std::optional<http::Response> HttpApi::refuse_if_busy(const http::Request& request) {
  if (jobs_.size() < kJobsMax) return {};
  return refuse(request, {503, "too many large requests are being read", {}, "overloaded", 1000});
}

/// @return whether its client has gone: for the helper's thread
std::shared_ptr<std::atomic<bool>> HttpApi::begin_job(http::Request& request, std::optional<KeyId> key,
                                                      bool opens_session) {
  auto is_left = std::make_shared<std::atomic<bool>>(false);
  http::Request head{request.method, request.target, {}, request.id, request.headers, std::move(request.counted)};
  jobs_[request.id] = {key, opens_session, std::move(head), is_left};
  return is_left;
}

/// @return nothing when its client has gone
std::optional<HttpApi::Job> HttpApi::end_job(std::uint64_t id) {
  auto job = std::move(jobs_.extract(id).mapped());
  if (*job.is_left) return {};
  return job;
}

/// Begins the session of a request that was read. @return an answer that refuses it
/// @param key  whose session it counts as. @param owner  who asks
std::optional<http::Response> HttpApi::begin(const http::Request& request, Made made, std::optional<KeyId> key,
                                             const std::string& owner, Time now) {
  if (!made) {
    if (key) keys_.end_session(*key);
    return refuse(request, made.error());
  }
  const auto id = request.id;
  auto& started = *running_.emplace(id, Running{std::move(*made), key, common_headers(request)}).first->second.request;
  sessions_.client_opened(id, now, {.of_file = started.is_of_file(), .owner = owner});
  try {
    started.start();
  } catch (...) {  // no memory: the server answers, and nothing of it may stay
    end(id, now);
    throw;
  }
  talking_.insert(id);
  pump(now);
  return {};
}

void HttpApi::was_read(std::uint64_t id, Made made, Time now) {
  const auto job = end_job(id);
  if (!job) return;
  try {
    if (auto refused = begin(job->request, std::move(made), job->key, owner_of(job->key), now))
      replies_.respond(id, std::move(*refused));
  } catch (const std::exception& e) {
    replies_.respond(id, refuse(job->request, {500, e.what(), {}, "internal"}));
  }
}

/// It is no session of its key, and needs no place.
http::Response HttpApi::erase_session(const http::Request& request, Time now) {
  if (draining_) return refuse(request, {503, "the gateway is going away", {}, "unavailable"});
  Made made =
      std::make_unique<EraseRequest>(request.path().substr(kSessionsPath.size()), request.header(kSessionTokenHeader));
  auto refused = begin(request, std::move(made), {}, owner_of(request), now);
  return refused ? std::move(*refused) : http::Response::given_later();
}

/// The disk may make it wait.
http::Response HttpApi::manage_voices(http::Request& request) {
  if (auto busy = refuse_if_busy(request)) return std::move(*busy);
  const auto owner = owner_of(request);
  const auto headers = common_headers(request);
  const auto work = [this, owner, headers](http::Request& whole) {
    auto out = answer_voices(whole, voices_, owner, std::time(nullptr));
    for (const auto& header : headers) out.headers.push_back(header);
    return out;
  };
  if (!replies_.help) {
    auto out = work(request);
    count(out.status);
    return out;
  }
  const auto id = request.id;
  const bool is_wanted = request.method == "DELETE";  // whether or not somebody waits for the answer
  const auto is_left = begin_job(request, {}, false);
  const auto answer = [this](std::uint64_t id, http::Response response) {
    const auto job = end_job(id);
    if (!job) return;
    count(response.status);
    replies_.respond(id, std::move(response));
  };
  auto manage = [id, is_wanted, is_left, work, answer,
                 whole = std::make_shared<http::Request>(std::move(request))]() -> Helper::Then {
    auto made = std::make_shared<http::Response>();
    if (is_wanted || !*is_left) *made = work(*whole);
    return [id, made, answer](Time) { answer(id, std::move(*made)); };
  };
  replies_.help(std::move(manage), [id, answer, headers](Time) {
    auto failed = error_response({500, "voices could not be read or written", {}, "internal"});
    for (const auto& header : headers) failed.headers.push_back(header);
    answer(id, std::move(failed));
  });
  return http::Response::given_later();
}

void HttpApi::pump(Time now) {
  const auto ids = std::vector<ClientId>(talking_.begin(), talking_.end());
  for (const auto id : ids) {
    talking_.erase(id);
    const auto found = running_.find(id);
    if (found == running_.end()) continue;
    const auto said = found->second.request->take_said();
    for (const auto& message : said)
      message.sound ? sessions_.client_audio(id, message.data, now) : sessions_.client_text(id, message.data, now);
    if (!said.empty() && said.back().sound) talking_.insert(id);
    deliver(id, now);  // a recording may turn out to be none
  }
}

void HttpApi::on_action(ToClient& action, Time now) {
  const auto found = running_.find(action.client);
  if (found == running_.end()) return;
  auto& request = *found->second.request;
  switch (action.kind) {
    case ToClient::Kind::event:
      request.event(action.data);
      break;
    case ToClient::Kind::sound:
      request.sound(action.data);
      break;
    case ToClient::Kind::close:
      request.closed(action.code, action.data);
      break;
    case ToClient::Kind::pause:
      request.pause();
      break;
    case ToClient::Kind::resume:
      request.resume();
      break;
  }
  talking_.insert(action.client);
  deliver(action.client, now);
}

/// Hands over what the request answers, and ends its session with the answer.
void HttpApi::deliver(ClientId id, Time now) {
  auto& running = running_.at(id);
  for (auto& answered : running.request->take_answered()) {
    auto& response = answered.response;
    switch (answered.kind) {
      case HttpRequest::Answered::Kind::whole:
      case HttpRequest::Answered::Kind::begin:
        count(response.status);
        for (const auto& header : running.headers) response.headers.push_back(header);
        (answered.kind == HttpRequest::Answered::Kind::whole ? replies_.respond : replies_.begin)(id,
                                                                                                  std::move(response));
        break;
      case HttpRequest::Answered::Kind::part:
        replies_.write(id, answered.part);
        break;
      case HttpRequest::Answered::Kind::finish:
        replies_.finish(id);
        break;
      case HttpRequest::Answered::Kind::abort:
        ++counters_.failed;
        replies_.abort(id);
        break;
    }
  }
  if (running.request->is_over()) end(id, now);
}

void HttpApi::end(ClientId id, Time now) {
  const auto found = running_.find(id);
  if (found->second.key) keys_.end_session(*found->second.key);
  running_.erase(found);
  talking_.erase(id);
  sessions_.client_closed(id, now);
}

void HttpApi::gone(std::uint64_t id, Time now) {
  if (const auto early = upgrading_.find(id); early != upgrading_.end()) {
    if (early->second.key && !early->second.resumes) keys_.end_session(*early->second.key);
    upgrading_.erase(early);
    return;
  }
  if (const auto found = jobs_.find(id); found != jobs_.end()) {
    auto& job = found->second;
    ++counters_.left;
    if (job.key) keys_.end_session(*job.key);
    job.key = {};
    job.opens_session = false;
    *job.is_left = true;
    return;
  }
  if (!running_.contains(id)) return;
  ++counters_.left;
  end(id, now);
}

}  // namespace parlando::gateway
