#define BOOST_TEST_MODULE zmq_clients
#include "services/gateway/zmq_clients.hpp"

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/service/runner.hpp"
#include "services/gateway/gateway_core.hpp"

using namespace parlando;
using namespace parlando::gateway;
using namespace parlando::protocol;
using namespace std::chrono_literals;
using nlohmann::json;

namespace {

Bytes bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// A gateway without HTTP between clients and a controller that are only messages.
struct Rig {
  explicit Rig(int streams = 8, int per_client = 4) : core(config(streams, per_client), clock), runner(core) {
    BOOST_REQUIRE(core.listen());
    tick(0);
    tick(3000);
    peer("controller-1", "controller", false, transport::PeerState::up);
  }
  static GatewayConfig config(int streams, int per_client) {
    GatewayConfig out;
    out.listen = "";
    out.page = out.questions = "";
    out.streams_max = streams;
    out.streams_per_client_max = per_client;
    return out;
  }

  void tick(int ms = 20) {
    clock.advance(milliseconds(ms));
    runner.tick(clock.now());
    collect();
  }
  void peer(const std::string& name, const std::string& role, bool caller, transport::PeerState state) {
    runner.peer({name, role, 1, caller, true, false, 1000}, state, clock.now());
    collect();
  }
  void client(const std::string& name = "client-1", const std::string& role = "client") {
    peer(name, role, true, transport::PeerState::up);
  }
  static Envelope head(std::uint32_t stream = 1) {
    Envelope out;
    out.session = {77, stream};
    out.stream = {stream};
    return out;
  }
  /// @return whether the message is handled; else it was put by
  template <class T>
  bool from(const std::string& name, T body, const Envelope& to) {
    const bool handled = runner.deliver(name, pack(std::move(body), to), clock.now());
    collect();
    return handled;
  }
  bool text(std::string_view message, std::uint32_t stream = 1, const std::string& name = "client-1") {
    return from(name, Event{bytes_of(message)}, head(stream));
  }
  bool audio(std::uint32_t stream = 1, std::size_t bytes = 640) {
    return from("client-1", Audio{0, Bytes(bytes)}, head(stream));
  }
  /// What the controller says on the stream of its latest Open or Attach.
  template <class T>
  void answer(T body, std::uint32_t turn = 0) {
    auto to = opened;
    to.epoch = {1};
    to.turn = {turn};
    from("controller-1", std::move(body), to);
  }
  void open(std::uint32_t stream = 1, const std::string& name = "client-1",
            std::string_view message = R"({"type":"open"})") {
    text(message, stream, name);
    answer(Opened{});
    BOOST_REQUIRE_EQUAL(story(stream), "opened");
    told.clear();
  }

  void collect() {
    for (auto& out : runner.take()) {
      const auto type = out.message.head.type;
      if (out.peer == "controller-1") {
        if (type == MessageType::open || type == MessageType::attach) opened = out.message.head;
        to_controller.push_back(std::move(out.message));
      } else {
        told.push_back(std::move(out));
      }
    }
    for (auto& place : runner.take_handled()) handled.push_back(std::move(place));
  }
  /// Types of what a client was told on a stream, errors with their code, sound as ~turn.
  std::string story(std::uint32_t stream = 1, const std::string& name = {}) const {
    std::string out;
    for (const auto& t : told) {
      if (t.message.head.stream.value != stream || (!name.empty() && t.peer != name)) continue;
      auto copy = t.message;
      out += out.empty() ? "" : " ";
      if (copy.head.type == MessageType::event) {
        const auto e = json::parse(reinterpret_cast<const char*>(copy.payload.data()),
                                   reinterpret_cast<const char*>(copy.payload.data()) + copy.payload.size());
        out += e["type"].get<std::string>() + (e.contains("code") ? ":" + e["code"].get<std::string>() : "");
      } else if (copy.head.type == MessageType::error) {
        out += "!" + read<ErrorMessage>(copy)->code;
      } else if (copy.head.type == MessageType::speech) {
        out += fmt::format("~{}@{}", copy.head.turn.value, read<Speech>(copy)->first_sample);
      } else {
        out += to_string(copy.head.type);
      }
    }
    return out;
  }
  std::size_t count(MessageType type) const {
    return static_cast<std::size_t>(std::count_if(to_controller.begin(), to_controller.end(),
                                                  [&](const Message& m) { return m.head.type == type; }));
  }
  void refuse(Errc code) {
    auto of = told.back();
    told.clear();
    runner.refused(of.peer, of.message.head, {code, "no room"}, clock.now());
    collect();
  }

