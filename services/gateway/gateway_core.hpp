#pragma once
/// The gateway: the page and its WebSocket on one side, controllers on the other. A socket is a session. Client messages: JSON
/// `{type: open | flush | text | cancel, …}` and binary s16le PCM at 16 kHz; answers: JSON events and binary s16le PCM at 22.05 kHz.
#include "common/config/fields.hpp"
#include "common/http/server.hpp"
#include "common/service/core.hpp"

namespace parlando::gateway {

struct GatewayConfig {
  std::string listen = "127.0.0.1:7860";
  std::string page = "services/gateway/page";       ///< folder of the page; empty: none
  std::string questions = "models/nano/questions";  ///< example recordings the page offers; empty: none
  int connections_max = 256;
  int session_seconds_max = 1800;
  template <class V>
  void fields(V&& v) {
    v("listen", listen), v("page", page), v("questions", questions), v("connections_max", connections_max), v("session_seconds_max", session_seconds_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

class GatewayCore final : public service::Core {
 public:
  static Result<std::unique_ptr<service::Core>> make(const GatewayConfig& config);
  explicit GatewayCore(GatewayConfig config) : config_(std::move(config)) {}
  Result<void> attach(Post post) override;
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, bool up, Time now) override;
  void on_tick(Time now) override;
  int listening_port() const override { return server_ ? server_->port() : 0; }
  std::string why_not_ready() const override { return controllers_.empty() ? "no controller is connected" : ""; }
  std::int64_t load() const override { return static_cast<std::int64_t>(sockets_.size()); }
  std::int64_t slots() const override { return config_.connections_max - load(); }
  bool drain() override { return sockets_.empty(); }
  void add_metrics(telemetry::Metrics& metrics) override;

 private:
  struct Client {
    protocol::SessionId session;
    std::string controller;
    bool opened = false;
    int strikes = 0;
    Time since;
  };
  void client_opened(std::uint64_t id, Time now);
  void client_said(std::uint64_t id, const std::string& data, bool binary, Time now);
  void client_closed(std::uint64_t id);
  void say(Client& client, protocol::MessageType type, std::string body, std::vector<std::byte> payload = {});
  void event(std::uint64_t id, const nlohmann::json& body);
  void complain(std::uint64_t id, Errc code, const std::string& message);
  GatewayConfig config_;
  std::map<std::string, http::Response> files_;
  std::unique_ptr<http::Server> server_;
  std::vector<std::string> controllers_;
  std::map<std::uint64_t, Client> sockets_;
  std::map<protocol::SessionId, std::uint64_t> by_session_;
  telemetry::Metrics::Counter frames_, refused_, audio_out_;
};

}  // namespace parlando::gateway
