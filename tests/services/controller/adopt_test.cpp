/// A controller that goes on where another one was lost: what is answered stays answered, what was decided is not found
/// out anew, and a session can be erased whoever leads it.
#include <filesystem>
#include <fstream>

#include "services/controller/journal.hpp"
#include "tests/services/controller/talk.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::controller {
namespace {

using Prepare = std::function<void(FakeGateway&)>;

struct Pair : Talk {
  explicit Pair(const Prepare& prepare = [](FakeGateway&) {}) : Talk(talking(0), false, 1, prepare) {
    rig.add("controller-2", "controller");
    chat().calls_tool = false;
    rig.swallow = [this](const std::string& from, const std::string& to, const Message&) {
      return cut && from == "controller-1" && to == "gateway-1";
    };
  }
  bool cut = false;  ///< the gateway hears nothing of the first controller
  void hand_over() {
    rig.kill("controller-1");
    cut = false;
    g().open("controller-2");
  }
  bool wait(const std::function<bool()>& done, int limit = 400) { return rig.run_until(done, limit); }
  std::map<std::int64_t, std::string>& stored() { return rig.store->sessions[kSession].turns; }
};

constexpr int kFlood = 2500;  // of inputs; 19'000 would have been more than a message holds

/// A tool server that keeps what it was asked.
class Asked final : public ToolServer {
 public:
  bool ask(Ask ask) override {
    asked.push_back(std::move(ask));
    return true;
  }
  void forget(SessionId, const std::string& id) override { forgotten.push_back(id); }
  std::vector<Answer> take() override { return {}; }
  std::vector<Ask> asked;
  std::vector<std::string> forgotten;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(adopt)

/// The answer was stored and the client was told nothing of it: it is told, and not made once more.
BOOST_AUTO_TEST_CASE(a_question_that_was_answered_unheard_is_told_and_not_answered_twice) {
  for (const int kind : {0, 1, 2}) {
    BOOST_TEST_CONTEXT("kind " << kind) {
      Pair t;
      t.cut = true;
      if (kind == 0) t.g().say(Say{"one"});
      if (kind == 1) t.g().say(Respond{});
      if (kind == 2) t.g().say(Utter{"Given."});
      BOOST_REQUIRE(t.wait([&] { return t.stored().size() == 1; }));
      t.rig.run(20);
      BOOST_TEST(t.g().turns.empty());
      t.hand_over();
      BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 1; }));
      BOOST_TEST(!t.g().audio.empty());
      t.rig.run(100);
      BOOST_TEST(t.g().turns.size() == 1u);
      BOOST_TEST(t.stored().size() == 1u);
      BOOST_TEST(t.g().open_questions().empty());
      BOOST_TEST(t.g().kept() == 0u);
      t.check_calm();
    }
  }
}

BOOST_AUTO_TEST_CASE(several_answers_that_nobody_was_told_of_are_told_one_after_the_other) {
  Pair t;
  t.cut = true;
  t.g().say(Utter{"First."});
  BOOST_REQUIRE(t.wait([&] { return t.stored().size() == 1; }));
  t.rig.run(5);
  t.g().say(Utter{"Second."});
  BOOST_REQUIRE(t.wait([&] { return t.stored().size() == 2; }));
  t.hand_over();
  BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 2; }));
  BOOST_TEST(t.g().turns[0]["assistant"] == "First.");
  BOOST_TEST(t.g().turns[1]["assistant"] == "Second.");
  t.rig.run(100);
  BOOST_TEST(t.stored().size() == 2u);
  t.check_calm();
}

