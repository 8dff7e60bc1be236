#include "services/gateway/gateway_core.hpp"

#include <algorithm>
#include <filesystem>

#include "common/base/mapped_file.hpp"
#include "common/base/nesting.hpp"
#include "common/base/pcm.hpp"
#include "common/base/random_id.hpp"
#include "common/protocol/delivery.hpp"

namespace parlando::gateway {
namespace fs = std::filesystem;
using nlohmann::json;
using protocol::MessageType;

namespace {
constexpr int kStrikesMax = 3;  // malformed messages before a socket is closed
constexpr std::size_t kAudioBytesMax = 32 * 1024;

std::string type_of(const fs::path& file) {
  const auto e = file.extension();
  return e == ".html"   ? "text/html; charset=utf-8"
         : e == ".js"   ? "text/javascript; charset=utf-8"
         : e == ".css"  ? "text/css; charset=utf-8"
         : e == ".json" ? "application/json"
         : e == ".wav"  ? "audio/wav"
                        : "application/octet-stream";
}
/// What is wrong with an `open` message; empty when nothing is.
std::string wrong_option(const json& body) {
  for (const auto& [key, value] : body.items()) {
    if (key == "type") continue;
    if (key == "system" || key == "speaker") {
      if (!value.is_string()) return fmt::format("open: {} is {}, expected a text", key, protocol::dump(value).substr(0, 40));
    } else if (key == "speak") {
      if (!value.is_boolean()) return fmt::format("open: speak is {}, expected true or false", protocol::dump(value).substr(0, 40));
    } else
      return fmt::format("open: '{}' is unknown, expected system, speaker or speak", key.substr(0, 40));
  }
  return {};
}
}  // namespace

std::vector<config::Problem> GatewayConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  if (listen.rfind(':') == std::string::npos) out.push_back({path + ".listen", "is '" + listen + "', expected host:port"});
  config::expect_range(out, path + ".connections_max", connections_max, 1, 1 << 16);
  config::expect_range(out, path + ".session_seconds_max", session_seconds_max, 1, 86400);
  return out;
}

Result<std::unique_ptr<service::Core>> GatewayCore::make(const GatewayConfig& config) {
  auto out = std::make_unique<GatewayCore>(config);
  // The page is small: it is read once, and nothing outside these folders can be asked for.
  auto load = [&](const fs::path& folder, const std::string& prefix) -> Result<void> {
    if (!fs::is_directory(folder)) return fail(Errc::not_found, "'{}' is not a folder", folder.string());
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (!entry.is_regular_file()) continue;
      PARLANDO_TRY(auto bytes, read_file(entry.path(), 8u << 20));
      out->files_[prefix + entry.path().filename().string()] = {200, type_of(entry.path()), std::move(bytes)};
    }
    return {};
  };
  if (!config.page.empty()) {
    PARLANDO_DO(load(config.page, "/"));
  }
  if (!config.questions.empty()) {
    PARLANDO_DO(load(config.questions, "/questions/"));
  }
  if (out->files_.contains("/index.html")) out->files_["/"] = out->files_["/index.html"];
  return std::unique_ptr<service::Core>(std::move(out));
}

void GatewayCore::add_metrics(telemetry::Metrics& metrics) {
  frames_ = metrics.counter("parlando_gateway_audio_frames_total", "Audio messages from clients");
  audio_out_ = metrics.counter("parlando_gateway_audio_sent_seconds_total", "Audio sent to clients");
  refused_ = metrics.counter("parlando_gateway_refused_total", "Client messages that were refused");
}

Result<void> GatewayCore::attach(Post post) {
  auto on = [post](auto&& f) { return post([f](Core& core, Time now) { f(static_cast<GatewayCore&>(core), now); }); };
  http::SocketHandlers sockets;
  sockets.path = "/v1/dialogue";
  sockets.opened = [on](std::uint64_t id) { on([id](GatewayCore& g, Time now) { g.client_opened(id, now); }); };
  sockets.closed = [on](std::uint64_t id) { on([id](GatewayCore& g, Time) { g.client_closed(id); }); };
  sockets.message = [on](std::uint64_t id, std::string data, bool binary) {
    on([id, data = std::move(data), binary](GatewayCore& g, Time now) { g.client_said(id, data, binary, now); });
  };
  PARLANDO_TRY(server_, http::Server::start(config_.listen,
                                            [this](const http::Request& r) -> http::Response {
                                              const auto path = r.target.substr(0, r.target.find('?'));
                                              if (r.method != "GET") return {405, "text/plain", "only GET\n"};
                                              const auto found = files_.find(path);  // written before the server starts, never after
                                              return found != files_.end() ? found->second : http::Response{404, "text/plain", "not found\n"};
                                            },
                                            std::move(sockets), {.connections_max = config_.connections_max}));
  return {};
}

void GatewayCore::event(std::uint64_t id, const json& body) { server_->send(id, protocol::dump(body), false); }