  ManualClock clock;
  GatewayCore core;
  service::Runner runner;
  Envelope opened;
  std::vector<Message> to_controller;
  std::vector<service::Out> told;
  service::Core::Places handled;
};

/// Lines `> HEX HEX HEX` and `< HEX HEX HEX`: frames of a client, and of the gateway that it was recorded with.
std::vector<std::array<Bytes, 3>> recorded(const std::string& file) {
  std::ifstream in(file);
  BOOST_REQUIRE_MESSAGE(in, file);
  std::vector<std::array<Bytes, 3>> out;
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("> ")) continue;
    std::istringstream words(line.substr(2));
    auto& frames = out.emplace_back();
    for (auto& frame : frames) {
      std::string hex;
      words >> hex;
      if (hex == "-") continue;
      for (std::size_t at = 0; at + 1 < hex.size(); at += 2)
        frame.push_back(static_cast<std::byte>(std::stoi(hex.substr(at, 2), nullptr, 16)));
    }
  }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_stream_is_a_conversation_as_a_socket_is) {
  Rig r;
  r.client();
  BOOST_TEST(r.text(R"({"type":"open","speak":true})"));
  BOOST_TEST(r.count(MessageType::open) == 1);
  r.answer(Opened{});
  BOOST_TEST(r.story() == "opened");
  r.audio();
  r.text(R"({"type":"flush"})");
  BOOST_TEST(r.count(MessageType::audio) == 1);
  BOOST_TEST(r.count(MessageType::flush) == 1);
  r.told.clear();
  r.answer(Text{TextKind::transcript, 0, "hello", {}}, 1);
  r.answer(Speech{0, 0, 22050, false, Bytes(2000)}, 1);
  r.answer(Speech{0, 1000, 22050, true, Bytes(2000)}, 1);
  r.answer(TurnDone{1, false, bytes_of(R"({"user":"u","assistant":"a"})")}, 1);
  BOOST_TEST(r.story() == "text ~1@0 ~1@1000 turn");
  BOOST_TEST(r.core.load() == 1);
  r.from("client-1", Close{}, Rig::head());
  BOOST_TEST(r.count(MessageType::close) == 1);
  BOOST_TEST(r.core.load() == 0);
  BOOST_TEST(r.core.slots() == 8);
}

BOOST_AUTO_TEST_CASE(a_conversation_whose_time_is_over_ends_behind_its_turn_and_is_told_why) {
  Rig r;
  r.client();
  r.open();
  r.text(R"({"type":"text","text":"hi"})");
  r.tick(1801 * 1000);
  BOOST_TEST(r.story() == "");
  r.answer(TurnDone{1, false, bytes_of(R"({"user":"u","assistant":"a"})")}, 1);
  r.tick();
  BOOST_TEST(r.story() == "turn error:deadline_exceeded !cancelled");
}