/// However little of the past the model is told.
BOOST_AUTO_TEST_CASE(many_answers_that_nobody_was_told_of_are_told_when_the_past_is_short) {
  constexpr std::size_t kMany = 16;
  Pair t;
  t.rig.config.history_turns = 1;
  t.rig.add("controller-2", "controller");
  t.cut = true;
  for (std::size_t i = 1; i <= kMany; ++i) {
    t.g().say(Utter{fmt::format("Given {}.", i)});
    BOOST_REQUIRE(t.wait([&] { return t.stored().size() == i; }));
    t.rig.run(5);
  }
  t.hand_over();
  BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == kMany; }, 2000));
  BOOST_TEST(t.g().turns[0]["assistant"] == "Given 1.");
  t.rig.run(100);
  BOOST_TEST(t.stored().size() == kMany);
  BOOST_TEST(t.g().open_questions().empty());
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(what_was_refused_is_not_done_by_the_next_owner) {
  Pair t;
  t.chat().sentences = 20;
  t.g().say(Say{"one"});
  t.rig.run(10);
  t.g().say(Say{"refused"});
  t.rig.run(4);
  BOOST_REQUIRE(t.g().count(MessageType::error) == 1u);
  t.hand_over();
  BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 1; }));
  t.rig.run(200);
  BOOST_TEST(t.g().turns.size() == 1u);
  BOOST_TEST(t.stored().size() == 1u);
  BOOST_TEST(t.g().turns[0]["user"] == "one");
  t.check_calm();
}

/// It is told under whose number, and what was told before counts for it: whoever speaks first.
BOOST_AUTO_TEST_CASE(a_turn_under_way_is_what_it_was_decided_to_be) {
  for (int at = 1; at < 60; at += 3) {
    BOOST_TEST_CONTEXT("dies " << at << " steps behind the wish") {
      Pair t;
      t.chat().sentences = 10;
      t.say(5, false);
      t.say(kSpeech, true);
      t.g().say(Respond{});
      t.say(at, at < 10);
      t.hand_over();
      BOOST_REQUIRE(t.answered(2));
      BOOST_TEST(t.g().turns[0]["responds"] == true);
      BOOST_TEST(t.g().turns[1]["user"].get<std::string>().starts_with("heard "));
      BOOST_TEST(t.stored().size() == 2u);
      BOOST_TEST(t.g().count(MessageType::error) == 0u);
      t.check_calm();
    }
  }
}

/// The speech that nobody has noticed yet when the former turn ends is not lost with its controller.
BOOST_AUTO_TEST_CASE(an_utterance_that_had_just_begun_keeps_its_beginning) {
  std::string want;
  for (int at = -1; at < 12; ++at) {
    BOOST_TEST_CONTEXT("dies at frame " << at) {
      Pair t;
      t.chat().sentences = 0;
      t.g().speak = false;
      t.g().open("controller-1");
      t.rig.run(8);
      t.say(5, false);
      t.say(kSpeech, true);
      BOOST_REQUIRE(t.answered(1));
      const auto from = t.g().count(MessageType::turn_done);
      for (int frame = 0; frame < 12; ++frame) {
        if (frame == at) t.hand_over();
        t.say(1, true);
      }
      BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::turn_done) == from + 1; }));
      if (at < 0) want = t.record(2);
      BOOST_TEST(t.record(2) == want);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_change_behind_the_beginning_of_an_utterance_is_for_the_next_one_whoever_hears_it) {
  Pair t;
  t.say(5, false);
  t.say(kSpeech, true);
  Configure c;
  c.answers = false;
  t.g().say(c);
  t.say(2, true);
  t.hand_over();
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.g().noted.empty());
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().noted.size() == 1; }));
}

/// The store has not got the turn before, which was told: the one under way begins again under the number that is free.
BOOST_AUTO_TEST_CASE(a_turn_behind_one_that_is_lost_begins_again) {
  Pair t;
  t.rig.store->fails = Errc::io;
  t.g().say(Utter{"Lost."});
  BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 1; }));
  BOOST_TEST(t.g().degraded[0]);
  t.chat().sentences = 20;
  t.g().say(Say{"two"});
  BOOST_REQUIRE(t.wait([&] { return !t.g().reply.empty(); }));
  t.rig.store->fails.reset();
  t.hand_over();
  BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 2; }));
  BOOST_TEST(t.g().turns[1]["turn"] == 1);
  BOOST_TEST(t.g().turns[1]["user"] == "two");
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(items_wait_in_the_order_in_which_they_came) {
  Items items;
  BOOST_REQUIRE(items.add({"a", ItemRole::user, "a", {}}, 9).has_value());
  BOOST_REQUIRE(items.add({"b", ItemRole::user, "b", {}}, 4).has_value());
  BOOST_TEST(items.first_input() == 4u);
  auto taken = items.take_before(9);
  BOOST_REQUIRE(taken.size() == 1u);
  BOOST_REQUIRE(items.add({"c", ItemRole::user, "c", {}}, 3).has_value());
  items.give_back(std::move(taken));
  BOOST_TEST(items.first_input() == 3u);
  taken = items.take_before(100);
  BOOST_REQUIRE(taken.size() == 3u);
  BOOST_TEST(taken[0].input == 3u);
  BOOST_TEST(taken[2].input == 9u);
}

