/// Settings, items, tools: what clients write on `/v1/dialogue` beside their speech, and what becomes of it.
#include <boost/test/unit_test.hpp>

#include "services/gateway/settings.hpp"
#include "tests/services/gateway/rig.hpp"

using namespace parlando;
using namespace parlando::gateway;
using nlohmann::json;

namespace {

constexpr const char* kOwner = "a";

/// A client whose session has an owner.
struct Talk : Rig {
  explicit Talk(const std::string& open_message = R"({"type":"open"})") {
    up(kOwner);
    open(kOwner, 1, 1, open_message);
  }
  void say(const json& message) { text(message.dump()); }
  template <class T>
  T only() const {
    const auto found = all<T>();
    BOOST_REQUIRE(found.size() == 1u);
    return std::get<T>(found[0].body);
  }
  const json& last_event() { return events[1].back(); }
  /// What is refused, and how it is said.
  void check_refused(const json& message, const std::string& sentence) {
    events[1].clear();
    sent.clear();
    say(message);
    BOOST_REQUIRE_MESSAGE(events[1].size() == 1u, message.dump());
    BOOST_TEST(last_event().value("message", "") == sentence);
    BOOST_TEST(sent.empty());
  }
};

/// What a list of settings leaves.
protocol::Settings settings_of(const json& message) {
  protocol::Settings out;
  const auto changes = read_settings(message, "open");
  BOOST_REQUIRE_MESSAGE(changes.has_value(), message.dump());
  BOOST_REQUIRE(protocol::apply(*changes, out).has_value());
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(conversation_test)

BOOST_AUTO_TEST_CASE(every_setting_arrives) {
  const auto s = settings_of({{"system", "be brief"},
                              {"speaker", "anna"},
                              {"speak", false},
                              {"detection",
                               {{"type", "semantic"},
                                {"eagerness", "high"},
                                {"threshold", 0.7},
                                {"prefix_ms", 250},
                                {"silence_ms", 400},
                                {"answers", false},
                                {"interrupts", false}}},
                              {"tools", {{{"name", "look_up"}, {"parameters", {{"type", "object"}}}}}},
                              {"tool_choice", "required"},
                              {"temperature", 0.25},
                              {"top_p", 0.9},
                              {"top_k", 40},
                              {"max_tokens", 99},
                              {"stop", {"END"}},
                              {"style", "happy"},
                              {"speed", 1.5},
                              {"volume", 0.5},
                              {"tokenizer", "exact"}});
  BOOST_TEST(s.system == "be brief");
  BOOST_TEST(s.speaker == "anna");
  BOOST_TEST(!s.speak);
  BOOST_TEST((s.detection == protocol::Detection::semantic));
  BOOST_TEST((s.eagerness == protocol::Eagerness::high));
  BOOST_TEST(s.threshold_permille == 700);
  BOOST_TEST(s.prefix_ms == 250);
  BOOST_TEST(s.silence_ms == 400);
  BOOST_TEST(!s.answers);
  BOOST_TEST(!s.interrupts);
  BOOST_TEST(json::parse(s.tools.text) == (json{{{"name", "look_up"}, {"parameters", {{"type", "object"}}}}}));
  BOOST_TEST(s.tool_choice == "required");
  BOOST_TEST(s.temperature_milli == 250);
  BOOST_TEST(s.top_p_milli == 900);
  BOOST_TEST(s.top_k == 40);
  BOOST_TEST(s.tokens_max == 99);
  BOOST_TEST(s.stop.text == R"(["END"])");
  BOOST_TEST(s.style == "happy");
  BOOST_TEST(s.speed_milli == 1500);
  BOOST_TEST(s.volume_milli == 500);
  BOOST_TEST(s.tokenizer_mode == "exact");
}

BOOST_AUTO_TEST_CASE(null_leaves_a_setting_to_the_engine) {
  const auto s = settings_of({{"temperature", nullptr}, {"tools", nullptr}, {"stop", nullptr}, {"speed", nullptr}});
  BOOST_TEST(s.temperature_milli == -1);
  BOOST_TEST(s.tools.text == "null");
  BOOST_TEST(s.stop.text == "null");
  BOOST_TEST(s.speed_milli == 1000);
}

BOOST_AUTO_TEST_CASE(a_wrong_setting_is_named_with_what_was_expected) {
  Talk talk;
  const auto refused = [&](const json& settings, const std::string& sentence) {
    auto message = settings;
    message["type"] = "configure";
    talk.check_refused(message, "configure: " + sentence);
  };
  refused({{"temperature", "hot"}}, "temperature is \"hot\", expected a number from 0 to 100");
  refused({{"temperature", 101}}, "temperature is 101, expected a number from 0 to 100");
  refused({{"top_k", 1.5}}, "top_k is 1.5, expected a whole number from 1 to 1000000");
  refused({{"speak", 1}}, "speak is 1, expected true or false");
  refused({{"detection", {{"type", "loud"}}}}, "detection.type is \"loud\", expected silence, semantic, none");
  refused({{"detection", {{"speed", 1}}}},
          "detection is {\"speed\":1}, expected the fields type, threshold, prefix_ms, silence_ms, eagerness, answers, "
          "interrupts");
  refused({{"stop", {""}}}, "stop is [\"\"], expected at most 4 texts of 1 to 200 bytes");
  refused({{"tools", {{{"name", "two words"}}}}},
          "tools has {\"name\":\"two words\"}, expected a name of 1 to 64 letters, digits, _ and -");
  refused({{"voice", "x"}}, "'voice' is unknown, expected a setting");
}

BOOST_AUTO_TEST_CASE(tools_beyond_any_message_are_refused) {
  Talk talk;
  json tools = json::array();
  for (int i = 0; i < 100; ++i) tools.push_back({{"name", "t"}, {"description", std::string(600, 'x')}});
  talk.say({{"type", "configure"}, {"tools", tools}});
  BOOST_TEST(talk.story() == "error:invalid_argument");
  BOOST_TEST(talk.sent.empty());
  std::string deep = R"({"type":"configure","tools":[{"name":"t","parameters":)";
  for (int i = 0; i < 25; ++i) deep += R"({"a":)";
  deep += "1" + std::string(25, '}') + "}]}";
  talk.text(deep);
  BOOST_TEST(talk.story() == "error:invalid_argument error:invalid_argument");
  BOOST_TEST(talk.sent.empty());
}

BOOST_AUTO_TEST_CASE(configure_changes_what_it_names_and_tells_all_of_it) {
  Talk talk(R"({"type":"open","system":"be brief","temperature":0.5})");
  BOOST_TEST(talk.open_of(kOwner).system == "be brief");
  BOOST_TEST(talk.open_of(kOwner).temperature_milli == 500);
  talk.say({{"type", "configure"}, {"temperature", 0.75}});
  talk.say({{"type", "configure"}, {"speak", false}});
  const auto told = talk.all<protocol::Configure>();
  BOOST_REQUIRE(told.size() == 2u);
  const auto& last = std::get<protocol::Configure>(told[1].body);
  BOOST_TEST(last.system == "be brief");
  BOOST_TEST(last.temperature_milli == 750);
  BOOST_TEST(!last.speak);
}

BOOST_AUTO_TEST_CASE(another_controller_is_told_the_settings_in_front_of_the_first_input_it_gets) {
  Talk talk(R"({"type":"open","system":"one"})");
  talk.say({{"type", "configure"}, {"system", "two"}});
  talk.say({{"type", "text"}, {"text", "hi"}});
  talk.say({{"type", "configure"}, {"system", "three"}});
  talk.up("b");
  talk.down(kOwner);
  BOOST_TEST(talk.open_of("b").system == "one");
  talk.opened("b", 2);
  BOOST_TEST(talk.all<protocol::Configure>("b").size() == 2u);
  talk.from("b", protocol::Checkpoint{2, 0}, 2);
  talk.up("c");
  talk.sent.clear();
  talk.down("b");
  BOOST_TEST(talk.open_of("c").system == "two");
  talk.opened("c", 3);
  BOOST_REQUIRE(talk.all<protocol::Configure>("c").size() == 1u);
  BOOST_TEST(talk.only<protocol::Configure>().system == "three");
}

BOOST_AUTO_TEST_CASE(what_is_written_becomes_inputs_in_order) {
  Talk talk;
  talk.say({{"type", "item"}, {"id", "i1"}, {"role", "user"}, {"text", "earlier"}});
  talk.say({{"type", "item"},
            {"role", "assistant"},
            {"calls", {{{"id", "c"}, {"name", "n"}, {"arguments", json::object()}}}}});
  talk.say({{"type", "item"}, {"role", "tool"}, {"text", "42"}, {"calls", "c"}});
  talk.say({{"type", "respond"}, {"remember", false}, {"system", "shout"}, {"max_tokens", 5}});
  talk.say({{"type", "tool_output"}, {"call", "c"}, {"output", "7"}});
  talk.say({{"type", "utter"}, {"text", "welcome"}});
  talk.say({{"type", "truncate"}, {"turn", 3}, {"samples", 22050}});
  talk.say({{"type", "forget"}, {"turn", 2}, {"part", "assistant"}});
  talk.say({{"type", "forget"}, {"item", "i1"}});
  BOOST_TEST(talk.story() == "");
  BOOST_TEST(talk.inputs(kOwner) == (std::vector<std::uint64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9}));
  const auto items = talk.all<protocol::Item>();
  BOOST_REQUIRE(items.size() == 3u);
  BOOST_TEST(std::get<protocol::Item>(items[0].body).id == "i1");
  BOOST_TEST((std::get<protocol::Item>(items[1].body).role == protocol::ItemRole::assistant));
  BOOST_TEST(std::get<protocol::Item>(items[2].body).calls.text == "\"c\"");
  const auto respond = talk.only<protocol::Respond>();
  BOOST_TEST(!respond.remember);
  BOOST_TEST(json::parse(respond.settings.text) == (json{{"system", "shout"}, {"tokens_max", 5}}));
  BOOST_TEST(talk.only<protocol::ToolOutput>().output == "7");
  BOOST_TEST(talk.only<protocol::Utter>().text == "welcome");
  BOOST_TEST(talk.only<protocol::Truncate>().samples == 22050);
  const auto forgotten = talk.all<protocol::Forget>();
  BOOST_REQUIRE(forgotten.size() == 2u);
  BOOST_TEST((std::get<protocol::Forget>(forgotten[0].body).part == protocol::TurnPart::assistant));
  BOOST_TEST(std::get<protocol::Forget>(forgotten[1].body).item == "i1");
}

BOOST_AUTO_TEST_CASE(what_is_written_wrongly_is_named) {
  Talk talk;
  talk.check_refused({{"type", "item"}, {"role", "god"}},
                     "item: role is \"god\", expected user, assistant, system, tool");
  talk.check_refused({{"type", "item"}, {"role", "user"}, {"calls", "c"}}, "item: calls is \"c\", expected none");
  talk.check_refused({{"type", "item"}, {"role", "tool"}, {"calls", {1}}},
                     "item: calls is [1], expected the id of the call that it answers");
  talk.check_refused({{"type", "forget"}}, "forget: either item or turn is expected");
  talk.check_refused({{"type", "utter"}, {"text", ""}}, "utter: text is empty");
  talk.check_refused({{"type", "truncate"}, {"turn", 1}, {"samples", -1}},
                     "truncate: samples is -1, expected a whole number from 0 to 2^53");
  talk.check_refused({{"type", "tool_output"}, {"call", "c"}, {"output", 7}},
                     "tool_output: output is 7, expected a text");
  talk.check_refused({{"type", "respond"}, {"loudly", true}},
                     "respond: 'loudly' is unknown, expected remember or a setting");
}

BOOST_AUTO_TEST_CASE(an_answer_that_was_asked_for_keeps_a_draining_controller_until_it_is_there) {
  Talk talk;
  talk.up("b");
  talk.say({{"type", "respond"}});
  talk.drains(kOwner);
  talk.tick(100);
  BOOST_TEST(talk.all<protocol::Open>("b").empty());
  talk.reply(kOwner, 1, 1, 0, "well");
  talk.done(kOwner, 1, 1);
  talk.tick(100);
  BOOST_TEST(talk.all<protocol::Open>("b").size() == 1u);
}

BOOST_AUTO_TEST_CASE(an_utterance_that_was_noted_is_told_once_and_leaves_no_turn) {
  Talk talk;
  talk.from(kOwner, protocol::SpeechStarted{100}, 1, 1);
  talk.from(kOwner, protocol::Text{protocol::TextKind::transcript, 0, "hello", {}}, 1, 1);
  BOOST_TEST(talk.last_event()["turn"] == 1);
  const protocol::Noted noted{"item_1_100", "hello", 100, 9000};
  talk.from(kOwner, noted, 1, 1);
  talk.from(kOwner, noted, 1, 1);
  BOOST_TEST(talk.story() == "speech_started text:hello noted");
  BOOST_TEST(
      talk.last_event() ==
      (json{{"type", "noted"}, {"id", "item_1_100"}, {"text", "hello"}, {"first_sample", 100}, {"end_sample", 9000}}));
  talk.up("b");
  talk.drains(kOwner);
  talk.tick(100);
  BOOST_TEST(talk.all<protocol::Open>("b").size() == 1u);
  BOOST_TEST(talk.open_of("b").open_turn.value == 0u);
}

BOOST_AUTO_TEST_CASE(calls_that_wait_and_errors_say_which_turn_they_are_of) {
  Talk talk;
  talk.reply(kOwner, 1, 4, 0, "let me see");
  talk.from(kOwner,
            protocol::Text{protocol::TextKind::tool_call, 0, R"({"id":"call_4_0","name":"n","arguments":{}})", {}}, 1,
            4);
  talk.from(kOwner, protocol::Waiting{{4}, 1}, 1, 4);
  BOOST_TEST(talk.last_event() == (json{{"type", "waiting"}, {"turn", 4}, {"calls", 1}}));
  talk.error(kOwner, "internal", 1, 4);
  BOOST_TEST(talk.last_event()["turn"] == 4);
}

BOOST_AUTO_TEST_CASE(what_is_not_stored_ends_with_its_controller) {
  Talk talk(R"({"type":"open","stored":false})");
  BOOST_TEST(!talk.open_of(kOwner).stored);
  talk.up("b");
  talk.suspect(kOwner);
  talk.tick(1000);
  BOOST_TEST(talk.story() == "");  // it may wake
  talk.down(kOwner);
  BOOST_TEST(talk.story() == "error:unavailable");
  BOOST_TEST(talk.last_event()["session_ended"] == true);
  BOOST_TEST(talk.all<protocol::Open>("b").empty());
}

BOOST_AUTO_TEST_CASE(an_input_that_names_nothing_is_refused_and_leaves_its_conversation_where_it_is) {
  Talk talk(R"({"type":"open","stored":false})");
  talk.up("b");
  talk.text(R"({"type":"truncate","turn":9,"samples":0})");
  talk.from(kOwner, protocol::ErrorMessage{"not_found", "there is no turn 9", 0, {"[1]"}}, 1);
  BOOST_TEST(talk.story() == "error:not_found");
  BOOST_TEST(!talk.last_event().contains("session_ended"));
  BOOST_TEST(talk.all<protocol::Open>("b").empty());
  // Without an input it is the conversation that is not there.
  talk.from(kOwner, protocol::ErrorMessage{"not_found", "the session is not open here", 0}, 1);
  BOOST_TEST(talk.last_event()["session_ended"] == true);
}

BOOST_AUTO_TEST_SUITE_END()
