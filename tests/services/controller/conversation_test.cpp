/// What a client says beside utterances: settings, items, answers that it asks for or gives, tools of its own.
#include "tests/services/controller/talk.hpp"

namespace parlando::controller {
namespace {

using Prepare = std::function<void(FakeGateway&)>;

ControllerConfig led(int trials_max = 8) { return talking(trials_max); }

Talk talk_with(const Prepare& prepare, ControllerConfig config = led(), int replicas = 1) {
  return Talk(std::move(config), false, replicas, prepare);
}

/// Steps without sound.
bool wait_for(Talk& t, const std::function<bool()>& done, int limit = 400) { return t.rig.run_until(done, limit); }

json past_of(Talk& t) { return json::parse(t.chat().last_past); }
json full_record(Talk& t, std::int64_t turn) {
  const auto& turns = t.rig.store->sessions[kSession].turns;
  return turns.contains(turn) ? json::parse(turns.at(turn)) : json();
}
std::string error_of(Talk& t) {
  const auto* e = t.g().last_error();
  return e == nullptr ? "" : e->text;
}
Item item(ItemRole role, std::string text, std::string id = {}, std::string calls = "null") {
  return {std::move(id), role, std::move(text), {std::move(calls)}};
}
double counted(telemetry::Metrics& metrics, const std::string& name) {
  const auto text = metrics.text();
  const auto at = text.find("\nparlando_controller_" + name + " ");
  return at == std::string::npos ? -1 : std::stod(text.substr(text.find(' ', at) + 1));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(settings)

BOOST_AUTO_TEST_CASE(what_a_client_has_chosen_reaches_the_services) {
  auto t = talk_with([](FakeGateway& g) {
    g.system = "be kind";
    auto& s = g.settings;
    s.threshold_permille = 700;
    s.silence_ms = 300;
    s.temperature_milli = 200;
    s.top_p_milli = 800;
    s.top_k = 7;
    s.tokens_max = 99;
    s.stop = {R"(["END"])"};
    s.tools = {R"([{"name":"look"}])"};
    s.speed_milli = 1500;
    s.style = "calm";
  });
  t.chat().calls_tool = false;
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.answered(1));
  const auto& open = t.chat().last_open;
  BOOST_TEST(open.system == "be kind");
  BOOST_TEST(!open.operator_system);
  BOOST_TEST(open.temperature_milli == 200);
  BOOST_TEST(open.top_p_milli == 800);
  BOOST_TEST(open.top_k == 7);
  BOOST_TEST(open.tokens_max == 99);
  BOOST_TEST(open.stop.text == R"(["END"])");
  BOOST_TEST(json::parse(open.tools.text)[0]["name"] == "look");
  const auto& vad = t.rig.get<FakeVad>("vad-1").last_open;
  BOOST_TEST(vad.threshold_permille == 700);
  BOOST_TEST(vad.silence_ms == 300);
  BOOST_TEST(t.rig.get<FakeTts>("tts-1").last.speed_milli == 1500);
  BOOST_TEST(t.rig.get<FakeTts>("tts-1").last.style == "calm");
  BOOST_TEST(t.g().turns[0]["finish"] == "stop");
  BOOST_TEST(t.g().turns[0]["usage"]["output_tokens"] == 9);
  BOOST_TEST(!full_record(t, 1).contains("usage"));
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(a_change_holds_from_the_next_turn_on) {
  Talk t;
  t.chat().calls_tool = false;
  t.say(5, false);
  t.say(kSpeech, true);
  Configure c;
  c.system = "later";
  c.silence_ms = 250;
  t.g().say(c);
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.chat().last_system == "");
  t.say(5, false);
  BOOST_TEST(t.rig.get<FakeVad>("vad-1").last_open.silence_ms == 250);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.answered(2));
  BOOST_TEST(t.chat().last_system == "later");
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(settings_that_make_no_sense_change_nothing) {
  Talk t;
  Configure c;
  c.tools = {R"([{"name":""}])"};
  t.g().say(c);
  c.tools = {R"({"name":"x"})"};
  t.g().say(c);
  c.tools = {};
  c.tool_choice = "unknown";
  t.g().say(c);
  c.tool_choice = "auto";
  c.system = "persona:nobody";
  t.g().say(c);
  c.system = "";
  c.stop = {R"(["a","b","c","d","e"])"};
  t.g().say(c);
  t.g().say(Respond{{R"({"silence":1})"}});
  t.g().say(Respond{{R"({"speed_milli":1})"}});
  t.rig.run(4);
  BOOST_TEST(t.g().count(MessageType::error) == 7u);
  for (const auto& e : t.g().events)
    if (e.type == MessageType::error) BOOST_TEST(e.turn == 0u);
  t.g().say(Say{"hello"});
  BOOST_TEST(wait_for(t, [&] { return t.g().turns.size() == 1; }));
}

BOOST_AUTO_TEST_CASE(a_persona_is_a_prompt_and_a_voice) {
  Rig rig;
  for (const auto& role : kServiceRoles) rig.add(role + "-1", role);
  rig.add_core("controller-1", "controller",
               std::make_unique<ControllerCore>(rig.config, Personas{{"guide", {"you lead tours", "Clara"}}}));
  rig.add("gateway-1", "gateway");
  rig.gateway().system = "persona:guide";
  rig.gateway().open("controller-1");
  rig.run(8);
  rig.gateway().say(Say{"hello"});
  BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  BOOST_TEST(rig.get<FakeChat>("llm-chat-1").last_system == "you lead tours");
  BOOST_TEST(rig.get<FakeChat>("llm-chat-1").last_open.operator_system);
  BOOST_TEST(rig.get<FakeTts>("tts-1").last.speaker == "Clara");
  rig.gateway().system = "persona:nobody";
  rig.gateway().open("controller-1");
  rig.run(4);
  BOOST_TEST(rig.gateway().last_error()->text == "not_found");
}

BOOST_AUTO_TEST_CASE(only_the_client_ends_an_utterance_without_a_detector) {
  auto t = talk_with([](FakeGateway& g) { g.settings.detection = Detection::none; });
  t.chat().calls_tool = false;
  t.say(5, false);
  t.say(kSpeech, true);
  t.say(60, false);  // 1.2 s
  t.say(kSpeech, true);
  t.say(60, false);
  BOOST_TEST(t.g().count(MessageType::speech_ended) == 0u);
  BOOST_TEST(t.chat().forks == 0u);
  t.g().say(Flush{t.microphone.at});
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.rig.get<FakeTokenizer>("tokenizer-1").last_samples >= 80 * 320);
  // A flush in silence finds nothing, as ever.
  t.say(20, false);
  t.g().say(Flush{t.microphone.at});
  t.say(10, false);
  BOOST_TEST(error_of(t) == "no_speech");
  t.check_calm();
}

/// A vad hears on behind the last sound; whoever lets the key go in mid-word has spoken until then.
BOOST_AUTO_TEST_CASE(stages_count_from_the_last_sound_also_where_the_client_cuts_a_word) {
  for (const bool in_speech : {true, false}) {
    auto t = talk_with([](FakeGateway& g) { g.settings.detection = Detection::none; });
    t.chat().calls_tool = false;
    t.say(5, false);
    t.say(kSpeech, true);
    if (!in_speech) t.say(10, false);
    t.g().say(Flush{t.microphone.at});
    BOOST_REQUIRE(t.answered(1));
    const auto decision = t.g().turns[0]["stages"]["decision_ms"].get<double>();
    BOOST_TEST(decision >= (in_speech ? 0 : 308));
    BOOST_TEST(decision <= (in_speech ? 100 : 408));
  }
}

/// The vad has given up waiting, and the client has not.
BOOST_AUTO_TEST_CASE(an_utterance_stays_open_for_as_long_as_its_client_likes) {
  auto t = talk_with([](FakeGateway& g) { g.settings.detection = Detection::none; });
  t.chat().calls_tool = false;
  t.say(5, false);
  t.say(kSpeech, true);
  t.say(600, false);  // 12 s: more than any vad waits
  BOOST_TEST(t.g().count(MessageType::speech_ended) == 0u);
  t.g().say(Flush{t.microphone.at});
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.g().count(MessageType::error) == 0u);
  t.say(5, false);
  t.say(1510, true);
  BOOST_TEST(error_of(t) == "overloaded");
  BOOST_TEST(t.g().count(MessageType::error) == 1u);
  t.g().say(Flush{t.microphone.at});
  BOOST_REQUIRE(t.answered(2));
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(an_answer_that_is_not_to_be_interrupted_goes_on_and_the_voice_is_the_next_turn) {
  auto t = talk_with([](FakeGateway& g) {
    g.settings.interrupts = false;
    g.plays = true;
  });
  t.chat().calls_tool = false;
  t.chat().sentences = 60;
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > 6000; }));
  t.say(60, true);  // 1.2 s over it
  BOOST_TEST(t.g().count(MessageType::hold) + t.g().count(MessageType::interrupted) == 0u);
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(!t.g().turns[0].contains("interrupted"));
  t.chat().sentences = 1;
  BOOST_REQUIRE(t.answered(2));
  BOOST_TEST(t.rig.get<FakeTokenizer>("tokenizer-1").last_samples >= 60 * 320);
  t.check_calm();
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(semantic)

