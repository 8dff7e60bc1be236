/// Answers thought through in a pause (trial.cpp), and voices over an answer (barge_in.cpp).
#include <boost/test/unit_test.hpp>
#include <random>

#include "tests/services/controller/talk.hpp"

namespace parlando::controller {
namespace {
constexpr int kVoice = 50;  // frames that take the word, before they pause
}

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
  const auto behind = std::find_if(started + 1, events.end(), [](const auto& e) {
    return e.type != MessageType::checkpoint && e.type != MessageType::decided;
  });
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

/// And is answered at once, not with what the trial has to say.
BOOST_AUTO_TEST_CASE(a_cancel_of_another_turn_leaves_a_trial_alone) {
  Talk t;
  telemetry::Metrics metrics;
  t.rig.controller().add_metrics(metrics);
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.chat().forks == 1; }));
  t.g().say(Cancel{{99}});
  t.rig.run(3);
  BOOST_TEST(t.g().count(MessageType::cancelled) == 1u);
  BOOST_TEST(t.g().events.back().turn == 99u);
  BOOST_TEST(t.g().count(MessageType::speech_ended) == 0u);
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(figure(metrics, "trials_committed_total") == 1);
  BOOST_TEST(t.chat().forks == 1u);
  t.check_calm();
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
      std::string records[2], answers[2];
      Bytes audio[2];
      for (const int with : {0, 1}) {
        std::mt19937 random(seed);
        const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
        Talk t(talking(with == 0 ? 0 : 8), false, 2);
        const auto victim = fmt::format("{}-{}", kServiceRoles[static_cast<std::size_t>(draw(0, 3))], draw(1, 2));
        const int way = draw(0, 2), at = draw(5, 60);
        int step = 0;
        if (draw(0, 1) == 1) t.g().say(Item{"i", ItemRole::user, "said before"});
        // The client's tool answers at some time or other.
        const bool looks = draw(0, 1) == 1;
        const int takes = draw(0, 20);
        if (looks) {
          Configure c;
          c.tools = {R"([{"name":"set_timer"}])"};
          t.g().say(c);
        }
        int told = 0;
        std::set<std::string> done;
        const auto answer_tools = [&] {
          told = t.g().calls.empty() ? 0 : told + 1;
          if (!looks || told <= takes) return;
          for (const auto& call : t.g().calls)
            if (const auto id = call["id"].get<std::string>(); done.insert(id).second)
              t.g().say(ToolOutput{id, "seen"});
        };
        const auto say = [&](int frames, bool speech) {
          for (int i = 0; i < frames; ++i, ++step) {
            if (step == at && way == 1) t.rig.kill(victim);
            if (step == at && way == 2) t.rig.suspend(victim);
            answer_tools();
            t.say(1, speech);
          }
        };
        say(5, false);
        for (int parts = draw(1, 4); parts > 0; --parts) {
          say(draw(6, 20), true);
          say(draw(2, 21), false);
        }
        say(kSpeech, true);
        const auto stored = [&](std::int64_t turn) {
          answer_tools();
          return t.g().turns.size() == static_cast<std::size_t>(turn) && !t.record(turn).empty();
        };
        BOOST_REQUIRE(t.until([&] { return stored(1); }));
        t.g().say(Item{"j", ItemRole::system, "said between"});
        t.g().say(Respond{});
        BOOST_REQUIRE(t.until([&] { return stored(2); }));
        // Of a wish the input's number differs with how much silence came before.
        auto answer = json::parse(t.record(2));
        for (auto& call : answer["tool_calls"]) call.erase("id");
        answers[with] = answer.dump();
        if (way == 2) t.rig.wake(victim);
        t.rig.run(30);
        records[with] = t.record();
        audio[with] = t.g().audio;
        t.check_calm();
        std::size_t failed = t.g().count(MessageType::error);
        BOOST_TEST(failed == 0u);
      }
      BOOST_TEST(records[0] == records[1]);
      BOOST_TEST(answers[0] == answers[1]);
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

/// Only the end that it was made for commits it: another one (a flush before it) is thought through anew.
BOOST_AUTO_TEST_CASE(speech_that_ends_elsewhere_drops_the_trial) {
  Talk t;
  telemetry::Metrics metrics;
  t.rig.controller().add_metrics(metrics);
  t.say(5, false);
  const auto end = t.microphone.at + kSpeech * 320;
  t.say(kSpeech, true);
  t.say(14, false);
  BOOST_REQUIRE(t.chat().forks == 1u);
  t.rig.controller().on_message("vad-1", pack(SpeechEnded{end - 1600}, t.last_to("vad-1")), t.rig.now);
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(figure(metrics, "trials_committed_total") == 0);
  BOOST_TEST(t.rig.get<FakeTokenizer>("tokenizer-1").last_samples <= end);
}

