/// Answers thought through in a pause (trial.cpp), and voices over an answer (barge_in.cpp).
#include <boost/test/unit_test.hpp>
#include <random>

#include "tests/services/controller/talk.hpp"

namespace parlando::controller {
BOOST_AUTO_TEST_SUITE(trials)

BOOST_AUTO_TEST_CASE(an_answer_is_made_in_the_pause_and_leaves_when_the_end_is_decided) {
  Talk plain(talking(0)), t;
  telemetry::Metrics metrics;
  t.rig.controller().add_metrics(metrics);
  for (auto* each : {&plain, &t}) {
    each->say(5, false);
    each->say(kSpeech, true);
    BOOST_REQUIRE(each->answered(1));
    each->check_calm();
  }
  // The same is said, heard and stored.
  BOOST_TEST(t.record() == plain.record());
  BOOST_TEST((t.g().audio == plain.g().audio));
  BOOST_TEST(t.g().transcript == plain.g().transcript);
  BOOST_TEST(t.g().calls.size() == 1u);
  BOOST_TEST(t.chat().forks == 1u);
  BOOST_TEST(plain.chat().forks == 0u);
  BOOST_TEST(figure(metrics, "trials_total") == 1);
  BOOST_TEST(figure(metrics, "trials_committed_total") == 1);
  // Nothing of it was told before the end of speech.
  const auto& events = t.g().events;
  const auto started =
      std::find_if(events.begin(), events.end(), [](const auto& e) { return e.type == MessageType::speech_started; });
  const auto behind =
      std::find_if(started + 1, events.end(), [](const auto& e) { return e.type != MessageType::checkpoint; });
  BOOST_REQUIRE((behind != events.end()));
  BOOST_TEST((behind->type == MessageType::speech_ended));
  BOOST_TEST(t.g().turns[0]["stages"]["trial_ms"].get<double>() >= 300);
  BOOST_TEST(t.g().turns[0]["stages"]["total_ms"].get<double>() <
             plain.g().turns[0]["stages"]["total_ms"].get<double>());
}

BOOST_AUTO_TEST_CASE(an_answer_without_tools_is_there_when_the_end_is_decided) {
  Talk t;
  t.chat().calls_tool = false;
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.answered(1));
  const auto& stages = t.g().turns[0]["stages"];
  BOOST_TEST(stages["first_audio_ms"].get<double>() == stages["decision_ms"].get<double>());
}

BOOST_AUTO_TEST_CASE(a_user_who_goes_on_never_hears_of_a_trial) {
  Talk plain(talking(0)), t;
  for (auto* each : {&plain, &t}) {
    each->say(5, false);
    for (int part = 0; part < 3; ++part) {
      each->say(kSpeech, true);
      each->say(16, false);  // 320 ms: a trial begins, nothing is decided
    }
    const auto& g = each->g();
    BOOST_TEST(g.count(MessageType::text) + g.count(MessageType::speech) + g.count(MessageType::speech_ended) == 0u);
    BOOST_TEST(g.calls.empty());
    BOOST_TEST(each->record().empty());
    each->say(kSpeech, true);
    BOOST_REQUIRE(each->answered(1));
    each->check_calm();
  }
  BOOST_TEST(t.chat().forks == 3u);  // no more than three a turn
  BOOST_TEST(t.record() == plain.record());
  BOOST_TEST((t.g().audio == plain.g().audio));
  BOOST_TEST(t.g().checkpoints.back().input == plain.g().checkpoints.back().input);
}

BOOST_AUTO_TEST_CASE(no_more_trials_run_at_a_time_than_are_allowed) {
  Talk t(talking(1));
  telemetry::Metrics metrics;
  t.rig.controller().add_metrics(metrics);
  t.rig.add("gateway-2", "gateway");
  auto& other = t.rig.gateway("gateway-2");
  other.session = {8, 8};
  other.open("controller-1");
  t.rig.run(8);
  Microphone second;
  for (int i = 0; i < 60; ++i) {
    const bool speech = i >= 5 && i < 15;
    other.say(second.frame(speech));
    t.say(1, speech);
  }
  BOOST_TEST(t.until([&] { return t.g().turns.size() == 1 && other.turns.size() == 1; }));
  BOOST_TEST(figure(metrics, "trials_total") == 1);
  BOOST_TEST(figure(metrics, "trials_refused_total") == 1);
  BOOST_TEST(t.rig.streams_at_services() == 2u);  // their vads
}