Prepare semantic(Eagerness eagerness = Eagerness::automatic) {
  return [=](FakeGateway& g) {
    g.settings.detection = Detection::semantic;
    g.settings.eagerness = eagerness;
  };
}

/// Three parts of 200 ms with 300 ms between them; the tokenizer knows how long a complete utterance is.
std::string told(Talk& t, std::int64_t complete_from, int parts = 3, int gap = 15) {
  for (const auto* name : {"tokenizer-1", "tokenizer-2"})
    if (t.rig.is_alive(name))
      t.rig.get<FakeTokenizer>(name).complete = [=](std::int64_t samples) {
        return samples >= complete_from ? 800 : 1;
      };
  t.chat().calls_tool = false;
  t.say(5, false);
  for (int part = 0; part < parts; ++part) {
    t.say(kSpeech, true);
    t.say(gap, false);
  }
  return t.record();
}

BOOST_AUTO_TEST_CASE(a_complete_utterance_ends_at_once_and_an_incomplete_one_by_its_longest_wait) {
  for (const int trials : {8, 0}) {
    BOOST_TEST_CONTEXT("trials " << trials) {
      auto t = talk_with(semantic(), led(trials));
      telemetry::Metrics metrics;
      t.rig.controller().add_metrics(metrics);
      told(t, 0, 1, 0);
      const auto from = t.rig.steps;
      BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
      BOOST_TEST(t.rig.steps - from < 14);  // 280 ms, and not the four seconds of the vad
      BOOST_REQUIRE(t.answered(1));
      BOOST_TEST(metrics.text().find("decisions_total{by=\"semantic\"} 1") != std::string::npos);
      t.check_calm();
      auto slow = talk_with(semantic(Eagerness::high), led(trials));
      told(slow, 1 << 30, 1, 0);
      const auto begun = slow.rig.steps;
      BOOST_REQUIRE(slow.until([&] { return slow.g().count(MessageType::speech_ended) == 1; }));
      BOOST_TEST(slow.rig.steps - begun > 90);  // two seconds
      BOOST_TEST(slow.rig.steps - begun < 115);
      BOOST_REQUIRE(slow.answered(1));
      slow.check_calm();
    }
  }
}

/// The likelier an utterance is complete the less silence is enough for it, whoever hears it.
BOOST_AUTO_TEST_CASE(silence_is_enough_for_an_utterance_that_may_be_complete) {
  struct Case {
    int likely, steps_min, steps_max;  // of 20 ms: 0.7 s or 1.2 s, of which the vad's own delay is taken off
  };
  const int bar = ControllerConfig{}.likely_permille_medium;
  for (const auto& expected : {Case{bar, 30, 50}, Case{bar - 1, 55, 80}})
    for (const int replicas_die : {0, 1}) {
      auto t = talk_with(semantic(), led(), 2);
      t.g().opens_again = true;
      t.rig.add("controller-2", "controller");
      for (const auto* name : {"tokenizer-1", "tokenizer-2"})
        t.rig.get<FakeTokenizer>(name).complete = [=](std::int64_t) { return expected.likely; };
      t.chat().calls_tool = false;
      t.say(5, false);
      t.say(kSpeech, true);
      const auto from = t.rig.steps;
      t.say(20, false);
      if (replicas_die == 1) {
        t.rig.kill("controller-1");
        t.g().open("controller-2");
      }
      BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
      BOOST_TEST(t.rig.steps - from > expected.steps_min);
      BOOST_TEST(t.rig.steps - from < expected.steps_max);
      BOOST_REQUIRE(t.answered(1));
    }
}

/// Who went on behind a silence that would have been enough for others is given the longer one from then on.
BOOST_AUTO_TEST_CASE(who_goes_on_late_is_waited_for_longer_from_then_on) {
  auto t = talk_with(semantic(), led());
  t.rig.get<FakeTokenizer>("tokenizer-1").complete = [](std::int64_t samples) { return samples < 25000 ? 100 : 300; };
  t.chat().calls_tool = false;
  t.say(5, false);
  t.say(kSpeech, true);
  t.say(45, false);  // 0.9 s
  BOOST_TEST(t.g().count(MessageType::speech_ended) == 0u);
  t.say(kSpeech, true);
  const auto from = t.rig.steps;
  BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
  BOOST_TEST(t.rig.steps - from > 55);
  BOOST_REQUIRE(t.answered(1));
}

/// One in the middle of a sentence is not worth the work, one that may be complete is thought through before it is
/// known to be.
BOOST_AUTO_TEST_CASE(a_trial_is_made_of_what_may_be_complete) {
  for (const auto& [likely, forks] : {std::pair{20, 0u}, {190, 0u}, {400, 1u}, {800, 1u}}) {
    auto t = talk_with(semantic(), led());
    t.rig.get<FakeTokenizer>("tokenizer-1").complete = [likely = likely](std::int64_t) { return likely; };
    t.chat().calls_tool = false;
    t.say(5, false);
    t.say(kSpeech, true);
    t.say(12, false);  // 240 ms: what is not sure goes on for another second
    BOOST_TEST((t.g().count(MessageType::speech_ended) == 1u) ==
               (likely >= ControllerConfig{}.complete_permille_medium));
    BOOST_TEST(t.chat().forks == forks, "of " << likely);
    BOOST_REQUIRE(t.answered(1));
    BOOST_TEST(t.chat().forks == forks);
    t.check_calm();
  }
}

