/// Old turns that become a summary: made while nobody waits, told by every owner in the same words, and without effect
/// when it cannot be made.
#include "services/controller/past.hpp"
#include "tests/services/controller/talk.hpp"

namespace parlando::controller {
namespace {

ControllerConfig summarising(int turns = 4) {
  auto config = talking(0);
  config.tools = "none";
  config.summary = "model";
  config.history_turns = turns;
  return config;
}

struct Remembering : Talk {
  explicit Remembering(ControllerConfig config = summarising()) : Talk(std::move(config)) {
    chat().calls_tool = false;
    chat().sentences = 0;
    g().speak = false;
  }
  void ask(const std::string& text) {
    const auto before = g().turns.size();
    g().say(Say{text});
    BOOST_REQUIRE(rig.run_until([&] { return g().turns.size() == before + 1; }, 200));
  }
  json stored(std::int64_t turn) { return json::parse(rig.store->sessions[kSession].turns.at(turn)); }
  json told() { return json::parse(chat().last_past); }
  /// What the chat is told when a question is put to it now.
  json told_by(const std::string& question) {
    ask(question);
    return told();
  }
};

Past turn_of(std::int64_t turn, const std::string& user, json more = json::object()) {
  json record{{"user", user}, {"assistant", "yes"}};
  record.update(more);
  return {turn, record};
}

std::deque<Past> turns_of(int count, std::size_t bytes = 7) {
  std::deque<Past> out;
  for (int i = 1; i <= count; ++i) out.push_back(turn_of(i, std::string(bytes, 'x')));
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(summary)

BOOST_AUTO_TEST_CASE(nothing_is_due_before_the_past_is_nearly_full_and_then_what_goes_next) {
  BOOST_TEST(!to_summarise({}, 10, 1000).has_value());
  BOOST_TEST(!to_summarise(turns_of(8), 10, 1000).has_value());
  const auto by_turns = to_summarise(turns_of(9), 10, 1000);
  BOOST_REQUIRE(by_turns.has_value());
  BOOST_TEST(by_turns->until == 3);  // six of ten are left
  BOOST_TEST(by_turns->text ==
             "user: xxxxxxx\nassistant: yes\nuser: xxxxxxx\nassistant: yes\nuser: xxxxxxx\nassistant: yes\n");
  // 3 bytes of answer each.
  BOOST_TEST(!to_summarise(turns_of(5, 175), 100, 1000).has_value());
  BOOST_TEST(to_summarise(turns_of(5, 177), 100, 1000)->until == 2);
  // The latest is told whatever it takes.
  BOOST_TEST(!to_summarise(turns_of(1, 950), 10, 1000).has_value());
  BOOST_TEST(to_summarise(turns_of(2, 480), 10, 1000)->until == 1);
}

/// Also one that was told of the session for a summary alone.
BOOST_AUTO_TEST_CASE(all_chats_are_told_when_a_session_is_over) {
  Remembering t;
  for (const auto* question : {"one", "two", "three"}) t.ask(question);
  t.g().say(Say{"four"});
  BOOST_REQUIRE(t.rig.run_until([&] { return t.chat().streams() == 1; }, 20));
  auto& other = static_cast<FakeChat&>(t.rig.add("llm-chat-2", "llm-chat"));
  t.rig.describe("llm-chat-1", true, true, 8);
  BOOST_REQUIRE(t.rig.run_until([&] { return !other.asked_to_summarise.empty(); }, 200));
  BOOST_TEST(t.chat().asked_to_summarise.empty());
  t.g().close();
  t.rig.run(5);
  BOOST_TEST(t.chat().over.size() == 1u);
  BOOST_TEST(other.over.size() == 1u);
}

BOOST_AUTO_TEST_CASE(a_summary_takes_the_place_of_its_turns) {
  auto history = turns_of(9);
  write_summary(history.back().record, {3, "short"});
  BOOST_TEST(summary_of(history)->until == 3);
  BOOST_TEST(first_told(history, 1000) == 4);
  auto told = messages_of(history, first_told(history, 1000));
  BOOST_TEST(told.size() == 13u);
  BOOST_TEST(told[0]["role"] == "system");
  BOOST_TEST(told[0]["content"] == "What was said before, in short:\nshort");
  // Only the latest record counts, and the next summary is made of this one and what follows.
  history.push_back(turn_of(10, "last"));
  BOOST_TEST(!summary_of(history).has_value());
  write_summary(history.back().record, {3, "short"});
  for (int i = 11; i <= 12; ++i) {
    history.push_back(turn_of(i, "more"));
    write_summary(history.back().record, {3, "short"});
  }
  const auto next = to_summarise(history, 10, 1000);
  BOOST_REQUIRE(next.has_value());
  BOOST_TEST(next->until == 6);
  BOOST_TEST(next->text.starts_with("short\nuser: xxxxxxx\n"));
  BOOST_TEST(std::count(next->text.begin(), next->text.end(), '\n') == 7);
}

BOOST_AUTO_TEST_CASE(what_a_summary_takes_counts_and_what_has_fallen_out_without_one_is_still_taken_up) {
  auto history = turns_of(4, 97);
  write_summary(history.back().record, {1, std::string(700, 's')});
  BOOST_TEST(first_told(history, 1000) == 2);
  BOOST_TEST(first_told(history, 999) == 5);  // 796 at most: behind the summary there is room for none
  history = turns_of(5);
  history.back().record["history_from"] = 4;
  const auto due = to_summarise(history, 100, 1000);
  BOOST_REQUIRE(due.has_value());
  BOOST_TEST(due->until == 3);
}

BOOST_AUTO_TEST_CASE(a_correction_of_what_was_summarised_ends_the_summary) {
  const auto with = [](json change) {
    auto history = turns_of(6);
    history[1].record["before"] = json::array({{{"id", "old"}, {"role", "user"}, {"text", "x"}}});
    history[4].record["before"] = json::array({{{"id", "new"}, {"role", "user"}, {"text", "x"}}});
    write_summary(history.back().record, {3, "short"});
    if (change.contains("heard"))
      apply_cut(history, change);
    else
      apply_forget(history, change);
    return summary_of(history).has_value();
  };
  BOOST_TEST(!with({{"turn", 3}, {"part", "user"}}));
  BOOST_TEST(with({{"turn", 4}, {"part", "user"}}));
  BOOST_TEST(!with({{"turn", 2}, {"heard", "y"}}));
  BOOST_TEST(with({{"turn", 5}, {"heard", "y"}}));
  BOOST_TEST(!with({{"item", "old"}}));
  BOOST_TEST(with({{"item", "new"}}));
  BOOST_TEST(!with({{"item", "unheard of"}}));
  // A record's own summary was made with what it corrects.
  auto history = turns_of(6);
  history.back().record["forgot"] = json::array({{{"turn", 2}, {"part", "all"}}});
  write_summary(history.back().record, {3, "short"});
  apply_corrections(history);
  BOOST_TEST(summary_of(history).has_value());
}

BOOST_AUTO_TEST_CASE(old_turns_are_summarised_while_nobody_waits_and_told_so_from_the_next_record_on) {
  Remembering t;
  for (int i = 1; i <= 3; ++i) t.ask(fmt::format("question {}", i));
  BOOST_TEST(t.chat().asked_to_summarise.empty());
  t.ask("question 4");
  BOOST_REQUIRE(t.rig.run_until([&] { return t.chat().asked_to_summarise.size() == 1; }, 20));
  t.rig.run(10);
  const auto asked = t.chat().asked_to_summarise[0];
  BOOST_TEST(asked.starts_with("user: question 1\nassistant: "));
  BOOST_TEST(asked.find("question 2") != std::string::npos);
  BOOST_TEST(asked.find("question 3") == std::string::npos);
  // It stands in the record of the next turn, which is told everything.
  auto told = t.told_by("question 5");
  BOOST_TEST(told[0]["content"] == "question 1");
  const auto summary = t.stored(5)["summary"];
  BOOST_TEST(summary["until"] == 2);
  BOOST_TEST(summary["text"].get<std::string>().starts_with("summary "));
  told = t.told_by("question 6");
  BOOST_TEST(told[0]["role"] == "system");
  BOOST_TEST(told[0]["content"].get<std::string>().ends_with(summary["text"].get<std::string>()));
  BOOST_TEST(told[1]["content"] == "question 3");
  BOOST_TEST(told.size() == 7u);
  BOOST_TEST(t.stored(6)["history_from"] == 3);
  // The next one is made of this one.
  t.rig.run(10);
  BOOST_REQUIRE(t.chat().asked_to_summarise.size() == 2u);
  BOOST_TEST(t.chat().asked_to_summarise[1].starts_with(summary["text"].get<std::string>() + "\nuser: question 3\n"));
  BOOST_TEST(t.rig.streams_at_services() == 0u);
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(every_owner_tells_the_same_and_makes_what_a_former_one_has_not_stored) {
  std::string want;
  for (const bool handed_over : {false, true}) {
    Remembering t;
    t.rig.add("controller-2", "controller");
    for (int i = 1; i <= 4; ++i) t.ask(fmt::format("question {}", i));
    t.rig.run(10);
    if (handed_over) {  // one that is made and not stored yet is made again
      t.rig.kill("controller-1");
      t.g().open("controller-2");
      t.rig.run(20);
    }
    BOOST_TEST(t.chat().asked_to_summarise.size() == (handed_over ? 2u : 1u));
    t.ask("question 5");
    if (handed_over) {
      t.rig.add("controller-3", "controller");
      t.rig.kill("controller-2");
      t.g().open("controller-3");
      t.rig.run(20);
    }
    t.ask("question 6");
    if (!handed_over) want = t.chat().last_past;
    BOOST_TEST(t.chat().last_past == want);
    t.check_calm();
  }
}

BOOST_AUTO_TEST_CASE(one_that_cannot_be_made_changes_nothing_and_is_counted) {
  struct Case {
    std::string end;
    std::function<void(Remembering&)> spoil;
  };
  const std::vector<Case> cases{
      {"empty", [](Remembering& t) { t.chat().summary = "none"; }},
      {"too_long", [](Remembering& t) { t.chat().summary = std::string(2001, 'x'); }},
      {"too_long", [](Remembering& t) { t.chat().summary = std::string(5000, 'x'); }},
      {"too_long", [](Remembering& t) { t.chat().summary_end = "length"; }},
      {"failed", [](Remembering& t) { t.chat().fails_in_background = Errc::internal; }},
      {"failed", [](Remembering& t) { t.chat().summary_steps = 2000; }},
      {"given_up", [](Remembering& t) { t.chat().summary_steps = 20; }},
  };
  for (const auto& c : cases) {
    BOOST_TEST_CONTEXT(c.end) {
      Remembering t;
      telemetry::Metrics metrics;
      t.rig.controller().add_metrics(metrics);
      c.spoil(t);
      for (int i = 1; i <= 4; ++i) t.ask(fmt::format("question {}", i));
      BOOST_REQUIRE(t.rig.run_until([&] { return t.chat().asked_to_summarise.size() == 1; }, 20));
      if (c.end != "given_up") t.rig.run(1600);
      const auto told = t.told_by("question 5");
      BOOST_TEST(figure(metrics, fmt::format("summaries_total{{end=\"{}\"}}", c.end)) == 1);
      BOOST_TEST(told[0]["content"] == "question 1");
      BOOST_TEST(told.size() == 8u);
      BOOST_TEST(!t.stored(5).contains("summary"));
      BOOST_TEST(t.g().count(MessageType::error) == 0u);
      // As without it: the oldest fall out.
      t.chat().summary = "none";
      t.ask("question 6");
      BOOST_TEST(t.told()[0]["content"] == "question 2");
      t.check_calm();
    }
  }
}

/// The voice is noticed, or the question comes: the model is left in the same step, and asked in front of nothing else.
BOOST_AUTO_TEST_CASE(whoever_speaks_waits_for_no_summary) {
  for (const bool typed : {true, false}) {
    Remembering t;
    t.chat().summary_steps = 500;
    for (int i = 1; i <= 4; ++i) t.ask(fmt::format("question {}", i));
    BOOST_REQUIRE(t.rig.run_until([&] { return t.chat().asked_to_summarise.size() == 1; }, 20));
    t.rig.run(3);
    BOOST_TEST(t.chat().streams() == 1u);
    if (typed)
      t.g().say(Say{"question 5"});
    else
      t.say(kSpeech, true);
    BOOST_REQUIRE(t.until([&] { return t.g().turns.size() == 5; }));
    BOOST_TEST(t.chat().asked_to_summarise.size() >= 1u);
    t.g().close();
    t.rig.run(3);
    BOOST_TEST(t.rig.streams_at_services() == 0u);
    BOOST_TEST(t.rig.complaints().empty());
  }
}

/// Where one place is left it is kept for somebody who waits.
BOOST_AUTO_TEST_CASE(the_last_place_of_a_model_is_not_taken_for_a_summary) {
  Remembering t;
  t.rig.describe("llm-chat-1", true, false, 1);
  for (int i = 1; i <= 4; ++i) t.ask(fmt::format("question {}", i));
  t.rig.run(20);
  BOOST_TEST(t.chat().asked_to_summarise.empty());
  // And one that is being made is left when the last place is taken.
  t.rig.describe("llm-chat-1", true, false, 2);
  t.chat().summary_steps = 500;
  t.ask("question 5");
  BOOST_REQUIRE(t.rig.run_until([&] { return t.chat().asked_to_summarise.size() == 1; }, 20));
  t.rig.describe("llm-chat-1", true, false, 0);
  t.rig.run(3);
  BOOST_TEST(t.chat().streams() == 0u);
}

BOOST_AUTO_TEST_CASE(what_is_forgotten_is_in_no_summary) {
  Remembering t;
  t.chat().summary_steps = 40;
  for (int i = 1; i <= 4; ++i) t.ask(fmt::format("question {}", i));
  t.rig.run(5);
  BOOST_REQUIRE(t.chat().asked_to_summarise.size() == 1u);
  t.g().say(Forget{"", {1}, TurnPart::all});  // while it is made
  t.rig.run(60);
  t.ask("question 5");
  BOOST_TEST(!t.stored(5).contains("summary"));
  t.rig.run(60);
  BOOST_REQUIRE(t.chat().asked_to_summarise.size() == 2u);
  BOOST_TEST(t.chat().asked_to_summarise[1].find("question 1") == std::string::npos);
  t.ask("question 6");
  BOOST_TEST(t.stored(6).contains("summary"));
  t.g().say(Forget{"", {2}, TurnPart::all});  // when it is stored
  t.ask("question 7");
  BOOST_TEST(t.told()[0]["role"] == "user");
  t.rig.run(60);
  t.ask("question 8");
  for (const auto& asked : {t.chat().asked_to_summarise.back(), t.chat().last_past})
    BOOST_TEST(asked.find("question 2") == std::string::npos);
}

BOOST_AUTO_TEST_CASE(nobody_is_asked_unless_it_is_wanted) {
  auto config = summarising();
  config.summary = "off";
  Remembering t(config);
  for (int i = 1; i <= 7; ++i) t.ask(fmt::format("question {}", i));
  t.rig.run(20);
  BOOST_TEST(t.chat().asked_to_summarise.empty());
  BOOST_TEST(t.told().size() == 8u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