/// 1 MiB is held back and no more.
BOOST_AUTO_TEST_CASE(a_trial_that_says_too_much_is_dropped) {
  auto config = talking();
  config.turn_seconds_max = 60;
  Talk t(config);
  t.chat().calls_tool = false;
  t.chat().sentences = 2000;
  t.rig.get<FakeVad>("vad-1").silence = 16000 * 50;
  telemetry::Metrics metrics;
  t.rig.controller().add_metrics(metrics);
  t.say(5, false);
  t.say(kSpeech, true);
  t.say(100, false);
  BOOST_REQUIRE(t.chat().streams() == 2u);  // the one that listens and the fork
  t.say(2200, false);
  BOOST_TEST(t.chat().streams() == 1u);
  t.chat().sentences = 1;
  BOOST_TEST(t.answered(1));
  BOOST_TEST(figure(metrics, "trials_committed_total") == 0);
}

/// One call too many fails the turn, and those behind it nothing else.
BOOST_AUTO_TEST_CASE(calls_that_were_held_back_fail_one_turn) {
  Talk t;
  t.chat().rounds = {std::vector<std::string>(70, "set_timer")};
  t.rig.get<FakeVad>("vad-1").silence = 16000 * 3;  // until all of them are there
  t.say(5, false);
  t.say(kSpeech, true);
  t.say(200, false);
  BOOST_TEST(t.chat().forks == 1u);
  std::vector<std::string> codes;
  for (const auto& e : t.g().events)
    if (e.type == MessageType::error) codes.push_back(e.text);
  BOOST_TEST(codes == std::vector<std::string>{"overloaded"}, boost::test_tools::per_element());
  t.chat().rounds = {};
  t.chat().calls_tool = false;
  t.g().say(Say{"and now"});
  BOOST_TEST(t.answered(1));
}

/// Another controller has the session since: the gateway is told, whatever is thought through.
BOOST_AUTO_TEST_CASE(a_stale_owner_says_so_during_a_trial) {
  Talk t;
  t.say(5, false);
  t.say(kSpeech, true);
  t.say(12, false);
  BOOST_REQUIRE(t.chat().forks == 1u);
  auto to = t.last_to("tokenizer-1");
  to.epoch = {99};
  t.rig.controller().on_message("tokenizer-1", pack(ErrorMessage{"stale_epoch", "fenced"}, to), t.rig.now);
  t.rig.run(5);
  BOOST_TEST(t.rig.controller().load() == 0);
  BOOST_TEST(t.g().count(MessageType::error) == 1u);
}

/// What the client is told of its own messages is no effect of the trial.
BOOST_AUTO_TEST_CASE(a_refused_message_is_answered_during_a_trial) {
  Talk t;
  t.say(5, false);
  t.say(kSpeech, true);
  t.say(12, false);
  BOOST_REQUIRE(t.chat().forks == 1u);
  t.g().say(Say{"typed over speech"});
  t.rig.run(3);
  BOOST_TEST(t.g().count(MessageType::error) == 1u);
  t.say(kSpeech, true);  // the trial is dropped
  BOOST_TEST(t.g().count(MessageType::error) == 1u);
}