/// Speech and pauses as they come, services that die or stand still: with and without trials the same is heard and
/// stored.
BOOST_AUTO_TEST_CASE(trials_change_nothing_that_is_heard_or_stored) {
  for (unsigned seed = 1; seed <= 150; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::string records[2];
      Bytes audio[2];
      for (const int with : {0, 1}) {
        std::mt19937 random(seed);
        const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
        Talk t(talking(with == 0 ? 0 : 8), false, 2);
        const auto victim = fmt::format("{}-{}", kServiceRoles[static_cast<std::size_t>(draw(0, 3))], draw(1, 2));
        const int way = draw(0, 2), at = draw(5, 60);
        int step = 0;
        const auto say = [&](int frames, bool speech) {
          for (int i = 0; i < frames; ++i, ++step) {
            if (step == at && way == 1) t.rig.kill(victim);
            if (step == at && way == 2) t.rig.suspend(victim);
            t.say(1, speech);
          }
        };
        say(5, false);
        for (int parts = draw(1, 4); parts > 0; --parts) {
          say(draw(6, 20), true);
          say(draw(2, 21), false);
        }
        say(kSpeech, true);
        BOOST_REQUIRE(t.until([&] { return t.g().turns.size() == 1 && !t.record().empty(); }));
        if (way == 2) t.rig.wake(victim);
        t.rig.run(30);
        records[with] = t.record();
        audio[with] = t.g().audio;
        t.check_calm();
        std::size_t failed = t.g().count(MessageType::error);
        BOOST_TEST(failed == 0u);
      }
      BOOST_TEST(records[0] == records[1]);
      BOOST_TEST((audio[0] == audio[1]));
    }
  }
}