/// The client knows a turn, which came to nothing unheard; what stood in front of it was stored under its number.
BOOST_AUTO_TEST_CASE(a_turn_whose_number_a_record_of_items_has_is_over_for_its_client) {
  Pair t;
  t.g().say(Item{"a", ItemRole::user, "aside", {}});
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_started) == 1; }));
  t.cut = true;
  t.g().say(Cancel{});
  BOOST_REQUIRE(t.until([&] { return t.stored().size() == 1; }));
  BOOST_TEST(json::parse(t.stored().at(1)).contains("items_only"));
  t.hand_over();
  BOOST_REQUIRE(t.until([&] { return t.g().open_questions().empty(); }));
  const auto of_first = [](const auto& e) { return e.type == MessageType::cancelled && e.turn == 1; };
  BOOST_TEST(std::count_if(t.g().events.begin(), t.g().events.end(), of_first) == 1);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.g().turns[0]["turn"] == 2);
  t.check_calm();
}

/// The store will not have a record of items while a turn is under way: neither is lost.
BOOST_AUTO_TEST_CASE(items_that_the_store_refuses_under_a_turn_wait_on) {
  Pair t;
  t.g().say(Item{"w", ItemRole::user, "wait", {}});
  t.rig.store->fails = Errc::invalid_argument;
  // The record is on its way when the question comes.
  BOOST_REQUIRE(t.until([&] {
    return !t.rig.sent.empty() && std::any_of(t.rig.sent.begin(), t.rig.sent.end(),
                                              [](const auto& s) { return s.second.type == MessageType::commit; });
  }));
  t.g().say(Say{"two"});
  BOOST_REQUIRE(t.until([&] { return t.rig.store->commits > 0; }));
  t.rig.store->fails.reset();
  BOOST_REQUIRE(t.until([&] { return t.g().turns.size() == 1; }));
  BOOST_REQUIRE(t.until([&] {
    for (const auto& [turn, text] : t.stored())
      if (text.find("\"wait\"") != std::string::npos) return true;
    return false;
  }));
  BOOST_TEST(t.g().count(MessageType::error) == 0u);
}

/// The turn behind the record of items is on its way to the store when that is refused for good: it follows all the
/// same, and the items wait on.
BOOST_AUTO_TEST_CASE(items_that_the_store_refuses_in_front_of_a_turn_do_not_take_it_with_them) {
  Pair t;
  t.g().speak = false;
  t.g().open("controller-1");
  t.rig.run(8);
  t.chat().sentences = 0;
  t.g().say(Item{"w", ItemRole::user, "wait", {}});
  BOOST_REQUIRE(t.until([&] {
    return std::any_of(t.rig.sent.begin(), t.rig.sent.end(),
                       [](const auto& s) { return s.second.type == MessageType::commit; });
  }));
  t.rig.suspend("context-1");
  t.g().say(Say{"two"});
  BOOST_REQUIRE(
      t.wait([&] { return t.rig.controller("controller-1").turn_of(kSession)->stage == Turn::Stage::closing; }, 12));
  t.rig.store->fails = Errc::invalid_argument;
  t.rig.wake("context-1");
  BOOST_REQUIRE(t.wait([&] { return t.rig.store->commits > 0; }, 5));
  t.rig.store->fails.reset();
  BOOST_REQUIRE(t.until([&] { return t.g().turns.size() == 1; }));
  BOOST_REQUIRE(t.until([&] { return t.stored().size() == 3; }));
  BOOST_TEST(json::parse(t.stored()[2])["user"] == "two");
  BOOST_TEST(t.stored()[3].find("\"wait\"") != std::string::npos);
  BOOST_TEST(t.g().count(MessageType::error) == 0u);
  BOOST_TEST(t.rig.store->doubled == 0u);
}