BOOST_AUTO_TEST_CASE(a_link_that_is_lost_during_a_trial_leaves_the_turn_whole) {
  for (const bool own : {false, true}) {
    BOOST_TEST_CONTEXT("its own " << own) {
      Talk t(talking(), false, 2);
      t.say(5, false);
      t.say(kSpeech, true);
      t.say(12, false);
      std::pair<std::string, Envelope> last;
      for (const auto& s : t.rig.sent)
        if (s.first.starts_with(own ? "llm-chat" : "tokenizer")) last = s;
      t.rig.controller().on_refused(last.first, last.second, {Errc::unavailable, "not linked"}, t.rig.now);
      t.say(kSpeech, true);  // the user goes on
      BOOST_TEST(t.answered(1));
      BOOST_TEST(t.g().count(MessageType::error) == 0u);
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
  /// That was heard to its end, and a long answer is under way.
  void ask_for_much() {
    const auto before = g().audio.size();
    g().played(1, 9999);
    chat().sentences = 80;
    say(kSpeech, true);
    BOOST_REQUIRE(until([&] { return g().audio.size() > before + 6000; }));
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
  t.say(kVoice, true);
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
  // All that was said over the answer is in the turn, with a pre-roll and the tail.
  BOOST_TEST(t.rig.get<FakeTokenizer>("tokenizer-1").last_samples >= kVoice * 320);
  t.check_calm();
  // Another controller reads the same past from the store.
  t.rig.add("controller-2", "controller");
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  t.g().say(Say{"and then"});
  BOOST_REQUIRE(t.until([&] { return t.g().turns.size() == 3; }));
  BOOST_TEST(json::parse(t.chat().last_past)[1]["content"] == heard);
}

/// A stop button behind a complete answer that is still played.
BOOST_AUTO_TEST_CASE(a_cancel_of_playing_sound_makes_the_past_what_was_heard) {
  Playing t;
  const auto whole = t.g().turns[0]["assistant"].get<std::string>();
  t.g().cancel_playing(1);
  t.say(10, false);
  BOOST_TEST(t.g().count(MessageType::cancelled) == 1u);
  BOOST_REQUIRE(t.g().interrupted.has_value());
  BOOST_TEST(t.g().interrupted->samples == 1500);
  const auto heard = t.g().interrupted->heard;
  BOOST_TEST(!heard.empty());
  BOOST_TEST(heard.size() < whole.size());
  // Nothing plays any more that a voice could be over.
  t.say(kVoice, true);
  BOOST_TEST(t.g().count(MessageType::hold) == 0u);
  BOOST_REQUIRE(t.answered(2));
  BOOST_TEST(json::parse(t.chat().last_past)[1]["content"] == heard);
  BOOST_TEST(json::parse(t.record(2))["cut"]["heard"] == heard);
  t.check_calm();
}

/// Of a number that is used again nothing was heard.
BOOST_AUTO_TEST_CASE(what_was_heard_of_a_cancelled_turn_is_not_said_of_the_next) {
  Playing t;
  t.ask_for_much();
  t.g().cancel_playing(2);
  t.chat().sentences = 2;
  t.g().say(Say{"and then"});
  BOOST_REQUIRE(t.answered(2));
  const auto told = t.g().count(MessageType::interrupted);
  t.g().say(Cancel{{2}});
  t.say(10, false);
  BOOST_TEST(t.g().count(MessageType::interrupted) == told);
}

/// Another controller cuts an answer at the same word: behind its end, and while it is made.
BOOST_AUTO_TEST_CASE(what_was_heard_does_not_depend_on_who_leads) {
  for (const bool under_way : {false, true}) {
    std::string heard[2];
    for (const bool handed_over : {false, true}) {
      BOOST_TEST_CONTEXT("under way " << under_way << ", handed over " << handed_over) {
        Talk t(talking(), true);
        t.chat().calls_tool = false;
        t.chat().sentences = under_way ? 80 : 6;
        t.say(5, false);
        t.say(kSpeech, true);
        if (under_way)
          BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > 2 * 7000; }));
        else
          BOOST_REQUIRE(t.answered(1));
        t.g().heard_samples = under_way ? 6100 : 2700;
        if (handed_over) {
          t.rig.add("controller-2", "controller");
          t.rig.kill("controller-1");
          t.g().open("controller-2");
        }
        t.say(kVoice, true);
        BOOST_REQUIRE(t.until([&] { return t.g().interrupted.has_value(); }));
        heard[handed_over] = t.g().interrupted->heard;
        BOOST_TEST(!heard[handed_over].empty());
      }
    }
    BOOST_TEST(heard[0] == heard[1]);
  }
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
      t.say(kVoice, true);
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
  t.say(kVoice, true);
  BOOST_TEST(t.g().count(MessageType::cancelled) == 1u);
  t.rig.swallow = {};
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.g().turns[0]["turn"] == 1);
  t.check_calm();
}

/// The store is away, and then the controller goes with the turn: of the sound behind that no more is kept than ever.
BOOST_AUTO_TEST_CASE(a_word_over_a_turn_that_is_not_stored_is_no_question_later) {
  Talk t(talking(0), true);
  t.chat().calls_tool = false;
  t.rig.add("controller-2", "controller");
  t.rig.store->fails = Errc::io;
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.answered(1));
  BOOST_REQUIRE(t.g().degraded.back());
  t.say(5, true);
  t.say(500, false);
  BOOST_REQUIRE(t.g().count(MessageType::release) == 1u);
  BOOST_TEST(t.record().empty());
  BOOST_TEST(t.g().kept() < 250u);
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  t.say(200, false);
  BOOST_TEST(t.g().turns.size() == 1u);
  BOOST_TEST(t.g().count(MessageType::speech_started) == 1u);
  BOOST_TEST(t.g().count(MessageType::error) == 0u);
}

