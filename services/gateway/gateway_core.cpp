#include "services/gateway/gateway_core.hpp"

#include <ctime>
#include <filesystem>

#include "common/base/mapped_file.hpp"
#include "common/http/guards.hpp"
#include "common/telemetry/log.hpp"

namespace parlando::gateway {
namespace fs = std::filesystem;

namespace {

constexpr std::size_t kFileBytesMax = 8u << 20;
// Answers are pushed as fast as they are made, and players buffer them; a client that is a whole minute behind is gone.
constexpr std::int64_t kUnsentSecondsMax = 60;
constexpr std::size_t kBodyBytesMax = 26u << 20;  // the largest of any route; `HttpApi::admit` knows each one's own
constexpr std::size_t kUnsentBytesMax = kUnsentSecondsMax * kSpeechRate * kSampleBytes;
// Realtime clients get base64 of 24 kHz, and may append 15 MiB of it at once.
constexpr std::size_t kRealtimeUnsentMax = kUnsentSecondsMax * 24000 * kSampleBytes * 3 / 2;
constexpr std::size_t kRealtimeMessageMax = 22u << 20;

constexpr const char* kRealtimePath = "/v1/realtime";
constexpr std::string_view kBetaHeader = "realtime=v1", kBetaProtocol = "openai-beta.realtime-v1";
constexpr std::chrono::seconds kCertificateAgain{30};  // its files are looked at

std::int64_t written_at(const std::string& file) {
  std::error_code ignored;
  return fs::last_write_time(file, ignored).time_since_epoch().count();
}

bool asks_for_beta(const http::Upgrade& upgrade) {
  const http::Request asked{"GET", upgrade.target, {}, 0, upgrade.headers};
  return asked.header("openai-beta").find(kBetaHeader) != std::string_view::npos ||
         asked.header("sec-websocket-protocol").find(kBetaProtocol) != std::string_view::npos;
}

std::string type_of(const fs::path& file) {
  static const std::map<std::string, std::string> kTypes{{".html", "text/html; charset=utf-8"},
                                                         {".js", "text/javascript; charset=utf-8"},
                                                         {".css", "text/css; charset=utf-8"},
                                                         {".json", "application/json"},
                                                         {".wav", "audio/wav"}};
  const auto found = kTypes.find(file.extension().string());
  return found == kTypes.end() ? "application/octet-stream" : found->second;
}

SessionsConfig sessions_config(const GatewayConfig& config, const ClientSecrets& secrets) {
  SessionsConfig out;
  out.tokens = SessionTokens(secrets.derive("tokens of sessions"));
  out.session_max = std::chrono::seconds(config.session_seconds_max);
  out.session_grace = std::chrono::seconds(config.session_grace_seconds_max);
  out.drain_max = std::chrono::seconds(config.drain_seconds_max);
  return out;
}

}  // namespace

const SteadyClock GatewayCore::kSteadyClock;

std::vector<config::Problem> GatewayConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  const auto check_address = [&](const std::string& name, const std::string& value) {
    const auto address = http::parse_listen_address(value);
    if (!address)
      out.push_back({path + "." + name, "is '" + value + "': " + address.error().message});
    else if (!address->loopback && keys_file.empty())
      out.push_back({path + "." + name, "is '" + value + "', which others reach: that needs a keys_file"});
  };
  if (!listen.empty()) check_address("listen", listen);
  if (!api_listen.empty()) check_address("api_listen", api_listen);
  config::expect_range(out, path + ".connections_max", connections_max, 1, 1 << 16);
  config::expect_range(out, path + ".connections_per_address_max", connections_per_address_max, 0, 1 << 16);
  config::expect_range(out, path + ".session_seconds_max", session_seconds_max, 1, 86400);
  config::expect_range(out, path + ".session_grace_seconds_max", session_grace_seconds_max, 0, 3600);
  config::expect_range(out, path + ".drain_seconds_max", drain_seconds_max, 0, 3600);
  config::expect_range(out, path + ".streams_max", streams_max, 0, 1 << 16);
  config::expect_range(out, path + ".voices_per_key_max", voices_per_key_max, 0, 10000);
  if (tls_certificate.empty() != tls_key.empty())
    out.push_back({path + (tls_key.empty() ? ".tls_key" : ".tls_certificate"), "is empty: both files are needed"});
  config::expect_range(out, path + ".streams_per_client_max", streams_per_client_max, 1, 4096);
  return out;
}

