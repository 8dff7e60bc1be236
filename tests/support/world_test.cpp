#define BOOST_TEST_MODULE world
#include "tests/support/world.hpp"

#include <boost/test/unit_test.hpp>

namespace parlando {
namespace {
using namespace protocol;
using transport::PeerState;

/// Answers every Say with a Text.
struct Echo : service::Core {
  int said = 0, closed = 0, ticks = 0;
  std::vector<PeerState> states;
  void on_message(const std::string& peer, Message message, Time) override {
    if (message.head.type == MessageType::close) {
      ++closed;
      return;
    }
    ++said;
    auto words = read<Say>(message);
    if (words) answer(peer, message.head, Text{.text = words->text});
  }
  void on_peer(const transport::Peer&, PeerState state, Time) override { states.push_back(state); }
  void on_tick(Time) override { ++ticks; }
};

/// Asks, and keeps what it is told.
struct Asker : service::Core {
  std::string callee;
  std::vector<std::string> heard;
  std::vector<PeerState> states;
  void on_message(const std::string&, Message message, Time) override {
    if (message.head.type == MessageType::error) {
      auto e = read<ErrorMessage>(message);
      heard.push_back("error " + (e ? e->code : e.error().message));
      return;
    }
    auto t = read<Text>(message);
    heard.push_back(t ? t->text : t.error().message);
  }
  void on_peer(const transport::Peer& peer, PeerState state, Time) override {
    states.push_back(state);
    if (state == PeerState::up) callee = peer.instance;
  }
  void say(std::uint32_t stream, std::string text) { send(callee, head(stream), Say{std::move(text)}); }
  void close(std::uint32_t stream) { send(callee, head(stream), Close{}); }
  static Envelope head(std::uint32_t stream) {
    Envelope e;
    e.session = {1, 2};
    e.stream = {stream};
    return e;
  }
};

struct Two {
  World w;
  Asker& asker;
  explicit Two(std::uint64_t seed, Faults faults = {})
      : w(seed, faults),
        asker((w.add<Echo>("echo-1", "echo", "sim://echo"),
               w.add<Asker>("asker-1", "asker", "", {{"echo", {"sim://echo"}}}))) {}
  bool linked() {
    return w.run_until([&] { return asker.callee == w.instance("echo-1"); }, milliseconds(3000));
  }
  void say(std::uint32_t stream, const std::string& text) {
    w.call<Asker>("asker-1", [&](Asker& a, Time) { a.say(stream, text); });
  }
  void close(std::uint32_t stream) {
    w.call<Asker>("asker-1", [&](Asker& a, Time) { a.close(stream); });
  }
  bool hears(std::size_t count, milliseconds limit = milliseconds(1000)) {
    return w.run_until([&] { return asker.heard.size() >= count; }, limit);
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(cores_talk_and_their_streams_end_at_both) {
  Two t(1);
  BOOST_REQUIRE(t.linked());
  t.say(1, "hello");
  BOOST_REQUIRE(t.hears(1, milliseconds(50)));
  BOOST_TEST(t.asker.heard[0] == "hello");
  t.close(1);
  t.w.run(milliseconds(200));
  BOOST_TEST(t.w.get<Echo>("echo-1").closed == 1);
  BOOST_TEST(t.w.streams() == 0u);
}

BOOST_AUTO_TEST_CASE(a_restarted_node_is_another_instance_at_the_same_endpoint) {
  Two t(2);
  BOOST_REQUIRE(t.linked());
  t.w.kill("echo-1");
  BOOST_TEST(!t.w.is_alive("echo-1"));
  t.w.run(milliseconds(500));
  BOOST_TEST((t.asker.states == std::vector{PeerState::up, PeerState::suspect}));
  t.w.restart("echo-1");
  BOOST_TEST(t.w.instance("echo-1") == "echo-1~2");
  BOOST_REQUIRE(t.linked());
  BOOST_TEST((t.asker.states == std::vector{PeerState::up, PeerState::suspect, PeerState::down, PeerState::up}));
  t.say(1, "again");
  BOOST_TEST(t.hears(1));
}

BOOST_AUTO_TEST_CASE(what_was_said_to_a_stalled_node_is_answered_when_it_wakes) {
  Two t(3);
  BOOST_REQUIRE(t.linked());
  t.w.stall("echo-1", milliseconds(1500));
  for (int i = 0; i < 10; ++i) t.say(1, std::to_string(i));
  t.w.run(milliseconds(1000));
  BOOST_TEST(t.asker.heard.empty());
  BOOST_REQUIRE(t.hears(10, milliseconds(1500)));
  for (int i = 0; i < 10; ++i) BOOST_TEST(t.asker.heard[static_cast<std::size_t>(i)] == std::to_string(i));
}

BOOST_AUTO_TEST_CASE(what_a_core_throws_is_answered_on_the_stream) {
  Two t(4);
  BOOST_REQUIRE(t.linked());
  t.w.before_message("echo-1", [](const std::string&, const Message&) -> bool { throw std::runtime_error("no"); });
  t.say(1, "hello");
  BOOST_REQUIRE(t.hears(1));
  BOOST_TEST(t.asker.heard[0] == "error internal");
  BOOST_TEST(t.w.counters("echo-1").failures == 1u);
}

BOOST_AUTO_TEST_CASE(a_heavy_core_that_hangs_is_suspected_though_its_link_answers) {
  struct Heavy : Echo {
    bool is_heavy() const override { return true; }
  };
  World w(5);
  w.options.step_limit = milliseconds(300);
  w.add<Heavy>("echo-1", "echo", "sim://echo");
  auto& asker = w.add<Asker>("asker-1", "asker", "", {{"echo", {"sim://echo"}}});
  BOOST_REQUIRE(w.run_until([&] { return !asker.callee.empty(); }, milliseconds(1000)));
  w.hang("echo-1", milliseconds(2000));
  w.call<Asker>("asker-1", [&](Asker& a, Time) { a.say(1, "x"); });
  w.run(milliseconds(1000));
  BOOST_TEST((asker.states == std::vector{PeerState::up, PeerState::suspect}));
  BOOST_TEST(w.mesh("asker-1").counters().peers_hung == 1u);
  w.run(milliseconds(1500));
  BOOST_TEST((asker.states == std::vector{PeerState::up, PeerState::suspect, PeerState::up}));
  BOOST_TEST(asker.heard.size() == 1u);
}

BOOST_AUTO_TEST_CASE(the_same_seed_gives_the_same_run_whatever_goes_wrong) {
  const auto play = [](std::uint64_t seed) {
    Faults faults;
    faults.cuts_per_s = faults.partitions_per_s = faults.stalls_per_s = 2;
    faults.restarts_per_s = 0.5;
    faults.spared = {"asker-1"};
    Two t(seed, faults);
    for (std::uint32_t i = 1; i < 100; ++i) {
      t.say(i, "x");
      t.w.run(milliseconds(30));
      t.close(i);
    }
    t.w.stop_faults();
    t.w.run(milliseconds(3000));
    t.say(200, "the end");
    BOOST_TEST(t.hears(1, milliseconds(2000)));
    return t.w.hash();
  };
  const auto first = play(7);
  BOOST_TEST(first == play(7));
  BOOST_TEST(first != play(8));
}

BOOST_AUTO_TEST_CASE(an_idle_node_sleeps) {
  Two t(9);
  BOOST_REQUIRE(t.linked());
  t.w.run(milliseconds(1000));
  const auto before = t.w.network().turns("echo-1");
  t.w.run(milliseconds(10000));
  // Ten heartbeats a second to read, as many of its own beats, two ticks.
  BOOST_TEST(t.w.network().turns("echo-1") - before < 260u);
}

}  // namespace parlando