BOOST_AUTO_TEST_CASE(long_sound_is_told_in_parts_that_fit_a_message) {
  Rig r;
  r.client();
  r.open();
  r.answer(Speech{0, 0, 22050, true, Bytes(200'000)}, 1);
  BOOST_TEST(r.story() == "~1@0 ~1@32768 ~1@65536 ~1@98304");
  for (const auto& t : r.told) BOOST_TEST(check(t.message).has_value());
}

BOOST_AUTO_TEST_CASE(bad_input_is_answered_on_its_stream_and_harms_no_other) {
  Rig r;
  r.client();
  r.open(1);
  r.open(2);
  r.text("{", 1);
  r.audio(1, 3);
  r.text(R"({"type":"dance"})", 1);
  BOOST_TEST(r.story(1) == "error:bad_json error:bad_frame error:unknown_type !invalid_argument");
  r.text(R"({"type":"text","text":"still here?"})", 1);
  BOOST_TEST(r.count(MessageType::say) == 0);  // the stream has ended
  r.from("client-1", Say{"hello"}, Rig::head(3));
  BOOST_TEST(r.story(3) == "!invalid_argument");
  r.text(R"({"type":"text","text":")" + std::string(Event::kClientEventBytesMax, 'a') + "\"}", 4);
  BOOST_TEST(r.story(4) == "!bad_frame");
  r.audio(5);
  BOOST_TEST(r.story(5) == "error:not_ready");
  r.text(R"({"type":"text","text":"hello"})", 2);
  BOOST_TEST(r.count(MessageType::say) == 1);
  BOOST_TEST(r.core.load() == 2);
}

BOOST_AUTO_TEST_CASE(only_clients_are_served_and_only_so_many) {
  Rig r(3, 2);
  r.client("client-1");
  r.client("client-2");
  r.client("vad-1", "vad");
  r.from("vad-1", Event{bytes_of(R"({"type":"open"})")}, Rig::head(9));
  BOOST_TEST(r.story(9) == "!invalid_argument");
  r.open(1);
  r.open(2);
  r.text(R"({"type":"open"})", 3);
  BOOST_TEST(r.story(3) == "!overloaded");
  r.open(4, "client-2");
  BOOST_TEST(r.core.slots() == 0);
  r.text(R"({"type":"open"})", 5, "client-2");
  BOOST_TEST(r.story(5) == "!overloaded");
  // What has ended makes room, and a refused stream is no conversation.
  r.from("client-1", Close{}, Rig::head(3));
  r.from("client-1", Close{}, Rig::head(1));
  r.open(6);
  BOOST_TEST(r.core.load() == 3);
}

BOOST_AUTO_TEST_CASE(a_client_cannot_speak_for_a_controller) {
  Rig r;
  r.client();
  r.client("client-2");
  r.open(1);
  auto forged = r.opened;  // on the very stream of the owner
  forged.epoch = {9};
  forged.turn = {1};
  r.from("client-2", TurnDone{1, false, bytes_of("{}")}, forged);
  BOOST_TEST(r.story(1, "client-1") == "");
  r.peer("controller-2", "controller", true, transport::PeerState::up);
  r.from("controller-2", TurnDone{1, false, bytes_of("{}")}, forged);
  BOOST_TEST(r.story(1, "client-1") == "");
  r.answer(TurnDone{1, false, bytes_of("{}")}, 1);
  BOOST_TEST(r.story(1, "client-1") == "turn");
}

BOOST_AUTO_TEST_CASE(a_client_that_dies_may_resume_and_one_that_closes_may_not) {
  const auto closes = [](const Rig& r) {
    std::string out;
    for (auto m : r.to_controller)
      if (m.head.type == MessageType::close) out += read<Close>(m)->detached ? "detached " : "closed ";
    return out;
  };
  Rig r;
  r.client();
  r.open(1);
  r.open(2);
  r.from("client-1", Close{}, Rig::head(1));
  BOOST_TEST(closes(r) == "closed ");
  r.from("client-1", Close{true}, Rig::head(2));
  BOOST_TEST(closes(r) == "closed detached ");
  r.open(3);
  r.peer("client-1", "client", true, transport::PeerState::down);
  BOOST_TEST(closes(r) == "closed detached detached ");
  BOOST_TEST(r.core.load() == 0);
  BOOST_TEST(r.story(3) == "");
}

BOOST_AUTO_TEST_CASE(who_sends_too_fast_gets_no_credit_and_loses_nothing) {
  Rig r;
  r.client();
  r.open();
  // 31 s at once are taken, then four times real time.
  std::size_t taken = 0, sent = 0;
  for (; sent < 40; ++sent) taken += r.audio(1, 32000);
  BOOST_TEST(taken < sent);
  BOOST_TEST(r.count(MessageType::audio) == taken);
  BOOST_TEST(r.handled.empty());
  r.answer(Checkpoint{taken, 0}, 0);
  for (int n = 0; n < 300 && r.handled.size() < sent - taken; ++n) {
    r.tick();
    r.answer(Checkpoint{r.count(MessageType::audio), 0}, 0);
  }
  BOOST_TEST(r.handled.size() == sent - taken);
  BOOST_TEST(r.count(MessageType::audio) == sent);
  BOOST_TEST(r.story() == "");
}

BOOST_AUTO_TEST_CASE(who_ignores_its_window_is_cut_off) {
  Rig r;
  r.client();
  r.open();
  int n = 0;
  for (; n < 200 && r.told.empty(); ++n) r.audio(1, 32000);
  BOOST_TEST(r.story() == "!overloaded");
  BOOST_TEST(n < 150);
  BOOST_TEST(r.core.load() == 0);
}

BOOST_AUTO_TEST_CASE(who_takes_nothing_is_told_so_as_soon_as_there_is_room) {
  Rig r;
  r.client();
  r.open();
  r.answer(Speech{0, 0, 22050, false, Bytes(2000)}, 1);
  r.refuse(Errc::overloaded);
  BOOST_TEST(r.story() == "!overloaded");
  BOOST_TEST(r.core.load() == 0);
  r.refuse(Errc::overloaded);  // no room for the last word either
  BOOST_TEST(r.story() == "");
  r.tick();
  BOOST_TEST(r.story() == "!overloaded");
  r.tick();
  BOOST_TEST(r.story() == "!overloaded");  // once
  r.refuse(Errc::overloaded);
  r.from("client-1", Close{}, Rig::head());
  r.tick();
  BOOST_TEST(r.story() == "");
}

BOOST_AUTO_TEST_CASE(draining_sends_clients_elsewhere) {
  Rig r;
  r.client();
  r.open(1);
  r.core.drain();
  r.collect();
  BOOST_TEST(r.core.drain());
  BOOST_TEST(r.story(1) == "!unavailable");
  r.text(R"({"type":"open"})", 2);
  BOOST_TEST(r.story(2) == "!unavailable");
  BOOST_TEST(r.core.load() == 0);
}

/// What a client of version 1 has said, byte for byte: HELLO, a conversation, a typed and a spoken turn, close.
BOOST_AUTO_TEST_CASE(a_recorded_client_of_version_1_is_served) {
  const auto frames = recorded(PARLANDO_SOURCE_DIR "/tests/sdk/fixtures/client_v1.txt");
  BOOST_REQUIRE(frames.size() > 20);
  Rig r;
  transport::MeshOptions options;
  options.instance = "gateway-00000001";
  options.role = "gateway";
  transport::Mesh mesh(options);
  std::map<std::string, int> said;  // by the gateway, to its client
  std::uint32_t turn = 0;
  for (const auto& f : frames) {
    const std::span<const std::byte> parts[] = {f[0], f[1], f[2]};
    mesh.receive(1, parts, {}, r.clock.now());
    for (auto& event : mesh.take()) {
      if (event.peer) r.runner.peer(event.peer->peer, event.peer->state, r.clock.now());
      if (!event.delivery) continue;
      const auto head = event.delivery->message.head;
      const auto before = r.to_controller.size();
      if (r.runner.deliver(event.delivery->peer, std::move(event.delivery->message), r.clock.now()))
        mesh.handled(event.delivery->peer, head);
      r.collect();
      for (auto n = before; n < r.to_controller.size(); ++n) {  // a controller that answers at once
        const auto type = r.to_controller[n].head.type;
        if (type == MessageType::open) r.answer(Opened{});
        if (type != MessageType::say && type != MessageType::flush) continue;
        r.answer(Speech{0, 0, 22050, true, Bytes(2000)}, ++turn);
        r.answer(TurnDone{turn, false, bytes_of(R"({"user":"u","assistant":"a"})")}, turn);
      }
    }
    for (auto& out : std::exchange(r.told, {})) BOOST_TEST(mesh.send(out.peer, std::move(out.message)).has_value());
    r.clock.advance(5ms);
    mesh.flush(r.clock.now(), [&](transport::Mesh::Route, const Frames& out) {
      const std::span<const std::byte> answer[] = {out.envelope, std::as_bytes(std::span(out.body)), out.payload};
      const auto decoded = decode(answer, r.clock.now());
      BOOST_REQUIRE(decoded.has_value());
      for (const auto& m : decoded->messages) ++said[std::string(to_string(m.head.type))];
      return true;
    });
    mesh.tick(r.clock.now());
  }
  BOOST_TEST(turn == 2u);
  BOOST_TEST(r.count(MessageType::open) == 1);
  BOOST_TEST(r.count(MessageType::say) == 1);
  BOOST_TEST(r.count(MessageType::audio) == 10);
  BOOST_TEST(r.count(MessageType::close) == 1);
  BOOST_TEST(said["hello"] == 1);
  BOOST_TEST(said["event"] == 3);  // opened, and two turns
  BOOST_TEST(said["speech"] == 2);
  BOOST_TEST(said["close"] == 1);
  BOOST_TEST(said["refused"] == 0);
  BOOST_TEST(mesh.counters().malformed == 0);
  BOOST_TEST(mesh.counters().links.gaps == 0);
}