GatewayCore::GatewayCore(GatewayConfig config, const Clock& clock, ApiKeys keys, ClientSecrets secrets)
    : config_(std::move(config)),
      clock_(clock),
      sessions_(sessions_config(config_, secrets)),
      realtime_(sessions_, realtime_wire()),
      zmq_(sessions_, zmq_limits(), zmq_wire()),
      api_(sessions_, replies(),
           {std::move(keys), std::move(secrets), VoiceStore(config_.voices, config_.voices_per_key_max),
            config_.origins},
           [this] { return why_not_ready(); }) {
  sessions_.set_sockets({[this](ClientId id) { return server_ ? server_->unsent_bytes(id) : 0; },
                         [this](ClientId id, TurnId turn) -> std::size_t {
                           if (!server_) return 0;
                           return server_->drop_queued(id, [&](std::uint32_t tag) { return tag == turn.value; });
                         }});
}

// ------------------------------------------------------------------------------------------------ files

/// The page is small: it is read once, and nothing outside these folders can be asked for.
Result<void> GatewayCore::load_files(const std::string& folder, const std::string& prefix) {
  if (folder.empty()) return {};
  if (!fs::is_directory(folder)) return fail(Errc::not_found, "'{}' is not a folder", folder);
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    PARLANDO_TRY(auto bytes, read_file(entry.path(), kFileBytesMax));
    http::Response file{200, type_of(entry.path()), {}};
    file.shared_body = std::make_shared<const std::string>(std::move(bytes));
    files_[prefix + entry.path().filename().string()] = std::move(file);
  }
  return {};
}

Result<std::unique_ptr<service::Core>> GatewayCore::make(const GatewayConfig& config) {
  ApiKeys keys;
  if (!config.keys_file.empty()) {
    PARLANDO_TRY(keys, ApiKeys::read(config.keys_file));
  }
  ClientSecrets secrets;
  if (!config.secrets_file.empty()) {
    PARLANDO_TRY(secrets, ClientSecrets::read(config.secrets_file));
  }
  auto out = std::make_unique<GatewayCore>(config, kSteadyClock, std::move(keys), std::move(secrets));
  PARLANDO_DO(out->load_files(config.page, "/"));
  PARLANDO_DO(out->load_files(config.questions, "/questions/"));
  if (out->files_.contains("/index.html")) out->files_["/"] = out->files_["/index.html"];
  return std::unique_ptr<service::Core>(std::move(out));
}

/// What takes long to read is read on a thread of its own, and gone on with here.
void GatewayCore::help(Helper::Work work, Helper::Then failed) {
  if (!helper_)
    helper_.emplace([this](Helper::Then then) {
      server_->post([this, then = std::move(then)] {
        then(clock_.now());
        act();
      });
    });
  helper_->start(std::move(work), std::move(failed));
}

http::Response GatewayCore::answer(http::Request& request) {
  if (HttpApi::serves(request.path())) {
    auto out = api_.handle(request, clock_.now());
    act();
    return out;
  }
  if (request.method != "GET") return {405, "text/plain", "only GET\n"};
  const auto found = files_.find(request.target.substr(0, request.target.find('?')));
  return found == files_.end() ? http::Response{404, "text/plain", "not found\n"} : found->second;
}

// ------------------------------------------------------------------------------------------------ sockets

http::Limits GatewayCore::limits() const {
  http::Limits out;
  out.connections_max = config_.connections_max;
  out.connections_per_address_max = config_.connections_per_address_max;
  out.origins = config_.origins;
  out.hosts = config_.hosts;
  out.unsent_bytes_max = kUnsentBytesMax;
  out.body_bytes_max = kBodyBytesMax;
  return out;
}