/// Push to talk over the rest of an answer: a short word, then the button is let go.
BOOST_AUTO_TEST_CASE(a_flush_makes_a_question_of_a_word_over_playing_sound) {
  for (const bool microphone_stops : {false, true}) {
    BOOST_TEST_CONTEXT("microphone stops " << microphone_stops) {
      Playing t;
      t.say(kSpeech, true);
      BOOST_REQUIRE(t.g().count(MessageType::hold) == 1u);
      t.g().say(Flush{t.microphone.at});
      t.rig.run(20);
      BOOST_TEST(t.g().count(MessageType::interrupted) == 1u);
      if (microphone_stops)
        t.rig.run(100);
      else
        t.say(100, false);
      BOOST_TEST(t.g().turns.size() == 2u);
      BOOST_TEST(t.rig.get<FakeTokenizer>("tokenizer-1").last_samples <= (15 + kSpeech + 5) * 320);
      // It listens on.
      t.g().played(2, 9999);
      t.say(kSilence, false);
      t.say(kSpeech, true);
      BOOST_TEST(t.answered(3));
      BOOST_TEST(t.g().count(MessageType::error) == 0u);
      t.check_calm();
    }
  }
}

/// The word is said and flushed before its vad has said a thing.
BOOST_AUTO_TEST_CASE(a_word_that_is_said_all_at_once_and_flushed_over_an_answer_is_a_question) {
  for (const bool under_way : {false, true}) {
    BOOST_TEST_CONTEXT("under way " << under_way) {
      Playing t;
      if (under_way) t.ask_for_much();
      const auto before = t.g().turns.size();
      for (int i = 0; i < kSpeech; ++i) t.g().say(t.microphone.frame(true));
      t.g().say(Flush{t.microphone.at});
      t.chat().sentences = 1;
      t.rig.run(100);
      BOOST_TEST(t.g().count(MessageType::interrupted) == 1u);
      BOOST_TEST(t.g().turns.size() == before + 1 + (under_way ? 1 : 0));
      BOOST_TEST(t.g().count(MessageType::error) == 0u);
      t.check_calm();
    }
  }
}

BOOST_AUTO_TEST_CASE(a_flush_over_an_answer_takes_the_word_at_once) {
  for (const int silence : {0, 8}) {  // in the voice, and in its pause
    BOOST_TEST_CONTEXT("silence " << silence) {
      Talk t(talking(0), true);
      t.chat().calls_tool = false;
      t.chat().sentences = 80;
      t.say(5, false);
      t.say(kSpeech, true);
      BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > 6000; }));
      t.say(kSpeech, true);
      t.say(silence, false);
      BOOST_REQUIRE(t.g().count(MessageType::hold) == 1u);
      t.g().say(Flush{t.microphone.at});
      t.chat().sentences = 1;
      t.rig.run(100);
      BOOST_TEST(t.g().count(MessageType::interrupted) == 1u);
      BOOST_TEST(t.g().turns.size() == 2u);
      t.check_calm();
    }
  }
}

BOOST_AUTO_TEST_CASE(a_flush_over_an_answer_that_nobody_spoke_over_changes_nothing) {
  Talk t(talking(0), true);
  t.chat().calls_tool = false;
  t.chat().sentences = 20;
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > 6000; }));
  t.g().say(Flush{t.microphone.at});
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.g().count(MessageType::error) + t.g().count(MessageType::hold) == 0u);
  t.g().played(1, 9999);
  t.say(kSpeech, true);
  BOOST_TEST(t.answered(2));
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(a_voice_whose_microphone_stops_holds_no_longer) {
  for (const int silence : {0, 8}) {
    for (const bool under_way : {false, true}) {
      BOOST_TEST_CONTEXT("silence " << silence << " under way " << under_way) {
        Playing t;
        if (under_way) t.ask_for_much();
        t.say(kSpeech, true);
        t.say(silence, false);
        BOOST_REQUIRE(t.g().count(MessageType::hold) == 1u);
        t.rig.run(30);
        BOOST_TEST(t.g().count(MessageType::release) == 1u);
        // And it is not heard again when the microphone is back.
        t.say(5, false);
        BOOST_TEST(t.g().count(MessageType::hold) == 1u);
        t.say(kVoice, true);
        BOOST_TEST(t.g().count(MessageType::hold) == 2u);
        BOOST_TEST(t.g().count(MessageType::interrupted) == 1u);
      }
    }
  }
}

/// A long one is a question, whatever its microphone does.
BOOST_AUTO_TEST_CASE(a_long_voice_whose_microphone_stops_is_answered) {
  Playing t;
  t.say(kVoice - 10, true);
  t.rig.run(100);
  BOOST_TEST(t.g().count(MessageType::interrupted) == 1u);
  BOOST_TEST(t.g().turns.size() == 2u);
}

