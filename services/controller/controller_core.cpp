#include "services/controller/controller_core.hpp"

#include <algorithm>

#include "common/protocol/delivery.hpp"

namespace parlando::controller {
using nlohmann::json;
using protocol::MessageType;

namespace {
constexpr std::uint32_t kClientStream = 1;
const char* const kRoles[] = {"vad", "tokenizer", "llm-chat", "tts", "context"};
}  // namespace

/// A dialogue with its client's address and its replicas.
class ControllerCore::Session final : public Outlet {
 public:
  Session(ControllerCore& core, protocol::SessionId id, std::string client)
      : core_(core), id_(id), client(std::move(client)), dialogue(id, core.config_, *this) {}

  void to_client(MessageType type, const json& body, std::vector<std::byte> payload) override {
    protocol::Envelope to;
    to.session = id_, to.stream = kClientStream;
    if (type == MessageType::error) core_.errors_.add();
    if (type == MessageType::turn) {
      core_.turns_.add();
      if (body.contains("stages") && body["stages"].contains("first_audio_ms"))
        core_.first_audio_.observe(body["stages"]["first_audio_ms"].get<double>() / 1000);
    }
    // An error of one turn travels in order with the turn's other messages, so it must not be the exempt kind.
    if (type == MessageType::error)
      core_.answer(client, to, MessageType::text,
                   json{{"kind", "error"}, {"code", protocol::text_in(body, "code")}, {"text", protocol::text_in(body, "message")}}.dump());
    else
      core_.answer(client, to, type, protocol::dump(body), std::move(payload));
  }

  bool to_service(const std::string& role, protocol::Message message) override {
    const auto& live = core_.replicas_[role];
    auto& mine = chosen_[role];
    if (std::find(live.begin(), live.end(), mine) == live.end()) {
      const auto index = protocol::rendezvous(id_, live);
      if (!index) return false;
      mine = live[*index];
    }
    core_.send(mine, std::move(message));
    return true;
  }
  /// Forgets a dead replica. @return whether it was this session's
  bool lost(const std::string& role, const std::string& instance) {
    const auto found = chosen_.find(role);
    if (found == chosen_.end() || found->second != instance) return false;
    chosen_.erase(found);
    return true;
  }

 private:
  ControllerCore& core_;
  protocol::SessionId id_;
  std::map<std::string, std::string> chosen_;

 public:
  std::string client;
  Dialogue dialogue;
};

ControllerCore::ControllerCore(DialogueConfig config) : config_(std::move(config)) {}
ControllerCore::~ControllerCore() = default;

Result<std::unique_ptr<service::Core>> ControllerCore::make(const DialogueConfig& config) {
  return std::unique_ptr<service::Core>(std::make_unique<ControllerCore>(config));
}

void ControllerCore::add_metrics(telemetry::Metrics& metrics) {
  turns_ = metrics.counter("parlando_controller_turns_total", "Committed turns");
  errors_ = metrics.counter("parlando_controller_turn_errors_total", "Turns that ended with an error");
  replays_ = metrics.counter("parlando_controller_replays_total", "Times a turn's work was moved to another replica");
  first_audio_ = metrics.histogram("parlando_controller_first_audio_seconds", "From the end of speech to the first audio of the answer");
}

std::string ControllerCore::why_not_ready() const {
  std::string missing;
  for (const char* role : kRoles) {
    const auto found = replicas_.find(role);
    if (found == replicas_.end() || found->second.empty()) missing += (missing.empty() ? "no live replica of " : ", ") + std::string(role);
  }
  return missing;
}

bool ControllerCore::drain() {
  draining_ = true;
  return std::all_of(sessions_.begin(), sessions_.end(), [](const auto& s) { return s.second->dialogue.state() == Dialogue::State::listening; });
}

void ControllerCore::on_message(const std::string& peer, protocol::Message m, Time now) {
  const auto found = sessions_.find(m.head.session);
  if (const auto role = roles_.find(peer); role != roles_.end()) {
    if (found != sessions_.end()) found->second->dialogue.on_service(role->second, m, now);
    return;
  }
  const auto body = protocol::body_of(m);
  if (m.head.type == MessageType::open) {
    if (found != sessions_.end() && found->second->client != peer)
      return answer_error(peer, m.head, {Errc::invalid_argument, "the session belongs to another gateway"});
    if (found != sessions_.end()) return;
    if (draining_ || load() >= config_.sessions_max)
      return answer_error(peer, m.head,
                          {Errc::overloaded, draining_ ? "this controller takes no new sessions"
                                                       : fmt::format("{} sessions are open, at most {} are served", load(), config_.sessions_max)});
    auto session = std::make_unique<Session>(*this, m.head.session, peer);
    auto& s = *sessions_.emplace(m.head.session, std::move(session)).first->second;
    s.dialogue.open(body, now);
    return;
  }
  if (found == sessions_.end()) {
    if (m.head.type != MessageType::close) answer_error(peer, m.head, {Errc::not_found, "the session is not open"});
    return;
  }
  auto& d = found->second->dialogue;
  switch (m.head.type) {
    case MessageType::audio:
      d.audio(std::move(m.payload), now);
      break;
    case MessageType::flush:
      d.flush(now);
      break;
    case MessageType::text:
      d.text(body.contains("text") && body["text"].is_string() ? body["text"].get<std::string>() : "", now);
      break;
    case MessageType::cancel:
      d.cancel(now);
      break;
    case MessageType::close:
      d.close();
      sessions_.erase(found);
      break;
    default:
      answer_error(peer, m.head, {Errc::unsupported, fmt::format("controller takes no message of type {}", static_cast<int>(m.head.type))});
  }
}

void ControllerCore::on_peer(const transport::Peer& peer, bool up, Time now) {
  if (peer.caller) {
    if (up) return;
    for (auto it = sessions_.begin(); it != sessions_.end();) {
      if (it->second->client != peer.instance) {
        ++it;
        continue;
      }
      it->second->dialogue.close();
      it = sessions_.erase(it);
    }
    return;
  }
  auto& live = replicas_[peer.role];
  std::erase(live, peer.instance);
  if (up) {
    live.push_back(peer.instance);
    roles_[peer.instance] = peer.role;
    for (auto& [id, s] : sessions_) s->dialogue.service_back(peer.role, now);
    return;
  }
  roles_.erase(peer.instance);
  for (auto& [id, s] : sessions_) {
    if (!s->lost(peer.role, peer.instance)) continue;
    const auto before = s->dialogue.replays();
    s->dialogue.service_lost(peer.role, now);
    replays_.add(static_cast<double>(s->dialogue.replays() - before));
  }
}

void ControllerCore::on_tick(Time now) {
  for (auto& [id, s] : sessions_) s->dialogue.tick(now);
}

}  // namespace parlando::controller
