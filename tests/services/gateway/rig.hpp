#pragma once
/// Sessions between scripted clients and controllers that are only messages: what each of them was told, time turned by
/// hand.
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>
#include <random>

#include "services/gateway/sessions.hpp"

namespace parlando::gateway {

inline std::ostream& operator<<(std::ostream& out, Reason reason) {
  return out << kReasonNames[static_cast<std::size_t>(reason)];
}

struct Rig {
  using json = nlohmann::json;
  struct Sent {
    std::string peer;
    protocol::Envelope head;
    decltype(ToController::body) body;
  };

  explicit Rig(SessionsConfig config = {}) : sessions(config, [this] { return random(); }) {
    tick(0);
    tick(3000);
  }

  // ---- time and controllers
  void tick(int ms = 20) {
    now += milliseconds(ms);
    sessions.on_tick(now);
    collect();
  }
  static transport::Peer controller(const std::string& name, bool ready = true, bool draining = false,
                                    std::int64_t slots = 8) {
    return {name, "controller", 1, false, ready, draining, slots};
  }
  void up(const std::string& name) { peer(controller(name), transport::PeerState::up); }
  void suspect(const std::string& name) { peer(controller(name), transport::PeerState::suspect); }
  void down(const std::string& name) { peer(controller(name), transport::PeerState::down); }
  void drains(const std::string& name) { peer(controller(name, true, true), transport::PeerState::changed); }
  void peer(const transport::Peer& peer, transport::PeerState state) {
    sessions.on_peer(peer, state, now);
    collect();
  }

  // ---- clients
  void connect(ClientId id = 1) {
    sessions.client_opened(id, now);
    collect();
  }
  void text(const std::string& message, ClientId id = 1) {
    sessions.client_text(id, message, now);
    collect();
  }
  void audio(std::size_t samples = 320, ClientId id = 1) {
    sessions.client_audio(id, std::string(samples * 2, '\1'), now);
    collect();
  }
  void leave(ClientId id = 1) {
    sessions.client_closed(id, now);
    collect();
  }

  // ---- what a controller says on the stream of its latest Open
  template <class T>
  void from(const std::string& peer, T body, std::uint64_t epoch, std::uint32_t turn = 0) {
    from(peer, std::move(body), last_open(peer).head, epoch, turn);
  }
  template <class T>
  void from(const std::string& peer, T body, protocol::Envelope head, std::uint64_t epoch, std::uint32_t turn = 0) {
    head.epoch = {epoch};
    head.turn = {turn};
    sessions.on_message(peer, protocol::pack(std::move(body), head), now);
    collect();
  }
  void error(const std::string& peer, const std::string& code, std::uint64_t epoch = 0, std::uint32_t turn = 0) {
    from(peer, protocol::ErrorMessage{code, "because", 0}, epoch, turn);
  }
  void opened(const std::string& peer, std::uint64_t epoch) { from(peer, protocol::Opened{}, epoch); }
  void reply(const std::string& peer, std::uint64_t epoch, std::uint32_t turn, std::int64_t at,
             const std::string& text) {
    from(peer, protocol::Text{protocol::TextKind::text, at, text, protocol::Bytes(4)}, epoch, turn);
  }
  void speech(const std::string& peer, std::uint64_t epoch, std::uint32_t turn, std::uint32_t piece, std::int64_t first,
              std::size_t samples, bool last = false) {
    protocol::Speech body{piece, first, 22050, last, protocol::Bytes(samples * 2)};
    for (std::size_t i = 0; i < samples; ++i)
      body.payload[2 * i] = static_cast<std::byte>(first + static_cast<std::int64_t>(i));
    from(peer, std::move(body), epoch, turn);
  }
  void done(const std::string& peer, std::uint64_t epoch, std::uint32_t turn) {
    from(peer, protocol::TurnDone{turn, false, to_payload(R"({"user":"u","assistant":"a","stages":{}})")}, epoch, turn);
  }
  static protocol::Bytes to_payload(std::string_view text) {
    const auto bytes = std::as_bytes(std::span(text));
    return {bytes.begin(), bytes.end()};
  }

  /// A client whose session controller `peer` owns.
  void open(const std::string& peer, std::uint64_t epoch, ClientId id = 1,
            const std::string& message = R"({"type":"open"})") {
    connect(id);
    text(message, id);
    opened(peer, epoch);
    events[id].clear();
    tape[id].clear();
    sent.clear();
  }

  // ---- what came out
  void collect() {
    for (auto& action : sessions.take_for_clients()) {
      if (action.kind == ToClient::Kind::event) events[action.client].push_back(json::parse(action.data));
      if (action.kind == ToClient::Kind::event)
        tape[action.client] += " " + events[action.client].back()["type"].get<std::string>();
      if (action.kind == ToClient::Kind::sound) {
        heard[action.client] += action.data;
        if (!tape[action.client].ends_with("~")) tape[action.client] += " ~";
      }
      if (action.kind == ToClient::Kind::close) closed[action.client] = action.code;
      if (action.kind == ToClient::Kind::pause) paused[action.client] = true;
      if (action.kind == ToClient::Kind::resume) paused[action.client] = false;
    }
    for (auto& message : sessions.take_for_controllers()) {
      if (std::holds_alternative<protocol::Open>(message.body))
        opens[message.peer] = {message.peer, message.head, message.body};
      sent.push_back({message.peer, message.head, std::move(message.body)});
    }
  }
  const Sent& last_open(const std::string& peer) const { return opens.at(peer); }
  const protocol::Open& open_of(const std::string& peer) const { return std::get<protocol::Open>(opens.at(peer).body); }
  template <class T>
  std::vector<Sent> all(const std::string& peer = {}) const {
    std::vector<Sent> out;
    for (const auto& s : sent)
      if (std::holds_alternative<T>(s.body) && (peer.empty() || s.peer == peer)) out.push_back(s);
    return out;
  }
  /// The numbers of the inputs sent to a controller, in order.
  std::vector<std::uint64_t> inputs(const std::string& peer) const {
    std::vector<std::uint64_t> out;
    for (const auto& s : sent)
      if (s.peer == peer && s.head.sequence != 0) out.push_back(s.head.sequence);
    return out;
  }
  /// The link had no room for an input.
  void refuse(const Sent& message, Errc code = Errc::overloaded) {
    auto head = message.head;
    head.type = std::visit([](const auto& body) { return std::decay_t<decltype(body)>::kType; }, message.body);
    sessions.on_refused(message.peer, head, {code, "no room"}, now);
    collect();
  }
  /// Types of a client's events, with their kind or code.
  std::string story(ClientId id = 1) const {
    std::string out;
    if (!events.contains(id)) return out;
    for (const auto& e : events.at(id)) {
      out += (out.empty() ? "" : " ") + e["type"].get<std::string>();
      if (e.contains("kind")) out += ":" + e["text"].get<std::string>();
      if (e.contains("code")) out += ":" + e["code"].get<std::string>();
    }
    return out;
  }
  std::uint64_t handovers(Reason reason) const {
    return sessions.counters().handovers[static_cast<std::size_t>(reason)];
  }

  std::mt19937_64 random{1};
  Time now{std::chrono::hours(1)};
  std::map<ClientId, std::vector<json>> events;
  std::map<ClientId, std::string> heard;
  std::map<ClientId, std::string> tape;  ///< types of events, and ~ for sound
  std::map<ClientId, std::uint16_t> closed;
  std::map<ClientId, bool> paused;
  std::map<std::string, Sent> opens;
  std::vector<Sent> sent;
  Sessions sessions;
};

}  // namespace parlando::gateway
