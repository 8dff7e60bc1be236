#define BOOST_TEST_MODULE gateway_core
#include <sys/eventfd.h>

#include <filesystem>

#include "tests/services/gateway/door.hpp"

using namespace parlando;
using namespace parlando::gateway;
using namespace std::chrono_literals;
using nlohmann::json;
using protocol::MessageType;

namespace {

/// Files, too.
struct Pages {
  Pages() {
    auto made = GatewayCore::make(config_of_tests());
    BOOST_REQUIRE(made);
    core = std::move(*made);
    BOOST_REQUIRE(core->listen());
  }
  std::string get(const std::string& path, const std::string& method = "GET") {
    Browser client(core->listening_port());
    client.send(method + " " + path + " HTTP/1.1\r\nHost: localhost:" + std::to_string(core->listening_port()) +
                "\r\nConnection: close\r\n\r\n");
    for (int i = 0; i < 5000 && !client.pump().ended; ++i) core->wait({}, 1ms);
    return client.in;
  }
  std::unique_ptr<service::Core> core;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(gateway_core_test)

BOOST_AUTO_TEST_CASE(the_page_is_served_and_nothing_else) {
  Pages pages;
  BOOST_TEST(pages.get("/").find("<title>parlando</title>") != std::string::npos);
  BOOST_TEST(pages.get("/app.js?x=1").find("text/javascript") != std::string::npos);
  BOOST_TEST(pages.get("/../CMakeLists.txt").starts_with("HTTP/1.1 404"));
  BOOST_TEST(pages.get("/etc/passwd").starts_with("HTTP/1.1 404"));
  BOOST_TEST(pages.get("/", "POST").starts_with("HTTP/1.1 405"));
  BOOST_TEST(pages.get("/", "HEAD").starts_with("HTTP/1.1 200"));
}

BOOST_AUTO_TEST_CASE(a_folder_that_is_missing_is_named) {
  auto config = config_of_tests();
  config.page = "/nowhere";
  const auto made = GatewayCore::make(config);
  BOOST_REQUIRE(!made);
  BOOST_TEST(made.error().message.find("/nowhere") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(wrong_limits_are_all_reported) {
  GatewayConfig config;
  config.listen = "nowhere";
  config.connections_max = 0;
  config.connections_per_address_max = -1;
  config.session_seconds_max = 0;
  config.drain_seconds_max = -1;
  BOOST_TEST(config.problems("core").size() == 5u);
  BOOST_TEST(GatewayConfig().problems("core").empty());
}

BOOST_AUTO_TEST_CASE(a_second_address_that_is_taken_ends_the_start_or_is_gone_on_without) {
  Door first;
  auto config = config_of_tests();
  config.api_listen = "127.0.0.1:" + std::to_string(first.core.listening_port());
  GatewayCore strict(config);
  const auto refused = strict.listen();
  BOOST_REQUIRE(!refused);
  BOOST_TEST(refused.error().message.find(config.api_listen) != std::string::npos);
  config.api_listen_required = false;
  Door second(config);
  BOOST_TEST(second.core.api_port() == 0);
  BOOST_TEST(second.get("/healthz").starts_with("HTTP/1.1 200"));
  config.api_listen = "127.0.0.1:0";
  Door third(config);
  BOOST_TEST(third.core.api_port() != 0);
  BOOST_TEST(third.core.api_port() != third.core.listening_port());
}

BOOST_AUTO_TEST_CASE(a_turn_over_a_real_socket) {
  Door door;
  protocol::Envelope head;
  auto client = door.open(&head);
  for (int i = 0; i < 10; ++i) Door::audio(client);
  Door::say(client, R"({"type":"flush"})");
  BOOST_REQUIRE(door.until([&] { return door.count(MessageType::flush) == 1; }));
  BOOST_TEST(door.count(MessageType::audio) == 10u);
  door.answer(head, protocol::SpeechStarted{320}, 1);
  door.answer(head, protocol::Text{protocol::TextKind::text, 0, "hello", {}}, 1);
  door.answer(head, protocol::Speech{0, 0, 22050, true, protocol::Bytes(4410)}, 1);
  door.answer(head, protocol::TurnDone{1, false, {}}, 1);
  BOOST_TEST(door.event(client)["type"] == "speech_started");
  BOOST_TEST(door.event(client)["text"] == "hello");
  const auto sound = door.frame(client);
  BOOST_TEST(sound.opcode == 2);
  BOOST_TEST(sound.data.size() == 4410u);
  BOOST_TEST(door.event(client)["type"] == "turn");
}

BOOST_AUTO_TEST_CASE(waiting_ends_when_a_client_has_said_something_for_a_controller) {
  Door door;
  auto client = door.open();
  Door::audio(client);
  const auto start = std::chrono::steady_clock::now();
  while (door.count(MessageType::audio) == 0 && std::chrono::steady_clock::now() - start < 4s) {
    door.core.wait({}, 5s);
    door.collect();
  }
  BOOST_TEST((std::chrono::steady_clock::now() - start < 4s));
}

BOOST_AUTO_TEST_CASE(waiting_ends_when_the_link_has_something) {
  Door door;
  const int fd = ::eventfd(1, EFD_NONBLOCK);
  pollfd link{fd, POLLIN, 0};
  BOOST_TEST(door.core.wait({&link, 1}, 5s) == 1);
  BOOST_TEST((link.revents & POLLIN) != 0);
  ::close(fd);
}

BOOST_AUTO_TEST_CASE(three_malformed_messages_close_with_1008) {
  const std::pair<int, std::string> table[] = {
      {1, "{"},
      {1, "null"},
      {1, std::string(60000, '[')},
      {1, R"({"type":"dance"})"},
      {1, R"({"type":["open"]})"},
      {2, "odd"},
      {2, std::string(32770, 'x')},
  };
  for (const auto& [opcode, data] : table) {
    Door door;
    auto client = door.open();
    for (int i = 0; i < 3; ++i) {
      client.send(Browser::encode(opcode, data));
      BOOST_TEST(door.event(client)["type"] == "error");
    }
    const auto last = door.frame(client);
    BOOST_TEST(last.opcode == 8);
    BOOST_TEST(last.code() == 1008);
    client.close();
    BOOST_TEST(door.until([&] { return door.core.load() == 0; }));
    BOOST_TEST(door.count(MessageType::close) == 1u);
  }
}

BOOST_AUTO_TEST_CASE(audio_before_open_and_open_twice_are_answered) {
  Door door;
  auto client = door.join();
  Door::audio(client);
  Door::audio(client);
  BOOST_TEST(door.event(client)["code"] == "not_ready");
  Door::say(client, R"({"type":"open","speak":"yes"})");
  BOOST_TEST(door.event(client)["code"] == "invalid_argument");
  Door::say(client, R"({"type":"open"})");
  BOOST_REQUIRE(door.until([&] { return door.count(MessageType::open) == 1; }));
  Door::say(client, R"({"type":"open"})");
  BOOST_TEST(door.event(client)["message"].get<std::string>().find("open already") != std::string::npos);
  BOOST_TEST(door.count(MessageType::open) == 1u);
}

BOOST_AUTO_TEST_CASE(a_message_beyond_any_size_closes_with_1009) {
  Door door;
  auto client = door.open();
  client.send(Browser::encode(2, std::string(70000, 'x')));
  std::optional<Browser::Frame> last;
  BOOST_REQUIRE(door.until([&] { return (last = client.frame()).has_value() || client.ended; }));
  if (last) BOOST_TEST(last->code() == 1009);
  BOOST_TEST(door.until([&] { return door.count(MessageType::close) == 1; }));
}

BOOST_AUTO_TEST_CASE(a_client_that_vanishes_is_told_to_its_controller_once) {
  Door door;
  auto client = door.open();
  client.reset();
  BOOST_TEST(door.until([&] { return door.core.load() == 0; }));
  door.run();
  BOOST_TEST(door.count(MessageType::close) == 1u);
}

BOOST_AUTO_TEST_CASE(one_client_floods_and_the_others_lose_nothing) {
  Door door;
  protocol::Envelope flooder_head;
  auto flooder = door.open(&flooder_head);
  constexpr std::size_t kOthers = 9;
  std::vector<Browser> others;
  std::vector<protocol::Envelope> heads(kOthers);
  for (std::size_t i = 0; i < kOthers; ++i) others.push_back(door.open(&heads[i]));
  const auto flood = Browser::encode(2, std::string(640, '\1'));
  std::string rest;
  for (std::size_t round = 1; round <= 100; ++round) {  // two seconds
    for (int i = 0; i < 10000; ++i) {
      if (rest.empty()) rest = flood;
      const auto taken = flooder.send(rest);
      rest.erase(0, taken);
      if (!rest.empty()) break;
    }
    for (auto& other : others) Door::audio(other);
    for (std::size_t i = 0; i < kOthers; ++i)
      BOOST_REQUIRE(door.until([&] { return door.count(MessageType::audio, heads[i].session) == round; }, 1s));
    door.run(5ms);
    door.tick();
  }
  const auto seconds = static_cast<double>(door.count(MessageType::audio, flooder_head.session)) * 0.02;
  BOOST_TEST(seconds > 35.0);
  BOOST_TEST(seconds < 31 + 4 * 2 + 1.0);
  BOOST_TEST(door.core.counters().paused > 0u);
  BOOST_TEST(door.core.counters().refused == 0u);
}

BOOST_AUTO_TEST_CASE(a_controller_without_room_stops_its_clients_and_loses_nothing) {
  Door door;
  auto client = door.open();
  Door::audio(client);
  BOOST_REQUIRE(door.until([&] { return door.count(MessageType::audio) == 1; }));
  const auto first = door.sent.back().head;
  BOOST_TEST(first.sequence == 1u);
  door.core.on_refused("a", first, {Errc::overloaded, "no room"}, door.clock.now());
  for (int i = 0; i < 20; ++i) Door::audio(client);
  door.run();
  BOOST_TEST(door.count(MessageType::audio) == 1u);
  door.tick(100);
  door.tick(20);
  BOOST_REQUIRE(door.until([&] { return door.count(MessageType::audio) == 22; }));
  std::uint64_t expected = 0;
  for (const auto& m : door.sent)
    if (m.head.type == MessageType::audio && &m != &door.sent.front()) expected = std::max(expected, m.head.sequence);
  BOOST_TEST(expected == 21u);
}

BOOST_AUTO_TEST_CASE(a_client_that_takes_no_sound_is_closed_with_1013) {
  Door door;
  protocol::Envelope head;
  auto client = door.open(&head);
  constexpr std::size_t kSecond = 44100;
  std::int64_t at = 0;
  int seconds = 0;
  for (; seconds < 400 && door.core.http_counters().closed_slow.value() == 0; ++seconds) {
    door.answer(head, protocol::Speech{0, at, 22050, false, protocol::Bytes(kSecond)}, 1);
    at += kSecond / 2;
    door.core.wait({}, 0ms);
    door.collect();
  }
  BOOST_TEST(seconds >= 60);
  BOOST_TEST(seconds < 400);
  std::uint16_t code = 0;
  door.until([&] {
    while (const auto frame = client.frame())
      if (frame->opcode == 8) code = static_cast<std::uint16_t>(frame->code());
    return code != 0 || client.ended;
  });
  BOOST_TEST(code == 1013);
  client.close();
  BOOST_TEST(door.until([&] { return door.core.load() == 0; }));
  BOOST_TEST(door.count(MessageType::close) == 1u);
}

// ------------------------------------------------------------------------------------------------ clients with a lead

constexpr const char* kOpenWithLead = R"({"type":"open","lead_ms":400})";
constexpr std::size_t kSecondBytes = kSpeechRate * kSampleBytes, kLeadBytes = kSecondBytes * 4 / 10;

/// What a client with a lead has got.
struct Heard {
  Heard(Door& door, Browser& client) : door(door), client(client) {}
  /// Reads until there is nothing more.
  void read() {
    door.run(1ms);
    while (const auto frame = client.frame()) {
      if (frame->opcode != 2) {
        events.push_back(json::parse(frame->data)["type"]);
        continue;
      }
      sound += frame->data;
    }
  }
  /// Time passes, in steps.
  void pass(int ms, int step = 10) {
    for (; ms > 0; ms -= step) {
      door.tick(step);
      read();
    }
  }
  protocol::Played played() const {
    auto copy = door.sent.back();
    BOOST_REQUIRE(copy.head.type == MessageType::played);
    return *protocol::read<protocol::Played>(copy);
  }
  Door& door;
  Browser& client;
  std::string sound;
  std::vector<std::string> events;
};

protocol::Speech long_speech(std::size_t seconds) {
  protocol::Speech speech{0, 0, 22050, false, protocol::Bytes(seconds * kSecondBytes)};
  for (std::size_t i = 0; i < speech.payload.size(); ++i) speech.payload[i] = static_cast<std::byte>(i * 31 >> 7);
  return speech;
}
std::string text_of(const protocol::Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

BOOST_AUTO_TEST_CASE(sound_is_sent_as_the_clock_allows_and_stops_within_a_message) {
  Door door;
  protocol::Envelope head;
  auto client = door.open(&head, kOpenWithLead);
  Heard heard(door, client);
  const auto speech = long_speech(3);
  const auto all = text_of(speech.payload);
  door.answer(head, speech, 1);
  door.answer(head, protocol::TurnDone{1, false, {}}, 1);
  heard.read();
  BOOST_TEST(heard.sound.size() <= kLeadBytes);
  BOOST_TEST(heard.sound.size() > kLeadBytes * 8 / 10);
  heard.pass(500);
  BOOST_TEST(heard.sound.size() <= kLeadBytes + kSecondBytes / 2);
  BOOST_TEST(heard.sound.size() > kLeadBytes + kSecondBytes / 2 - kSecondBytes / 20);
  door.answer(head, protocol::Hold{{1}}, 1);
  BOOST_TEST(heard.played().samples == kSpeechRate / 2);
  const auto sent = heard.sound.size();
  heard.pass(500);
  BOOST_TEST(heard.sound.size() == sent);
  BOOST_TEST(heard.events == std::vector<std::string>{"hold"}, boost::test_tools::per_element());
  door.answer(head, protocol::Release{{1}}, 1);
  heard.pass(2600);
  BOOST_TEST((heard.sound == all));
  BOOST_TEST(heard.events == (std::vector<std::string>{"hold", "release", "turn"}), boost::test_tools::per_element());
  BOOST_TEST(heard.played().over);
  BOOST_TEST(heard.played().samples == 3 * kSpeechRate);
}

BOOST_AUTO_TEST_CASE(waiting_ends_when_sound_is_due) {
  Door door;
  protocol::Envelope head;
  auto client = door.open(&head, kOpenWithLead);
  door.answer(head, long_speech(1), 1);
  const auto start = std::chrono::steady_clock::now();
  door.core.wait({}, 5s);
  BOOST_TEST((std::chrono::steady_clock::now() - start < 4s));
  door.clock.advance(40ms);
  Heard heard(door, client);
  heard.read();
  BOOST_TEST(heard.sound.size() > kLeadBytes);  // without a tick
}

/// A client that does not read has no more in front of it than its lead and what the system keeps; what it has not got
/// does not count as heard, and nothing of it comes once it was dropped.
BOOST_AUTO_TEST_CASE(a_client_that_reads_slowly_is_interrupted_like_any_other) {
  for (const bool released : {false, true}) {
    Door door;
    protocol::Envelope head;
    auto client = door.open(&head, kOpenWithLead);
    const auto speech = long_speech(40);
    const auto all = text_of(speech.payload);
    door.answer(head, speech, 1);
    door.answer(head, protocol::TurnDone{1, false, {}}, 1);
    for (int ms = 0; ms < 20000; ms += 20) {
      door.tick(20);
      door.core.wait({}, 0ms);
    }
    door.answer(head, protocol::Hold{{1}}, 1);
    Heard heard(door, client);
    const auto played = heard.played();
    for (int i = 0; i < 20; ++i) heard.read();
    BOOST_TEST(!played.over);
    BOOST_TEST(played.samples <= static_cast<std::int64_t>(heard.sound.size() / kSampleBytes));
    BOOST_TEST(heard.sound.size() < 20 * kSecondBytes + kLeadBytes);
    BOOST_TEST(all.starts_with(heard.sound));
    const auto sent = heard.sound.size();
    if (released) {
      door.answer(head, protocol::Release{{1}}, 1);
      heard.pass(41000, 100);
      BOOST_TEST((heard.sound == all));
      continue;
    }
    door.answer(head, protocol::Interrupted{{1}, played.samples, "half"}, 1);
    heard.pass(1000);
    BOOST_TEST(heard.sound.size() == sent);
    BOOST_TEST(heard.events == (std::vector<std::string>{"hold", "interrupted", "turn"}),
               boost::test_tools::per_element());
  }
}

BOOST_AUTO_TEST_CASE(draining_finishes_turns_and_closes_with_1001) {
  Door door;
  protocol::Envelope head;
  auto idle = door.join();
  auto quiet = door.open();
  auto busy = door.open(&head);
  Door::say(busy, R"({"type":"text","text":"hi"})");
  BOOST_REQUIRE(door.until([&] { return door.count(MessageType::say) == 1; }));
  BOOST_TEST(!door.core.drain());
  for (auto* client : {&idle, &quiet}) {
    const auto last = door.frame(*client);
    BOOST_TEST(last.code() == 1001);
    client->send(Browser::encode(8, last.data));
    client->close();
  }
  BOOST_TEST(door.until([&] { return door.core.load() == 1; }));
  Browser late(door.core.listening_port());
  door.run();
  BOOST_TEST(late.pump().ended);
  BOOST_TEST(!door.core.drain());
  door.answer(head, protocol::Text{protocol::TextKind::text, 0, "hello", {}}, 1);
  BOOST_TEST(!door.core.drain());
  door.answer(head, protocol::TurnDone{1, false, {}}, 1);
  BOOST_TEST(!door.core.drain());
  BOOST_TEST(door.event(busy)["type"] == "text");
  BOOST_TEST(door.event(busy)["type"] == "turn");
  const auto last = door.frame(busy);
  BOOST_TEST(last.code() == 1001);
  busy.close();
  BOOST_TEST(door.until([&] { return door.core.drain(); }));
  door.collect();
  BOOST_TEST(door.count(MessageType::close) == 2u);
}

BOOST_AUTO_TEST_CASE(draining_gives_up_when_its_time_is_over) {
  Door door;
  auto client = door.open();
  Door::say(client, R"({"type":"text","text":"hi"})");
  BOOST_REQUIRE(door.until([&] { return door.count(MessageType::say) == 1; }));
  BOOST_TEST(!door.core.drain());
  door.tick(15000);
  BOOST_TEST(door.frame(client).code() == 1001);
}

BOOST_AUTO_TEST_CASE(a_connection_ends_with_1000_when_its_time_is_over) {
  auto config = config_of_tests();
  config.session_seconds_max = 5;
  Door door(config);
  auto client = door.open();
  door.tick(6000);
  BOOST_TEST(door.event(client)["code"] == "deadline_exceeded");
  BOOST_TEST(door.frame(client).code() == 1000);
}

BOOST_AUTO_TEST_CASE(foreign_pages_foreign_names_and_crowds_stay_outside) {
  auto config = config_of_tests();
  config.connections_per_address_max = 2;
  config.origins = {"https://example.org"};
  Door door(config);
  const auto port = door.core.listening_port();
  const auto upgrade = [&](const std::string& more) { return Browser::upgrade(port, more, "/v1/dialogue"); };
  BOOST_TEST(door.ask(upgrade("Origin: https://evil.example\r\n")).starts_with("HTTP/1.1 403"));
  BOOST_TEST(door.ask("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 403"));
  {
    Browser welcome(port);
    welcome.send(upgrade("Origin: https://example.org\r\n"));
    BOOST_TEST(door.until([&] { return welcome.pump().in.starts_with("HTTP/1.1 101"); }));
  }
  BOOST_TEST(door.until([&] { return door.core.load() == 0; }));
  auto first = door.join();
  auto second = door.join();
  BOOST_TEST(door.get("/").starts_with("HTTP/1.1 429"));
}

BOOST_AUTO_TEST_CASE(a_full_front_door_has_no_slots) {
  auto config = config_of_tests();
  config.connections_max = 3;
  config.streams_max = 0;
  Door door(config);
  BOOST_TEST(door.core.slots() == 3);
  auto first = door.join();
  BOOST_TEST(door.core.slots() == 2);
  auto second = door.join();
  auto third = door.join();
  BOOST_TEST(door.get("/").starts_with("HTTP/1.1 503"));
  BOOST_TEST(door.core.slots() == 0);
  BOOST_TEST(door.core.load() == 3);  // load / (load + slots), which autoscalers follow, is 1
  third.close();
  BOOST_TEST(door.until([&] { return door.core.slots() == 1; }));
}

BOOST_AUTO_TEST_CASE(connections_that_do_nothing_are_load_where_they_take_the_places) {
  auto config = config_of_tests();
  config.connections_max = 2;
  config.streams_max = 0;
  Door door(config);
  std::vector<Browser> idle;
  for (int n = 1; n <= 2; ++n) {
    idle.emplace_back(door.core.listening_port());
    idle.back().send("GET /healthz HTTP/1.1\r\nHost: localhost:" + std::to_string(door.core.listening_port()) +
                     "\r\n\r\n");
    BOOST_REQUIRE_MESSAGE(door.until([&] { return idle.back().pump().in.starts_with("HTTP/1.1 200"); }),
                          idle.back().in);
    BOOST_TEST(door.core.load() == n);
    BOOST_TEST(door.core.slots() == 2 - n);
  }
}

BOOST_AUTO_TEST_CASE(clients_of_the_mesh_are_told_of_their_own_places) {
  auto config = config_of_tests();
  config.connections_max = 1;
  config.streams_max = 5;
  Door door(config);
  auto only = door.join();
  BOOST_TEST(door.core.slots() == 5);
}

BOOST_AUTO_TEST_CASE(it_is_ready_when_a_controller_is_there_full_or_not) {
  Door door;
  BOOST_TEST(door.core.why_not_ready() == "");
  auto full = Door::controller();
  full.slots = 0;
  door.core.on_peer(full, transport::PeerState::changed, door.clock.now());
  BOOST_TEST(door.core.why_not_ready() == "");
  door.core.on_peer(Door::controller(), transport::PeerState::down, door.clock.now());
  BOOST_TEST(door.core.why_not_ready() != "");
}

BOOST_AUTO_TEST_CASE(metrics_tell_what_happened) {
  Door door;
  telemetry::Metrics metrics;
  door.core.add_metrics(metrics);
  auto client = door.open();
  Door::audio(client);
  Door::say(client, "{");
  BOOST_TEST(door.event(client)["type"] == "error");
  door.core.on_peer(Door::controller(), transport::PeerState::down, door.clock.now());
  door.tick();
  const auto text = metrics.text();
  for (const auto* line :
       {"parlando_gateway_held_seconds 0", "parlando_gateway_underruns_total 0", "parlando_gateway_holds_total 0",
        "parlando_gateway_interruptions_total 0", "parlando_gateway_sessions 1",
        "parlando_gateway_audio_frames_total 1", "parlando_gateway_refused_total 1",
        "parlando_gateway_handovers_total{reason=\"down\"} 1", "parlando_gateway_http_accepted_total 1"})
    BOOST_TEST(text.find(line) != std::string::npos, line);
}

namespace {

std::string post(const Door& door, const std::string& path, const std::string& body, const std::string& more = {},
                 const std::string& type = "application/json") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost:" + std::to_string(door.core.listening_port()) +
         "\r\nContent-Type: " + type + "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + more + "\r\n" +
         body;
}
const std::string kChat = R"({"model":"m","messages":[{"role":"user","content":"hi"}])";

protocol::Bytes record(const json& j) {
  const auto text = j.dump();
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// A request whose session is open. @param head  of its Open
Browser asked(Door& door, const std::string& request, protocol::Envelope& head) {
  Browser client(door.core.listening_port());
  const auto before = door.count(MessageType::open);
  client.send(request);
  BOOST_REQUIRE(door.until([&] { return door.count(MessageType::open) > before; }));
  for (const auto& m : door.sent)
    if (m.head.type == MessageType::open) head = m.head;
  door.answer(head, protocol::Opened{});
  return client;
}

json error_of(const std::string& answer) { return json::parse(answer.substr(answer.find("\r\n\r\n") + 4))["error"]; }
ApiKeys keys_of_tests(const std::string& limits) {
  return *ApiKeys::parse("2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b anna " + limits, "test");
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_request_is_a_session_until_it_is_answered) {
  Door door;
  protocol::Envelope head;
  auto client = asked(door, post(door, "/v1/chat/completions", kChat + "}"), head);
  BOOST_REQUIRE(door.until([&] { return door.count(MessageType::say) == 1; }));
  BOOST_TEST(door.core.load() == 1);
  door.answer(head, protocol::Text{protocol::TextKind::text, 0, "hello"}, 1);
  door.answer(head, protocol::TurnDone{1, false, record({{"turn", 1}, {"finish", "stop"}})}, 1);
  BOOST_REQUIRE(door.until([&] { return client.pump().in.find("\"hello\"") != std::string::npos; }));
  BOOST_TEST(client.in.starts_with("HTTP/1.1 200"));
  BOOST_TEST(client.in.find("X-Request-Id: req_") != std::string::npos);
  BOOST_TEST(door.count(MessageType::close) == 1u);
  BOOST_TEST(door.core.load() == 0);
}

BOOST_AUTO_TEST_CASE(a_request_whose_client_goes_ends_its_session) {
  Door door;
  protocol::Envelope head;
  auto client = asked(door, post(door, "/v1/chat/completions", kChat + R"(,"stream":true})"), head);
  door.answer(head, protocol::Text{protocol::TextKind::text, 0, "hello"}, 1);
  BOOST_REQUIRE(door.until([&] { return client.pump().in.find("hello") != std::string::npos; }));
  client.close();
  BOOST_REQUIRE(door.until([&] { return door.core.load() == 0; }));
  BOOST_TEST(door.count(MessageType::close) == 1u);
  door.answer(head, protocol::Text{protocol::TextKind::text, 5, "nobody hears this"}, 1);
}

BOOST_AUTO_TEST_CASE(without_controllers_a_request_is_told_to_come_again) {
  Door door;
  door.core.on_peer(Door::controller(), transport::PeerState::down, door.clock.now());
  Browser client(door.core.listening_port());
  client.send(post(door, "/v1/chat/completions", kChat + "}"));
  BOOST_REQUIRE(door.until([&] {
    door.tick(100);
    return client.pump().in.find("\"error\"") != std::string::npos;
  }));
  BOOST_TEST(client.in.starts_with("HTTP/1.1 503"));
  BOOST_TEST(client.in.find("Retry-After: ") != std::string::npos);
  BOOST_TEST(door.core.load() == 0);
}

BOOST_AUTO_TEST_CASE(a_running_answer_is_finished_before_the_gateway_ends) {
  Door door;
  protocol::Envelope head;
  auto client = asked(door, post(door, "/v1/chat/completions", kChat + R"(,"stream":true})"), head);
  door.answer(head, protocol::Text{protocol::TextKind::text, 0, "hello"}, 1);
  BOOST_TEST(!door.core.drain());
  BOOST_REQUIRE(door.until([&] { return client.pump().in.find("hello") != std::string::npos; }));
  door.answer(head, protocol::TurnDone{1, false, record({{"turn", 1}})}, 1);
  BOOST_REQUIRE(door.until([&] { return client.pump().in.find("[DONE]") != std::string::npos; }));
  BOOST_TEST(door.until([&] { return door.core.drain(); }));
}

BOOST_AUTO_TEST_CASE(what_the_api_refuses_has_one_form) {
  Door door;
  const auto close = std::string("Connection: close\r\n");
  const std::vector<std::pair<std::string, std::string>> cases{
      {post(door, "/v1/chat/completions", "{", close), "400"},
      {post(door, "/v1/chat/completions", kChat + "}", close, "text/plain"), "415"},
      {post(door, "/v1/nothing", "{}", close), "404"},
      {post(door, "/v1/models", "{}", close), "405"},
      {post(door, "/v1/chat/completions", kChat + "}", close + "Origin: https://elsewhere.example\r\n"), "403"},
      {post(door, "/v1/audio/speech", std::string(2 << 20, 'x'), close), "413"}};
  for (const auto& [request, status] : cases) {
    Browser client(door.core.listening_port());
    std::size_t sent = 0;
    BOOST_REQUIRE(door.until([&] {
      if (sent < request.size()) sent += client.send(std::string_view(request).substr(sent));
      return client.pump().ended;
    }));
    BOOST_TEST(client.in.starts_with("HTTP/1.1 " + status), client.in.substr(0, 40) << " expected " << status);
    const auto error = error_of(client.in);
    BOOST_TEST(error.size() == 4u);
    BOOST_TEST(error["message"].is_string());
    BOOST_TEST(client.in.find("X-Request-Id: req_") != std::string::npos);
  }
  BOOST_TEST(door.get("/v1/models").find("parlando-chat") != std::string::npos);
  BOOST_TEST(door.get("/healthz").ends_with("alive\n"));
  BOOST_TEST(door.get("/readyz").ends_with("ready\n"));
  BOOST_TEST(door.get("/openapi.json").find("\"3.1.0\"") != std::string::npos);
  BOOST_TEST(door.core.load() == 0);
}

/// X5: who guesses has to wait; whoever has a key is not shut out by a neighbour.
BOOST_AUTO_TEST_CASE(an_address_that_guesses_keys_has_to_wait) {
  const auto guess = [](Door& door, int n) {
    return door.get("/v1/models", "GET", "Authorization: Bearer guess-" + std::to_string(n) + "\r\n");
  };
  const std::string key = "Authorization: Bearer secret\r\n";
  Door door(config_of_tests(), keys_of_tests(""));
  for (int n = 0; n < 20; ++n) BOOST_TEST(door.get("/v1/models").starts_with("HTTP/1.1 401"));  // no key is no guess
  for (int n = 0; n < WrongKeys::kPerMinute; ++n) BOOST_TEST(guess(door, n).starts_with("HTTP/1.1 401"));
  const auto answer = guess(door, 99);
  BOOST_TEST(answer.starts_with("HTTP/1.1 429"));
  BOOST_TEST(answer.find("Retry-After: ") != std::string::npos, answer);
  BOOST_TEST(door.ask(Browser::upgrade(door.core.listening_port(), "Authorization: Bearer x\r\n", "/v1/dialogue"))
                 .starts_with("HTTP/1.1 429"));
  // Its first use, from the address of the guesses, as behind a forwarded port.
  BOOST_TEST(door.get("/v1/models", "GET", key).starts_with("HTTP/1.1 200"));
  BOOST_TEST(guess(door, 100).starts_with("HTTP/1.1 429"));
  BOOST_TEST(door.get("/healthz").starts_with("HTTP/1.1 200"));
  // Behind a proxy everybody has its address.
  auto config = config_of_tests();
  config.connections_per_address_max = 0;
  Door behind(config, keys_of_tests(""));
  for (int n = 0; n < 2 * WrongKeys::kPerMinute; ++n) BOOST_TEST(guess(behind, n).starts_with("HTTP/1.1 401"));
  BOOST_TEST(behind.get("/v1/models", "GET", key).starts_with("HTTP/1.1 200"));
}

BOOST_AUTO_TEST_CASE(wrong_keys_are_counted_per_address_and_minute) {
  WrongKeys keys;
  Time now{};
  for (int n = 0; n < WrongKeys::kPerMinute; ++n) BOOST_TEST(!keys.take("a", now));
  const auto wait = keys.take("a", now);
  BOOST_REQUIRE(wait.has_value());
  BOOST_TEST(wait->count() == 6001);
  BOOST_TEST(!keys.take("b", now));
  BOOST_TEST(keys.take("a", now + milliseconds(5000)).has_value());
  BOOST_TEST(!keys.take("a", now + *wait));
  BOOST_TEST(keys.take("a", now + *wait).has_value());
  for (std::size_t n = 0; n < 2 * WrongKeys::kAddressesMax; ++n) keys.take("n" + std::to_string(n), now += *wait);
  BOOST_TEST(keys.addresses() == WrongKeys::kAddressesMax);
}

BOOST_AUTO_TEST_CASE(keys_are_asked_for_before_anything_is_read) {
  Door door(config_of_tests(), keys_of_tests("sessions=1 requests_per_minute=5"));
  const auto models = [&](const std::string& more) { return door.get("/v1/models", "GET", more); };
  BOOST_TEST(models("").starts_with("HTTP/1.1 401"));
  BOOST_TEST(models("Authorization: Bearer wrong\r\n").starts_with("HTTP/1.1 401"));
  const std::string key = "Authorization: Bearer secret\r\n";
  BOOST_TEST(models(key).starts_with("HTTP/1.1 200"));
  BOOST_TEST(door.get("/healthz").starts_with("HTTP/1.1 200"));
  BOOST_TEST(door.ask(Browser::upgrade(door.core.listening_port(), {}, "/v1/dialogue")).starts_with("HTTP/1.1 401"));
  // A socket is the one session of this key.
  Browser socket(door.core.listening_port());
  socket.send(Browser::upgrade(door.core.listening_port(), key, "/v1/dialogue"));
  BOOST_REQUIRE(door.until([&] { return door.core.load() == 1; }));
  Browser client(door.core.listening_port());
  client.send(post(door, "/v1/chat/completions", kChat + "}", key));
  BOOST_REQUIRE_MESSAGE(door.until([&] { return client.pump().in.find("\"error\"") != std::string::npos; }), client.in);
  BOOST_TEST(client.in.starts_with("HTTP/1.1 429"));
  socket.close();
  BOOST_REQUIRE(door.until([&] { return door.core.load() == 0; }));
  protocol::Envelope head;
  auto again = asked(door, post(door, "/v1/chat/completions", kChat + "}", key), head);
  again.close();
  BOOST_REQUIRE(door.until([&] { return door.core.load() == 0; }));
  BOOST_TEST(models(key).starts_with("HTTP/1.1 200"));
  const auto limited = models(key);
  BOOST_TEST(limited.starts_with("HTTP/1.1 429"));
  BOOST_TEST(limited.find("Retry-After: 13\r\n") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(others_reach_an_address_with_keys_only) {
  GatewayConfig config;
  config.listen = "0.0.0.0:7860";
  BOOST_REQUIRE(config.problems("core").size() == 1u);
  BOOST_TEST(config.problems("core")[0].text.find("keys_file") != std::string::npos);
  config.keys_file = "keys";
  BOOST_TEST(config.problems("core").empty());
  config.keys_file = "/nowhere/keys";
  BOOST_TEST(!GatewayCore::make(config));
}

BOOST_AUTO_TEST_SUITE_END()