/// What was heard is asked again with the second hold; the answer has played on in between.
BOOST_AUTO_TEST_CASE(a_second_hold_asks_again_what_was_heard) {
  for (const int gap : {12, 16, 18, 19, 20, 22}) {
    BOOST_TEST_CONTEXT("gap " << gap) {
      Playing t;
      t.say(kSpeech, true);
      t.say(gap, false);
      BOOST_REQUIRE(t.g().count(MessageType::release) == 1u);
      t.g().heard_samples = 6000;  // it has played on
      t.say(kVoice, true);
      BOOST_REQUIRE(t.g().interrupted.has_value());
      BOOST_TEST(t.g().interrupted->samples == 6000);
    }
  }
}

/// 2 x 160 ms of voice are no 600 ms of voice, and 2 x 500 ms are.
BOOST_AUTO_TEST_CASE(pauses_are_no_voice) {
  for (const int frames : {8, 25}) {
    BOOST_TEST_CONTEXT("frames " << frames) {
      Playing t;
      t.say(frames, true);
      t.say(15, false);
      BOOST_REQUIRE(t.g().count(MessageType::release) == 1u);
      t.say(frames, true);
      t.say(kSilence, false);
      BOOST_TEST(t.g().count(MessageType::interrupted) == (frames == 8 ? 0u : 1u));
      BOOST_TEST(t.g().count(MessageType::release) == (frames == 8 ? 2u : 1u));
    }
  }
}

/// Another vad takes over in a pause and hears the voice anew: 500 ms of it are no 600 ms, unless as much comes behind.
BOOST_AUTO_TEST_CASE(a_voice_that_another_vad_hears_again_counts_once) {
  for (const int more : {0, 25}) {
    BOOST_TEST_CONTEXT("frames behind it " << more) {
      Playing t;
      t.say(25, true);
      t.say(12, false);
      BOOST_REQUIRE(t.g().count(MessageType::release) == 1u);
      t.rig.add("vad-2", "vad");
      t.rig.get<FakeVad>("vad-2").silence = 8000;
      t.rig.run(8);
      t.rig.kill("vad-1");
      t.say(8, false);
      BOOST_REQUIRE(t.rig.get<FakeVad>("vad-2").streams() == 1u);
      t.say(more, true);
      t.say(kSilence, false);
      BOOST_TEST(t.g().count(MessageType::interrupted) == (more == 0 ? 0u : 1u));
      BOOST_TEST(t.g().count(MessageType::hold) ==
                 t.g().count(MessageType::release) + t.g().count(MessageType::interrupted));
    }
  }
}

BOOST_AUTO_TEST_CASE(silence_behind_a_voice_is_no_voice) {
  Playing t;
  t.say(27, true);  // 540 ms
  t.say(kSilence, false);
  BOOST_TEST(t.g().count(MessageType::interrupted) == 0u);
  BOOST_TEST(t.g().count(MessageType::release) == 1u);
}

/// Whoever gets a hold gets a release or an interrupted.
BOOST_AUTO_TEST_CASE(a_client_without_a_lead_is_let_go_when_the_turn_ends_under_a_voice) {
  for (int late = 20; late < 60; ++late) {
    Talk t(talking(0), false);
    t.chat().calls_tool = false;
    t.chat().sentences = 6;
    t.say(5, false);
    t.say(kSpeech, true);
    t.say(late, false);
    t.say(kSpeech, true);
    t.say(kSilence, false);
    t.until([&] { return t.g().turns.size() == 2; });
    const auto& g = t.g();
    BOOST_TEST(g.count(MessageType::hold) == g.count(MessageType::release) + g.count(MessageType::interrupted),
               "late " << late);
  }
}

/// A voice that began before the turn's end and is long takes the word from sound that such a client still plays.
BOOST_AUTO_TEST_CASE(a_voice_over_the_end_of_a_turn_interrupts_a_client_without_a_lead) {
  Talk t(talking(0), false);
  t.chat().calls_tool = false;
  t.chat().sentences = 6;
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::text) > 18; }));
  const auto before = t.g().turns.size();
  t.say(kVoice, true);
  BOOST_REQUIRE(before == 0u);
  BOOST_REQUIRE(t.g().turns.size() == 1u);
  BOOST_TEST(t.g().count(MessageType::interrupted) == 1u);
  BOOST_TEST(t.answered(2));
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(sound_that_is_missing_under_a_voice_ends_it) {
  for (const bool under_way : {false, true}) {
    BOOST_TEST_CONTEXT("under way " << under_way) {
      Playing t;
      if (under_way) t.ask_for_much();
      t.say(kSpeech, true);
      BOOST_REQUIRE(t.g().count(MessageType::hold) == 1u);
      t.microphone.at += 3200;
      t.say(20, false);
      BOOST_TEST(t.g().count(MessageType::release) == 1u);
      BOOST_TEST(t.g().count(MessageType::interrupted) == 0u);
      t.say(kVoice, true);
      BOOST_TEST(t.g().count(MessageType::interrupted) == 1u);
    }
  }
}

