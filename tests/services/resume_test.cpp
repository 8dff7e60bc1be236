/// Real sessions and a real controller over real links in seeded time: the first of two gateways dies.
#define BOOST_TEST_MODULE resume
#include <boost/test/unit_test.hpp>

#include "services/controller/controller_core.hpp"
#include "tests/services/controller/fakes.hpp"
#include "tests/services/gateway/scripted_gateway.hpp"
#include "tests/support/world.hpp"

namespace parlando {
namespace {
using namespace controller::fakes;
using gateway::ScriptedClient;
using gateway::ScriptedGateway;
using gateway::Step;
namespace step = gateway::step;
using namespace std::chrono_literals;

struct Town {
  World w;
  std::shared_ptr<FakeStore> store = std::make_shared<FakeStore>();
  explicit Town(std::uint64_t seed) : w(seed) {
    w.add<FakeVad>("vad-1", "vad", "sim://vad");
    w.add<FakeTokenizer>("tokenizer-1", "tokenizer", "sim://tokenizer");
    w.add<FakeChat>("llm-chat-1", "llm-chat", "sim://llm-chat");
    w.add<FakeTts>("tts-1", "tts", "sim://tts");
    w.add<FakeContext>("context-1", "context", "sim://context", {}, store);
    const World::Endpoints calls{{"vad", {"sim://vad"}},
                                 {"tokenizer", {"sim://tokenizer"}},
                                 {"llm-chat", {"sim://llm-chat"}},
                                 {"tts", {"sim://tts"}},
                                 {"context", {"sim://context"}}};
    const World::Endpoints controllers{{"controller", {"sim://controller-1", "sim://controller-2"}}};
    controller::ControllerConfig config;
    config.tools = "demo";
    gateway::SessionsConfig sessions;
    sessions.tokens = gateway::SessionTokens("a key of tests");
    for (const std::string n : {"1", "2"}) {
      w.add<controller::ControllerCore>("controller-" + n, "controller", "sim://controller-" + n, calls, config);
      w.add<ScriptedGateway>("gateway-" + n, "gateway", "", controllers, seed + (n == "1" ? 100u : 200u), sessions);
    }
  }
  ScriptedGateway& gateway(const std::string& n) { return w.get<ScriptedGateway>("gateway-" + n); }
  bool ready() {
    const auto all = [&] {
      return w.core("controller-1").why_not_ready().empty() && w.core("controller-2").why_not_ready().empty() &&
             w.core("gateway-1").why_not_ready().empty() && w.core("gateway-2").why_not_ready().empty();
    };
    return w.run_until(all, 5000ms);
  }
};

std::string speech(int ms) {
  std::string out;
  for (int i = 0; i < ms * 16; ++i) {
    const int value = 1 + i * 31 % 1000;
    out += static_cast<char>(value & 255);
    out += static_cast<char>(value >> 8);
  }
  return out;
}

std::vector<Step> question() {
  return {step::open(R"({"seed":7})"), step::wait_for("opened"), step::audio(speech(200)), step::silence(300ms),
          step::wait_for("turn")};
}

/// The session of this client is opened by its name, and the question is said again.
std::vector<Step> question_again(const ScriptedClient& had) {
  auto script = question();
  const auto& opened = had.events[0];
  script[0] = step::open(nlohmann::json{{"session", opened["session"]}, {"token", opened["session_token"]}}.dump());
  return script;
}

/// What a client says that has this, less the last part of the sound.
Step resume(const ScriptedClient& had, std::size_t samples) {
  nlohmann::json message{{"type", "resume"}, {"turn", 1}, {"samples", samples}};
  message["session"] = had.events[0]["session"];
  message["token"] = had.events[0]["resume_token"];
  message["transcript_bytes"] = had.text("transcript").size();
  message["reply_bytes"] = had.text("text").size();
  message["tool_calls"] = 0;
  for (const auto& e : had.events)
    if (e["type"] == "text" && e["kind"] == "tool_call") message["tool_calls"] = message["tool_calls"].get<int>() + 1;
  return {Step::Kind::message, message.dump()};
}

struct Whole {
  std::string sound, transcript, reply;
  std::size_t calls = 0;
  double seconds = 0;
};

Whole whole(const ScriptedClient& first, std::size_t samples, const ScriptedClient& then) {
  Whole out{first.sound.substr(0, 2 * samples) + then.sound, first.text("transcript") + then.text("transcript"),
            first.text("text") + then.text("text"), 0, 0};
  for (const auto* client : {&first, &then})
    for (const auto& e : client->events) {
      if (e["type"] == "text" && e["kind"] == "tool_call") ++out.calls;
      if (e["type"] == "turn") out.seconds = e["audio_seconds"];
    }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_gateway_is_killed_at_any_moment_of_a_turn_and_the_client_goes_on_at_the_other) {
  Town calm(3);
  BOOST_REQUIRE(calm.ready());
  const auto id = calm.gateway("1").add(question());
  BOOST_REQUIRE(calm.w.run_until([&] { return calm.gateway("1").is_finished(); }, 10000ms));
  const auto want = whole(calm.gateway("1").client(id), calm.gateway("1").client(id).sound.size() / 2, {});
  BOOST_REQUIRE(want.sound.size() > 1000u);
  std::set<std::string> stages;
  for (int at = 300; at < 600; at += at < 380 ? 20 : 1) {
    BOOST_TEST_CONTEXT("killed " << at << " ms behind the opening") {
      Town town(3);
      BOOST_REQUIRE(town.ready());
      const auto first = town.gateway("1").add(question());
      BOOST_REQUIRE(town.w.run_until([&] { return town.gateway("1").client(first).count("opened") == 1; }, 5000ms));
      town.w.run(milliseconds(at));
      const auto had = town.gateway("1").client(first);
      if (had.count("turn") > 0) break;
      stages.insert(had.text("transcript").empty() ? "quiet" : had.sound.empty() ? "text" : "sound");
      town.w.kill("gateway-1");
      const auto samples = had.sound.size() / 2 * static_cast<std::size_t>(at % 5) / 4;
      town.w.run(milliseconds(at % 7 * 300));
      // The end of the utterance may not have been heard yet: the microphone goes on.
      const auto then = town.gateway("2").add(
          {resume(had, samples), step::wait_for("opened"), step::silence(300ms), step::wait_for("turn")});
      const bool finished = town.w.run_until([&] { return town.gateway("2").is_finished(); }, 15000ms);
      const auto& client = town.gateway("2").client(then);
      BOOST_REQUIRE_MESSAGE(finished, nlohmann::json(client.events).dump());
      BOOST_TEST(client.count("turn") == 1u);
      BOOST_TEST(client.count("error") == 0u);
      BOOST_TEST(client.events[0]["resumed"] == true);
      const auto got = whole(had, samples, client);
      BOOST_TEST((got.sound == want.sound));
      BOOST_TEST(got.transcript == want.transcript);
      BOOST_TEST(got.reply == want.reply);
      BOOST_TEST(got.calls == want.calls);
      BOOST_TEST(got.seconds * 22050 * 2 == static_cast<double>(got.sound.size()), boost::test_tools::tolerance(1e-9));
    }
  }
  BOOST_TEST(stages.size() == 3u);
}

/// Whenever it asks: before anybody has noticed, while controllers take the gateway for silent, and behind that.
BOOST_AUTO_TEST_CASE(a_client_is_back_within_two_seconds_of_the_death_of_its_gateway) {
  milliseconds slowest{0};
  for (int at = 0; at < 1600; at += 25) {
    BOOST_TEST_CONTEXT("asked " << at << " ms behind the death") {
      Town town(8);
      BOOST_REQUIRE(town.ready());
      const auto first = town.gateway("1").add({step::open(), step::wait_for("opened"), step::sleep(60s)});
      BOOST_REQUIRE(town.w.run_until([&] { return town.gateway("1").client(first).count("opened") == 1; }, 5000ms));
      const auto had = town.gateway("1").client(first);
      const auto died = town.w.now();
      town.w.kill("gateway-1");
      town.w.run(milliseconds(at));
      const auto then = town.gateway("2").add({resume(had, 0), step::wait_for("opened"), step::sleep(60s)});
      BOOST_REQUIRE(town.w.run_until([&] { return town.gateway("2").client(then).count("opened") == 1; }, 5000ms));
      slowest = std::max(slowest, std::chrono::ceil<milliseconds>(town.w.now() - died));
    }
  }
  BOOST_TEST(slowest <= 2000ms);
  BOOST_TEST_MESSAGE("at the latest after " << slowest.count() << " ms");
}

BOOST_AUTO_TEST_CASE(when_the_owner_dies_too_the_session_is_not_found) {
  Town town(4);
  BOOST_REQUIRE(town.ready());
  const auto first = town.gateway("1").add({step::open(), step::wait_for("opened"), step::sleep(60s)});
  BOOST_REQUIRE(town.w.run_until([&] { return town.gateway("1").client(first).count("opened") == 1; }, 5000ms));
  const auto had = town.gateway("1").client(first);
  town.w.kill("gateway-1");
  town.w.kill("controller-1");
  town.w.kill("controller-2");
  town.w.restart("controller-1");
  // A controller that is silent may have it, until it is given up.
  std::vector<std::string> codes;
  while (codes.size() < 12 && (codes.empty() || codes.back() == "unavailable")) {
    const auto then = town.gateway("2").add({resume(had, 0), step::wait_for("opened")});
    BOOST_REQUIRE(town.w.run_until([&] { return town.gateway("2").is_finished(); }, 20000ms));
    codes.push_back(town.gateway("2").client(then).events[0]["code"]);
  }
  BOOST_TEST(codes.front() == "unavailable");
  BOOST_TEST(codes.back() == "not_found");
}

/// The store was away when its turn was told: who opens it by its name finds that turn, wherever it waits.
BOOST_AUTO_TEST_CASE(a_turn_that_waits_for_the_store_outlives_an_opening_by_name) {
  Town town(6);
  BOOST_REQUIRE(town.ready());
  const auto talk = [&](std::vector<Step> script) {
    const auto id = town.gateway("1").add(std::move(script));
    BOOST_REQUIRE(town.w.run_until([&] { return town.gateway("1").client(id).is_finished(); }, 15000ms));
    return town.gateway("1").client(id);
  };
  auto script = question();
  script.push_back(step::leave());
  const auto first = talk(std::move(script));
  town.w.kill("controller-2");
  town.w.kill("controller-1");
  town.w.restart("controller-1");  // the next epoch is another owner's
  town.w.run(3000ms);
  town.store->fails = Errc::unavailable;
  const auto had = talk(question_again(first));
  BOOST_REQUIRE(had.events.back()["degraded"] == true);
  town.w.kill("gateway-1");
  town.w.run(3000ms);  // the controller has noticed
  const auto& then = town.gateway("2").client(town.gateway("2").add(question_again(had)));
  BOOST_REQUIRE(town.w.run_until([&] { return town.gateway("2").is_finished(); }, 15000ms));
  BOOST_TEST(then.count("error") == 0u);
  BOOST_TEST(then.events[0]["turns"] == 2);
  BOOST_TEST(then.events.back()["turn"] == 3);
  town.store->fails.reset();
  town.w.run(10'000ms);
  BOOST_TEST(town.store->sessions.begin()->second.turns.size() == 3u);
  BOOST_TEST(town.store->doubled == 0u);
}

/// Records name inputs and positions of former openings, of gateways whose clock was an hour ahead: what is said at
/// this one is heard nevertheless, and whoever has to go on with it answers nothing twice.
BOOST_AUTO_TEST_CASE(a_session_that_is_opened_by_its_name_is_heard_whatever_its_records_name) {
  std::size_t moved = 0;
  for (int at = 0; at < 640; at += 20) {
    BOOST_TEST_CONTEXT("a controller is killed " << at << " ms behind the opening") {
      Town town(5);
      BOOST_REQUIRE(town.ready());
      const auto talk = [&](const std::string& n, std::vector<Step> script) {
        script.push_back(step::leave());
        const auto id = town.gateway(n).add(std::move(script));
        BOOST_REQUIRE(town.w.run_until([&] { return town.gateway(n).client(id).is_finished(); }, 15000ms));
        return town.gateway(n).client(id);
      };
      const auto first = talk("1", question());
      const auto second = talk("1", question_again(first));
      BOOST_REQUIRE(second.count("turn") == 1u);
      BOOST_TEST(!second.events[0].contains("input_samples"));
      auto& stored = town.store->sessions.begin()->second.turns;
      BOOST_REQUIRE(stored.size() == 2u);
      constexpr std::int64_t kHour = 3'600'000;
      auto record = nlohmann::json::parse(stored[2]);
      for (auto& input : record["inputs"]) input = input.get<std::uint64_t>() + kHour * 1000;
      record["last_input"] = record["last_input"].get<std::uint64_t>() + kHour * 1000;
      record["sound_end"] = record["sound_end"].get<std::int64_t>() + kHour * 2048;
      stored[2] = record.dump();

      const auto id = town.gateway("2").add(question_again(first));
      const auto& third = town.gateway("2").client(id);
      BOOST_REQUIRE(town.w.run_until([&] { return third.count("opened") == 1; }, 5000ms));
      town.w.run(milliseconds(at));
      town.w.kill(at % 40 == 0 ? "controller-1" : "controller-2");
      BOOST_REQUIRE_MESSAGE(town.w.run_until([&] { return third.is_finished(); }, 15000ms),
                            nlohmann::json(third.events).dump());
      town.w.run(2000ms);
      BOOST_TEST(third.count("turn") == 1u);
      BOOST_TEST(third.count("error") == 0u);
      BOOST_TEST(third.text("transcript") == first.text("transcript"));
      BOOST_TEST(stored.size() == 3u);
      BOOST_TEST(town.store->doubled == 0u);
      for (const auto n : town.gateway("2").sessions().counters().handovers) moved += n;
    }
  }
  BOOST_TEST(moved > 8u);
}

}  // namespace parlando
