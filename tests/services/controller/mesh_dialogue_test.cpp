/// The controller over real links in seeded time: the same fakes, the faults of a network.
#include <boost/test/unit_test.hpp>

#include "services/controller/controller_core.hpp"
#include "tests/services/controller/rig.hpp"
#include "tests/support/world.hpp"

namespace parlando::controller {
namespace {

const World::Endpoints kCalls{{"vad", {"sim://vad-1", "sim://vad-2"}},
                              {"tokenizer", {"sim://tokenizer-1", "sim://tokenizer-2"}},
                              {"llm-chat", {"sim://llm-chat-1", "sim://llm-chat-2"}},
                              {"tts", {"sim://tts-1", "sim://tts-2"}},
                              {"context", {"sim://context-1", "sim://context-2"}}};

/// Two replicas of everything that may be lost, one client.
struct City {
  World w;
  std::shared_ptr<FakeStore> store = std::make_shared<FakeStore>();
  explicit City(std::uint64_t seed, Faults faults = {}) : w(seed, std::move(faults)) {
    for (const char* n : {"1", "2"}) {
      w.add<FakeVad>(std::string("vad-") + n, "vad", std::string("sim://vad-") + n);
      w.add<FakeTokenizer>(std::string("tokenizer-") + n, "tokenizer", std::string("sim://tokenizer-") + n);
      w.add<FakeChat>(std::string("llm-chat-") + n, "llm-chat", std::string("sim://llm-chat-") + n);
      w.add<FakeTts>(std::string("tts-") + n, "tts", std::string("sim://tts-") + n);
      w.add<FakeContext>(std::string("context-") + n, "context", std::string("sim://context-") + n, {}, store);
    }
    ControllerConfig config;
    config.tools = "demo";
    w.add<ControllerCore>("controller-1", "controller", "sim://controller-1", kCalls, config);
    w.add<FakeGateway>("gateway-1", "gateway", "", {{"controller", {"sim://controller-1"}}}, kSession);
  }
  FakeGateway& gateway() { return w.get<FakeGateway>("gateway-1"); }
  bool open() {
    if (!w.run_until([&] { return w.core("controller-1").why_not_ready().empty() && !gateway().linked.empty(); },
                     milliseconds(5000)))
      return false;
    w.call<FakeGateway>("gateway-1", [&](FakeGateway& g, Time) { g.open(w.instance("controller-1")); });
    return w.run_until([&] { return gateway().count(MessageType::opened) == 1; }, milliseconds(5000));
  }
  /// @param each  called before every frame
  bool converse(const std::function<void(int frame)>& each = [](int) {}) {
    Speaker speaker(gateway());
    for (int frame = 0; frame < 500 && gateway().turns.empty(); ++frame) {
      each(frame);
      w.call<FakeGateway>("gateway-1", [&](FakeGateway&, Time) { speaker.step(); });
      w.run(milliseconds(20));
    }
    w.run_until([&] { return !store->sessions[kSession].turns.empty(); }, milliseconds(5000));
    return gateway().turns.size() == 1 && store->sessions[kSession].turns.size() == 1;
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(mesh_dialogue)

BOOST_AUTO_TEST_CASE(each_role_may_stand_still_or_be_replaced_at_any_time) {
  City calm(1);
  BOOST_REQUIRE(calm.open());
  BOOST_REQUIRE(calm.converse());
  const auto want = calm.gateway().audio;
  for (const auto& role : kServiceRoles)
    for (const int way : {0, 1, 2})
      for (const int at : {2, 12, 28, 36, 42}) {
        BOOST_TEST_CONTEXT(role << " way " << way << " at frame " << at) {
          City city(7);
          BOOST_REQUIRE(city.open());
          BOOST_TEST(city.converse([&](int frame) {
            if (frame != at) return;
            for (const char* n : {"-1", "-2"}) {
              const auto name = role + n;
              if (way == 0) city.w.stall(name, milliseconds(n[1] == '1' ? 700 : 10));
              if (way == 1 && n[1] == '1') city.w.restart(name);
              if (way == 2 && n[1] == '2') city.w.hang(name, milliseconds(600));
            }
          }));
          BOOST_TEST((city.gateway().audio == want));
          BOOST_TEST(city.gateway().wrong.empty());
          BOOST_TEST(city.gateway().count(MessageType::error) == 0u);
        }
      }
}

BOOST_AUTO_TEST_CASE(a_bad_network_changes_nothing_that_is_heard_or_stored) {
  City calm(1);
  BOOST_REQUIRE(calm.open());
  BOOST_REQUIRE(calm.converse());
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      Faults faults;
      faults.cuts_per_s = 1;
      faults.stalls_per_s = 1;
      faults.stall_max = milliseconds(600);
      faults.spared = {"controller-1", "gateway-1"};
      City city(seed, faults);
      BOOST_REQUIRE(city.open());
      BOOST_TEST(city.converse());
      BOOST_TEST((city.gateway().audio == calm.gateway().audio));
      BOOST_TEST(city.gateway().wrong.empty());
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
