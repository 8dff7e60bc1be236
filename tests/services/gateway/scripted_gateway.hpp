#pragma once
/// A gateway without its front door, for simulations: Sessions as a Core, and clients that follow a script. The
/// network, the link and the controllers are whatever the simulation gives.
///
///   auto& gateway = world.add<ScriptedGateway>("gateway-1", "gateway", "", {{"controller", {"sim://controller"}}},
///   seed); const auto id = gateway.add({step::open(), step::audio(pcm), step::flush(), step::wait_for("turn")});
///   world.run_until([&] { return gateway.is_finished(); }, 10s);
///   BOOST_TEST(gateway.client(id).count("turn") == 1);
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "common/service/core.hpp"
#include "services/gateway/sessions.hpp"

namespace parlando::gateway {

/// What a client does next.
struct Step {
  enum class Kind { message, audio, wait_for, sleep, leave };
  Kind kind;
  std::string text;     ///< message: JSON; audio: s16le at 16 kHz; wait_for: the type of an event
  milliseconds time{};  ///< sleep
};

namespace step {
/// @param options  a JSON object
inline Step open(const std::string& options = "{}") {
  auto message = nlohmann::json::parse(options);
  message["type"] = "open";
  return {Step::Kind::message, message.dump()};
}
/// In frames of 20 ms, in real time.
inline Step audio(std::string pcm) { return {Step::Kind::audio, std::move(pcm)}; }
inline Step silence(milliseconds time) {
  return audio(std::string(static_cast<std::size_t>(input_samples(time)) * kSampleBytes, '\0'));
}
inline Step flush() { return {Step::Kind::message, R"({"type":"flush"})"}; }
inline Step say(const std::string& text) {
  return {Step::Kind::message, nlohmann::json{{"type", "text"}, {"text", text}}.dump()};
}
inline Step cancel() { return {Step::Kind::message, R"({"type":"cancel"})"}; }
/// Until an event of this type or an error comes that no earlier wait has seen.
inline Step wait_for(const std::string& type) { return {Step::Kind::wait_for, type}; }
inline Step sleep(milliseconds time) { return {Step::Kind::sleep, {}, time}; }
inline Step leave() { return {Step::Kind::leave, {}}; }
}  // namespace step

/// A client and all that it was told.
struct ScriptedClient {
  ClientId id = 0;
  std::vector<Step> script;
  std::size_t at = 0;    ///< the step it is at
  Time began{};          ///< that step
  std::size_t sent = 0;  ///< bytes of an audio step
  std::size_t seen = 0;  ///< events that waits have passed
  std::vector<nlohmann::json> events;
  std::string sound;         ///< s16le
  std::uint16_t closed = 0;  ///< code
  bool paused = false, left = false;

  bool is_finished() const { return left || closed != 0 || at >= script.size(); }
  std::size_t count(const std::string& type) const {
    return static_cast<std::size_t>(
        std::count_if(events.begin(), events.end(), [&](const auto& e) { return e["type"] == type; }));
  }
  /// All of a kind of text, joined.
  std::string text(const std::string& kind) const {
    std::string out;
    for (const auto& e : events)
      if (e["type"] == "text" && e["kind"] == kind) out += e["text"].get<std::string>();
    return out;
  }
};

class ScriptedGateway final : public service::Core {
 public:
  explicit ScriptedGateway(std::uint64_t seed, SessionsConfig config = {})
      : random_(seed), sessions_(config, [this] { return random_(); }) {}

  /// A client whose script begins with the next tick.
  ClientId add(std::vector<Step> script) {
    const ClientId id = ++last_id_;
    clients_[id].id = id;
    clients_[id].script = std::move(script);
    fresh_.push_back(id);
    return id;
  }
  const ScriptedClient& client(ClientId id) const { return clients_.at(id); }
  const std::map<ClientId, ScriptedClient>& clients() const { return clients_; }
  bool is_finished() const {
    return std::all_of(clients_.begin(), clients_.end(), [](const auto& c) { return c.second.is_finished(); });
  }
  const Sessions& sessions() const { return sessions_; }
  /// What the front door would tell another client.
  std::optional<protocol::ErrorMessage> why_full(Time now) { return sessions_.why_full(0, now); }