http::RequestHandlers GatewayCore::request_handlers() {
  http::RequestHandlers out;
  out.admit = [this](const http::Request& request, http::Admission& admission) {
    return api_.admit(request, admission, clock_.now());
  };
  out.shape = [this](const http::Request& request, http::Response given) {
    return api_.shape(request, std::move(given));
  };
  out.gone = [this](std::uint64_t id) {
    api_.gone(id, clock_.now());
    act();
  };
  return out;
}

HttpReplies GatewayCore::replies() {
  HttpReplies out;
  out.respond = [this](std::uint64_t id, http::Response r) { return server_ && server_->respond(id, std::move(r)); };
  out.begin = [this](std::uint64_t id, http::Response r) { return server_ && server_->begin(id, std::move(r)); };
  out.write = [this](std::uint64_t id, std::string_view part) { return server_ && server_->write(id, part); };
  out.finish = [this](std::uint64_t id) { return server_ && server_->finish(id); };
  out.abort = [this](std::uint64_t id) {
    if (server_) server_->abort(id);
  };
  out.help = [this](Helper::Work work, Helper::Then failed) { help(std::move(work), std::move(failed)); };
  return out;
}

ZmqClientLimits GatewayCore::zmq_limits() const {
  ZmqClientLimits out;
  out.streams_max = static_cast<std::size_t>(config_.streams_max);
  out.per_peer_max = static_cast<std::size_t>(config_.streams_per_client_max);
  return out;
}

ZmqClientWire GatewayCore::zmq_wire() {
  return {[this](const std::string& peer, protocol::Message message) {
            post(peer, std::move(message));
            if (waiting_) server_->stop_waiting();  // the host sends when `wait` returns
          },
          [this] { put_by(); },
          [this](const std::string& peer, const protocol::Envelope& head) { worked_on(peer, head); }};
}

/// As the server counts time.
std::chrono::steady_clock::time_point GatewayCore::on_wall(Time time) const {
  return std::chrono::steady_clock::now() + (time - clock_.now());
}

http::SocketHandlers GatewayCore::handlers() {
  http::SocketHandlers out;
  // A page that offers its key as a subprotocol has to be answered with one.
  out.paths = {{"/v1/dialogue", 0, 0, "dialogue"},
               {kRealtimePath, kRealtimeMessageMax, kRealtimeUnsentMax, "realtime"}};
  out.opened = [this](std::uint64_t id, const http::Upgrade& upgrade) {
    const auto rights = api_.socket_opened(id);
    const auto now = clock_.now();
    if (upgrade.path != kRealtimePath) {
      sessions_.client_opened(id, now, {.owner = rights.owner});
    } else {
      realtime_.opened(id,
                       {upgrade.target, std::time(nullptr) + config_.session_seconds_max, rights.session, rights.owner,
                        upgrade.share, config_.realtime_beta && asks_for_beta(upgrade)},
                       now);
    }
    act();
  };
  out.closed = [this](std::uint64_t id) {
    const auto now = clock_.now();
    if (realtime_.has(id)) {
      realtime_.closed(id, now);
    } else if (!realtime_.owns(id)) {  // else it was lost, and its session waits
      sessions_.client_closed(id, now);
      api_.socket_over(id);
    }
    sound_due_.erase(id);
    act();
  };
  out.lost = [this](std::uint64_t id) {
    const auto now = clock_.now();
    if (realtime_.has(id))
      realtime_.lost(id, now);
    else if (!realtime_.owns(id))
      sessions_.client_lost(id, now);
    act();
  };
  out.message = [this](std::uint64_t id, std::string_view data, bool binary) {
    const auto now = clock_.now();
    if (realtime_.has(id))
      realtime_.message(id, data, binary, now);
    else
      binary ? sessions_.client_audio(id, data, now) : sessions_.client_text(id, data, now);
    act();
  };
  return out;
}

