#pragma once
/// A gateway on a free port, driven by its test.
#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "services/gateway/gateway_core.hpp"
#include "tests/common/http/client.hpp"

namespace parlando::gateway {
using nlohmann::json;
using namespace std::chrono_literals;
using protocol::MessageType;
using Browser = http::Client;

inline GatewayConfig config_of_tests() {
  GatewayConfig config;
  config.listen = "127.0.0.1:0";
  config.page = PARLANDO_SOURCE_DIR "/services/gateway/page";
  config.questions = "";
  return config;
}

/// The gateway on a free port, driven by the test; its controllers are what the test says, its clock is turned by hand.
struct Door {
  explicit Door(GatewayConfig config = config_of_tests(), ApiKeys keys = {}, ClientSecrets secrets = {})
      : core(std::move(config), clock, std::move(keys), std::move(secrets)) {
    const auto listening = core.listen();
    BOOST_REQUIRE_MESSAGE(listening, (listening ? "" : listening.error().message));
    tick(0);
    tick(3000);
    core.on_peer(controller(), transport::PeerState::up, clock.now());
  }
  static transport::Peer controller() { return {"a", "controller", 1, false, true, false, 1000}; }

  void tick(int ms = 20) {
    clock.advance(milliseconds(ms));
    core.on_tick(clock.now());
    collect();
  }
  void collect() {
    for (auto& out : core.take()) sent.push_back(std::move(out.message));
  }
  /// Drives the gateway until it is so. @return whether it came to be in time
  template <class F>
  bool until(F&& so, milliseconds limit = 5s) {
    const auto end = std::chrono::steady_clock::now() + limit;
    while (!so()) {
      if (std::chrono::steady_clock::now() > end) return false;
      core.wait({}, 1ms);
      collect();
    }
    return true;
  }
  /// Drives it while something must not happen.
  void run(milliseconds time = 30ms) {
    until([] { return false; }, time);
  }

  Browser join() {
    Browser client(core.listening_port());
    const auto before = core.load();
    client.send(Browser::upgrade(core.listening_port(), {}, "/v1/dialogue"));
    BOOST_REQUIRE(
        until([&] { return client.pump().in.find("\r\n\r\n") != std::string::npos && core.load() > before; }));
    BOOST_REQUIRE(client.in.starts_with("HTTP/1.1 101"));
    client.in.erase(0, client.in.find("\r\n\r\n") + 4);
    return client;
  }
  Browser::Frame frame(Browser& client) {
    std::optional<Browser::Frame> out;
    BOOST_REQUIRE(until([&] { return (out = client.frame()).has_value(); }));
    return *out;
  }
  json event(Browser& client) { return json::parse(frame(client).data); }
  static void say(Browser& client, std::string_view text) { client.send(Browser::encode(1, text)); }
  static void audio(Browser& client, std::size_t bytes = 640) {
    client.send(Browser::encode(2, std::string(bytes, '\1')));
  }

  std::size_t count(MessageType type, SessionId session = {}) const {
    return static_cast<std::size_t>(std::count_if(sent.begin(), sent.end(), [&](const protocol::Message& m) {
      return m.head.type == type && (session == SessionId() || m.head.session == session);
    }));
  }
  template <class T>
  void answer(const protocol::Envelope& open, T body, std::uint32_t turn = 0) {
    auto head = open;
    head.epoch = {1};
    head.turn = {turn};
    core.on_message("a", protocol::pack(std::move(body), head), clock.now());
    collect();
  }
  /// A client with an open session. @param head  of its Open
  Browser open(protocol::Envelope* head = nullptr, const char* message = R"({"type":"open"})") {
    auto client = join();
    const auto before = count(MessageType::open);
    say(client, message);
    BOOST_REQUIRE(until([&] { return count(MessageType::open) > before; }));
    const auto opened = sent.back().head;
    answer(opened, protocol::Opened{});
    BOOST_TEST(event(client)["type"] == "opened");
    if (head != nullptr) *head = opened;
    return client;
  }
  std::string ask(const std::string& request) {
    Browser client(core.listening_port());
    client.send(request);
    BOOST_REQUIRE(until([&] { return client.pump().ended; }));
    return client.in;
  }
  std::string get(const std::string& path, const std::string& method = "GET", const std::string& more = {}) {
    return ask(method + " " + path + " HTTP/1.1\r\nHost: localhost:" + std::to_string(core.listening_port()) + "\r\n" +
               more + "Connection: close\r\n\r\n");
  }

  ManualClock clock;
  GatewayCore core;
  std::vector<protocol::Message> sent;
};

}  // namespace parlando::gateway
