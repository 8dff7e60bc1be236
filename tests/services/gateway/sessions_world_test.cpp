/// Sessions over the seeded network, with controllers that die, stall, restart and are cut off: every client hears
/// every answer, whole, once, in order; every third of them with a lead.
#define BOOST_TEST_MODULE gateway_world
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>

#include "tests/services/gateway/scripted_gateway.hpp"
#include "tests/support/world.hpp"

using namespace parlando;
using namespace parlando::gateway;
using namespace parlando::protocol;
using namespace std::chrono_literals;

namespace {

/// What is durable.
struct Store {
  struct Entry {
    Epoch epoch;
    std::uint32_t turns = 0;
    std::uint64_t inputs = 0;  ///< of the last turn
    std::int64_t samples = 0;  ///< heard in it
  };
  std::map<SessionId, Entry> entries;
};

constexpr std::uint32_t kPieces = 3;
constexpr std::int64_t kPieceSamples = 5000, kChunkSamples = 700;
/// The answer shows how much was heard, so that lost and repeated sound is seen.
std::string answer_of(std::uint32_t turn, std::int64_t samples) {
  return fmt::format("answer {} to {} samples; ", turn, samples);
}
Bytes sound_of(std::uint32_t turn, std::uint32_t piece, std::int64_t first, std::int64_t count) {
  Bytes out(static_cast<std::size_t>(count) * kSampleBytes);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<std::int16_t>(turn * 7919 + piece * 104729 + first + i);
    std::memcpy(out.data() + 2 * i, &value, 2);
  }
  return out;
}

/// The controller's side of the contract, and nothing else.
class FakeController final : public service::Core {
 public:
  explicit FakeController(Store& store) : store_(store) {}