BOOST_AUTO_TEST_CASE(what_is_enough_behind_a_pause_that_lasts_is_no_more_than_before) {
  BOOST_TEST(ControllerConfig{}.problems("controller").empty());
  const auto at = [](int low, int medium, int high) {
    std::vector<std::string> out;
    for (const auto& problem : ControllerConfig{.complete_permille_low = 900,
                               .complete_permille_medium = 550,
                               .complete_permille_high = 320,
                               .complete_again_permille_low = low,
                               .complete_again_permille_medium = medium,
                               .complete_again_permille_high = high}
                                   .problems("controller"))
      out.push_back(problem.path + " " + problem.text);
    return out;
  };
  BOOST_TEST(at(900, 550, 320).empty());
  const std::vector<std::string> expected{
      "controller.complete_again_permille_low is 901, expected at most complete_permille_low, which is 900",
      "controller.complete_again_permille_medium is 551, expected at most complete_permille_medium, which is 550",
      "controller.complete_again_permille_high is 321, expected at most complete_permille_high, which is 320"};
  BOOST_TEST(at(901, 551, 321) == expected, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(eagerness_says_how_likely_is_enough) {
  for (const auto& [eagerness, ends] : {std::pair{Eagerness::low, false},
                                        {Eagerness::medium, true},
                                        {Eagerness::automatic, true},
                                        {Eagerness::high, true}}) {
    auto t = talk_with(semantic(eagerness));
    told(t, 0, 1, 20);
    BOOST_TEST((t.g().count(MessageType::speech_ended) == 1) == ends);
  }
}

/// Every pause is judged, also one behind which the user has gone on when the answer comes: the end depends on the
/// sound alone, and what was said behind it is the next turn.
BOOST_AUTO_TEST_CASE(the_end_does_not_depend_on_when_pauses_are_judged) {
  for (const std::int64_t complete_from : {std::int64_t{0}, std::int64_t{9000}, std::int64_t{16000}}) {
    std::string first;
    for (const int delay : {0, 1, 4, 9, 20, 40})
      for (const int trials : {0, 8}) {
        BOOST_TEST_CONTEXT("complete from " << complete_from << ", delay " << delay << ", trials " << trials) {
          auto t = talk_with(semantic(), led(trials));
          t.rig.get<FakeTokenizer>("tokenizer-1").delay_steps = delay;
          told(t, complete_from);
          BOOST_REQUIRE(t.until([&] { return !t.record().empty(); }));
          const auto user = json::parse(t.record())["user"].get<std::string>();
          if (first.empty()) first = user;
          BOOST_TEST(user == first);
          t.say(60, false);
          BOOST_TEST(t.g().count(MessageType::error) == 0u);
          const auto complaints = t.rig.complaints();
          BOOST_TEST(complaints.empty(), (complaints.empty() ? "" : complaints.front()));
        }
      }
  }
}

BOOST_AUTO_TEST_CASE(another_controller_finds_the_same_end) {
  std::string want;
  for (int at = -1; at < 90; ++at) {
    BOOST_TEST_CONTEXT("dies at step " << at) {
      auto t = talk_with(semantic(), led());
      t.g().opens_again = true;
      t.rig.add("controller-2", "controller");
      t.rig.get<FakeTokenizer>("tokenizer-1").delay_steps = 3;
      t.rig.get<FakeTokenizer>("tokenizer-1").complete = [](std::int64_t samples) {
        return samples >= 11000 ? 800 : 1;
      };
      t.chat().calls_tool = false;
      int step = 0;
      const auto say = [&](int frames, bool speech) {
        for (int i = 0; i < frames; ++i, ++step) {
          if (step == at) {
            t.rig.kill("controller-1");
            t.g().open("controller-2");
          }
          t.say(1, speech);
        }
      };
      say(5, false);
      say(kSpeech, true);
      say(15, false);
      say(kSpeech, true);
      say(14, false);
      say(6, true);
      say(60, false);
      BOOST_REQUIRE(t.until([&] { return !t.record().empty(); }));
      if (at < 0) want = t.record();
      BOOST_TEST(t.record() == want);
      const auto complaints = t.rig.complaints();
      BOOST_TEST(complaints.empty(), (complaints.empty() ? "" : complaints.front()));
    }
  }
}

/// So likely is an utterance of one part when its pause is judged, and when it is judged once more.
void judge_twice(Talk& t, std::int32_t first, std::int32_t again) {
  // 300 ms in front, 200 ms of speech, and the sound behind the pause.
  for (const auto* name : {"tokenizer-1", "tokenizer-2"})
    if (t.rig.is_alive(name))
      t.rig.get<FakeTokenizer>(name).complete = [=](std::int64_t samples) { return samples >= 14000 ? again : first; };
  t.chat().calls_tool = false;
  t.say(20, false);
  t.say(kSpeech, true);
}

BOOST_AUTO_TEST_CASE(a_pause_that_lasts_is_judged_once_more_and_less_is_enough) {
  for (const int trials : {0, 8})
    for (const auto& [again, ends] : {std::pair{469, false}, {470, true}}) {
      auto t = talk_with(semantic(), led(trials));
      telemetry::Metrics metrics;
      t.rig.controller().add_metrics(metrics);
      judge_twice(t, 300, again);
      t.say(24, false);
      BOOST_TEST(t.g().count(MessageType::speech_ended) == 0u);  // 480 ms have not come yet
      t.say(6, false);
      BOOST_TEST((t.g().count(MessageType::speech_ended) == 1u) == ends);
      BOOST_REQUIRE(t.answered(1));
      const auto by = [&](const char* name) {
        return metrics.text().find(fmt::format("decisions_total{{by=\"{}\"}} 1", name)) != std::string::npos;
      };
      BOOST_TEST(by("semantic_again") == ends);
      BOOST_TEST(by("silence") == !ends);
      // The answer that was thought through in the pause is the one that is given.
      BOOST_TEST(counted(metrics, "trials_committed_total") == (trials > 0 ? 1 : 0));
      BOOST_TEST(t.chat().forks == (trials > 0 ? 1u : 0u));
      t.check_calm();
    }
}

/// 500 would be enough behind a pause that lasts.
BOOST_AUTO_TEST_CASE(a_pause_that_lasts_is_judged_once_where_the_second_look_is_off) {
  for (const int again_ms : {0, ControllerConfig{}.judge_again_ms}) {
    auto config = led(0);
    config.judge_again_ms = again_ms;
    auto t = talk_with(semantic(), config);
    telemetry::Metrics metrics;
    t.rig.controller().add_metrics(metrics);
    judge_twice(t, 500, 500);
    BOOST_REQUIRE(t.answered(1));
    BOOST_TEST(t.rig.get<FakeTokenizer>("tokenizer-1").attempts == (again_ms == 0 ? 1u : 2u));
    BOOST_TEST(figure(metrics, "decisions_total{by=\"semantic_again\"}") == (again_ms == 0 ? 0 : 1));
    BOOST_TEST(figure(metrics, "decisions_total{by=\"silence\"}") == (again_ms == 0 ? 1 : 0));
    t.check_calm();
  }
}

BOOST_AUTO_TEST_CASE(eagerness_says_how_likely_is_enough_behind_a_pause_that_lasts) {
  for (const auto& [eagerness, again, ends] : {std::tuple{Eagerness::low, 869, false},
                                               {Eagerness::low, 870, true},
                                               {Eagerness::automatic, 470, true},
                                               {Eagerness::high, 99, false},
                                               {Eagerness::high, 100, true}}) {
    auto t = talk_with(semantic(eagerness));
    judge_twice(t, 1, again);
    t.say(32, false);
    BOOST_TEST((t.g().count(MessageType::speech_ended) == 1u) == ends);
  }
}

/// Whoever goes on before is not cut off, whenever that is heard of: no vad tells such a pause again.
BOOST_AUTO_TEST_CASE(a_pause_behind_which_the_user_goes_on_is_judged_once) {
  for (const int delay : {0, 1, 5, 20})
    for (const int gap : {9, 15, 22, 23}) {
      BOOST_TEST_CONTEXT("delay " << delay << ", " << 20 * gap << " ms of silence") {
        auto t = talk_with(semantic(), led());
        t.rig.get<FakeTokenizer>("tokenizer-1").delay_steps = delay;
        judge_twice(t, 300, 900);
        t.rig.get<FakeTokenizer>("tokenizer-1").complete = [](std::int64_t samples) {
          return samples >= 14000 && samples < 20000 ? 900 : 300;
        };
        t.say(gap, false);
        t.say(30, true);
        BOOST_TEST(t.g().count(MessageType::speech_ended) == 0u);
        BOOST_REQUIRE(t.answered(1));
        BOOST_TEST(t.rig.get<FakeTokenizer>("tokenizer-1").last_samples >= (15 + kSpeech + gap + 30) * 320);
        t.check_calm();
      }
    }
}

BOOST_AUTO_TEST_CASE(another_controller_finds_the_same_end_of_a_pause_that_lasts) {
  std::string want;
  for (const int replicas : {1, 2})
    for (int at = -1; at < 70; ++at) {
      BOOST_TEST_CONTEXT("dies at step " << at << ", replicas " << replicas) {
        auto t = talk_with(semantic(), led(), replicas);
        t.g().opens_again = true;
        t.rig.add("controller-2", "controller");
        for (int n = 1; n <= replicas; ++n) {
          auto& tokenizer = t.rig.get<FakeTokenizer>(fmt::format("tokenizer-{}", n));
          tokenizer.delay_steps = 3;
          // Enough for a second look: behind the pause that lasts, and 480 ms behind the first one if it came too soon.
          tokenizer.complete = [](std::int64_t samples) {
            return samples >= 20000 || (samples >= 12000 && samples < 13000) ? 600 : 300;
          };
        }
        t.chat().calls_tool = false;
        int step = 0;
        const auto say = [&](int frames, bool speech) {
          for (int i = 0; i < frames; ++i, ++step) {
            if (step == at && replicas == 1) {
              t.rig.kill("controller-1");
              t.g().open("controller-2");
            }
            if (step == at && replicas == 2)
              t.rig.kill(t.rig.get<FakeVad>("vad-1").streams() > 0 ? "vad-1" : "vad-2");  // that hears the user
            t.say(1, speech);
          }
        };
        say(5, false);
        say(kSpeech, true);
        say(15, false);
        say(kSpeech, true);
        say(27, false);
        say(6, true);
        say(60, false);
        BOOST_REQUIRE(t.until([&] { return !t.record().empty(); }));
        if (want.empty()) want = t.record();
        BOOST_TEST(t.record() == want);
        const auto complaints = t.rig.complaints();
        BOOST_TEST(complaints.empty(), (complaints.empty() ? "" : complaints.front()));
      }
    }
}

/// Frames of a vad that hears the turn anew begin elsewhere: what it says of a pause may lie before what was said of
/// it.
BOOST_AUTO_TEST_CASE(a_pause_that_lasts_is_judged_once_more_by_another_vad) {
  std::string want;
  for (int at = -1; at < 20; ++at) {
    BOOST_TEST_CONTEXT("the vad dies " << at << " frames into the pause") {
      auto t = talk_with(semantic(), led(), 2);
      telemetry::Metrics metrics;
      t.rig.controller().add_metrics(metrics);
      for (int n = 1; n <= 2; ++n)
        t.rig.get<FakeTokenizer>(fmt::format("tokenizer-{}", n)).complete = [](std::int64_t samples) {
          return samples >= 10000 ? 600 : 300;
        };
      t.chat().calls_tool = false;
      t.say(5, false);
      const bool first = t.rig.get<FakeVad>("vad-1").streams() > 0;
      t.rig.get<FakeVad>(first ? "vad-2" : "vad-1").early = 192;
      t.say(kSpeech, true);
      t.say(9, false);  // it is known, and judged
      for (int step = 0; step < 60; ++step) {
        if (step == at) t.rig.kill(first ? "vad-1" : "vad-2");
        t.say(1, false);
      }
      BOOST_REQUIRE(t.until([&] { return !t.record().empty(); }));
      if (want.empty()) want = t.record();
      BOOST_TEST(t.record() == want);
      BOOST_TEST(figure(metrics, "decisions_total{by=\"semantic_again\"}") == 1);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_tokenizer_that_cannot_judge_leaves_it_to_silence) {
  for (const int trials : {0, 8}) {
    auto t = talk_with(semantic(), led(trials));
    telemetry::Metrics metrics;
    t.rig.controller().add_metrics(metrics);
    t.chat().calls_tool = false;
    t.say(5, false);
    t.say(kSpeech, true);
    const auto from = t.rig.steps;
    BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
    BOOST_TEST(t.rig.steps - from < 34);  // 500 ms
    BOOST_REQUIRE(t.answered(1));
    t.say(kSpeech, true);
    BOOST_REQUIRE(t.answered(2));
    BOOST_TEST(counted(metrics, "unjudged_sessions_total") == 1);
    t.check_calm();
  }
}

BOOST_AUTO_TEST_CASE(a_flush_waits_for_the_pauses_before_it) {
  for (const int delay : {0, 5}) {
    auto t = talk_with(semantic());
    t.rig.get<FakeTokenizer>("tokenizer-1").delay_steps = delay;
    told(t, 1 << 30, 1, 8);
    t.g().say(Flush{t.microphone.at});
    BOOST_REQUIRE(t.answered(1));
    BOOST_TEST(t.g().count(MessageType::error) == 0u);
    t.check_calm();
  }
}

/// A silence was long enough, a judgement in front of it is waited for, the user goes on, and the client ends it all.
BOOST_AUTO_TEST_CASE(a_flush_behind_an_end_that_is_not_sure_yet_loses_nothing) {
  auto t = talk_with(semantic(), led());
  auto& tokenizer = t.rig.get<FakeTokenizer>("tokenizer-1");
  tokenizer.delay_steps = 120;
  tokenizer.complete = [](std::int64_t) { return 300; };
  t.chat().calls_tool = false;
  t.say(5, false);
  t.say(kSpeech, true);
  t.say(45, false);
  const auto again = t.microphone.at;
  t.say(kSpeech, true);
  BOOST_TEST(t.g().count(MessageType::speech_ended) == 0u);
  t.g().say(Flush{t.microphone.at});
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(json::parse(t.record())["sound_end"].get<std::int64_t>() > again);
  t.check_calm();
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(items)

BOOST_AUTO_TEST_CASE(items_stand_in_front_of_the_next_turn_and_are_stored_with_it) {
  Talk t;
  t.chat().calls_tool = false;
  t.g().say(item(ItemRole::user, "my name is Ann", "a"));
  t.g().say(item(ItemRole::assistant, "hello Ann", "b"));
  t.g().say(item(ItemRole::system, "be brief", "c"));
  t.rig.run(10);
  BOOST_TEST(t.g().kept() == 3u);
  t.g().say(Say{"who am I?"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
  const auto past = past_of(t);
  BOOST_REQUIRE(past.size() == 3u);
  BOOST_TEST(past[0]["role"] == "user");
  BOOST_TEST(past[1]["content"] == "hello Ann");
  BOOST_TEST(past[2]["role"] == "system");
  const auto record = full_record(t, 1);
  BOOST_REQUIRE(record["before"].size() == 3u);
  BOOST_TEST(record["before"][2]["id"] == "c");
  BOOST_TEST(t.g().kept() == 0u);
  t.g().say(Say{"and now?"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 2; }));
  BOOST_TEST(past_of(t).size() == 5u);
  BOOST_TEST(past_of(t)[3]["content"] == "who am I?");
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(an_answer_can_be_asked_for) {
  Talk t;
  t.chat().calls_tool = false;
  t.g().say(item(ItemRole::user, "what is two and two?", "q"));
  t.g().say(Respond{});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
  BOOST_TEST(past_of(t).size() == 1u);
  BOOST_TEST(past_of(t)[0]["content"] == "what is two and two?");
  BOOST_TEST(t.g().transcript == "");
  BOOST_TEST(!t.g().audio.empty());
  const auto first = t.g().turns[0]["assistant"];
  // As it stands.
  t.g().say(Respond{{R"({"system":"be rude","temperature_milli":0})"}});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 2; }));
  BOOST_TEST(t.chat().last_system == "be rude");
  BOOST_TEST(t.chat().last_open.temperature_milli == 0);
  const auto past = past_of(t);
  BOOST_REQUIRE(past.size() == 2u);
  BOOST_TEST(past[1]["content"] == first);
  // The settings were that answer's alone.
  t.g().say(Say{"hello"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 3; }));
  BOOST_TEST(t.chat().last_system == "");
  BOOST_TEST(past_of(t).size() == 3u);  // a user's item, two answers
  t.g().say(Respond{});
  t.g().say(Respond{});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 4; }));
  BOOST_TEST(error_of(t) == "invalid_argument");
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(an_answer_that_is_not_remembered_takes_no_number) {
  Talk t;
  t.chat().calls_tool = false;
  t.g().say(Say{"one"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
  t.g().say(item(ItemRole::user, "in between", "i"));
  Respond aside;
  aside.remember = false;
  t.g().say(aside);
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 2; }));
  BOOST_TEST(t.g().turns[1]["turn"] == 2);
  BOOST_TEST(t.g().turns[1]["remembered"] == false);
  BOOST_TEST(past_of(t).back()["content"] == "in between");
  // The item is not lost: it is stored on its own, and the model is told of it.
  BOOST_REQUIRE(wait_for(t, [&] { return !full_record(t, 2).is_null(); }));
  BOOST_TEST(full_record(t, 2)["items_only"] == true);
  t.g().say(Say{"two"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 3; }));
  const auto past = past_of(t);
  BOOST_REQUIRE(past.size() == 3u);
  BOOST_TEST(past[2]["content"] == "in between");
  BOOST_TEST(t.g().turns[2]["turn"] == 3);
  BOOST_TEST(t.g().kept() == 0u);
  // Without items it leaves nothing at all.
  t.g().say(aside);
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 4; }));
  t.g().say(Say{"three"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 5; }));
  BOOST_TEST(t.g().turns[4]["turn"] == 4);
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(an_utterance_that_is_not_to_be_answered_is_noted) {
  for (const int trials : {0, 8}) {
    auto t = talk_with([](FakeGateway& g) { g.settings.answers = false; }, led(trials));
    telemetry::Metrics metrics;
    t.rig.controller().add_metrics(metrics);
    t.say(5, false);
    t.say(kSpeech, true);
    BOOST_REQUIRE(t.until([&] { return t.g().noted.size() == 1; }));
    const auto noted = t.g().noted[0];
    BOOST_TEST(noted.id == fmt::format("utterance_1_{}", noted.first_sample));
    BOOST_TEST(noted.first_sample == 5 * 320);
    BOOST_TEST(noted.end_sample == 15 * 320);
    BOOST_TEST(noted.text.starts_with("heard "));
    BOOST_TEST(t.g().turns.empty());
    BOOST_TEST(t.g().audio.empty());
    t.say(kSpeech, true);
    BOOST_REQUIRE(t.until([&] { return t.g().noted.size() == 2; }));
    t.g().say(Respond{});
    BOOST_REQUIRE(t.answered(1));
    const auto past = past_of(t);
    BOOST_REQUIRE(past.size() == 2u);
    BOOST_TEST(past[0]["content"] == noted.text);
    BOOST_TEST(past[1]["role"] == "user");
    BOOST_TEST(counted(metrics, "notes_total") == 2);
    BOOST_TEST(counted(metrics, "turns_total") == 1);
    // What was noted can be forgotten by its name.
    t.g().say(Forget{noted.id});
    t.g().say(Respond{});
    BOOST_REQUIRE(t.answered(2));
    BOOST_TEST(past_of(t)[0]["content"] == t.g().noted[1].text);
    t.check_calm();
  }
}

