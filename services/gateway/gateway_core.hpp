#pragma once
/// The gateway: the page and its WebSocket on one side, controllers on the other. `sessions.hpp` thinks; this class
/// gives it an HTTP server that the service's own thread drives together with the link, so that nothing passes through
/// a queue between threads. README.md lists what clients say and are told.
#include "common/base/clock.hpp"
#include "common/config/fields.hpp"
#include "common/http/server.hpp"
#include "common/service/core.hpp"
#include "services/gateway/http_api.hpp"
#include "services/gateway/realtime_sockets.hpp"
#include "services/gateway/sessions.hpp"
#include "services/gateway/zmq_clients.hpp"

namespace parlando::gateway {

struct GatewayConfig {
  std::string listen = "127.0.0.1:7860";            ///< host:port; port 0 takes a free one; empty: no HTTP
  std::string api_listen;                           ///< a second address, with all the same; empty: none
  bool api_listen_required = true;                  ///< else one that is taken is told, and gone on without
  std::string page = "services/gateway/page";       ///< folder of the page; empty: none
  std::string questions = "models/nano/questions";  ///< example recordings the page offers; empty: none
  int connections_max = 512;                        ///< in all; further ones are answered by 503
  /// Of one address, loopback too; further ones are answered by 429. 0: no limit.
  int connections_per_address_max = 256;
  std::vector<std::string> origins;    ///< pages besides our own that may open a WebSocket; "*": all
  std::vector<std::string> hosts;      ///< names we are reached by; empty: localhost and numeric addresses; "*": all
  int session_seconds_max = 1800;      ///< of a connection; then it is closed with 1000, between two turns
  int session_grace_seconds_max = 60;  ///< for a turn that is under way then; behind it, it is closed in the turn
  int drain_seconds_max = 15;          ///< for turns under way at SIGTERM; then they are closed with 1001
  std::string keys_file;               ///< who may use /v1 (`http_keys.hpp`); empty: everybody who reaches it
  std::string secrets_file;      ///< signs client secrets, for all gateways alike; empty: for this one, until its end
  std::string tls_certificate;   ///< PEM, with its chain: everything is served in TLS; empty: plain
  std::string tls_key;           ///< PEM
  std::string voices;            ///< folder of voices that users make; empty: none are made
  int voices_per_key_max = 100;  ///< of one key, or of all who need none
  bool realtime_beta = false;    ///< clients that ask for the names of the beta get them
  int streams_max = 512;         ///< conversations of clients of the mesh (role `client`); 0: none are taken
  int streams_per_client_max = 64;  ///< of one of them
  template <class V>
  void fields(V&& v) {
    v("listen", listen);
    v("api_listen", api_listen);
    v("api_listen_required", api_listen_required);
    v("page", page);
    v("questions", questions);
    v("connections_max", connections_max);
    v("connections_per_address_max", connections_per_address_max);
    v("origins", origins);
    v("hosts", hosts);
    v("session_seconds_max", session_seconds_max);
    v("session_grace_seconds_max", session_grace_seconds_max);
    v("drain_seconds_max", drain_seconds_max);
    v("keys_file", keys_file);
    v("secrets_file", secrets_file);
    v("tls_certificate", tls_certificate);
    v("tls_key", tls_key);
    v("voices", voices);
    v("voices_per_key_max", voices_per_key_max);
    v("realtime_beta", realtime_beta);
    v("streams_max", streams_max);
    v("streams_per_client_max", streams_per_client_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

class GatewayCore final : public service::Core {
 public:
  /// @error Errc::not_found naming a folder that is missing, and those of reading files
  static Result<std::unique_ptr<service::Core>> make(const GatewayConfig& config);
  explicit GatewayCore(GatewayConfig config, const Clock& clock = kSteadyClock, ApiKeys keys = {},
                       ClientSecrets secrets = {});

  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time now) override;
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) override;
  void on_tick(Time now) override;

  int wait(std::span<pollfd> descriptors, milliseconds timeout) override;
  Result<void> listen() override;
  int listening_port() const override { return server_ ? server_->port() : 0; }

  /// Of `api_listen`; 0: nothing listens there.
  int api_port() const { return api_port_; }

  std::string why_not_ready() const override;
  /// Clients; where none come over the mesh (`streams_max` 0), connections, the idle ones too: they take the places.
  std::int64_t load() const override;
  /// Places for clients of the mesh, who are told of them; where none are taken (`streams_max` 0), for connections.
  std::int64_t slots() const override;
  bool drain() override;
  void add_metrics(telemetry::Metrics& metrics) override;

  const http::Counters& http_counters() const { return server_->counters(); }
  /// Memory of bodies and messages above 64 KiB.
  std::size_t large_bytes() const { return server_ ? server_->reserved_bytes() : 0; }
  /// HTTP requests that are not answered to their end.
  std::size_t requests() const { return server_ ? server_->requests() : 0; }
  std::size_t sockets() const { return server_ ? server_->sockets() : 0; }
  /// Has `work` done on the helper's thread: see `Helper::start`. After `listen`.
  void help(Helper::Work work, Helper::Then failed);
  /// Bodies that the helper has, also of clients that have gone.
  std::size_t reading() const { return api_.reading(); }
  SessionsCounters counters() const { return sessions_.counters(); }

 private:
  static const SteadyClock kSteadyClock;
  Result<void> load_files(const std::string& folder, const std::string& prefix);
  http::Response answer(http::Request& request);
  std::chrono::steady_clock::time_point on_wall(Time time) const;
  void review_certificate(Time now);
  http::RequestHandlers request_handlers();
  HttpReplies replies();
  http::SocketHandlers handlers();
  RealtimeWire realtime_wire();
  http::Limits limits() const;
  ZmqClientLimits zmq_limits() const;
  ZmqClientWire zmq_wire();
  void play();
  void act();
  void act_on(ToClient& action);
  void tell_metrics();

  struct Meters {
    telemetry::Metrics::Gauge sessions, sockets, realtime, streams, held, api_running, large_bytes;
    std::array<telemetry::Metrics::Counter, kEndpointNames.size()> api_requests;
    std::vector<std::pair<telemetry::Metrics::Counter, std::uint64_t HttpApiCounters::*>> api;
    telemetry::Metrics::Counter frames, sent, refused, stale, repeats, failed, dropped, paused, malformed;
    telemetry::Metrics::Counter resumed, not_resumed, underruns, holds, interruptions, early, realtime_errors;
    telemetry::Metrics::Counter realtime_resumed, realtime_not_resumed;
    std::array<telemetry::Metrics::Counter, kReasonNames.size()> handovers;
    std::vector<std::pair<telemetry::Metrics::Counter, const http::Counter http::Counters::*>> http;
    std::vector<std::pair<telemetry::Metrics::Counter, std::uint64_t ZmqClientCounters::*>> zmq;
  };

  GatewayConfig config_;
  const Clock& clock_;
  Sessions sessions_;
  RealtimeSockets realtime_;
  ZmqClients zmq_;
  HttpApi api_;
  std::map<std::string, http::Response> files_;  ///< by path; read once
  std::unique_ptr<http::Server> server_;
  std::unordered_map<std::uint64_t, SoundDue> sound_due_;    ///< of sockets of `/v1/dialogue`
  std::pair<std::int64_t, std::int64_t> certificate_times_;  ///< when its files were written
  Time certificate_seen_{};
  int api_port_ = 0;
  bool waiting_ = false;  ///< inside `wait`
  std::optional<Meters> meters_;
  std::optional<Helper> helper_;  ///< last: what it has under way uses all of the above
};

}  // namespace parlando::gateway