  void on_message(const std::string& peer, Message message, Time) override {
    const auto key = std::make_pair(peer, message.head.key());
    if (message.head.type == MessageType::open) return open(peer, message);
    if (message.head.type == MessageType::close) {
      conversations_.erase(key);
      return;
    }
    if (message.head.type == MessageType::played) return;  // no input
    const auto found = conversations_.find(key);
    if (found == conversations_.end()) return answer_error(peer, message.head, {Errc::not_found, "no such stream"});
    input(found->second, message);
  }
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time) override {
    if (state == transport::PeerState::down)
      std::erase_if(conversations_, [&](const auto& c) { return c.first.first == peer.instance; });
  }
  void on_tick(Time) override {
    for (auto it = conversations_.begin(); it != conversations_.end();)
      it = step(it->second) ? std::next(it) : conversations_.erase(it);
  }
  milliseconds tick_interval() const override { return 20ms; }
  std::int64_t slots() const override { return 1000; }
  std::int64_t load() const override { return static_cast<std::int64_t>(conversations_.size()); }

 private:
  struct Conversation {
    std::string peer;
    Envelope head;
    std::uint64_t input = 0, skip_until = 0, turn_from = 0;
    std::int64_t heard = 0;
    bool answering = false, stored = false;
    std::int64_t text_told = 0, pieces = 0, piece_samples = 0;
  };
  void open(const std::string& peer, Message& message) {
    const auto head = message.head;
    const auto open = *read<Open>(message);
    auto& entry = store_.entries[head.session];
    if (open.expected_epoch != entry.epoch) {
      auto to = head;
      to.epoch = entry.epoch;
      return send(peer, to, ErrorMessage{"stale_epoch", "another has it", 0});
    }
    ++entry.epoch.value;
    auto& c = conversations_[{peer, head.key()}];
    c.peer = peer;
    c.head = head;
    c.head.epoch = entry.epoch;
    c.head.turn = {entry.turns + 1};
    c.input = open.first_input - 1;
    c.turn_from = open.first_input;
    c.skip_until = entry.inputs;
    send(peer, c.head, Opened{entry.turns, open.seed, false});
    if (open.open_turn.value == 0 || open.open_turn.value < entry.turns) return;
    c.text_told = open.reply_bytes;
    c.pieces = open.pieces;
    c.piece_samples = open.piece_samples;
    if (open.open_turn.value > entry.turns) return;
    c.head.turn = {entry.turns};  // durable, but not told wholly
    c.answering = c.stored = true;
    c.heard = entry.samples;
  }
  void input(Conversation& c, Message& message) {
    const auto type = message.head.type;
    if (++c.input <= c.skip_until) return;
    if (type == MessageType::audio && !c.answering)
      c.heard += static_cast<std::int64_t>(read<Audio>(message)->payload.size() / kSampleBytes);
    if (type != MessageType::flush || c.answering) return;
    c.answering = true;
    send(c.peer, c.head, SpeechEnded{c.heard});
    send(c.peer, c.head, Checkpoint{c.turn_from - 1, c.input});
  }
  /// A part of the answer. @return false when the session turned out to be another's
  bool step(Conversation& c) {
    if (!c.answering) return true;
    const auto turn = c.head.turn.value;
    const auto text = answer_of(turn, c.heard);
    if (c.text_told < static_cast<std::int64_t>(text.size())) {
      const auto part = text.substr(static_cast<std::size_t>(c.text_told), 9);
      send(c.peer, c.head, Text{TextKind::text, c.text_told, part, Bytes(4)});
      c.text_told += static_cast<std::int64_t>(part.size());
      return true;
    }
    if (c.pieces < kPieces) {
      const auto count = std::min(kChunkSamples, kPieceSamples - c.piece_samples);
      const auto piece = static_cast<std::uint32_t>(c.pieces);
      const bool last = c.piece_samples + count == kPieceSamples;
      send(c.peer, c.head, Speech{piece, c.piece_samples, 22050, last, sound_of(turn, piece, c.piece_samples, count)});
      c.piece_samples = last ? 0 : c.piece_samples + count;
      c.pieces += last;
      return true;
    }
    return finish(c);
  }
  bool finish(Conversation& c) {
    auto& entry = store_.entries[c.head.session];
    if (entry.epoch != c.head.epoch) {
      auto to = c.head;
      to.epoch = entry.epoch;
      send(c.peer, to, ErrorMessage{"stale_epoch", "another has it", 0});
      return false;
    }
    if (!c.stored) {
      entry.turns = c.head.turn.value;
      entry.inputs = c.input;
      entry.samples = c.heard;
    }
    const auto turn = c.head.turn;
    if (!c.stored) send(c.peer, c.head, Checkpoint{c.input, 0});
    send(c.peer, c.head, TurnDone{turn.value, false, {}});
    Conversation next{c.peer, c.head};
    next.head.turn.value = entry.turns + 1;
    next.input = c.input;
    next.skip_until = c.skip_until;
    next.turn_from = c.input + 1;
    c = next;
    return true;
  }
  Store& store_;
  std::map<std::pair<std::string, StreamKey>, Conversation> conversations_;
};

constexpr std::uint32_t kTurns = 3;

void check(const ScriptedClient& client) {
  std::string text, sound;
  for (std::uint32_t turn = 1; turn <= kTurns; ++turn) {
    text += answer_of(turn, 4800);
    for (std::uint32_t piece = 0; piece < kPieces; ++piece) {
      const auto part = sound_of(turn, piece, 0, kPieceSamples);
      sound.append(reinterpret_cast<const char*>(part.data()), part.size());
    }
  }
  BOOST_TEST(client.count("turn") == kTurns);
  BOOST_TEST(client.count("error") == 0u);
  BOOST_TEST(client.text("text") == text);
  BOOST_TEST((client.sound == sound));
}