/// The store has not got the turn yet, and the client was not told of it, when its gateway opens the session anew at
/// the same controller: it is told, and not made once more.
BOOST_AUTO_TEST_CASE(a_turn_that_waits_here_is_told_and_not_answered_twice_when_its_gateway_comes_back) {
  for (const bool spoken : {false, true}) {
    BOOST_TEST_CONTEXT("spoken " << spoken) {
      Pair t;
      t.chat().sentences = 0;
      t.rig.store->fails = Errc::io;
      t.cut = true;
      if (spoken) {
        t.say(5, false);
        t.say(kSpeech, true);
        t.say(kSilence, false);
      } else {
        t.g().say(Say{"one"});
      }
      BOOST_REQUIRE(t.wait([&] { return t.rig.store->commits > 0; }));
      t.rig.run(10);
      BOOST_TEST(t.g().turns.empty());
      t.cut = false;
      t.g().open("controller-1");
      BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 1; }));
      t.rig.store->fails.reset();
      t.rig.run(400);
      BOOST_TEST(t.g().turns.size() == 1u);
      BOOST_TEST(t.stored().size() == 1u);
      BOOST_TEST(t.g().open_questions().empty());
      t.check_calm();
    }
  }
}

/// The client's flush over the first of two answers that are told again ends what it said, behind the second.
BOOST_AUTO_TEST_CASE(a_flush_over_turns_that_are_told_again_ends_what_was_said_behind_them) {
  for (const bool speak : {false, true}) {
    BOOST_TEST_CONTEXT("speak " << speak) {
      Pair t([speak](FakeGateway& g) { g.speak = speak; });
      t.cut = true;
      t.g().say(Utter{"First."});
      BOOST_REQUIRE(t.wait([&] { return t.stored().size() == 1; }));
      t.rig.run(5);
      t.g().say(Utter{"Second."});
      BOOST_REQUIRE(t.wait([&] { return t.stored().size() == 2; }));
      t.rig.kill("controller-1");
      for (int i = 0; i < 30; ++i) t.g().say(t.microphone.frame(i >= 5));
      t.g().say(Flush{t.microphone.at});
      t.cut = false;
      t.g().open("controller-2");  // and the microphone is off
      BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 3; }));
      BOOST_TEST(t.g().turns[2]["user"].get<std::string>().starts_with("heard "));
      BOOST_TEST(t.g().open_questions().empty());
      BOOST_TEST(t.stored().size() == 3u);
      t.check_calm();
    }
  }
}

/// One message names what a turn has settled, and has a limit: more flushes than it may name are refused.
BOOST_AUTO_TEST_CASE(a_flood_of_flushes_does_not_keep_a_turn_from_its_end) {
  for (const int kind : {0, 1, 2}) {
    BOOST_TEST_CONTEXT("kind " << kind) {
      Pair t([](FakeGateway& g) { g.settings.tools = {R"([{"name":"look"}])"}; });
      t.chat().calls_tool = true;
      t.chat().rounds = {{"look"}};
      t.g().say(Say{"go"});
      BOOST_REQUIRE(t.wait([&] { return t.g().waiting.has_value(); }));
      if (kind == 1) t.say(2, false);  // there is sound that a flush may end
      for (int i = 0; i < kFlood; ++i) {
        if (kind == 2 && i % 4 == 0) t.g().say(t.microphone.frame(false));
        t.g().say(Flush{kind == 0 ? -1 : t.microphone.at});
        if (i % 500 == 0) t.rig.step();
      }
      t.g().say(ToolOutput{t.g().calls[0]["id"], "fine"});
      BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 1; }));
      BOOST_TEST(t.g().count(MessageType::error) >= kFlood - 1024u);
      BOOST_TEST(t.g().last_error()->text == "overloaded");
      t.rig.run(20);
      BOOST_TEST(json::parse(t.stored()[1])["inputs"].size() <= 1026u);
      t.check_calm();
    }
  }
}