/// It has the word already: what was said before the gap is the question.
BOOST_AUTO_TEST_CASE(sound_that_is_missing_behind_an_interruption_ends_the_question) {
  Talk t(talking(0), true);
  t.chat().calls_tool = false;
  t.chat().sentences = 80;
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > 6000; }));
  t.rig.suspend("context-1");  // the turn waits to be durable, and the voice for the turn
  while (t.g().count(MessageType::interrupted) == 0) t.say(1, true);
  t.say(3, true);
  t.microphone.at += 3200;
  t.chat().sentences = 1;
  t.say(3, false);
  t.rig.wake("context-1");
  BOOST_TEST(t.answered(2));
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(a_typed_turn_ends_a_voice) {
  Playing t;
  t.say(8, true);
  BOOST_REQUIRE(t.g().count(MessageType::hold) == 1u);
  t.g().say(Say{"what is it"});
  BOOST_REQUIRE(t.answered(2));
  BOOST_TEST(t.g().count(MessageType::release) == 1u);
  t.g().played(2, 9999);
  t.say(100, false);
  BOOST_TEST(t.g().count(MessageType::speech_started) == 1u);  // nobody has spoken since
  BOOST_TEST((t.rig.controller().turn_of(kSession)->stage == Turn::Stage::listening));
}

BOOST_AUTO_TEST_CASE(a_cancel_drops_a_voice_over_playing_sound) {
  Playing t;
  t.say(8, true);
  BOOST_REQUIRE(t.g().count(MessageType::hold) == 1u);
  t.g().say(Cancel{});
  t.say(100, false);
  BOOST_TEST(t.g().count(MessageType::release) == 1u);
  BOOST_TEST(t.g().count(MessageType::speech_started) == 1u);
  t.say(kVoice, true);
  BOOST_TEST(t.g().count(MessageType::interrupted) == 1u);
  BOOST_TEST(t.answered(2));
}

/// The answer is dropped under a voice: that is a question like any other, and nothing is told of an interruption.
BOOST_AUTO_TEST_CASE(a_voice_over_an_answer_that_is_cancelled_or_fails_is_a_question) {
  for (const bool fails : {false, true}) {
    BOOST_TEST_CONTEXT("fails " << fails) {
      Playing t;
      t.ask_for_much();
      t.say(kSpeech, true);
      BOOST_REQUIRE(t.g().count(MessageType::hold) == 1u);
      t.chat().sentences = 1;
      if (fails)
        t.rig.controller().on_message("tts-1", pack(ErrorMessage{"internal", "asked to fail"}, t.last_to("tts-1")),
                                      t.rig.now);
      else
        t.g().say(Cancel{});
      t.say(kVoice, true);
      BOOST_TEST(t.g().count(MessageType::release) == 1u);
      BOOST_TEST(t.g().count(MessageType::interrupted) == 0u);
      BOOST_TEST(t.answered(2));
      t.check_calm();
    }
  }
}

/// An interruption stands in the next record that is stored, and in no other.
BOOST_AUTO_TEST_CASE(an_interruption_is_stored_once) {
  Playing t;
  t.say(kVoice, true);
  BOOST_REQUIRE(t.g().interrupted.has_value());
  t.say(5, false);
  t.g().say(Cancel{});  // that turn is never stored
  t.say(kSilence, false);
  t.g().say(Say{"and then"});
  BOOST_REQUIRE(t.answered(2));
  t.g().say(Say{"and then"});
  BOOST_REQUIRE(t.answered(3));
  BOOST_TEST(json::parse(t.record(2))["cut"]["heard"] == t.g().interrupted->heard);
  BOOST_TEST(!json::parse(t.record(3)).contains("cut"));
  BOOST_TEST(!json::parse(t.record(1)).contains("cut"));
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

/// An interruption stands in the store before the controller knows it: what plays is known to the gateway.
BOOST_AUTO_TEST_CASE(a_new_owner_lets_playing_sound_be_interrupted) {
  Playing t;
  const auto whole = t.g().turns[0]["assistant"].get<std::string>();
  t.g().heard_samples = 30000;
  t.rig.add("controller-2", "controller");
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  t.rig.run(8);
  t.say(kVoice, true);
  BOOST_TEST(t.g().count(MessageType::hold) == 1u);
  BOOST_REQUIRE(t.g().interrupted.has_value());
  BOOST_TEST(t.g().interrupted->samples == 30000);
  const auto heard = t.g().interrupted->heard;
  BOOST_TEST(!heard.empty());
  BOOST_TEST(heard.size() < whole.size());
  BOOST_TEST(whole.starts_with(heard));
  BOOST_REQUIRE(t.answered(2));
  BOOST_TEST(json::parse(t.chat().last_past)[1]["content"] == heard);
}

/// A typed turn is answered while the sound of the one before plays, and then a voice comes.
BOOST_AUTO_TEST_CASE(a_voice_over_the_turn_before_interrupts_both) {
  Playing t;
  const auto whole = t.g().turns[0]["assistant"].get<std::string>();
  t.chat().sentences = 80;
  t.g().say(Say{"and"});
  const auto before = t.g().audio.size();
  BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > before; }));
  t.say(kVoice, true);
  BOOST_TEST(t.g().count(MessageType::interrupted) == 2u);
  const auto heard = t.g().heard_of[1];
  BOOST_TEST(!heard.empty());
  BOOST_TEST(heard.size() < whole.size());
  BOOST_TEST(t.g().heard_of[2] == "");
  t.chat().sentences = 1;
  BOOST_REQUIRE(t.answered(3));
  const auto past = json::parse(t.chat().last_past);
  BOOST_REQUIRE(past.size() == 4u);
  BOOST_TEST(past[1]["content"] == heard);
  BOOST_TEST(past[3]["content"] == "");
  BOOST_TEST(json::parse(t.record(2))["cut"]["heard"] == heard);
  t.check_calm();
}

