#define BOOST_TEST_MODULE controller
#include "services/controller/dialogue.hpp"

#include <boost/test/unit_test.hpp>
#include <random>

#include "common/base/pcm.hpp"
#include "common/transport/channels.hpp"
#include "common/transport/sim_transport.hpp"
#include "services/controller/controller_core.hpp"

namespace parlando::controller {
namespace {
using nlohmann::json;
using protocol::MessageType;
using service::Core;

constexpr protocol::SessionId kSession{7, 7};

/// Stand-ins that behave like the services: what they say depends on nothing but what they were told.
class FakeVad final : public Core {
 public:
  void on_message(const std::string& peer, protocol::Message m, Time) override {
    auto& s = samples_[{peer, m.head.stream}];
    if (m.head.type == MessageType::open) s = 0;
    if (m.head.type == MessageType::flush) answer(peer, m.head, MessageType::speech_ended, R"({"sample":9000})");
    if (m.head.type != MessageType::audio) return;
    const auto before = s;
    s += m.payload.size() / 2;
    if (before < 4000 && s >= 4000) answer(peer, m.head, MessageType::speech_started, R"({"sample":3000})");
  }

 private:
  std::map<std::pair<std::string, std::uint32_t>, std::size_t> samples_;
};

/// A code is the number of samples so far, modulo; so any lost, doubled or reordered frame changes the codes.
class FakeTokenizer final : public Core {
 public:
  void on_message(const std::string& peer, protocol::Message m, Time) override {
    auto& s = heard_[{peer, m.head.stream}];
    if (m.head.type == MessageType::open) s.clear();
    if (m.head.type == MessageType::audio) s.insert(s.end(), m.payload.begin(), m.payload.end());
    if (m.head.type != MessageType::flush) return;
    s.resize(std::min(s.size(), 2 * protocol::body_of(m)["samples"].get<std::size_t>()));
    const auto sum = static_cast<std::int32_t>(protocol::crc32c(s) % 1000);
    const std::vector<std::int32_t> codes{sum, sum, 1024, 1025, 1026};
    answer(peer, m.head, MessageType::tokens, R"({"first_group":0,"final_groups":1,"last":true})", to_bytes(std::span<const std::int32_t>(codes)));
  }

 private:
  std::map<std::pair<std::string, std::uint32_t>, std::vector<std::byte>> heard_;
};

class FakeChat final : public Core {
 public:
  void on_message(const std::string& peer, protocol::Message m, Time) override {
    const auto body = protocol::body_of(m);
    auto& s = codes_[{peer, m.head.stream}];
    if (m.head.type == MessageType::open) s = {};
    if (m.head.type == MessageType::append && body.contains("first_group")) s = from_bytes<std::int32_t>(m.payload);
    if (m.head.type == MessageType::append && body.contains("tool_result")) say(peer, m.head, {{"text", "the tool said it. goodbye."}, {"done", ""}});
    if (m.head.type != MessageType::generate) return;
    say(peer, m.head, {{"transcript", fmt::format("heard {}", s.empty() ? -1 : s[0])}, {"tool_call", R"({"name":"get_time","arguments":{}})"}});
  }

 private:
  void say(const std::string& peer, const protocol::Envelope& to, const std::vector<std::pair<std::string, std::string>>& events) {
    for (const auto& [kind, text] : events) answer(peer, to, MessageType::text, json{{"kind", kind}, {"text", text}}.dump());
  }
  std::map<std::pair<std::string, std::uint32_t>, std::vector<std::int32_t>> codes_;
};

/// Speaks a chunk as 100 samples per byte of text, in three parts with time between them.
class FakeTts final : public Core {
 public:
  void on_message(const std::string& peer, protocol::Message m, Time) override {
    if (m.head.type == MessageType::close) std::erase_if(parts_, [&](const auto& p) { return p.peer == peer && p.head.stream == m.head.stream; });
    if (m.head.type != MessageType::speak) return;
    const auto body = protocol::body_of(m);
    const auto total = 100 * static_cast<std::int64_t>(body["text"].get<std::string>().size()), skip = body["skip_samples"].get<std::int64_t>();
    for (int part = 0; part < 3; ++part) {
      const auto first = std::max(skip, total * part / 3), end = std::max(skip, total * (part + 1) / 3);
      std::vector<float> wave;
      for (auto i = first; i < end; ++i) wave.push_back(static_cast<float>((i * 37 + body["chunk"].get<int>() * 11) % 1000) / 1000);
      parts_.push_back({peer, m.head, fmt::format(R"({{"chunk":{},"sample":{},"last":{}}})", body["chunk"].get<int>(), first, part == 2), to_pcm16(wave)});
    }
  }
  bool work(Time) override {
    if (parts_.empty()) return false;
    auto p = std::move(parts_.front());
    parts_.pop_front();
    answer(p.peer, p.head, MessageType::speech, p.body, std::move(p.payload));
    return false;  // one part a tick
  }