  void on_message(const std::string& peer, protocol::Message message, Time now) override {
    sessions_.on_message(peer, std::move(message), now);
    act(now);
  }
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time now) override {
    sessions_.on_peer(peer, state, now);
    act(now);
  }
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) override {
    sessions_.on_refused(peer, head, error, now);
    act(now);
  }
  void on_tick(Time now) override {
    for (const auto id : std::exchange(fresh_, {})) {
      clients_[id].began = now;
      sessions_.client_opened(id, now);
    }
    sessions_.on_tick(now);
    act(now);
    for (auto& [id, client] : clients_)
      while (step(client, now)) act(now);
  }
  milliseconds tick_interval() const override { return milliseconds(20); }
  std::string why_not_ready() const override {
    return sessions_.any_controller() ? "" : "no live controller";
  }
  std::int64_t load() const override { return static_cast<std::int64_t>(sessions_.clients()); }
  bool drain() override {
    const bool done = sessions_.drain(now_);
    act(now_);
    return done;
  }

 private:
  /// @return whether it went on to its next step
  bool step(ScriptedClient& client, Time now) {
    if (client.is_finished() || client.paused) return false;
    const auto& todo = client.script[client.at];
    if (!do_step(client, todo, now)) return false;
    ++client.at;
    client.began = now;
    client.sent = 0;
    return true;
  }
  /// @return whether it is done
  bool do_step(ScriptedClient& client, const Step& todo, Time now) {
    switch (todo.kind) {
      case Step::Kind::message:
        sessions_.client_text(client.id, todo.text, now);
        return true;
      case Step::Kind::audio:
        return send_audio(client, todo.text, now);
      case Step::Kind::wait_for:
        while (client.seen < client.events.size()) {
          const auto type = client.events[client.seen++]["type"].get<std::string>();
          if (type == todo.text || type == "error") return true;
        }
        return false;
      case Step::Kind::sleep:
        return now - client.began >= todo.time;
      case Step::Kind::leave:
        client.left = true;
        sessions_.client_closed(client.id, now);
        return true;
    }
    return true;
  }
  bool send_audio(ScriptedClient& client, const std::string& pcm, Time now) {
    constexpr std::size_t kFrameBytes = 640;
    const auto frames_due = static_cast<std::size_t>((now - client.began) / milliseconds(20)) + 1;
    while (client.sent < pcm.size() && client.sent < frames_due * kFrameBytes && !client.paused) {
      const auto frame = std::string_view(pcm).substr(client.sent, kFrameBytes);
      client.sent += frame.size();
      sessions_.client_audio(client.id, frame, now);
      act(now);
    }
    return client.sent >= pcm.size();
  }
  void act(Time now) {
    now_ = now;
    for (auto& action : sessions_.take_for_clients()) act_on(clients_.at(action.client), action, now);
    for (auto& m : sessions_.take_for_controllers())
      std::visit([&](auto& body) { send(m.peer, m.head, std::move(body)); }, m.body);
  }
  void act_on(ScriptedClient& client, const ToClient& action, Time now) {
    switch (action.kind) {
      case ToClient::Kind::event:
        client.events.push_back(nlohmann::json::parse(action.data));
        return;
      case ToClient::Kind::sound:
        client.sound += action.data;
        return;
      case ToClient::Kind::close:
        client.closed = action.code;
        sessions_.client_closed(client.id, now);
        return;
      case ToClient::Kind::pause:
        client.paused = true;
        return;
      case ToClient::Kind::resume:
        client.paused = false;
        return;
    }
  }

  std::mt19937_64 random_;
  Sessions sessions_;
  std::map<ClientId, ScriptedClient> clients_;
  std::vector<ClientId> fresh_;
  ClientId last_id_ = 0;
  Time now_{};
};

}  // namespace parlando::gateway