BOOST_AUTO_TEST_CASE(a_flush_and_a_wish_for_an_answer_may_follow_each_other_at_once) {
  auto t = talk_with([](FakeGateway& g) {
    g.settings.answers = false;
    g.settings.detection = Detection::none;
  });
  t.chat().calls_tool = false;
  t.say(5, false);
  t.say(kSpeech, true);
  t.g().say(Flush{t.microphone.at});
  t.g().say(Respond{});
  t.say(kSpeech, true);  // goes on speaking
  t.g().say(Flush{-1});
  t.g().say(Respond{});
  BOOST_REQUIRE(t.answered(2));
  BOOST_TEST(t.g().noted.size() == 2u);
  const auto past = past_of(t);
  BOOST_REQUIRE(past.size() == 3u);
  BOOST_TEST(past[0]["content"] == t.g().noted[0].text);
  BOOST_TEST(past[2]["content"] == t.g().noted[1].text);
  BOOST_TEST(t.g().count(MessageType::error) == 0u);
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(an_answer_asked_for_while_the_user_speaks_comes_first) {
  auto t = talk_with([](FakeGateway& g) { g.settings.answers = false; });
  t.chat().calls_tool = false;
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().noted.size() == 1; }));
  t.say(kSpeech, true);
  t.g().say(Respond{});
  t.say(6, true);
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.g().noted.size() == 1u);
  BOOST_REQUIRE(t.until([&] { return t.g().noted.size() == 2; }));
  BOOST_TEST(full_record(t, 2)["responds"] == true);
  BOOST_TEST(full_record(t, 3)["noted"]["id"] == t.g().noted[1].id);
  BOOST_TEST(t.rig.get<FakeTokenizer>("tokenizer-1").last_samples >= 16 * 320);
  t.check_calm();
}