RealtimeWire GatewayCore::realtime_wire() {
  RealtimeWire out;
  out.send = [this](std::uint64_t id, std::string event, std::optional<Time> sound_due) {
    // Each piece of sound says by itself what it belongs to: one that comes too late is left out.
    const auto due = sound_due ? std::optional(http::Due{on_wall(*sound_due), true}) : std::nullopt;
    if (server_) server_->send(id, std::move(event), false, 0, due);
  };
  out.help = [this](Helper::Work work, Helper::Then failed) { help(std::move(work), std::move(failed)); };
  out.reserve = [this](std::size_t bytes, const std::string& share) {
    return server_ && server_->reserve(bytes, share);
  };
  out.release = [this](std::size_t bytes, const std::string& share) {
    if (server_) server_->release(bytes, share);
  };
  out.admit_side = [this](std::uint64_t session) -> std::optional<RealtimeError> {
    const auto why = api_.side_opened(session, clock_.now());
    if (!why) return {};
    return RealtimeError{why->code, why->message};
  };
  out.side_over = [this](std::uint64_t session) { api_.side_closed(session); };
  out.over = [this](std::uint64_t session) { api_.socket_over(session); };
  out.close = [this](std::uint64_t id, std::uint16_t code, std::string reason) {
    if (server_) server_->close(id, http::CloseCode(code), std::move(reason));
  };
  out.read = [this](std::uint64_t id, bool read) {
    if (server_) read ? server_->resume(id) : server_->pause(id);
  };
  return out;
}

Result<void> GatewayCore::listen() {
  if (config_.listen.empty()) return {};
  auto answers = [this](http::Request& request) { return answer(request); };
  PARLANDO_TRY(server_, http::Server::start(config_.listen, std::move(answers), handlers(), limits()));
  if (!config_.api_listen.empty()) {
    const auto also = server_->also_listen(config_.api_listen);
    if (!also && config_.api_listen_required) return tl::unexpected(also.error());
    api_port_ = also ? *also : 0;
    if (also)
      telemetry::log(telemetry::Level::info, "gateway serves everything at '{}', too", config_.api_listen);
    else
      telemetry::log(telemetry::Level::warning, "gateway serves everything at '{}' alone: {}", config_.listen,
                     also.error().message);
  }
  server_->set_requests(request_handlers());
  if (!config_.tls_certificate.empty()) {
    PARLANDO_DO(server_->use_tls(config_.tls_certificate, config_.tls_key));
    certificate_times_ = {written_at(config_.tls_certificate), written_at(config_.tls_key)};
  }
  return {};
}

/// A certificate is renewed every few weeks by somebody who writes its files; new connections get the new one.
void GatewayCore::review_certificate(Time now) {
  if (!server_ || config_.tls_certificate.empty() || now - certificate_seen_ < kCertificateAgain) return;
  certificate_seen_ = now;
  const std::pair times{written_at(config_.tls_certificate), written_at(config_.tls_key)};
  if (times == certificate_times_) return;
  certificate_times_ = times;
  if (const auto used = server_->use_tls(config_.tls_certificate, config_.tls_key); used)
    telemetry::log(telemetry::Level::info, "gateway uses the new certificate of '{}'", config_.tls_certificate);
  else
    telemetry::log(telemetry::Level::warning, "gateway keeps its certificate: {}", used.error().message);
}

/// Wakes for sound that is due, too.
int GatewayCore::wait(std::span<pollfd> descriptors, milliseconds timeout) {
  if (const auto due = sessions_.sound_due(); due != Time::max()) {
    const auto until = std::max(milliseconds(0), std::chrono::ceil<milliseconds>(due - clock_.now()));
    timeout = timeout.count() < 0 ? until : std::min(timeout, until);
  }
  if (api_.wants_to_say()) timeout = milliseconds(0);
  waiting_ = server_ != nullptr;
  const int ready = server_ ? server_->wait(descriptors, timeout) : Core::wait(descriptors, timeout);
  waiting_ = false;
  play();
  if (api_.wants_to_say()) {
    api_.pump(clock_.now());
    act();
  }
  return ready;
}