 private:
  struct Part {
    std::string peer;
    protocol::Envelope head;
    std::string body;
    std::vector<std::byte> payload;
  };
  std::deque<Part> parts_;
};

class FakeContext final : public Core {
 public:
  explicit FakeContext(std::map<int, std::string>& stored) : stored_(stored) {}
  void on_message(const std::string& peer, protocol::Message m, Time) override {
    if (m.head.type == MessageType::open) answer(peer, m.head, MessageType::open, R"({"epoch":1})");
    const std::string none = "[]";
    if (m.head.type == MessageType::history) answer(peer, m.head, MessageType::history, "{}", to_bytes(std::span<const char>(none)));
    if (m.head.type != MessageType::turn) return;
    stored_[protocol::body_of(m)["turn"].get<int>()] = std::string(reinterpret_cast<const char*>(m.payload.data()), m.payload.size());
    answer(peer, m.head, MessageType::turn, m.body);
  }

 private:
  std::map<int, std::string>& stored_;
};

/// The client's end: collects what arrives.
class Client final : public Core {
 public:
  void on_message(const std::string&, protocol::Message m, Time) override {
    if (m.head.type == MessageType::speech)
      audio.insert(audio.end(), m.payload.begin(), m.payload.end());
    else
      events.push_back(protocol::body_of(m)), types.push_back(m.head.type);
  }
  void on_peer(const transport::Peer& p, bool up, Time) override { controller = up ? p.instance : ""; }
  void say(MessageType type, std::string body = "{}", std::vector<std::byte> payload = {}) {
    protocol::Message m;
    m.head.type = type, m.head.session = kSession, m.head.stream = 1;
    m.body = std::move(body), m.payload = std::move(payload);
    send(controller, std::move(m));
  }
  bool done() const { return std::find(types.begin(), types.end(), MessageType::turn) != types.end(); }
  std::string controller;
  std::vector<std::byte> audio;
  std::vector<json> events;
  std::vector<MessageType> types;
};

/// A core on the simulated network, as the host runs it on the real one.
struct Node {
  std::unique_ptr<Core> core;
  std::unique_ptr<transport::Channels> channels = std::make_unique<transport::Channels>();
  std::unique_ptr<transport::Transport> transport;
};

struct World {
  explicit World(std::uint64_t seed, transport::SimFaults faults = {}) : network(seed, faults) {}