BOOST_AUTO_TEST_CASE(whatever_ends_a_trial_leaves_nothing_behind) {
  for (const int way : {0, 1, 2, 3, 4}) {
    BOOST_TEST_CONTEXT("way " << way) {
      Talk t;
      telemetry::Metrics metrics;
      t.rig.controller().add_metrics(metrics);
      t.say(5, false);
      t.say(kSpeech, true);
      t.say(12, false);
      BOOST_REQUIRE(figure(metrics, "trials_total") == 1);
      if (way == 0) t.g().say(Cancel{});
      if (way == 1) t.g().close();
      if (way == 2) t.g().say(Flush{t.microphone.at});
      if (way == 3) t.chat().fails_at_third = Errc::internal;
      if (way == 4) t.rig.kill("gateway-1");
      t.rig.run(40);
      if (way == 2) BOOST_TEST(t.g().turns.size() == 1u);
      if (way == 3) BOOST_TEST(t.g().count(MessageType::error) <= 1u);
      if (way == 0) BOOST_TEST(t.g().count(MessageType::cancelled) == 1u);
      if (way != 3) BOOST_TEST(t.rig.streams_at_services() <= 1u);
      if (way == 1 || way == 4) BOOST_TEST(t.rig.controller().load() == 0);
      BOOST_TEST(figure(metrics, "trials_committed_total") == 0);
      // The place is free again.
      if (way == 1 || way == 4) continue;
      t.chat().fails_at_third.reset();
      t.say(kSilence, false);
      const auto before = figure(metrics, "trials_total");
      t.say(kSpeech, true);
      t.say(12, false);
      BOOST_TEST(figure(metrics, "trials_total") == before + 1);
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(barge_in)

/// A turn whose sound is still in the loudspeaker.
struct Playing : Talk {
  Playing() : Talk(talking(), true) {
    chat().calls_tool = false;
    chat().sentences = 6;
    say(5, false);
    say(kSpeech, true);
    BOOST_REQUIRE(answered(1));
    g().heard_samples = 1500;
  }
};

BOOST_AUTO_TEST_CASE(a_cough_holds_the_answer_and_lets_it_go_on) {
  Playing t;
  t.say(kSpeech, true);  // 200 ms
  BOOST_TEST(t.g().count(MessageType::hold) == 1u);
  t.say(kSilence, false);
  BOOST_TEST(t.g().count(MessageType::release) == 1u);
  BOOST_TEST(t.g().count(MessageType::interrupted) == 0u);
  BOOST_TEST(t.g().count(MessageType::speech_started) == 1u);
  // When the loudspeaker is silent, the same is a turn.
  t.g().played(1, 9999);
  t.say(kSpeech, true);
  BOOST_TEST(t.answered(2));
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(a_voice_takes_the_word_and_the_past_is_what_was_heard) {
  Playing t;
  const auto whole = t.g().turns[0]["assistant"].get<std::string>();
  t.say(35, true);
  BOOST_REQUIRE(t.g().interrupted.has_value());
  BOOST_TEST(t.g().interrupted->turn.value == 1u);
  BOOST_TEST(t.g().interrupted->samples == 1500);
  const auto heard = t.g().interrupted->heard;
  BOOST_TEST(!heard.empty());
  BOOST_TEST(heard.size() < whole.size());
  BOOST_TEST(whole.starts_with(heard));
  BOOST_REQUIRE(t.answered(2));
  BOOST_TEST(t.g().count(MessageType::speech_started) == 2u);
  const auto past = json::parse(t.chat().last_past);
  BOOST_REQUIRE(past.size() == 2u);
  BOOST_TEST(past[1]["content"] == heard);
  BOOST_TEST(json::parse(t.record(2))["cut"]["heard"] == heard);
  // All that was said over the answer is in the turn: 35 frames, a pre-roll and the tail.
  BOOST_TEST(t.rig.get<FakeTokenizer>("tokenizer-1").last_samples >= 35 * 320);
  t.check_calm();
  // Another controller reads the same past from the store.
  t.rig.add("controller-2", "controller");
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  t.g().say(Say{"and then"});
  BOOST_REQUIRE(t.until([&] { return t.g().turns.size() == 3; }));
  BOOST_TEST(json::parse(t.chat().last_past)[1]["content"] == heard);
}

BOOST_AUTO_TEST_CASE(an_answer_under_way_ends_where_it_was_heard) {
  for (const bool plays : {true, false}) {
    BOOST_TEST_CONTEXT("plays " << plays) {
      Talk t(talking(0), plays);
      t.chat().calls_tool = false;
      t.chat().sentences = 80;
      t.say(5, false);
      t.say(kSpeech, true);
      BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > 6000; }));
      t.g().heard_samples = 1200;
      const auto events = t.g().events.size();
      t.say(36, true);
      BOOST_REQUIRE(t.g().interrupted.has_value());
      BOOST_REQUIRE(t.until([&] { return t.g().turns.size() == 1; }, 10));
      BOOST_TEST(t.g().turns[0]["interrupted"] == true);
      BOOST_TEST(t.g().turns[0]["assistant"] == t.g().interrupted->heard);
      BOOST_TEST(json::parse(t.record())["assistant"] == t.g().interrupted->heard);
      // Nothing of its sound behind the interruption.
      bool over = false;
      for (auto i = events; i < t.g().events.size(); ++i) {
        const auto& e = t.g().events[i];
        over = over || e.type == MessageType::interrupted;
        if (over) BOOST_TEST((e.type != MessageType::speech || e.turn != 1));
      }
      t.chat().sentences = 1;
      BOOST_REQUIRE(t.answered(2));
      BOOST_TEST(json::parse(t.chat().last_past)[1]["content"] == t.g().interrupted->heard);
      t.check_calm();
    }
  }
}

BOOST_AUTO_TEST_CASE(a_voice_over_a_turn_that_was_not_understood_yet_drops_it) {
  Talk t(talking(0));
  t.rig.swallow = [](const std::string& from, const std::string&, const Message&) { return from == "llm-chat-1"; };
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
  t.say(36, true);
  BOOST_TEST(t.g().count(MessageType::cancelled) == 1u);
  t.rig.swallow = {};
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.g().turns[0]["turn"] == 1);
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(without_barge_in_nothing_is_heard_over_an_answer) {
  auto config = talking();
  config.barge_in_ms = 0;
  Talk t(config, true);
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
  t.say(3, true);
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.g().count(MessageType::hold) == 0u);
}

/// Sample for sample: a text is cut behind the last word whose place lies before the end.
BOOST_AUTO_TEST_CASE(text_is_cut_behind_the_last_word_heard) {
  Turn turn;
  turn.pieces = {{"one two three.", 14000, true}, {"四五六七", 4000, true}, {"eight nine", 300, false}};
  const auto at = [&](std::int64_t samples) { return turn.heard_text(samples); };
  BOOST_TEST(at(0) == "");
  BOOST_TEST(at(2000) == "");
  BOOST_TEST(at(4100) == "one");
  BOOST_TEST(at(8000) == "one two");
  BOOST_TEST(at(13900) == "one two");
  BOOST_TEST(at(14000) == "one two three.");
  BOOST_TEST(at(16000) == "one two three. 四五");
  BOOST_TEST(at(18000) == "one two three. 四五六七");
  BOOST_TEST(at(18000 + 9000) == "one two three. 四五六七 eight");
  std::size_t length = 0;
  for (std::int64_t s = 0; s < 40000; s += 50) {
    const auto text = at(s);
    BOOST_TEST(text.size() >= length);
    length = text.size();
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