void GatewayCore::play() {
  const auto now = clock_.now();
  if (sessions_.sound_due() > now) return;
  sessions_.play(now);
  act();
}

/// Does what the sessions want done.
void GatewayCore::act() {
  // What a request makes of its events may end its session, and that has consequences.
  bool more = true;
  while (more) {
    for (auto actions = sessions_.take_for_clients(); !actions.empty(); actions = sessions_.take_for_clients())
      for (auto& action : actions) act_on(action);
    more = realtime_.feed_more(clock_.now());
    more = zmq_.go_on(clock_.now()) || more;
  }
  auto messages = sessions_.take_for_controllers();
  for (auto& m : messages) std::visit([&](auto& body) { send(m.peer, m.head, std::move(body)); }, m.body);
  // The host sends when `wait` returns.
  if (!messages.empty() && waiting_) server_->stop_waiting();
}

void GatewayCore::act_on(ToClient& action) {
  if (zmq_.act_on(action, clock_.now()) || !server_) return;
  if (realtime_.act_on(action, clock_.now())) return;
  if (api_.has(action.client)) return api_.on_action(action, clock_.now());
  switch (action.kind) {
    case ToClient::Kind::event:
      server_->send(action.client, std::move(action.data), false);
      return;
    case ToClient::Kind::sound: {
      // Both ends count samples here: nothing is left out in the middle.
      const auto length = std::chrono::microseconds(static_cast<std::int64_t>(action.data.size() / kSampleBytes) *
                                                    1'000'000 / kSpeechRate);
      const auto due = sound_due_[action.client].next(length, clock_.now());
      server_->send(action.client, std::move(action.data), true, action.turn.value, http::Due{on_wall(due), false});
      return;
    }
    case ToClient::Kind::close:
      return server_->close(action.client, http::CloseCode(action.code), std::move(action.data));
    case ToClient::Kind::pause:
      return server_->pause(action.client);
    case ToClient::Kind::resume:
      return server_->resume(action.client);
  }
}

// ------------------------------------------------------------------------------------------------ the service

void GatewayCore::on_message(const std::string& peer, protocol::Message message, Time now) {
  if (!zmq_.on_message(peer, message, now)) sessions_.on_message(peer, std::move(message), now);
  act();
}

void GatewayCore::on_peer(const transport::Peer& peer, transport::PeerState state, Time now) {
  if (!zmq_.on_peer(peer, state, now)) sessions_.on_peer(peer, state, now);
  act();
}

void GatewayCore::on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) {
  if (!zmq_.on_refused(peer, head, error, now)) sessions_.on_refused(peer, head, error, now);
  act();
}

void GatewayCore::on_tick(Time now) {
  sessions_.on_tick(now);
  realtime_.on_tick(now);
  review_certificate(now);
  zmq_.on_tick();
  act();
  tell_metrics();
}

std::string GatewayCore::why_not_ready() const { return sessions_.any_controller() ? "" : "no live controller"; }

std::int64_t GatewayCore::load() const {
  const auto clients = static_cast<std::int64_t>(sessions_.clients());
  if (config_.streams_max > 0 || !server_) return clients;
  return std::max(clients, static_cast<std::int64_t>(server_->connections()));
}

std::int64_t GatewayCore::slots() const {
  if (config_.streams_max > 0 || !server_) return static_cast<std::int64_t>(zmq_.room());
  return std::max<std::int64_t>(0, config_.connections_max - static_cast<std::int64_t>(server_->connections()));
}

bool GatewayCore::drain() {
  if (server_) server_->stop_accepting();
  api_.drain();
  sessions_.drain(clock_.now());
  act();
  return sessions_.clients() == 0 && (!server_ || (server_->sockets() == 0 && server_->requests() == 0));
}

// ------------------------------------------------------------------------------------------------ metrics