/// Cancels of a turn that is as good as stored, too.
BOOST_AUTO_TEST_CASE(a_flood_of_cancels_does_not_keep_a_turn_from_its_end) {
  Pair t;
  t.chat().sentences = 0;
  t.g().speak = false;
  t.g().open("controller-1");
  t.rig.run(8);
  t.rig.suspend("context-1");
  t.g().say(Say{"go"});
  BOOST_REQUIRE(
      t.wait([&] { return t.rig.controller("controller-1").turn_of(kSession)->stage == Turn::Stage::closing; }));
  for (int i = 0; i < kFlood; ++i) t.g().say(Cancel{});
  t.rig.run(2);
  t.rig.wake("context-1");
  BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 1; }));
  t.rig.run(5);
  BOOST_TEST(t.g().count(MessageType::cancelled) >= 1u);
  BOOST_TEST(t.g().open_questions().empty());
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(a_gateway_that_cannot_be_told_what_follows_is_told_that_the_session_is_not_here) {
  Pair t;
  t.g().say(Say{"go"});
  t.rig.run(3);
  auto head = t.last_to("gateway-1");
  head.stream = t.g().stream();
  t.rig.controller("controller-1").on_refused("gateway-1", head, {Errc::invalid_argument, "too large"}, t.rig.now);
  BOOST_TEST(t.rig.controller("controller-1").load() == 0);
  BOOST_REQUIRE(t.wait([&] { return t.g().last_error() != nullptr; }, 5));
  BOOST_TEST(t.g().last_error()->text == "stale_epoch");
  BOOST_TEST(t.rig.streams_at_services() == 0u);
  // Another one goes on with it.
  t.g().open("controller-2");
  BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 1; }));
}

BOOST_AUTO_TEST_CASE(a_journal_that_cannot_be_written_is_tried_again_once_a_second) {
  TemporaryDirectory folder;
  const auto place = folder.path() / "place";
  std::ofstream(place).put('x');  // where a folder is to be
  ControllerConfig config;
  config.commit_queue_file = (place / "waiting").string();
  ControllerCore core(config);
  const Time begin{std::chrono::hours(1)};
  core.on_tick(begin);
  std::filesystem::remove(place);
  std::filesystem::create_directory(place);
  std::ofstream(place / "waiting").put('x');
  const auto size = [&] { return std::filesystem::file_size(place / "waiting"); };
  core.on_tick(begin + milliseconds(980));
  BOOST_TEST(size() == 1u);
  core.on_tick(begin + milliseconds(1000));
  BOOST_TEST(size() == 0u);
}

/// Lines of a journal are in the order in which they were written, which is not always that of the turns.
BOOST_AUTO_TEST_CASE(turns_of_a_former_process_are_written_in_their_order) {
  Rig rig;
  rig.add("context-1", "context");
  TemporaryDirectory folder;
  rig.config.commit_queue_file = (folder.path() / "waiting").string();
  rig.store->sessions[kSession].epoch = 3;
  {
    Journal journal(rig.config.commit_queue_file);
    for (const std::int64_t turn : {2, 1, 3})
      BOOST_REQUIRE(journal.append({kSession, {3}, turn, json{{"user", turn}}.dump()}).has_value());
  }
  auto core = ControllerCore::make(rig.config);
  BOOST_REQUIRE(core.has_value());
  rig.add_core("controller-1", "controller", *std::move(core));
  BOOST_REQUIRE(rig.run_until([&] { return rig.store->sessions[kSession].turns.size() == 3; }, 100));
  BOOST_TEST(rig.store->sessions[kSession].turns[1] == R"({"user":1})");
}

BOOST_AUTO_TEST_CASE(a_tool_server_is_told_of_calls_that_nobody_waits_for) {
  Rig rig;
  for (const auto& role : kServiceRoles) rig.add(role + "-1", role);
  auto server = std::make_unique<Asked>();
  auto& tools = *server;
  rig.config.tool_seconds_max = 2;
  rig.add_core("controller-1", "controller",
               std::make_unique<ControllerCore>(rig.config, Personas{}, std::move(server)));
  rig.add("gateway-1", "gateway");
  rig.gateway().open("controller-1");
  rig.run(8);
  rig.get<FakeChat>("llm-chat-1").rounds = {{"weather"}};
  rig.gateway().say(Say{"go"});
  BOOST_REQUIRE(rig.run_until([&] { return tools.asked.size() == 1; }));
  BOOST_TEST((tools.asked[0].budget == std::chrono::seconds(2)));
  rig.gateway().say(Cancel{});
  BOOST_REQUIRE(rig.run_until([&] { return tools.forgotten.size() == 1; }, 10));
  BOOST_TEST(tools.forgotten[0] == tools.asked[0].id);
  rig.gateway().say(Say{"again"});
  BOOST_REQUIRE(rig.run_until([&] { return tools.forgotten.size() == 2; }));
  BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  BOOST_TEST(rig.gateway().turns[0]["tool_calls"][0]["result"]["error"] == "weather has given no answer in 2 s");
}

