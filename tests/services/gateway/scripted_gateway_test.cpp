#include "tests/services/gateway/scripted_gateway.hpp"

#include <boost/test/unit_test.hpp>

using namespace parlando;
using namespace parlando::gateway;
using namespace std::chrono_literals;
using protocol::MessageType;

BOOST_AUTO_TEST_SUITE(scripted_gateway_test)

BOOST_AUTO_TEST_CASE(a_script_opens_talks_waits_and_leaves) {
  ScriptedGateway gateway(7);
  Time now{1h};
  gateway.on_peer({"a", "controller", 1, false, true, false, 8}, transport::PeerState::up, now);
  const auto id =
      gateway.add({step::open(R"({"speaker":"clara"})"), step::wait_for("opened"), step::silence(100ms), step::flush(),
                   step::wait_for("turn"), step::sleep(200ms), step::say("bye"), step::leave()});
  std::vector<MessageType> types;
  for (int i = 0; i < 60; ++i, now += 20ms) {
    gateway.on_tick(now);
    for (auto& out : gateway.take()) {
      types.push_back(out.message.head.type);
      auto head = out.message.head;
      head.epoch = {1};
      if (head.type == MessageType::open) gateway.on_message("a", protocol::pack(protocol::Opened{}, head), now);
      if (head.type != MessageType::flush) continue;
      head.turn = {1};
      gateway.on_message("a", protocol::pack(protocol::Text{protocol::TextKind::text, 0, "hello", {}}, head), now);
      gateway.on_message("a", protocol::pack(protocol::Speech{0, 0, 22050, true, protocol::Bytes(10)}, head), now);
      gateway.on_message("a", protocol::pack(protocol::TurnDone{1, false, {}}, head), now);
    }
  }
  using enum MessageType;
  BOOST_TEST((types == std::vector<MessageType>{open, audio, audio, audio, audio, audio, flush, say, close}));
  const auto& client = gateway.client(id);
  BOOST_TEST(gateway.is_finished());
  BOOST_TEST(client.count("turn") == 1u);
  BOOST_TEST(client.text("text") == "hello");
  BOOST_TEST(client.sound.size() == 10u);
  BOOST_TEST(gateway.load() == 0);
}

BOOST_AUTO_TEST_CASE(draining_ends_a_script) {
  ScriptedGateway gateway(7);
  Time now{1h};
  const auto id = gateway.add({step::sleep(10s)});
  gateway.on_tick(now);
  gateway.drain();
  BOOST_TEST(gateway.client(id).closed == 1001);
  BOOST_TEST(gateway.is_finished());
  BOOST_TEST(gateway.drain());
}

BOOST_AUTO_TEST_SUITE_END()
