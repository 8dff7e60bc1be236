/// Real sessions and a real controller over real links in seeded time, in front of a model with two places: who could
/// not be answered is refused at the door.
#include <boost/test/unit_test.hpp>

#include "services/controller/controller_core.hpp"
#include "tests/services/controller/fakes.hpp"
#include "tests/services/gateway/scripted_gateway.hpp"
#include "tests/support/world.hpp"

namespace parlando {
namespace {
using namespace controller::fakes;
using gateway::ScriptedGateway;
namespace step = gateway::step;
using namespace std::chrono_literals;

struct Small {
  World w;
  std::shared_ptr<FakeStore> store = std::make_shared<FakeStore>();
  explicit Small(std::uint64_t seed) : w(seed) {
    w.add<FakeVad>("vad-1", "vad", "sim://vad");
    w.add<FakeTokenizer>("tokenizer-1", "tokenizer", "sim://tokenizer");
    w.add_core("llm-chat-1", "llm-chat", "sim://llm-chat", {}, [] {
      auto chat = std::make_unique<FakeChat>();
      chat->places = 2;
      chat->calls_tool = false;
      chat->sentences = 1000;  // an answer of a minute
      return chat;
    });
    w.add<FakeTts>("tts-1", "tts", "sim://tts");
    w.add<FakeContext>("context-1", "context", "sim://context", {}, store);
    controller::ControllerConfig config;
    config.sessions_per_slot = 1;
    w.add<controller::ControllerCore>("controller-1", "controller", "sim://controller",
                                      {{"vad", {"sim://vad"}},
                                       {"tokenizer", {"sim://tokenizer"}},
                                       {"llm-chat", {"sim://llm-chat"}},
                                       {"tts", {"sim://tts"}},
                                       {"context", {"sim://context"}}},
                                      config);
    w.add<ScriptedGateway>("gateway-1", "gateway", "", {{"controller", {"sim://controller"}}}, seed);
  }
  ScriptedGateway& gateway() { return w.get<ScriptedGateway>("gateway-1"); }
  /// A client that asks for something and listens to the answer.
  gateway::ClientId talk() {
    return gateway().add({step::open(R"({"speak":false})"), step::wait_for("opened"), step::say("go"),
                          step::wait_for("text"), step::sleep(60s)});
  }
  bool speaks(gateway::ClientId id) {
    return w.run_until([&] { return gateway().client(id).count("text") > 0; }, 3000ms);
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(the_third_conversation_with_a_model_of_two_places_is_refused_at_the_door) {
  Small s(5);
  BOOST_REQUIRE(s.w.run_until([&] { return s.w.core("gateway-1").why_not_ready().empty(); }, 5000ms));
  s.w.run(2500ms);  // whoever may come has come
  BOOST_TEST(!s.gateway().why_full(s.w.now()).has_value());
  const auto first = s.talk(), second = s.talk();
  BOOST_REQUIRE(s.speaks(first));
  BOOST_REQUIRE(s.speaks(second));
  s.w.run(1000ms);
  const auto why = s.gateway().why_full(s.w.now());
  BOOST_REQUIRE(why.has_value());
  BOOST_TEST(why->code == "overloaded");
  BOOST_TEST(why->message == "no controller takes sessions now");
  BOOST_TEST(why->retry_ms > 0);
  const auto third = s.gateway().add({step::open(), step::wait_for("opened")});
  BOOST_REQUIRE(s.w.run_until([&] { return s.gateway().client(third).count("error") == 1; }, 3000ms));
  BOOST_TEST(s.gateway().client(third).events.back()["code"] == "overloaded");
  BOOST_TEST(s.w.core("controller-1").load() == 2);
  // Those inside notice nothing.
  BOOST_TEST(s.gateway().client(first).count("error") + s.gateway().client(second).count("error") == 0u);
}

BOOST_AUTO_TEST_CASE(a_conversation_that_is_over_makes_room_for_another) {
  Small s(6);
  BOOST_REQUIRE(s.w.run_until([&] { return s.w.core("gateway-1").why_not_ready().empty(); }, 5000ms));
  s.w.run(2500ms);
  const auto first = s.gateway().add({step::open(R"({"speak":false})"), step::wait_for("opened"), step::say("go"),
                                      step::wait_for("text"), step::sleep(3s), step::leave()});
  const auto second = s.talk();
  BOOST_REQUIRE(s.speaks(first));
  BOOST_REQUIRE(s.speaks(second));
  s.w.run(1000ms);
  BOOST_TEST(s.gateway().why_full(s.w.now()).has_value());
  BOOST_REQUIRE(s.w.run_until([&] { return !s.gateway().why_full(s.w.now()); }, 10'000ms));
  const auto third = s.talk();
  BOOST_TEST(s.speaks(third));
}

}  // namespace parlando