void GatewayCore::complain(std::uint64_t id, Errc code, const std::string& message) {
  refused_.add();
  event(id, {{"type", "error"}, {"code", std::string(to_string(code))}, {"message", message}});
  const auto found = sockets_.find(id);
  if (found != sockets_.end() && ++found->second.strikes >= kStrikesMax) server_->close(id);
}

void GatewayCore::say(Client& client, MessageType type, std::string body, std::vector<std::byte> payload) {
  protocol::Message m;
  m.head.type = type, m.head.session = client.session, m.head.stream = 1;
  m.body = std::move(body), m.payload = std::move(payload);
  send(client.controller, std::move(m));
}

void GatewayCore::client_opened(std::uint64_t id, Time now) {
  Client c;
  c.session = {random_u64(), random_u64()}, c.since = now;
  by_session_[c.session] = id;
  sockets_[id] = c;
}

void GatewayCore::client_said(std::uint64_t id, const std::string& data, bool binary, Time) {
  const auto found = sockets_.find(id);
  if (found == sockets_.end()) return;
  auto& c = found->second;
  if (binary) {
    if (!c.opened) return complain(id, Errc::not_ready, "send {\"type\":\"open\"} before audio");
    if (data.size() % 2 != 0 || data.size() > kAudioBytesMax)
      return complain(id, Errc::bad_frame, fmt::format("an audio message of {} bytes, expected an even number up to {}", data.size(), kAudioBytesMax));
    frames_.add();
    return say(c, MessageType::audio, "{}", to_bytes(std::span<const char>(data)));
  }
  const auto body = nested_deeper_than(data, 32) ? json() : json::parse(data, nullptr, false);
  if (!body.is_object() || !body.contains("type") || !body["type"].is_string())
    return complain(id, Errc::bad_json, "the message is not a JSON object with a type");
  const auto type = body["type"].get<std::string>();
  if (type == "open") {
    if (c.opened) return complain(id, Errc::invalid_argument, "the session is open already");
    const auto index = protocol::rendezvous(c.session, controllers_);
    if (!index) return complain(id, Errc::unavailable, "no controller is connected; try again");
    c.controller = controllers_[*index];
    c.opened = true;
    if (const auto wrong = wrong_option(body); !wrong.empty()) return complain(id, Errc::invalid_argument, wrong);
    auto options = body;
    options.erase("type");
    return say(c, MessageType::open, protocol::dump(options));
  }
  if (!c.opened) return complain(id, Errc::not_ready, "send {\"type\":\"open\"} first");
  if (type == "flush") return say(c, MessageType::flush, "{}");
  if (type == "cancel") return say(c, MessageType::cancel, "{}");
  if (type == "text") {
    if (!body.contains("text") || !body["text"].is_string()) return complain(id, Errc::invalid_argument, "a text message needs a text");
    return say(c, MessageType::text, protocol::dump(json{{"text", body["text"]}}));
  }
  complain(id, Errc::unknown_type, "the type is '" + type.substr(0, 40) + "', expected open, flush, text or cancel");
}

void GatewayCore::client_closed(std::uint64_t id) {
  const auto found = sockets_.find(id);
  if (found == sockets_.end()) return;
  if (found->second.opened) say(found->second, MessageType::close, "{}");
  by_session_.erase(found->second.session);
  sockets_.erase(found);
}

void GatewayCore::on_message(const std::string&, protocol::Message m, Time) {
  const auto found = by_session_.find(m.head.session);
  if (found == by_session_.end()) return;
  const auto id = found->second;
  auto body = protocol::body_of(m);
  switch (m.head.type) {
    case MessageType::speech:
      audio_out_.add(static_cast<double>(m.payload.size()) / 2 / 22050);
      return server_->send(id, {reinterpret_cast<const char*>(m.payload.data()), m.payload.size()}, true);
    case MessageType::open:
      body["type"] = "opened", body["rate"] = 22050;
      break;
    case MessageType::speech_started:
      body["type"] = "speech_started";
      break;
    case MessageType::speech_ended:
      body["type"] = "speech_ended";
      break;
    case MessageType::turn:
      body["type"] = "turn";
      break;
    case MessageType::error:
      body["type"] = "error";
      break;
    case MessageType::text:
      body["type"] = protocol::text_in(body, "kind") == "error" ? "error" : "text";
      if (body["type"] == "error") body["message"] = protocol::text_in(body, "text");
      break;
    default:
      return;
  }
  event(id, body);
}

void GatewayCore::on_peer(const transport::Peer& peer, bool up, Time) {
  if (peer.caller) return;
  std::erase(controllers_, peer.instance);
  if (up) {
    controllers_.push_back(peer.instance);
    return;
  }
  for (auto& [id, c] : sockets_) {
    if (c.controller != peer.instance || !c.opened) continue;
    c.opened = false;
    event(id, {{"type", "error"}, {"code", "unavailable"}, {"message", "the controller of this session is gone; open again"}});
  }
}

void GatewayCore::on_tick(Time now) {
  for (const auto& [id, c] : sockets_)
    if (now - c.since > std::chrono::seconds(config_.session_seconds_max)) server_->close(id);
}

}  // namespace parlando::gateway