  Core& add(const std::string& instance, const std::string& role, std::unique_ptr<Core> core, std::vector<std::string> callees = {}) {
    auto& node = nodes[instance];
    node.core = std::move(core);
    auto* n = &node;
    node.transport = network.join({instance, role}, std::move(callees),
                                  {[this, n](const std::string& from, protocol::Message m) {
                                     if (auto taken = n->channels->receive(from, std::move(m), network.clock().now())) {
                                       n->core->on_message(from, *taken, network.clock().now());
                                       n->channels->handled(from, taken->head);
                                     }
                                   },
                                   [this, n](const transport::Peer& p, bool up) {
                                     if (!up) n->channels->forget(p.instance);
                                     n->core->on_peer(p, up, network.clock().now());
                                   }});
    return *node.core;
  }
  void kill(const std::string& instance) {
    network.kill(instance);
    nodes.erase(instance);
  }
  void turn() {
    const auto now = network.clock().now();
    for (auto& [name, n] : nodes) {
      n.core->on_tick(now);
      n.core->work(now);
      for (auto& o : n.core->take()) {
        if (protocol::is_control(o.message.head.type))
          (void)n.transport->send(o.peer, std::move(o.message));
        else
          BOOST_REQUIRE((n.channels->send(o.peer, std::move(o.message), now)).has_value());
      }
      for (auto& d : n.channels->due(now)) (void)n.transport->send(d.peer, std::move(d.message));
    }
    network.advance(milliseconds(20));
  }
  transport::SimNetwork network;
  std::map<std::string, Node> nodes;
};

struct Outcome {
  std::vector<std::byte> audio;
  std::string user, assistant;
  std::size_t tool_calls = 0, turns = 0;
};

/// One spoken turn, with services dying at given steps.
Outcome converse(std::uint64_t seed, transport::SimFaults faults, const std::map<int, std::string>& deaths) {
  World w(seed, faults);
  std::map<int, std::string> stored;
  std::map<std::string, int> generation;
  auto fresh = [&](const std::string& role) {
    const auto instance = fmt::format("{}-{}", role, ++generation[role]);
    if (role == "vad") w.add(instance, role, std::make_unique<FakeVad>());
    if (role == "tokenizer") w.add(instance, role, std::make_unique<FakeTokenizer>());
    if (role == "tts") w.add(instance, role, std::make_unique<FakeTts>());
    if (role == "context") w.add(instance, role, std::make_unique<FakeContext>(stored));
    if (role == "llm-chat") w.add(instance, role, std::make_unique<FakeChat>());
    return instance;
  };
  auto& client = static_cast<Client&>(w.add("gateway-1", "gateway", std::make_unique<Client>(), {"controller"}));
  w.add("controller-1", "controller", std::make_unique<ControllerCore>(DialogueConfig{}), {"vad", "tokenizer", "llm-chat", "tts", "context"});
  for (const char* role : {"vad", "tokenizer", "llm-chat", "tts", "context"}) fresh(role);
  client.say(MessageType::open, R"({"speak":true})");
  std::mt19937 random(5);
  for (int step = 0; step < 1500 && !client.done(); ++step) {
    if (step < 30) {
      std::vector<std::byte> frame(640);
      for (auto& b : frame) b = static_cast<std::byte>(random());
      client.say(MessageType::audio, "{}", std::move(frame));
    }
    if (step == 30) client.say(MessageType::flush);
    if (const auto death = deaths.find(step); death != deaths.end()) {
      w.kill(fmt::format("{}-{}", death->second, generation[death->second]));
      fresh(death->second);
    }
    w.turn();
  }
  BOOST_REQUIRE_MESSAGE(client.done(), "the turn ends, seed " << seed);
  const auto turn = client.events[static_cast<std::size_t>(std::find(client.types.begin(), client.types.end(), MessageType::turn) - client.types.begin())];
  BOOST_TEST(stored.size() == 1u);  // committed before it was reported, and once
  return {client.audio, turn["user"], turn["assistant"], turn["tool_calls"].size(), stored.size()};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(dialogue)

BOOST_AUTO_TEST_CASE(a_spoken_turn_goes_from_frames_to_a_committed_answer) {
  const auto o = converse(1, {}, {});
  BOOST_TEST(o.assistant == "the tool said it. goodbye.");
  BOOST_TEST(o.tool_calls == 1u);
  BOOST_TEST(o.audio.size() == 2 * 100 * (std::string("the tool said it.").size() + std::string("goodbye.").size()));
}

BOOST_AUTO_TEST_CASE(a_bad_network_changes_nothing_that_is_heard_or_stored) {
  const auto want = converse(1, {}, {});
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      const auto got = converse(seed, {.loss = 0.1, .duplication = 0.1, .delay_min = milliseconds(0), .delay_max = milliseconds(50)}, {});
      BOOST_TEST(got.user == want.user);
      BOOST_TEST(got.assistant == want.assistant);
      BOOST_TEST((got.audio == want.audio));
    }
  }
}

BOOST_AUTO_TEST_CASE(services_that_die_at_any_moment_change_nothing_that_is_heard_or_stored) {
  const auto want = converse(1, {}, {});
  for (const char* role : {"vad", "tokenizer", "tts", "context"})
    for (int step = 1; step < 60; step += 2) {
      BOOST_TEST_CONTEXT(role << " dies at step " << step) {
        const auto got = converse(3, {.delay_max = milliseconds(20)}, {{step, role}});
        BOOST_TEST(got.user == want.user);
        BOOST_TEST(got.assistant == want.assistant);
        BOOST_TEST((got.audio == want.audio));
      }
    }
}

BOOST_AUTO_TEST_CASE(several_deaths_in_one_turn_are_survived) {
  const auto want = converse(1, {}, {});
  const auto got = converse(9, {.loss = 0.05, .delay_max = milliseconds(30)},
                            {{5, "vad"}, {12, "tokenizer"}, {20, "vad"}, {33, "tokenizer"}, {40, "tts"}, {45, "tts"}, {50, "context"}});
  BOOST_TEST(got.user == want.user);
  BOOST_TEST((got.audio == want.audio));
}

BOOST_AUTO_TEST_CASE(when_nothing_is_left_to_ask_the_turn_ends_with_an_error_and_the_session_lives) {
  World w(1);
  auto& client = static_cast<Client&>(w.add("gateway-1", "gateway", std::make_unique<Client>(), {"controller"}));
  DialogueConfig config;
  config.reply_seconds_max = 1;
  w.add("controller-1", "controller", std::make_unique<ControllerCore>(config), {"vad", "tokenizer", "llm-chat", "tts", "context"});
  std::map<int, std::string> stored;
  w.add("context-1", "context", std::make_unique<FakeContext>(stored));
  client.say(MessageType::open);
  for (int n = 0; n < 5; ++n) w.turn();
  client.say(MessageType::text, R"({"text":"hello"})");
  for (int n = 0; n < 80; ++n) w.turn();
  BOOST_REQUIRE(!client.events.empty());
  BOOST_TEST(client.events.back()["code"] == "unavailable");
  BOOST_TEST(client.events.back()["text"].get<std::string>().find("llm-chat") != std::string::npos);
  w.add("llm-chat-1", "llm-chat", std::make_unique<FakeChat>());
  w.add("tts-1", "tts", std::make_unique<FakeTts>());
  client.say(MessageType::text, R"({"text":"hello"})");
  for (int n = 0; n < 80 && !client.done(); ++n) w.turn();
  BOOST_TEST(client.done());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