/// Nothing that was asked for is answered, each question has one fate, and the next one an answer.
void check_cancelled(Talk& t) {
  BOOST_TEST(t.g().count(MessageType::cancelled) == 1u);
  BOOST_TEST(t.g().turns.empty());
  BOOST_TEST(t.g().audio.empty());
  BOOST_TEST(t.g().open_questions().empty());
  for (const auto& [input, fates] : t.g().fates) BOOST_TEST(fates == 1, "input " << input);
  t.g().say(Say{"and now"});
  BOOST_TEST(t.answered(1));
  t.check_calm();
}

/// Whether the utterance is still being understood or is being stored: nothing that was asked for is answered.
BOOST_AUTO_TEST_CASE(a_cancel_drops_what_waits_behind_a_note_also_while_that_is_stored) {
  for (const bool is_stored : {false, true}) {
    BOOST_TEST_CONTEXT("stored " << is_stored) {
      auto t = talk_with([](FakeGateway& g) { g.settings.answers = false; }, led(0));
      t.chat().calls_tool = false;
      t.say(5, false);
      t.say(kSpeech, true);
      BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
      t.g().say(Utter{"Given."});
      t.g().say(Respond{});
      const auto& turn = *t.rig.controller().turn_of(kSession);
      if (is_stored)
        BOOST_REQUIRE(t.until([&] { return turn.stage == Turn::Stage::closing; }));
      else
        t.say(2, false);
      t.rig.suspend("context-1");
      t.g().say(Cancel{});
      t.say(5, false);
      BOOST_REQUIRE(t.g().noted.empty());
      t.rig.wake("context-1");
      t.say(100, false);
      BOOST_TEST(t.g().noted.size() == (is_stored ? 1u : 0u));
      check_cancelled(t);
    }
  }
}

/// The former one had stored the note and could not tell it.
BOOST_AUTO_TEST_CASE(a_cancel_drops_what_waits_behind_a_note_that_another_controller_tells) {
  for (const std::uint32_t named : {0u, 1u}) {
    BOOST_TEST_CONTEXT("turn " << named) {
      auto t = talk_with([](FakeGateway& g) { g.settings.answers = false; }, led(0));
      t.chat().calls_tool = false;
      t.rig.add("controller-2", "controller");
      t.say(5, false);
      t.say(kSpeech, true);
      BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
      t.g().say(Utter{"Given."});
      t.g().say(Respond{});
      const auto& turn = *t.rig.controller().turn_of(kSession);
      BOOST_REQUIRE(t.until([&] { return turn.stage == Turn::Stage::closing; }));
      t.rig.swallow = [](const std::string& from, const std::string& to, const Message&) {
        return from == "context-1" && to == "controller-1";
      };
      t.g().say(Cancel{{named}});
      t.say(5, false);
      BOOST_REQUIRE(t.rig.store->sessions[kSession].turns.contains(1));
      BOOST_REQUIRE(t.g().noted.empty());
      t.rig.kill("controller-1");
      t.g().open("controller-2");
      t.say(100, false);
      BOOST_TEST(t.g().noted.size() == 1u);
      check_cancelled(t);
    }
  }
}