struct Scene {
  explicit Scene(std::uint64_t seed, Faults faults = {}, int clients = 12) : world(seed, std::move(faults)) {
    const World::Endpoints calls{{"controller", {"sim://c1", "sim://c2"}}};
    world.add<FakeController>("c1", "controller", "sim://c1", {}, std::ref(store));
    world.add<FakeController>("c2", "controller", "sim://c2", {}, std::ref(store));
    world.add<ScriptedGateway>("gateway", "gateway", "", calls, seed);
    world.run(200ms);
    for (int i = 0; i < clients; ++i) {
      const auto* options = i % 3 == 2 ? R"({"lead_ms":300})" : "{}";
      std::vector<Step> script{step::sleep(milliseconds(37 * i)), step::open(options), step::wait_for("opened")};
      for (std::uint32_t turn = 0; turn < kTurns; ++turn)
        for (auto& s : {step::silence(300ms), step::flush(), step::wait_for("turn")}) script.push_back(s);
      ids.push_back(gateway().add(script));
    }
  }
  ScriptedGateway& gateway() { return world.get<ScriptedGateway>("gateway"); }
  bool finish(milliseconds limit = 60s) {
    return world.run_until([&] { return gateway().is_finished(); }, limit);
  }
  void check_all() {
    for (const auto id : ids) check(gateway().client(id));
  }
  Store store;
  World world;
  std::vector<ClientId> ids;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(sessions_world_test)

BOOST_AUTO_TEST_CASE(without_faults_everybody_is_answered) {
  Scene scene(1);
  BOOST_TEST(scene.finish());
  scene.check_all();
}

BOOST_DATA_TEST_CASE(a_controller_stands_still, boost::unit_test::data::make({400, 1000, 5000, 40000}), ms) {
  Scene scene(2);
  scene.world.run(900ms);
  scene.world.stall("c1", milliseconds(ms));
  BOOST_TEST(scene.finish());
  scene.check_all();
  scene.world.run(milliseconds(ms) + 2s);
  scene.check_all();
  BOOST_TEST(scene.gateway().sessions().counters().handovers[0] > 0u);
  BOOST_TEST(scene.world.streams() == 24u);  // a stream a session, at both ends
}

BOOST_AUTO_TEST_CASE(both_controllers_stand_still_for_a_while) {
  Scene scene(3);
  scene.world.run(900ms);
  scene.world.stall("c1", 3s);
  scene.world.stall("c2", 4s);
  BOOST_TEST(scene.finish());
  scene.check_all();
}

BOOST_AUTO_TEST_CASE(controllers_are_killed_at_every_moment_of_a_turn) {
  for (int ms = 300; ms < 2400; ms += 70) {
    Scene scene(static_cast<std::uint64_t>(ms), {}, 4);
    scene.world.run(milliseconds(ms));
    scene.world.restart("c1");
    scene.world.run(350ms);
    scene.world.restart("c2");
    BOOST_TEST(scene.finish());
    scene.check_all();
  }
}

BOOST_AUTO_TEST_CASE(controllers_are_drained_and_replaced) {
  Scene scene(5);
  scene.world.run(900ms);
  scene.world.drain("c1");
  BOOST_TEST(scene.world.run_until([&] { return scene.world.is_drained("c1"); }, 10s));
  scene.world.restart("c1");
  scene.world.run(500ms);
  scene.world.drain("c2");
  BOOST_TEST(scene.finish());
  scene.check_all();
}

BOOST_DATA_TEST_CASE(one_way_partitions, boost::unit_test::data::xrange(2), direction) {
  Scene scene(6);
  scene.world.run(900ms);
  direction == 0 ? scene.world.partition("gateway", "c1", 3s) : scene.world.partition("c1", "gateway", 3s);
  BOOST_TEST(scene.finish());
  scene.check_all();
}

BOOST_DATA_TEST_CASE(whatever_goes_wrong, boost::unit_test::data::xrange(300), seed) {
  Faults faults;
  faults.cuts_per_s = 0.5;
  faults.partitions_per_s = 0.5;
  faults.stalls_per_s = 0.5;
  faults.restarts_per_s = 0.3;
  faults.spared = {"gateway"};
  Scene scene(static_cast<std::uint64_t>(1000 + seed), faults);
  scene.world.run(15s);
  scene.world.stop_faults();
  BOOST_TEST(scene.finish());
  scene.check_all();
}

BOOST_AUTO_TEST_SUITE_END()