BOOST_AUTO_TEST_CASE(a_journal_keeps_what_waits_and_lets_the_rest_go) {
  TemporaryDirectory folder;
  const auto file = (folder.path() / "waiting").string();
  Journal journal(file);
  JournalEntry entry{kSession, {3}, 1, R"({"user":"x"})"};
  for (int i = 0; i < 100; ++i, ++entry.turn) BOOST_REQUIRE(journal.append(entry).has_value());
  BOOST_TEST(journal.is_long(1));
  BOOST_TEST(!journal.is_long(60));
  BOOST_REQUIRE(journal.keep({entry}).has_value());
  BOOST_TEST(!journal.is_long(1));
  Journal next(file);
  const auto loaded = next.load();
  BOOST_REQUIRE(loaded.has_value());
  BOOST_REQUIRE(loaded->size() == 1u);
  BOOST_TEST(loaded->front().turn == 101);
}

// ------------------------------------------------------------------------------------------------ erasing

/// A gateway that asks for nothing else.
class Asker final : public Core {
 public:
  void ask(const std::string& controller, SessionId session) {
    Envelope head;
    head.session = session;
    head.stream = {++streams};
    send(controller, head, Erase{});
  }
  void on_message(const std::string&, Message m, Time) override {
    if (m.head.type == MessageType::erased) turns = read<Erased>(m)->turns;
    if (m.head.type == MessageType::error) error = read<ErrorMessage>(m)->code;
  }
  std::uint32_t streams = 0;
  std::optional<std::int64_t> turns;
  std::string error;
};

BOOST_AUTO_TEST_CASE(a_session_is_erased_by_any_controller_and_its_owner_stops) {
  for (const auto* at : {"controller-1", "controller-2"}) {
    BOOST_TEST_CONTEXT(at) {
      Pair t;
      t.g().say(Say{"secret"});
      BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 1; }));
      auto& asker = static_cast<Asker&>(t.rig.add_core("gateway-2", "gateway", std::make_unique<Asker>()));
      asker.ask(at, kSession);
      BOOST_REQUIRE(t.wait([&] { return asker.turns.has_value(); }, 20));
      BOOST_TEST(*asker.turns == 1);
      BOOST_TEST(t.stored().empty());
      t.g().say(Say{"more"});
      BOOST_REQUIRE(t.wait([&] { return t.g().last_error() != nullptr; }));
      BOOST_TEST(t.g().last_error()->text == "stale_epoch");
      t.rig.run(20);
      BOOST_TEST(t.stored().empty());
      // It is not there any more, for whoever asks.
      asker.turns.reset();
      asker.ask("controller-2", kSession);
      BOOST_REQUIRE(t.wait([&] { return !asker.error.empty(); }, 20));
      BOOST_TEST(asker.error == "not_found");
    }
  }
}

BOOST_AUTO_TEST_CASE(what_was_never_stored_cannot_be_erased_and_leaves_nothing) {
  Pair t;
  auto& asker = static_cast<Asker&>(t.rig.add_core("gateway-2", "gateway", std::make_unique<Asker>()));
  asker.ask("controller-1", {1, 2});
  BOOST_REQUIRE(t.wait([&] { return !asker.error.empty(); }, 20));
  BOOST_TEST(asker.error == "not_found");
  BOOST_TEST((t.rig.store->sessions[{1, 2}].epoch == 0u));
}

BOOST_AUTO_TEST_CASE(erasing_ends_when_the_store_is_away) {
  Pair t;
  t.g().say(Say{"secret"});
  BOOST_REQUIRE(t.wait([&] { return t.g().turns.size() == 1; }));
  auto& asker = static_cast<Asker&>(t.rig.add_core("gateway-2", "gateway", std::make_unique<Asker>()));
  t.rig.kill("context-1");
  asker.ask("controller-1", kSession);
  BOOST_REQUIRE(t.wait([&] { return !asker.error.empty(); }, 700));
  BOOST_TEST(asker.error == "unavailable");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