void GatewayCore::add_metrics(telemetry::Metrics& metrics) {
  const auto counter = [&](const char* name, const char* help) {
    return metrics.counter(fmt::format("parlando_gateway_{}", name), help);
  };
  Meters m;
  m.sessions = metrics.gauge("parlando_gateway_sessions", "Conversations, those that wait for a controller included");
  m.sockets = metrics.gauge("parlando_gateway_sockets", "WebSockets");
  m.realtime = metrics.gauge("parlando_gateway_realtime_sockets", "WebSockets of the realtime API");
  m.realtime_errors = counter("realtime_errors_total", "Events of realtime clients that were answered by an error");
  m.realtime_resumed = counter("realtime_resumed_total", "Realtime sessions that went on at another socket");
  m.realtime_not_resumed = counter("realtime_not_resumed_total", "Attempts to resume one that does not wait for it");
  m.large_bytes = metrics.gauge("parlando_gateway_large_bytes", "Memory of bodies and messages above 64 KiB");
  m.streams = metrics.gauge("parlando_gateway_client_streams", "Conversations of clients of the mesh");
  using Z = ZmqClientCounters;
  m.zmq = {{counter("client_streams_opened_total", "Conversations that clients of the mesh have begun"), &Z::opened},
           {counter("client_streams_refused_total", "Those that were refused: a limit, or a caller that is no client"),
            &Z::refused},
           {counter("client_streams_malformed_total", "Those that ended with a message that clients do not send"),
            &Z::malformed},
           {counter("client_streams_slow_total", "Those whose client took its events too slowly"), &Z::slow},
           {counter("client_streams_lost_total", "Those whose client died: they may be resumed"), &Z::lost},
           {counter("client_put_by_total", "Messages of clients that were to wait"), &Z::put_by}};
  m.held =
      metrics.gauge("parlando_gateway_held_seconds", "Sound that waits for the loudspeakers of clients with a lead");
  m.underruns = counter("underruns_total", "Answers that ran dry before their last sample");
  m.holds = counter("holds_total", "Times that a controller made an answer stand still");
  m.interruptions = counter("interruptions_total", "Answers that their user has interrupted");
  m.early = counter("sent_early_seconds_total", "Audio sent ahead of the lead, because more than a minute was held");
  m.frames = counter("audio_frames_total", "Audio messages from clients");
  m.sent = counter("audio_sent_seconds_total", "Audio sent to clients");
  m.refused = counter("refused_total", "Client messages that were refused");
  m.stale = counter("stale_total", "Messages of controllers that do not own their session (any more)");
  m.repeats = counter("repeats_total", "Messages whose content the client had already");
  m.malformed = counter("malformed_total", "Messages of controllers that make no sense here");
  m.failed =
      counter("sessions_failed_total", "Sessions that ended with an error: none took them, or none took them over");
  m.dropped =
      counter("input_dropped_seconds_total", "Audio let go before its controller did: not heard after a hand-over");
  m.resumed = counter("resumed_total", "Sessions that came from another socket or gateway");
  m.not_resumed = counter("not_resumed_total", "Attempts to resume a session that nobody keeps for this token");
  m.paused = counter("paused_total", "Times that a client was read no further for a while");
  for (std::size_t i = 0; i < kReasonNames.size(); ++i)
    m.handovers[i] = metrics.counter("parlando_gateway_handovers_total", "Sessions that left their controller",
                                     "reason", std::string(kReasonNames[i]));
  m.api_running = metrics.gauge("parlando_gateway_api_running", "HTTP requests that wait for their answer or its end");
  for (std::size_t i = 0; i < kEndpointNames.size(); ++i)
    m.api_requests[i] = metrics.counter("parlando_gateway_api_requests_total", "Requests to the HTTP API", "endpoint",
                                        std::string(kEndpointNames[i]));
  using A = HttpApiCounters;
  m.api = {{counter("api_refused_total", "Requests answered by 400 to 499"), &A::refused},
           {counter("api_failed_total", "Requests answered by 500 and above, or broken off"), &A::failed},
           {counter("api_left_total", "Requests whose client went before the end"), &A::left},
           {counter("api_unauthorised_total", "Requests without a key that is known"), &A::unauthorised},
           {counter("api_limited_total", "Requests above a limit of their key"), &A::limited},
           {counter("api_full_total", "Requests and WebSockets for which no controller had a place"), &A::full}};
  using C = http::Counters;
  const std::tuple<const char*, const char*, const http::Counter C::*> table[] = {
      {"http_accepted_total", "Connections that passed the limits", &C::accepted},
      {"http_refused_full_total", "Connections above connections_max", &C::refused_full},
      {"http_refused_address_total", "Connections above connections_per_address_max", &C::refused_address},
      {"http_refused_origin_total", "Upgrades of foreign pages", &C::refused_origin},
      {"http_refused_host_total", "Requests for hosts that we are not", &C::refused_host},
      {"http_accept_backoffs_total", "Waits because no descriptors were left", &C::accept_backoffs},
      {"http_closed_slow_total", "WebSockets that were 5 s behind, or took nothing for so long", &C::closed_slow},
      {"http_dropped_late_total", "Pieces of sound that came too late for their client", &C::dropped_late},
      {"http_closed_idle_total", "Connections cut for their silence", &C::closed_idle},
      {"http_refused_bodies_total", "Requests above the limit of all bodies together", &C::refused_bodies},
      {"http_cut_streams_total", "Streamed answers whose client was too slow", &C::cut_streams},
      {"http_closed_forced_total", "WebSockets cut because they did not end in time", &C::closed_forced},
      {"http_protocol_errors_total", "Malformed requests and frames", &C::protocol_errors},
      {"http_callback_errors_total", "Exceptions while a request or message was worked on", &C::callback_errors},
  };
  for (const auto& [name, help, member] : table) m.http.emplace_back(counter(name, help), member);
  meters_ = std::move(m);
}