/// A turn is stored, but its client was not told all of it: the rest is made again, and a voice ends that.
BOOST_AUTO_TEST_CASE(sound_that_is_made_again_of_a_stored_turn_can_be_interrupted) {
  Talk t(talking(0), true);
  t.chat().calls_tool = false;
  t.chat().sentences = 60;
  t.rig.swallow = [](const std::string&, const std::string& to, const Message& m) {
    return to == "gateway-1" && (m.head.type == MessageType::speech || m.head.type == MessageType::turn_done);
  };
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return !t.record().empty(); }));
  t.rig.swallow = {};
  t.rig.add("controller-2", "controller");
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > 6000; }));
  t.g().heard_samples = 1200;
  t.say(kVoice, true);
  BOOST_REQUIRE(t.g().interrupted.has_value());
  BOOST_TEST(t.g().interrupted->turn.value == 1u);
  const auto heard = t.g().interrupted->heard;
  t.chat().sentences = 1;
  BOOST_REQUIRE(t.answered(2));
  BOOST_TEST(t.g().turns[0]["assistant"].get<std::string>().starts_with(heard));
  BOOST_TEST(json::parse(t.chat().last_past)[1]["content"] == heard);
  BOOST_TEST(json::parse(t.record(2))["cut"]["heard"] == heard);
  t.check_calm();
}

/// The voice that the former owner had noticed, and all that was said since, is kept for the next one.
BOOST_AUTO_TEST_CASE(a_voice_outlives_its_controller) {
  for (const bool under_way : {false, true}) {
    for (const int frames : {8, kSpeech, 30, kVoice}) {
      BOOST_TEST_CONTEXT("under way " << under_way << " frames " << frames) {
        Playing t;
        if (under_way) t.ask_for_much();
        t.say(60, false);  // what lies before it is not kept
        t.say(frames, true);
        BOOST_REQUIRE(t.g().count(MessageType::hold) == 1u);
        t.rig.add("controller-2", "controller");
        t.rig.kill("controller-1");
        t.g().open("controller-2");
        t.chat().sentences = 1;
        t.say(kVoice, true);
        BOOST_TEST(t.g().interrupted.has_value());
        const auto before = t.g().turns.size();
        BOOST_REQUIRE(
            t.until([&] { return t.g().turns.size() > before && !t.g().turns.back().contains("interrupted"); }));
        BOOST_TEST(t.rig.get<FakeTokenizer>("tokenizer-1").last_samples >= (frames + kVoice) * 320);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(an_answer_that_was_thought_through_in_a_pause_is_held_while_it_plays) {
  Talk t(talking(), true);
  t.chat().calls_tool = false;
  t.chat().sentences = 1;  // all of it is made in the pause
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.answered(1));
  const auto& stages = t.g().turns[0]["stages"];
  BOOST_REQUIRE(stages["total_ms"].get<double>() == stages["decision_ms"].get<double>());
  t.say(kSpeech, true);
  BOOST_TEST(t.g().count(MessageType::hold) == 1u);
}

BOOST_AUTO_TEST_CASE(an_answer_under_way_needs_no_vad) {
  for (const bool refuses : {false, true}) {
    BOOST_TEST_CONTEXT("refuses " << refuses) {
      Talk t(talking(0), true);
      t.chat().calls_tool = false;
      t.chat().sentences = refuses ? 80 : 150;
      if (refuses) {
        t.rig.get<FakeVad>("vad-1").refuses = Errc::overloaded;
        t.g().say(Say{"tell me"});
      } else {
        t.say(5, false);
        t.say(kSpeech, true);
        BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > 6000; }));
        t.rig.kill("vad-1");
      }
      t.until([&] { return t.g().turns.size() == 1 || t.g().count(MessageType::error) > 0; }, 2000);
      BOOST_TEST(t.g().count(MessageType::error) == 0u);
      BOOST_TEST(t.g().turns.size() == 1u);
    }
  }
}