/// Nobody has cancelled: they are taken when all is said again.
BOOST_AUTO_TEST_CASE(what_waits_behind_a_note_that_another_controller_tells_is_answered) {
  auto t = talk_with([](FakeGateway& g) { g.settings.answers = false; }, led(0));
  t.chat().calls_tool = false;
  t.rig.add("controller-2", "controller");
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
  t.g().say(Utter{"Given."});
  const auto& turn = *t.rig.controller().turn_of(kSession);
  BOOST_REQUIRE(t.until([&] { return turn.stage == Turn::Stage::closing; }));
  t.rig.swallow = [](const std::string& from, const std::string& to, const Message&) {
    return from == "context-1" && to == "controller-1";
  };
  t.g().say(Respond{});
  t.rig.run(5);
  BOOST_REQUIRE(t.rig.store->sessions[kSession].turns.contains(1));
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  BOOST_TEST(t.rig.run_until([&] { return t.g().turns.size() == 2; }, 200));
  BOOST_TEST(t.g().noted.size() == 1u);
  BOOST_TEST(t.g().turns[0]["assistant"] == "Given.");
  t.check_calm();
}

/// Another controller hears everything at once, and the wish before its vad has found the utterance.
BOOST_AUTO_TEST_CASE(a_wish_stays_behind_the_utterance_that_it_followed) {
  auto t = talk_with([](FakeGateway& g) { g.settings.answers = false; }, led(0));
  t.chat().calls_tool = false;
  t.rig.add("controller-2", "controller");
  t.rig.swallow = [](const std::string& from, const std::string& to, const Message&) {
    return from == "llm-chat-1" && to == "controller-1";
  };
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
  t.g().say(Respond{});
  t.say(3, false);
  BOOST_TEST(t.g().count(MessageType::error) == 0u);
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  BOOST_REQUIRE(t.answered(1));
  BOOST_REQUIRE(t.g().noted.size() == 1u);
  BOOST_TEST(full_record(t, 1)["noted"]["id"] == t.g().noted[0].id);
  BOOST_TEST(full_record(t, 2)["responds"] == true);
  BOOST_TEST(past_of(t)[0]["content"] == t.g().noted[0].text);
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(an_answer_can_be_given) {
  Talk t;
  t.g().say(item(ItemRole::user, "hi", "q"));
  t.g().say(Utter{"Good morning. How can I help?"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
  BOOST_TEST(t.g().reply == "Good morning. How can I help?");
  BOOST_TEST(t.chat().opened == 0u);
  BOOST_TEST(!t.g().audio.empty());
  t.g().say(Say{"well"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 2; }));
  const auto past = past_of(t);
  BOOST_REQUIRE(past.size() == 2u);
  BOOST_TEST(past[0]["content"] == "hi");
  BOOST_TEST(past[1]["content"] == "Good morning. How can I help?");
  t.check_calm();
}

/// A client may play behind the next question, and truncate what it stopped there.
BOOST_AUTO_TEST_CASE(an_earlier_answer_is_cut_at_the_word_that_was_heard) {
  std::string heard[2];
  for (const bool handed_over : {false, true}) {
    Talk t;
    t.chat().calls_tool = false;
    t.chat().sentences = 6;
    t.g().say(Say{"one"});
    BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
    const auto whole = t.g().turns[0]["assistant"].get<std::string>();
    t.g().say(Say{"two"});
    BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 2; }));
    if (handed_over) {
      t.rig.add("controller-2", "controller");
      t.rig.kill("controller-1");
      t.g().open("controller-2");
    }
    t.g().say(Truncate{{1}, 2700});
    t.g().say(Say{"three"});
    BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 3; }));
    heard[handed_over] = past_of(t)[1]["content"].get<std::string>();
    BOOST_TEST(!heard[handed_over].empty());
    BOOST_TEST(heard[handed_over].size() < whole.size());
    BOOST_TEST(whole.starts_with(heard[handed_over]));
  }
  BOOST_TEST(heard[0] == heard[1]);
}

BOOST_AUTO_TEST_CASE(what_was_not_heard_or_is_forgotten_is_not_told) {
  Talk t;
  t.chat().calls_tool = false;
  t.chat().sentences = 6;
  t.g().say(Say{"one"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
  const auto whole = t.g().turns[0]["assistant"].get<std::string>();
  t.g().say(Truncate{{1}, 1500});
  t.g().say(Truncate{{1}, 1200});
  t.g().say(Truncate{{1}, 5000});  // says less
  t.g().say(Say{"two"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 2; }));
  const auto heard = past_of(t)[1]["content"].get<std::string>();
  BOOST_TEST(heard.size() < whole.size());
  BOOST_TEST(whole.starts_with(heard));
  BOOST_TEST(full_record(t, 2)["cut"]["heard"] == heard);
  BOOST_TEST(full_record(t, 2)["cut"]["turn"] == 1);
  t.g().say(Forget{"", {1}, TurnPart::user});
  t.g().say(Forget{"", {2}, TurnPart::all});
  t.g().say(Forget{"", {9}, TurnPart::all});
  t.g().say(Truncate{{9}, 5});
  t.g().say(Say{"three"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 3; }));
  BOOST_TEST(t.g().count(MessageType::error) == 2u);
  auto past = past_of(t);
  BOOST_REQUIRE(past.size() == 2u);
  BOOST_TEST(past[0]["content"] == "");
  BOOST_TEST(past[1]["content"] == heard);
  BOOST_TEST(full_record(t, 3)["forgot"].size() == 2u);
  // Another controller reads the same from the store.
  const auto before = t.chat().last_past;
  t.rig.add("controller-2", "controller");
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  t.g().say(Respond{{}, false});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 4; }));
  past = past_of(t);
  BOOST_TEST(past[1]["content"] == heard);
  BOOST_TEST(past.size() == 4u);
}

BOOST_AUTO_TEST_CASE(a_truncation_of_the_answer_under_way_ends_it) {
  auto t = talk_with([](FakeGateway& g) { g.plays = true; });
  t.chat().calls_tool = false;
  t.chat().sentences = 80;
  t.g().say(Say{"one"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().audio.size() > 8000; }));
  t.g().say(Truncate{{1}, 2000});
  BOOST_REQUIRE(wait_for(
      t, [&] { return t.g().turns.size() == 1; }, 20));
  BOOST_TEST(t.g().interrupted->samples == 2000);
  BOOST_TEST(t.g().turns[0]["interrupted"] == true);
  BOOST_TEST(full_record(t, 1)["assistant"] == t.g().interrupted->heard);
  t.check_calm();
}