void GatewayCore::tell_metrics() {
  if (!meters_) return;
  const auto& m = *meters_;
  const auto c = sessions_.counters();
  const auto tell = [](const telemetry::Metrics::Counter& to, std::uint64_t n) {
    to.set_at_least(static_cast<double>(n));
  };
  m.sessions.set(static_cast<double>(sessions_.sessions()));
  m.sockets.set(static_cast<double>(sessions_.clients() - api_.running() - zmq_.open()));
  m.api_running.set(static_cast<double>(api_.running() + api_.reading()));
  for (std::size_t i = 0; i < m.api_requests.size(); ++i) tell(m.api_requests[i], api_.counters().requests[i]);
  for (const auto& [to, member] : m.api) tell(to, api_.counters().*member);
  m.realtime.set(static_cast<double>(realtime_.size()));
  tell(m.realtime_errors, realtime_.counters().errors);
  tell(m.realtime_resumed, realtime_.counters().resumed);
  tell(m.realtime_not_resumed, realtime_.counters().not_resumed);
  m.streams.set(static_cast<double>(zmq_.open()));
  for (const auto& [to, member] : m.zmq) tell(to, zmq_.counters().*member);
  tell(m.frames, c.audio_frames);
  tell(m.refused, c.refused);
  tell(m.stale, c.stale);
  tell(m.repeats, c.repeats);
  tell(m.malformed, c.malformed);
  tell(m.failed, c.failed);
  tell(m.resumed, c.resumed);
  tell(m.not_resumed, c.not_resumed);
  tell(m.paused, c.paused);
  tell(m.underruns, c.underruns);
  tell(m.holds, c.holds);
  tell(m.interruptions, c.interruptions);
  m.held.set(static_cast<double>(c.held_samples) / kSpeechRate);
  m.early.set_at_least(static_cast<double>(c.early_samples) / kSpeechRate);
  m.sent.set_at_least(static_cast<double>(c.sent_samples) / kSpeechRate);
  m.dropped.set_at_least(static_cast<double>(c.dropped_input_samples) / kInputRate);
  for (std::size_t i = 0; i < m.handovers.size(); ++i) tell(m.handovers[i], c.handovers[i]);
  if (!server_) return;
  m.large_bytes.set(static_cast<double>(server_->reserved_bytes()));
  for (const auto& [to, member] : m.http) tell(to, (server_->counters().*member).value());
}

}  // namespace parlando::gateway