/// The vad dies under a voice over sound that plays, and another is there five seconds later.
BOOST_AUTO_TEST_CASE(a_voice_whose_vad_died_does_not_hold_for_ever) {
  Playing t;
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.g().count(MessageType::hold) == 1u);
  t.rig.kill("vad-1");
  t.say(250, false);
  t.rig.add("vad-2", "vad");
  t.say(1000, false);
  BOOST_TEST(t.g().count(MessageType::release) + t.g().count(MessageType::interrupted) == 1u);
}

/// A model without transcripts (`reply_format` direct).
BOOST_AUTO_TEST_CASE(without_transcripts_the_past_is_what_was_heard) {
  Talk t(talking(0), true);
  t.chat().calls_tool = false;
  t.chat().sentences = 80;
  t.rig.swallow = [](const std::string& from, const std::string&, const Message& m) {
    if (from != "llm-chat-1" || m.head.type != MessageType::text) return false;
    auto copy = m;
    return read<Text>(copy)->kind == TextKind::transcript;
  };
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().audio.size() > 6000; }));
  t.g().heard_samples = 2500;
  t.say(kVoice, true);
  BOOST_REQUIRE(t.g().interrupted.has_value());
  BOOST_TEST(!t.g().interrupted->heard.empty());
  BOOST_REQUIRE(t.until([&] { return t.g().turns.size() == 1; }, 10));
  BOOST_TEST(t.g().count(MessageType::cancelled) == 0u);
  BOOST_TEST(json::parse(t.record())["assistant"] == t.g().interrupted->heard);
}

/// Sample for sample: what was heard is a beginning of the reply, cut behind the last word whose place lies before.
BOOST_AUTO_TEST_CASE(text_is_cut_behind_the_last_word_heard) {
  Turn turn;
  turn.reply.text = "one two three.\n四五六七 eight nine";
  turn.pieces = {{"one two three.", 14000, true, 0, 14},
                 {"(slow)四五六七", 4000, true, 6, 27},
                 {"(slow)eight nine", 300, false, 6, 38}};
  const auto at = [&](std::int64_t samples) { return turn.heard_text(samples); };
  BOOST_TEST(at(0) == "");
  BOOST_TEST(at(2000) == "");
  BOOST_TEST(at(4100) == "one");
  BOOST_TEST(at(8000) == "one two");
  BOOST_TEST(at(13900) == "one two");
  BOOST_TEST(at(14000) == "one two three.");
  BOOST_TEST(at(16000) == "one two three.\n四五");
  BOOST_TEST(at(18000) == "one two three.\n四五六七");
  BOOST_TEST(at(18000 + 9000) == "one two three.\n四五六七 eight");
  std::size_t length = 0;
  for (std::int64_t s = 0; s < 40000; s += 50) {
    const auto text = at(s);
    BOOST_TEST(text.size() >= length);
    BOOST_TEST(turn.reply.text.starts_with(text));
    length = text.size();
  }
}

/// As the chunker cuts it, whatever the reply has between its sentences.
BOOST_AUTO_TEST_CASE(heard_text_is_a_beginning_of_the_reply) {
  for (const std::string reply : {"(happy)Hello there. How are you? Fine.", "你好。我很好。你呢？",
                                  "First:\n- one\n- two\n", "  Well.  So?   "}) {
    Turn turn;
    turn.reply.text = reply;
    auto chunks = turn.chunker.push(reply);
    for (auto& chunk : turn.chunker.finish()) chunks.push_back(std::move(chunk));
    for (auto& chunk : chunks) turn.pieces.push_back({chunk.text, 10000, true, chunk.tag_bytes, chunk.end});
    const auto all = static_cast<std::int64_t>(turn.pieces.size()) * 10000;
    for (std::int64_t s = 0; s <= all; s += 2500) {
      const auto heard = turn.heard_text(s);
      BOOST_TEST(reply.starts_with(heard), reply << " | " << s << " | " << heard);
    }
    BOOST_TEST(turn.heard_text(all).size() + 3 >= reply.size());
    // Made once more, it is cut in the same places.
    turn.rewind(0);
    for (auto& piece : turn.pieces) piece = {piece.text, 10000, true, piece.tag_bytes, piece.end};
    BOOST_TEST(turn.heard_text(all) == reply.substr(0, turn.pieces.back().end));
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