/// The client stops its loudspeaker while the user speaks over it: what is said is the next turn.
BOOST_AUTO_TEST_CASE(a_truncation_while_a_voice_is_over_the_answer_loses_nothing_of_it) {
  auto t = talk_with([](FakeGateway& g) { g.plays = true; });
  t.chat().calls_tool = false;
  t.chat().sentences = 80;
  t.g().say(Say{"one"});
  BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > 8000; }));
  t.say(8, true);
  BOOST_TEST(t.g().count(MessageType::hold) == 1u);
  t.g().say(Truncate{{1}, 2000});
  t.say(12, true);
  t.chat().sentences = 1;
  t.g().heard_all = true;
  BOOST_REQUIRE(t.answered(2));
  BOOST_TEST(t.g().turns[0]["interrupted"] == true);
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(an_item_that_no_record_can_hold_is_refused_by_itself) {
  auto t = talk_with([](FakeGateway&) {});
  t.chat().calls_tool = false;
  std::string deep = "1";
  for (int n = 0; n < 25; ++n) deep = "{\"a\":" + deep + "}";
  auto calls = item(ItemRole::assistant, "");
  calls.calls.text = "[{\"id\":\"c\",\"name\":\"n\",\"arguments\":" + deep + "}]";
  t.g().say(calls);
  t.g().say(Say{"hello"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
  BOOST_TEST(error_of(t) == "invalid_argument");
  BOOST_TEST(!full_record(t, 1).contains("before"));
}

BOOST_AUTO_TEST_CASE(items_that_no_turn_takes_up_are_stored_and_let_go) {
  Talk t;
  telemetry::Metrics metrics;
  t.rig.controller().add_metrics(metrics);
  t.g().say(item(ItemRole::user, "wait", "w"));
  t.say(200, false);
  BOOST_TEST(t.g().kept() >= 200u);
  t.say(200, false);
  BOOST_TEST(t.g().kept() < 200u);
  BOOST_TEST(counted(metrics, "items_stored_total") == 1);
  BOOST_TEST(full_record(t, 1)["before"][0]["text"] == "wait");
  t.chat().calls_tool = false;
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.g().turns[0]["turn"] == 2);
  BOOST_TEST(past_of(t)[0]["content"] == "wait");
  t.check_calm();
}

/// The store has them while an answer is thought through in a pause, and the user goes on.
BOOST_AUTO_TEST_CASE(items_that_are_stored_in_a_pause_are_let_go_when_it_is_over) {
  Talk t;
  t.chat().calls_tool = false;
  t.g().say(item(ItemRole::user, "wait", "w"));
  BOOST_REQUIRE(t.until([&] { return t.last_to("context-1").type == MessageType::commit; }));
  t.rig.suspend("context-1");
  t.say(kSpeech, true);
  t.say(9, false);
  BOOST_REQUIRE(t.chat().forks == 1u);
  BOOST_TEST(t.g().checkpoint.input == 0u);
  t.rig.wake("context-1");
  t.say(5, false);
  BOOST_TEST(full_record(t, 1)["before"][0]["text"] == "wait");
  t.say(8, true);
  BOOST_TEST(t.g().count(MessageType::speech_ended) == 0u);
  BOOST_TEST(t.g().checkpoint.input > 200u);  // as far as the utterance
  BOOST_REQUIRE(t.answered(1));
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(items_have_limits_and_names) {
  Talk t;
  t.g().say(item(ItemRole::user, "x", "same"));
  t.g().say(item(ItemRole::user, "y", "same"));
  t.g().say(item(ItemRole::user, "", ""));
  t.g().say(item(ItemRole::tool, "out", "t"));
  t.g().say(item(ItemRole::assistant, "", "", R"({"name":"x"})"));
  t.rig.run(4);
  BOOST_TEST(t.g().count(MessageType::error) == 4u);
  for (int i = 0; i < 600; ++i) t.g().say(item(ItemRole::user, std::string(100, 'x')));
  t.rig.run(4);
  BOOST_TEST(error_of(t) == "overloaded");
  t.g().say(Say{"hello"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
}

BOOST_AUTO_TEST_CASE(the_oldest_turns_go_when_the_past_is_long_and_the_beginning_stays_for_many_turns) {
  auto config = led();
  config.history_bytes_max = 4000;
  config.history_turns = 100;
  Talk t(config);
  t.chat().calls_tool = false;
  t.g().speak = false;
  t.g().open("controller-1");
  t.rig.run(8);
  std::string first;
  int changes = 0, most = 0;
  for (std::size_t i = 1; i <= 60; ++i) {
    t.g().say(Say{fmt::format("{} {}", i, std::string(150, 'x'))});
    BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == i; }));
    const auto past = past_of(t);
    std::size_t bytes = 0;
    for (const auto& m : past) bytes += m["content"].get<std::string>().size();
    BOOST_TEST(bytes <= 4000u);
    most = std::max(most, static_cast<int>(bytes));
    if (past.empty()) continue;
    const auto begins = past[0]["content"].get<std::string>();
    if (!first.empty() && begins != first) ++changes;
    first = begins;
  }
  BOOST_TEST(most > 3600);
  BOOST_TEST(changes >= 6);
  BOOST_TEST(changes <= 16);
  // Another controller tells the same past.
  t.rig.add("controller-2", "controller");
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  t.g().say(Say{"again"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 61; }));
  BOOST_TEST(past_of(t)[0]["content"] == first);
}

BOOST_AUTO_TEST_CASE(a_conversation_that_is_not_kept_asks_nobody) {
  auto t = talk_with([](FakeGateway& g) {
    g.is_stored = false;
    g.token_digest = std::string(64, '1');
  });
  t.chat().calls_tool = false;
  BOOST_TEST(t.rig.get<Core>("context-1").load() == 0);
  t.g().say(item(ItemRole::user, "hi", "q"));
  t.g().say(Respond{});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
  t.g().say(Say{"more"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 2; }));
  BOOST_TEST(past_of(t).size() == 2u);
  BOOST_TEST(t.g().turns[1]["turn"] == 2);
  BOOST_TEST(!t.g().degraded.back());
  BOOST_TEST(t.rig.get<FakeContext>("context-1").opened == 0u);
  BOOST_TEST(t.rig.store->sessions.empty());
  t.check_calm();
  t.g().close(true);
  t.rig.run(4);
  BOOST_TEST(t.rig.controller().load() == 0);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(client_tools)

Prepare with_look(bool plays = false) {
  return [=](FakeGateway& g) {
    g.settings.tools = {R"([{"name":"look"},{"name":"find"}])"};
    g.plays = plays;
  };
}

BOOST_AUTO_TEST_CASE(the_client_executes_its_own_tools) {
  auto t = talk_with(with_look());
  t.chat().rounds = {{"look"}};
  t.chat().speaks_first = true;
  t.g().say(Say{"what do you see?"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().waiting.has_value(); }));
  BOOST_TEST(t.g().waiting->calls == 1);
  BOOST_REQUIRE(t.g().calls.size() == 1u);
  BOOST_TEST(t.g().calls[0] == (json{{"id", "call_1_1_1"}, {"name", "look"}, {"arguments", {{"amount", 3}}}}));
  // Speech goes on beside it.
  BOOST_TEST(wait_for(t, [&] { return !t.g().audio.empty(); }));
  t.rig.run(50);
  BOOST_TEST(t.g().turns.empty());
  t.g().say(ToolOutput{"call_1_1_1", R"({"seen":"a bird"})"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
  BOOST_TEST(t.g().turns[0]["tool_calls"][0]["result"]["seen"] == "a bird");
  BOOST_TEST(t.chat().last_results.back() == R"({"seen":"a bird"})");
  // Said once more, or of nothing: items.
  t.g().say(ToolOutput{"call_1_1_1", "late"});
  t.g().say(ToolOutput{"nobody", "late"});
  t.chat().calls_tool = false;
  t.g().say(Say{"and?"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 2; }));
  const auto past = past_of(t);
  BOOST_REQUIRE(past.size() == 4u);
  BOOST_TEST(past[1]["calls"][0]["id"] == "call_1_1_1");
  BOOST_TEST(past[2] == (json{{"role", "tool"}, {"content", "late"}, {"call", "call_1_1_1"}}));
  BOOST_TEST(past[3]["call"] == "nobody");
  BOOST_TEST(t.g().count(MessageType::error) == 0u);
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(a_short_sentence_in_front_of_a_call_is_spoken_beside_it) {
  auto t = talk_with(with_look());
  t.chat().rounds = {{"look"}};
  t.chat().speaks_first = true;
  t.chat().first_sentence = "One moment. ";
  t.g().say(Say{"what do you see?"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().waiting.has_value(); }));
  BOOST_TEST(wait_for(t, [&] { return !t.g().audio.empty(); }));
  BOOST_TEST(t.g().turns.empty());
  t.g().say(ToolOutput{"call_1_1_1", "a bird"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
  BOOST_TEST(!t.g().turns[0].contains("call_ends"));
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(outputs_may_come_in_any_order_and_engine_tools_stand_beside) {
  auto t = talk_with(with_look());
  t.chat().rounds = {{"look", "set_timer", "find"}, {"find"}};
  t.g().say(Say{"go"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().waiting.has_value(); }));
  BOOST_TEST(t.g().waiting->calls == 2);
  BOOST_REQUIRE(t.g().calls.size() == 3u);
  BOOST_TEST(t.g().calls[1]["result"]["amount"] == 3);
  t.g().waiting.reset();
  t.g().say(ToolOutput{"call_1_1_3", "third"});
  t.rig.run(10);
  BOOST_TEST(t.chat().last_results.empty());
  t.g().say(ToolOutput{"call_1_1_1", "first"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().waiting.has_value(); }));
  BOOST_TEST(t.chat().last_results.size() == 3u);
  BOOST_TEST(t.chat().last_results[0] == "\"first\"");
  BOOST_TEST(t.chat().last_results[2] == "\"third\"");
  t.g().say(ToolOutput{"call_1_1_4", "fourth"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().turns.size() == 1; }));
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(a_tool_that_does_not_answer_is_given_up_and_the_turn_has_its_time) {
  auto config = led();
  config.tool_seconds_max = 30;
  config.reply_seconds_max = 10;
  auto t = talk_with(with_look(), config);
  telemetry::Metrics metrics;
  t.rig.controller().add_metrics(metrics);
  t.chat().rounds = {{"look"}};
  t.g().say(Say{"go"});
  BOOST_REQUIRE(wait_for(t, [&] { return t.g().waiting.has_value(); }));
  const auto from = t.rig.now;
  BOOST_REQUIRE(wait_for(
      t, [&] { return t.g().turns.size() == 1; }, 2000));
  BOOST_TEST((t.rig.now - from >= std::chrono::seconds(30)));
  BOOST_TEST((t.rig.now - from < std::chrono::seconds(32)));
  BOOST_TEST(t.g().turns[0]["tool_calls"][0]["result"]["error"] == "look has given no answer in 30 s");
  BOOST_TEST(counted(metrics, "tool_timeouts_total") == 1);
  BOOST_TEST(t.g().count(MessageType::error) == 0u);
  t.g().say(ToolOutput{"call_1_1_1", "late"});
  t.rig.run(3);
  BOOST_TEST(t.g().count(MessageType::error) == 0u);
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(a_voice_ends_a_turn_that_waits_and_its_calls_stay_open) {
  auto t = talk_with(with_look(true));
  t.chat().rounds = {{"look"}};
  t.chat().speaks_first = true;
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().waiting.has_value() && t.g().audio.size() > 3000; }));
  t.g().heard_samples = 1600;
  t.say(50, true);
  BOOST_REQUIRE(t.g().interrupted.has_value());
  BOOST_REQUIRE(t.until([&] { return t.g().turns.size() == 1; }, 10));
  const auto record = full_record(t, 1);
  BOOST_TEST(record["interrupted"] == true);
  BOOST_TEST(record["assistant"] == t.g().interrupted->heard);
  const auto id = record["tool_calls"][0]["id"].get<std::string>();
  BOOST_TEST(id.starts_with("call_1_"));
  BOOST_TEST(!record["tool_calls"][0].contains("result"));
  t.g().say(ToolOutput{id, "late"});
  t.chat().calls_tool = false;
  BOOST_REQUIRE(t.answered(2));
  t.g().say(Say{"now"});
  BOOST_REQUIRE(t.until([&] { return t.g().turns.size() == 3; }));
  BOOST_TEST(past_of(t).dump().find("late") != std::string::npos);
  t.check_calm();
}

/// A controller dies at every step of a turn with calls; outputs come before and behind.
BOOST_AUTO_TEST_CASE(calls_and_results_outlive_a_controller) {
  struct Outcome {
    Bytes audio;
    std::string record, reply;
    std::size_t calls = 0;
    int steps = 0;
  };
  const auto converse = [](int at, int answer_at) {
    auto t = talk_with(with_look());
    t.g().opens_again = true;
    t.rig.add("controller-2", "controller");
    t.chat().rounds = {{"look", "find"}, {"look"}};
    t.chat().speaks_first = true;
    t.g().say(item(ItemRole::system, "be brief", "s"));
    t.g().say(Say{"go"});
    std::set<std::string> answered;
    int step = 0, told = 0;
    for (; step < 300 && t.record().empty(); ++step) {
      if (step == at) {
        t.rig.kill("controller-1");
        t.g().open("controller-2");
      }
      // The client's tools take so many steps; it answers each call once.
      told = t.g().calls.empty() ? 0 : told + 1;
      if (told > answer_at)
        for (const auto& call : t.g().calls)
          if (const auto id = call["id"].get<std::string>(); answered.insert(id).second)
            t.g().say(ToolOutput{id, "of " + id});
      t.rig.step();
    }
    BOOST_REQUIRE(!t.record().empty());
    t.rig.run(40);
    const auto complaints = t.rig.complaints();
    BOOST_TEST(complaints.empty(), (complaints.empty() ? "" : complaints.front()));
    BOOST_TEST(t.g().turns.size() == 1u);
    BOOST_TEST(t.g().count(MessageType::error) == 0u);
    BOOST_TEST(t.g().kept() == 0u);
    return Outcome{t.g().audio, t.record(), t.g().reply, t.g().calls.size(), step};
  };
  for (const int answer_at : {0, 3, 12}) {
    const auto want = converse(-1, answer_at);
    BOOST_TEST(want.calls == 3u);
    BOOST_TEST(json::parse(want.record)["tool_calls"][2]["result"] == "of call_1_2_3");
    for (int at = 0; at < want.steps; ++at) {
      BOOST_TEST_CONTEXT("dies at step " << at << ", answers after " << answer_at) {
        const auto got = converse(at, answer_at);
        BOOST_TEST(got.record == want.record);
        BOOST_TEST((got.audio == want.audio));
        BOOST_TEST(got.reply == want.reply);
        BOOST_TEST(got.calls == want.calls);
      }
    }
  }
}

/// Answers when a test says so.
class FakeToolServer final : public ToolServer {
 public:
  bool ask(Ask ask) override {
    if (is_full) return false;
    asked.push_back(std::move(ask));
    return true;
  }
  std::vector<Answer> take() override { return std::exchange(answers, {}); }
  bool is_full = false;
  std::vector<Ask> asked;
  std::vector<Answer> answers;
};

BOOST_AUTO_TEST_CASE(a_tool_server_executes_what_is_not_the_clients) {
  Rig rig;
  for (const auto& role : kServiceRoles) rig.add(role + "-1", role);
  auto server = std::make_unique<FakeToolServer>();
  auto& tools = *server;
  rig.add_core("controller-1", "controller",
               std::make_unique<ControllerCore>(rig.config, Personas{}, std::move(server)));
  rig.add("gateway-1", "gateway");
  auto& g = rig.gateway();
  g.settings.tools = {R"([{"name":"look"}])"};
  g.open("controller-1");
  rig.run(8);
  rig.get<FakeChat>("llm-chat-1").rounds = {{"weather", "look", "news"}};
  g.say(Say{"go"});
  BOOST_REQUIRE(rig.run_until([&] { return tools.asked.size() == 2; }));
  BOOST_TEST(tools.asked[0].name == "weather");
  BOOST_TEST(tools.asked[1].id == "call_1_1_3");
  BOOST_TEST(g.calls.empty());  // told in their order, with the result
  tools.answers.push_back({kSession, "call_1_1_1", {{"sky", "blue"}}});
  tools.answers.push_back({kSession, "call_9_9", "nobody asked"});
  tools.answers.push_back({{9, 9}, "call_1_1_1", "of nobody"});
  BOOST_REQUIRE(rig.run_until([&] { return g.calls.size() == 2; }));
  BOOST_TEST(g.calls[0]["result"]["sky"] == "blue");
  BOOST_TEST(!g.calls[1].contains("result"));
  tools.answers.push_back({kSession, "call_1_1_3", "none"});
  g.say(ToolOutput{"call_1_1_2", "seen"});
  BOOST_REQUIRE(rig.run_until([&] { return g.turns.size() == 1; }));
  BOOST_TEST(g.turns[0]["tool_calls"].size() == 3u);
  tools.is_full = true;
  rig.get<FakeChat>("llm-chat-1").rounds = {{"weather"}};
  g.say(Say{"again"});
  BOOST_REQUIRE(rig.run_until([&] { return g.turns.size() == 2; }));
  BOOST_TEST(g.turns[1]["tool_calls"][0]["result"]["error"] == "too many calls wait");
  const auto complaints = rig.complaints();
  BOOST_TEST(complaints.empty(), (complaints.empty() ? "" : complaints.front()));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
