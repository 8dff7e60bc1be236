#define BOOST_TEST_MODULE controller
#include <boost/test/unit_test.hpp>
#include <fstream>

#include "services/controller/journal.hpp"
#include "tests/services/controller/rig.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::controller {
namespace {

struct Outcome {
  Bytes audio;
  std::string record, reply, transcript;
  std::size_t calls = 0;
  int steps = 0;
};

using Fault = std::function<void(Rig&, int step)>;

/// Another session comes, through a gateway of its own, and is told that there is no room.
FakeGateway& refuses_another(Rig& rig) {
  rig.add("gateway-2", "gateway");
  auto& other = rig.gateway("gateway-2");
  other.session = {8, 8};
  other.open("controller-1");
  rig.run(8);
  BOOST_TEST(other.last_error()->text == "overloaded");
  return other;
}

/// What was said; not how much silence it took to notice the end of it.
std::string content(const std::string& record) {
  auto object = json::parse(record);
  object.erase("last_input");
  return object.dump();
}

/// One spoken turn with a fault in it; it must be reported once, and stored.
Outcome converse(
    int replicas, const Fault& fault = [](Rig&, int) {}) {
  Rig rig(with_tools());
  rig.furnish(replicas);
  Speaker speaker(rig.gateway());
  const auto done = [&] { return !rig.gateway().turns.empty() && !stored(rig).empty(); };
  int steps = 0;
  // What was to wake wakes, and has its chance to say something.
  for (int step = 0, behind = 70; step < kLimit && behind > 0; ++step) {
    if (rig.gateway().turns.empty()) speaker.step();
    fault(rig, step);
    rig.step();
    if (done())
      --behind;
    else
      ++steps;
  }
  BOOST_REQUIRE_MESSAGE(done(), "the turn ends");
  BOOST_TEST(rig.gateway().turns.size() == 1u);
  std::size_t failed = 0;
  for (const auto& e : rig.gateway().events) failed += e.type == MessageType::error && e.text != "stale_epoch" ? 1 : 0;
  BOOST_TEST(failed == 0u);
  BOOST_TEST(rig.streams_at_services() <= 1u);  // the vad goes on listening
  check_calm(rig);
  const auto& g = rig.gateway();
  return {g.audio, content(stored(rig)), g.reply, g.transcript, g.calls.size(), steps};
}

void check_same(const Outcome& got, const Outcome& want) {
  BOOST_TEST((got.audio == want.audio));
  BOOST_TEST(got.record == want.record);
  BOOST_TEST(got.reply == want.reply);
  BOOST_TEST(got.transcript == want.transcript);
  BOOST_TEST(got.calls == want.calls);
}

/// A session with a typed question answered; for what is not about speech.
bool type(Rig& rig, const std::string& text, int limit = kLimit) {
  const auto before = rig.gateway().turns.size() + rig.gateway().count(MessageType::error);
  rig.gateway().say(Say{text});
  return rig.run_until([&] { return rig.gateway().turns.size() + rig.gateway().count(MessageType::error) > before; },
                       limit);
}

std::string last_error(Rig& rig) {
  const auto* e = rig.gateway().last_error();
  return e == nullptr ? "" : e->text;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(dialogue)

BOOST_AUTO_TEST_CASE(a_spoken_turn_goes_from_frames_to_a_stored_answer) {
  Rig rig(with_tools());
  rig.furnish();
  Speaker speaker(rig.gateway());
  for (int i = 0; i < kLimit && rig.gateway().turns.empty(); ++i) {
    speaker.step();
    rig.step();
  }
  auto& g = rig.gateway();
  BOOST_REQUIRE(g.turns.size() == 1u);
  const auto& done = g.turns[0];
  BOOST_TEST(done["turn"] == 1);
  BOOST_TEST(done["assistant"] == g.reply);
  BOOST_TEST(done["user"] == g.transcript);
  BOOST_TEST(done["tool_calls"].size() == 1u);
  BOOST_TEST(done["tool_calls"][0]["result"]["amount"] == 3);
  BOOST_TEST(done["seed"] == mix_seed(77, 1));
  BOOST_TEST(g.seed == 77u);
  BOOST_TEST(!g.degraded[0]);
  const auto record = json::parse(stored(rig));
  BOOST_TEST(record["assistant"] == g.reply);
  BOOST_TEST(!record.contains("stages"));
  BOOST_TEST(done["audio_seconds"].get<double>() == static_cast<double>(g.audio.size() / 2) / 22050,
             boost::test_tools::tolerance(1e-9));
  BOOST_TEST(g.count(MessageType::speech_started) == 1u);
  BOOST_TEST(g.count(MessageType::speech_ended) == 1u);
  BOOST_TEST(rig.get<FakeTts>("tts-1").seeds ==
                 (std::set<std::uint64_t>{mix_seed(mix_seed(77, 1), 0), mix_seed(mix_seed(77, 1), 1)}),
             boost::test_tools::per_element());
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(every_message_carries_epoch_turn_trace_and_what_is_left_of_the_budget) {
  Rig rig(with_tools());
  rig.furnish();
  Speaker speaker(rig.gateway());
  for (int i = 0; i < kLimit && rig.gateway().turns.empty(); ++i) {
    speaker.step();
    rig.step();
  }
  std::size_t dated = 0;
  for (std::size_t i = 0; i < rig.sent.size(); ++i) {
    const auto& [to, head] = rig.sent[i];
    const bool service = to != "controller-1" && to != "gateway-1" && to != "context-1";
    if (to == "controller-1" || head.type == MessageType::claim) continue;
    if (head.turn.value == 2) break;  // the turn is over
    BOOST_TEST(head.epoch.value == 1u, to << " " << to_string(head.type));
    if (head.type == MessageType::history || head.type == MessageType::opened || head.type == MessageType::granted)
      continue;
    if (head.type == MessageType::records || head.type == MessageType::checkpoint) continue;
    BOOST_TEST((head.turn.value == 1u), to << " " << to_string(head.type));
    BOOST_TEST(head.trace == 4711u, to << " " << to_string(head.type));
    if (!service || head.type == MessageType::close) continue;
    const bool answers = head.type == MessageType::generate || head.type == MessageType::speak;
    if (answers) BOOST_TEST((rig.deadlines[i] < rig.now + std::chrono::seconds(60)));
    dated += answers ? 1 : 0;
  }
  BOOST_TEST(dated == 3u);
}

BOOST_AUTO_TEST_CASE(nothing_is_started_at_other_services_before_the_session_is_granted) {
  Rig rig;
  rig.furnish();
  rig.gateway().waits_for_opened = false;
  rig.gateway().open("controller-1");
  rig.swallow = [](const std::string&, const std::string& to, const Message& m) {
    return to == "controller-1" && m.head.type == MessageType::granted;
  };
  Speaker speaker(rig.gateway());
  for (int i = 0; i < 40; ++i) {
    speaker.step();
    rig.step();
  }
  BOOST_TEST(rig.streams_at_services() == 0u);
  BOOST_TEST(rig.get<FakeVad>("vad-1").opened == 0u);
}

BOOST_AUTO_TEST_CASE(inputs_that_wait_for_the_grant_are_bounded) {
  Rig rig;
  rig.furnish();
  rig.gateway().waits_for_opened = false;
  rig.gateway().open("controller-1");
  rig.swallow = [](const std::string&, const std::string& to, const Message& m) {
    return to == "controller-1" && m.head.type == MessageType::granted;
  };
  Microphone microphone;
  for (int i = 0; i < 9000; ++i) rig.gateway().say(microphone.frame(true));
  rig.run(3);
  BOOST_TEST(last_error(rig) == "overloaded");
  BOOST_TEST(rig.controller().load() == 0);
}

BOOST_AUTO_TEST_CASE(services_that_die_at_any_step_change_nothing_that_is_heard_or_stored) {
  const auto want = converse(1);
  for (const int replicas : {1, 2})
    for (const auto& role : kServiceRoles)
      for (int at = 0; at < want.steps; ++at) {
        BOOST_TEST_CONTEXT(role << " of " << replicas << " dies at step " << at) {
          const auto got = converse(replicas, [&](Rig& rig, int step) {
            if (step == at) rig.kill(role + "-1");
            if (step == at + 10) rig.add(role + "-9", role);
          });
          check_same(got, want);
        }
      }
}

BOOST_AUTO_TEST_CASE(services_that_stand_still_and_wake_change_nothing_that_is_heard_or_stored) {
  const auto want = converse(1);
  for (const int replicas : {1, 2})
    for (const auto& role : kServiceRoles)
      for (int at = 0; at < want.steps; ++at) {
        BOOST_TEST_CONTEXT(role << " of " << replicas << " stands still at step " << at) {
          const auto got = converse(replicas, [&](Rig& rig, int step) {
            if (step == at) rig.suspend(role + "-1");
            if (step == at + 30) rig.wake(role + "-1");
          });
          check_same(got, want);
        }
      }
}

BOOST_AUTO_TEST_CASE(services_that_stand_still_and_die_change_nothing_either) {
  const auto want = converse(1);
  for (const auto& role : kServiceRoles)
    for (int at = 0; at < want.steps; at += 3) {
      BOOST_TEST_CONTEXT(role << " stands still at step " << at) {
        const auto got = converse(1, [&](Rig& rig, int step) {
          if (step == at) rig.suspend(role + "-1");
          if (step == at + 10) rig.kill(role + "-1");
          if (step == at + 12) rig.add(role + "-9", role);
        });
        check_same(got, want);
      }
    }
}

BOOST_AUTO_TEST_CASE(several_deaths_in_one_turn_are_survived) {
  const auto want = converse(1);
  const auto got = converse(1, [](Rig& rig, int step) {
    static const std::map<int, std::string> kDeaths{{8, "vad"},        {14, "tokenizer"}, {20, "vad"},
                                                    {30, "tokenizer"}, {34, "llm-chat"},  {40, "llm-chat"},
                                                    {44, "tts"},       {50, "tts"},       {52, "context"}};
    const auto death = kDeaths.find(step);
    if (death == kDeaths.end()) return;
    static int generation = 0;
    for (int i = 1; i <= 100 + generation; ++i)
      if (const auto name = fmt::format("{}-{}", death->second, i); rig.is_alive(name)) rig.kill(name);
    rig.add(fmt::format("{}-{}", death->second, 10 + ++generation), death->second);
  });
  check_same(got, want);
}

BOOST_AUTO_TEST_CASE(a_controller_that_dies_at_any_step_is_followed_by_another) {
  const auto want = converse(1);
  for (const int way : {0, 1, 2, 3})
    for (int at = 0; at < want.steps; ++at) {
      const bool wakes = way % 2 == 1;
      BOOST_TEST_CONTEXT((wakes ? "stands still" : "dies") << " at step " << at << ", way " << way) {
        const auto got = converse(1, [&](Rig& rig, int step) {
          if (step == 0) rig.gateway().waits_for_opened = way < 2;
          if (step == 0) rig.add("controller-2", "controller");
          if (step == 0) rig.gateway().opens_again = true;
          if (step == at && wakes) rig.suspend("controller-1");
          if (step == at && !wakes) rig.kill("controller-1");
          if (step == at + 1) rig.gateway().open("controller-2");
          if (step == at + 60 && wakes) rig.wake("controller-1");
        });
        check_same(got, want);
      }
    }
}

BOOST_AUTO_TEST_CASE(an_owner_that_wakes_behind_its_successor_stops_at_once) {
  Rig rig(with_tools());
  rig.furnish();
  rig.add("controller-2", "controller");
  Speaker speaker(rig.gateway());
  for (int i = 0; i < 14; ++i) {
    speaker.step();
    rig.step();
  }
  rig.suspend("controller-1");
  rig.gateway().open("controller-2");
  for (int i = 0; i < 30; ++i) {
    speaker.step();
    rig.step();
  }
  rig.sent.clear();
  rig.wake("controller-1");
  rig.run(8);
  BOOST_TEST(rig.controller("controller-1").load() == 0);
  std::size_t errors = 0;
  for (const auto& [to, head] : rig.sent)
    if (to == "gateway-1" && head.stream.value == 1) errors += head.type == MessageType::error ? 1 : 100;
  BOOST_TEST(errors <= 1u);
  BOOST_TEST(rig.controller("controller-2").load() == 1);
}

BOOST_AUTO_TEST_CASE(a_turn_that_was_stored_but_not_reported_is_finished_from_its_record) {
  const auto want = converse(1);
  for (const bool half : {false, true}) {
    Rig rig(with_tools());
    rig.furnish();
    rig.add("controller-2", "controller");
    Speaker speaker(rig.gateway());
    std::size_t speeches = 0;
    // The client's link loses the end: of the turn, or of its sound as well.
    rig.swallow = [&](const std::string& from, const std::string& to, const Message& m) {
      if (from != "controller-1" || to != "gateway-1") return false;
      if (m.head.type == MessageType::speech) ++speeches;
      return m.head.type == MessageType::turn_done || m.head.type == MessageType::checkpoint || (half && speeches > 2);
    };
    for (int i = 0; i < kLimit && stored(rig).empty(); ++i) {
      speaker.step();
      rig.step();
    }
    rig.run(4);
    BOOST_REQUIRE(rig.gateway().turns.empty());
    rig.kill("controller-1");
    rig.gateway().open("controller-2");
    BOOST_REQUIRE(rig.run_until([&] { return !rig.gateway().turns.empty(); }));
    rig.run(20);
    const auto commits = rig.store->commits;
    BOOST_TEST(commits == 1u);
    BOOST_TEST(rig.gateway().turns.size() == 1u);
    BOOST_TEST(rig.gateway().turns[0]["turn"] == 1);
    check_calm(rig);
    check_same({rig.gateway().audio, content(stored(rig)), rig.gateway().reply, rig.gateway().transcript,
                rig.gateway().calls.size(), 0},
               want);
    rig.run(60);
    BOOST_TEST(rig.gateway().turns.size() == 1u);  // its inputs were said again and are no other turn
    BOOST_TEST(type(rig, "and now?"));
    BOOST_TEST(rig.gateway().turns.back()["turn"] == 2);
  }
}

BOOST_AUTO_TEST_CASE(a_tool_that_ran_before_an_adoption_is_not_run_again) {
  Rig rig;  // controller-1 has no tools, and says so to the model
  rig.furnish();
  Speaker speaker(rig.gateway());
  for (int i = 0; i < kLimit && rig.gateway().calls.empty(); ++i) {
    speaker.step();
    rig.step();
  }
  const auto result = rig.gateway().calls[0]["result"];
  rig.config.tools = "demo";
  rig.add("controller-2", "controller");
  rig.kill("controller-1");
  rig.gateway().open("controller-2");
  BOOST_REQUIRE(rig.run_until([&] { return !rig.gateway().turns.empty(); }));
  BOOST_TEST(rig.gateway().turns[0]["tool_calls"][0]["result"] == result);
  BOOST_TEST(rig.gateway().calls.size() == 1u);
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_cancelled_turn_says_nothing_more_whenever_it_is_cancelled) {
  const auto want = converse(1);
  for (int at = 2; at < want.steps; ++at) {
    BOOST_TEST_CONTEXT("cancelled at step " << at) {
      Rig rig(with_tools());
      rig.furnish();
      Speaker speaker(rig.gateway());
      for (int i = 0; i < at; ++i) {
        speaker.step();
        rig.step();
      }
      auto& g = rig.gateway();
      g.say(Cancel{});
      BOOST_REQUIRE(rig.run_until([&] { return g.count(MessageType::cancelled) == 1; }, 20));
      const auto behind = g.events.size();
      rig.run(30);
      for (auto i = behind; i < g.events.size(); ++i) BOOST_TEST((g.events[i].type == MessageType::checkpoint));
      BOOST_TEST(g.kept() <= 25u);                  // the silence in which somebody may have begun to speak
      BOOST_TEST(rig.streams_at_services() <= 1u);  // the vad goes on listening
      BOOST_TEST(g.turns.size() == rig.store->sessions[kSession].turns.size());
      BOOST_TEST(type(rig, "hello"));
      BOOST_TEST(g.turns.size() >= 1u);
      check_calm(rig);
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(failures)

BOOST_AUTO_TEST_CASE(a_replica_that_refuses_is_left_for_the_next) {
  const auto want = converse(1);
  for (const auto& role : kServiceRoles)
    for (const auto code : {Errc::overloaded, Errc::not_ready, Errc::unavailable}) {
      BOOST_TEST_CONTEXT(role << " " << to_string(code)) {
        std::size_t refused = 0;
        const auto got = converse(2, [&](Rig& rig, int step) {
          if (step != 0) return;
          for (const auto& name : {role + "-1", role + "-2"}) {
            // Whichever is chosen first refuses.
            const auto other = name == role + "-1" ? role + "-2" : role + "-1";
            if (service::rendezvous_weight(kSession, name) < service::rendezvous_weight(kSession, other)) continue;
            ++refused;
            if (role == "vad") rig.get<FakeVad>(name).refuses = code;
            if (role == "tokenizer") rig.get<FakeTokenizer>(name).refuses = code;
            if (role == "llm-chat") rig.get<FakeChat>(name).refuses = code;
            if (role == "tts") rig.get<FakeTts>(name).refuses = code;
            if (role == "context") rig.get<FakeContext>(name).refuses = code;
          }
        });
        BOOST_TEST(refused == 1u);
        check_same(got, want);
      }
    }
}

BOOST_AUTO_TEST_CASE(when_every_replica_refuses_the_client_hears_of_it_at_once) {
  Rig rig;
  rig.furnish(2);
  rig.run(8);
  for (const char* name : {"llm-chat-1", "llm-chat-2"}) rig.get<FakeChat>(name).refuses = Errc::overloaded;
  BOOST_TEST(type(rig, "hello", 8));
  BOOST_TEST(last_error(rig) == "overloaded");
  BOOST_TEST(rig.gateway().last_error()->retry_ms > 0);
  BOOST_TEST(rig.gateway().last_error()->turn == 1u);
  for (const char* name : {"llm-chat-1", "llm-chat-2"}) rig.get<FakeChat>(name).refuses = {};
  BOOST_TEST(type(rig, "hello"));
  BOOST_TEST(rig.gateway().turns.size() == 1u);
}

BOOST_AUTO_TEST_CASE(what_a_link_does_not_take_goes_to_another_replica) {
  for (const auto code : {Errc::overloaded, Errc::unavailable}) {
    const auto want = converse(2);
    bool refused = false;
    const auto got = converse(2, [&](Rig& rig, int) {
      if (refused || rig.gateway().audio.empty()) return;
      for (const auto& [to, head] : rig.sent) {
        if (head.type != MessageType::speak) continue;
        refused = true;
        rig.controller().on_refused(to, head, {code, "asked to refuse"}, rig.now);
        if (code == Errc::unavailable) rig.kill(to);  // so said its link
        return;
      }
    });
    BOOST_TEST(refused);
    check_same(got, want);
  }
}

BOOST_AUTO_TEST_CASE(a_client_that_takes_no_more_loses_its_session_and_nothing_else_happens) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.gateway().say(Say{"hello"});
  rig.run(4);
  Envelope head;
  head.session = kSession;
  head.stream = rig.gateway().stream();
  rig.controller().on_refused("gateway-1", head, {Errc::overloaded, "8 MiB wait"}, rig.now);
  rig.run(5);
  BOOST_TEST(rig.controller().load() == 0);
  BOOST_TEST(rig.streams_at_services() == 0u);
}

BOOST_AUTO_TEST_CASE(an_error_of_a_service_ends_the_turn_in_the_same_step) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.get<FakeChat>("llm-chat-1").fails_at_third = Errc::deadline_exceeded;
  BOOST_TEST(type(rig, "hello"));
  BOOST_TEST(last_error(rig) == "deadline_exceeded");
  const auto told = rig.gateway().events.size();
  rig.run(20);
  BOOST_TEST(rig.gateway().events.size() == told);  // a checkpoint came with it
  BOOST_TEST((rig.gateway().events.back().type == MessageType::checkpoint));
  BOOST_TEST(rig.streams_at_services() == 0u);
  rig.get<FakeChat>("llm-chat-1").fails_at_third = {};
  BOOST_TEST(type(rig, "hello"));
  BOOST_TEST(rig.gateway().turns.size() == 1u);
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_role_that_never_was_is_missed_at_once_and_one_that_is_away_after_three_seconds) {
  Rig rig;
  for (const char* role : {"vad", "tokenizer", "tts", "context"}) rig.add(std::string(role) + "-1", role);
  rig.add("controller-1", "controller");
  rig.add("gateway-1", "gateway");
  rig.gateway().open("controller-1");
  rig.run(8);
  BOOST_TEST(type(rig, "hello", 3));
  BOOST_TEST(last_error(rig) == "unavailable");
  rig.add("llm-chat-1", "llm-chat");
  rig.kill("llm-chat-1");
  BOOST_TEST(!type(rig, "hello", 148));
  BOOST_TEST(rig.run_until([&] { return rig.gateway().count(MessageType::error) == 2; }, 5));
  BOOST_TEST(rig.gateway().last_error()->retry_ms > 0);
  rig.gateway().say(Say{"hello"});
  rig.run(100);
  rig.add("llm-chat-2", "llm-chat");
  BOOST_TEST(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_flush_without_a_vad_ends_with_an_error_and_its_sound_is_bounded) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.suspend("vad-1");
  Speaker speaker(rig.gateway());
  for (int i = 0; i < 20; ++i) speaker.step();
  rig.gateway().say(Flush{});
  for (int i = 0; i < 100; ++i) speaker.step();
  rig.run(2);
  BOOST_TEST(rig.controller().turn_of(kSession)->sound.samples() <= 20 * 320);
  BOOST_TEST(rig.run_until([&] { return rig.gateway().last_error() != nullptr; }, 160));
  BOOST_TEST(last_error(rig) == "unavailable");
}

BOOST_AUTO_TEST_CASE(a_vad_that_says_nothing_behind_a_flush_is_waited_for_until_the_deadline_only) {
  Rig rig;
  rig.config.reply_seconds_max = 2;
  rig.furnish();
  rig.swallow = [](const std::string& from, const std::string&, const Message&) { return from == "vad-1"; };
  rig.run(8);
  Speaker speaker(rig.gateway());
  for (int i = 0; i < 20; ++i) speaker.step();
  rig.gateway().say(Flush{});
  BOOST_TEST(rig.run_until([&] { return rig.gateway().last_error() != nullptr; }, 110));
  BOOST_TEST(last_error(rig) == "deadline_exceeded");
}

BOOST_AUTO_TEST_CASE(flushing_without_speech_is_answered) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.gateway().say(Flush{});
  rig.run(3);
  BOOST_TEST(last_error(rig) == "no_speech");
  Microphone microphone;
  for (int i = 0; i < 10; ++i) rig.gateway().say(microphone.frame(false));
  rig.gateway().say(Flush{});
  rig.run(8);
  BOOST_TEST(rig.gateway().count(MessageType::error) == 2u);
  BOOST_TEST(last_error(rig) == "no_speech");
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_flushed_utterance_ends_where_the_client_says) {
  Rig rig(with_tools());
  rig.furnish();
  Microphone microphone;
  for (int i = 0; i < 20; ++i) rig.gateway().say(microphone.frame(i >= 5));
  rig.gateway().say(Flush{15 * 320});
  BOOST_TEST(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  // 5 frames of silence, all of them inside the pre-roll, and what was said before the mark with its tail.
  BOOST_TEST(rig.get<FakeTokenizer>("tokenizer-1").last_samples == 15 * 320 + 200 * 16 - 1600);
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(sound_that_is_missing_ends_the_utterance_before_it) {
  Rig rig(with_tools());
  rig.furnish();
  Microphone microphone;
  for (int i = 0; i < 15; ++i) rig.gateway().say(microphone.frame(i >= 5));
  rig.run(6);
  microphone.at += 32000;
  rig.gateway().say(microphone.frame(true));
  BOOST_TEST(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  BOOST_TEST(rig.gateway().count(MessageType::error) == 0u);
  // In silence it is not worth a word.
  for (int i = 0; i < 10; ++i) rig.gateway().say(microphone.frame(false));
  rig.run(8);
  microphone.at += 32000;
  for (int i = 0; i < 10; ++i) rig.gateway().say(microphone.frame(false));
  rig.run(20);
  BOOST_TEST(rig.gateway().count(MessageType::error) == 0u);
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(inputs_that_cannot_be_taken_are_refused_and_end_nothing) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.gateway().say(Say{""});
  rig.gateway().say(Audio{0, Bytes(3)});
  rig.run(3);
  BOOST_TEST(rig.gateway().count(MessageType::error) == 2u);
  BOOST_TEST(rig.gateway().last_error()->turn == 0u);
  rig.gateway().say(Say{"hello"});
  rig.run(3);
  rig.gateway().say(Say{"too early"});
  rig.run(3);
  BOOST_TEST(rig.gateway().count(MessageType::error) == 3u);
  BOOST_TEST(rig.gateway().last_error()->turn == 0u);
  BOOST_TEST(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(listening)

BOOST_AUTO_TEST_CASE(silence_is_forgotten_while_one_vad_listens_on) {
  Rig rig;
  rig.furnish();
  Microphone microphone;
  std::int64_t most = 0;
  for (int i = 0; i < 5000; ++i) {
    rig.gateway().say(microphone.frame(false));
    rig.step();
    if (const auto* turn = rig.controller().turn_of(kSession)) most = std::max(most, turn->sound.samples());
  }
  BOOST_TEST(most <= 2600 * 16);  // what has just come, and a stride
  BOOST_TEST(rig.get<FakeVad>("vad-1").opened == 1u);
  BOOST_TEST(rig.gateway().checkpoints.size() <= 101u);
  BOOST_TEST(rig.gateway().checkpoints.size() >= 90u);
  BOOST_TEST(rig.gateway().kept() <= 190u);
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(positions_are_the_sessions_and_the_tail_belongs_to_the_utterance) {
  for (const int tail_ms : {0, 100, 180}) {
    Rig rig(with_tools());
    rig.config.tail_ms = tail_ms;
    rig.config.preroll_ms = 50;
    rig.furnish();
    Microphone microphone;
    microphone.at = 1000000;
    for (int i = 0; i < 40; ++i) {
      rig.gateway().say(microphone.frame(i >= 5 && i < 15));
      rig.step();
    }
    BOOST_TEST(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
    BOOST_TEST(rig.get<FakeTokenizer>("tokenizer-1").last_samples == 10 * 320 + 16 * (50 + tail_ms));
    check_calm(rig);
  }
}

BOOST_AUTO_TEST_CASE(a_recording_that_comes_all_at_once_is_heard_as_one_that_is_spoken) {
  std::vector<std::int64_t> samples;
  for (const bool at_once : {false, true}) {
    Rig rig(with_tools());
    rig.furnish();
    for (int i = 0; i < 10; ++i) rig.step();
    Microphone microphone;
    for (int i = 0; i < 220; ++i) {
      rig.gateway().say(microphone.frame(i >= 5 && i < 200));
      if (!at_once) rig.step();
    }
    BOOST_TEST(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
    samples.push_back(rig.get<FakeTokenizer>("tokenizer-1").last_samples);
    check_calm(rig);
  }
  BOOST_TEST(samples[0] == samples[1]);
}

BOOST_AUTO_TEST_CASE(an_utterance_without_an_end_is_ended_at_its_limit) {
  Rig rig(with_tools());
  rig.config.turn_seconds_max = 2;
  rig.furnish();
  Microphone microphone;
  for (int i = 0; i < 300 && rig.gateway().turns.empty(); ++i) {
    rig.gateway().say(microphone.frame(i >= 5));
    rig.step();
  }
  BOOST_TEST(rig.gateway().turns.size() == 1u);
  BOOST_TEST(rig.get<FakeTokenizer>("tokenizer-1").last_samples == 32000);
}

BOOST_AUTO_TEST_CASE(latency_counts_from_the_end_of_speech) {
  Rig rig(with_tools());
  rig.furnish();
  Speaker speaker(rig.gateway());
  for (int i = 0; i < kLimit && rig.gateway().turns.empty(); ++i) {
    speaker.step();
    rig.step();
  }
  const auto stages = rig.gateway().turns[0]["stages"];
  // 200 ms of silence make the decision; it takes two steps there and back. A vad hears speech for 108 ms too long.
  BOOST_TEST(stages["decision_ms"].get<double>() >= 308);
  BOOST_TEST(stages["decision_ms"].get<double>() <= 388);
  double before = stages["decision_ms"];
  for (const char* name : {"tokenizer_ms", "transcript_ms", "first_text_ms", "first_audio_ms", "total_ms"}) {
    BOOST_TEST(stages[name].get<double>() >= before, name);
    before = stages[name];
  }
  BOOST_TEST(stages["text_ms"].get<double>() >= stages["first_text_ms"].get<double>());
}

BOOST_AUTO_TEST_CASE(checkpoints_let_go_of_what_is_not_needed_and_keep_an_utterance) {
  Rig rig(with_tools());
  rig.furnish();
  Speaker speaker(rig.gateway());
  std::size_t most = 0;
  for (int i = 0; i < kLimit && rig.gateway().turns.empty(); ++i) {
    speaker.step();
    rig.step();
    most = std::max(most, rig.gateway().kept());
  }
  const auto& list = rig.gateway().checkpoints;
  const auto kept = std::find_if(list.begin(), list.end(), [](const Checkpoint& c) { return c.keep_until != 0; });
  BOOST_REQUIRE(kept != list.end());
  BOOST_TEST(kept->keep_until >= 25u);  // speech and the silence that decided it
  BOOST_TEST(kept->keep_until <= 30u);
  BOOST_TEST(kept->input == 0u);
  rig.run(3);
  BOOST_TEST(rig.gateway().kept() <= 25u);  // what was said behind the turn's sound
  BOOST_TEST(list.back().keep_until == 0u);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(store)

BOOST_AUTO_TEST_CASE(a_text_of_many_pieces_is_asked_for_a_few_at_a_time) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  std::string text;
  for (int n = 0; n < 300; ++n) text += fmt::format("this is sentence {}. ", n);
  rig.gateway().say(Utter{text});
  BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().turns.size() == 1; }, 10 * kLimit));
  const auto& tts = rig.get<FakeTts>("tts-1");
  BOOST_TEST(tts.waiting_most > 1u);
  BOOST_TEST(tts.waiting_most <= 16u);
  const auto lengths = json::parse(stored(rig))["piece_lengths"];
  BOOST_TEST(lengths.size() == 300u);
  std::int64_t samples = 0;
  for (const auto& length : lengths) samples += length.get<std::int64_t>();
  BOOST_TEST(static_cast<std::size_t>(samples) == rig.gateway().audio.size() / 2);
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_long_text_has_its_time_as_long_as_sound_comes) {
  for (const bool stalls : {false, true}) {
    Rig rig;
    rig.config.reply_seconds_max = 1;
    rig.furnish();
    rig.run(8);
    std::string text;
    for (int n = 0; n < 60; ++n) text += fmt::format("this is sentence {}. ", n);
    const auto start = rig.now;
    rig.gateway().say(Utter{text});
    if (stalls) {
      BOOST_REQUIRE(rig.run_until([&] { return rig.now - start > milliseconds(1500); }));
      rig.suspend("tts-1");
    }
    const auto is_over = [&] { return !rig.gateway().turns.empty() || rig.gateway().count(MessageType::error) != 0; };
    BOOST_REQUIRE(rig.run_until(is_over, 10 * kLimit));
    BOOST_TEST((rig.now - start > milliseconds(2000)));
    BOOST_TEST(rig.gateway().turns.size() == (stalls ? 0u : 1u));
    BOOST_TEST(rig.gateway().count(MessageType::error) == (stalls ? 1u : 0u));
    if (!stalls) BOOST_TEST(json::parse(stored(rig))["piece_lengths"].size() == 60u);
  }
}

BOOST_AUTO_TEST_CASE(the_model_is_told_the_latest_turns_only) {
  Rig rig;
  rig.config.history_turns = 2;
  rig.furnish();
  rig.run(8);
  for (int i = 1; i <= 4; ++i) BOOST_TEST(type(rig, fmt::format("question {}", i)));
  const auto past = json::parse(rig.get<FakeChat>("llm-chat-1").last_past);
  BOOST_REQUIRE(past.size() == 4u);
  BOOST_TEST(past[0]["content"] == "question 2");
  BOOST_TEST(past[0]["role"] == "user");
  BOOST_TEST(past[3]["role"] == "assistant");
  // Another controller reads the same from the store.
  rig.add("controller-2", "controller");
  rig.kill("controller-1");
  rig.gateway().open("controller-2");
  BOOST_TEST(type(rig, "question 5"));
  const auto again = json::parse(rig.get<FakeChat>("llm-chat-1").last_past);
  BOOST_REQUIRE(again.size() == 4u);
  BOOST_TEST(again[0]["content"] == "question 3");
  BOOST_TEST(rig.gateway().turns.back()["turn"] == 5);
}

BOOST_AUTO_TEST_CASE(a_history_that_cannot_be_read_is_an_error_and_never_empty) {
  for (const int way : {0, 1, 2}) {
    Rig rig;
    if (way == 0) rig.store->cannot_read = Errc::io;
    if (way == 1) rig.store->garbage = "[{\"turn\":1}]";
    if (way == 2) rig.store->garbage = "not json";
    rig.furnish();
    rig.run(10);
    BOOST_TEST(rig.gateway().count(MessageType::opened) == 0u);
    BOOST_TEST(rig.gateway().count(MessageType::error) == 1u);
    BOOST_TEST(rig.controller().load() == 0);
    rig.gateway().say(Say{"hello"});
    rig.run(8);
    BOOST_TEST(rig.gateway().events.size() == 1u);
  }
}

BOOST_AUTO_TEST_CASE(turns_wait_for_a_store_that_fails_and_a_third_is_refused) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.store->fails = Errc::io;
  BOOST_TEST(type(rig, "one"));
  BOOST_TEST(type(rig, "two"));
  BOOST_TEST(rig.gateway().degraded == (std::vector<bool>{true, true}), boost::test_tools::per_element());
  const auto past = json::parse(rig.get<FakeChat>("llm-chat-1").last_past);
  BOOST_TEST(past.size() == 2u);
  BOOST_TEST(type(rig, "three"));
  BOOST_TEST(last_error(rig) == "unavailable");
  BOOST_TEST(rig.gateway().last_error()->retry_ms > 0);
  rig.store->fails.reset();
  BOOST_TEST(rig.run_until([&] { return rig.store->sessions[kSession].turns.size() == 2; }, 400));
  BOOST_TEST(json::parse(stored(rig, 1))["user"] == "one");
  BOOST_TEST(json::parse(stored(rig, 2))["user"] == "two");
  BOOST_TEST(type(rig, "three"));
  BOOST_TEST(!rig.gateway().degraded.back());
  BOOST_TEST(rig.gateway().turns.back()["turn"] == 3);
  check_calm(rig);
}

/// From that the gateway sees when it may leave a controller that drains. What was said is let go before.
BOOST_AUTO_TEST_CASE(a_checkpoint_says_when_the_turns_that_were_told_are_stored) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  BOOST_TEST(type(rig, "one"));
  rig.run(2);
  BOOST_TEST(rig.gateway().checkpoint.input == 1u);
  rig.store->fails = Errc::io;
  BOOST_TEST(type(rig, "two"));
  BOOST_TEST(type(rig, "three"));
  rig.run(50);
  BOOST_TEST(rig.gateway().degraded == (std::vector<bool>{false, true, true}), boost::test_tools::per_element());
  BOOST_TEST(rig.gateway().checkpoint.degraded);
  BOOST_TEST(rig.gateway().checkpoint.input == 3u);
  rig.store->fails.reset();
  BOOST_TEST(rig.run_until([&] { return !stored(rig, 3).empty(); }, 400));
  rig.run(2);
  BOOST_TEST(!rig.gateway().checkpoint.degraded);
  BOOST_TEST(rig.gateway().checkpoint.input == 3u);
  BOOST_TEST(rig.gateway().kept() == 0u);
  check_calm(rig);
}

/// It is asked again in a while, and meanwhile there is another owner: the store is right about what was said.
BOOST_AUTO_TEST_CASE(another_owner_ends_what_waits_for_the_store_and_that_is_counted) {
  Rig rig;
  rig.furnish();
  rig.add("controller-2", "controller");
  telemetry::Metrics metrics;
  rig.controller().add_metrics(metrics);
  rig.run(8);
  rig.store->fails = Errc::io;
  BOOST_TEST(type(rig, "one"));
  rig.store->fails.reset();
  rig.gateway().close();
  rig.gateway().open("controller-2");
  BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().count(MessageType::opened) == 2; }, 20));
  BOOST_TEST(type(rig, "two"));
  BOOST_TEST(rig.gateway().turns.back()["turn"] == 1);
  rig.run(50);
  BOOST_TEST(json::parse(stored(rig, 1))["user"] == "two");
  BOOST_TEST(stored(rig, 2).empty());
  BOOST_TEST(metrics.text().find("commits_lost_total 1\n") != std::string::npos);
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_spoken_third_turn_is_refused_as_well) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.store->fails = Errc::io;
  BOOST_TEST(type(rig, "one"));
  BOOST_TEST(type(rig, "two"));
  Speaker speaker(rig.gateway());
  for (int i = 0; i < 40; ++i) {
    speaker.step();
    rig.step();
  }
  BOOST_TEST(last_error(rig) == "unavailable");
  BOOST_TEST(rig.gateway().count(MessageType::speech_started) == 0u);
  BOOST_TEST(rig.gateway().turns.size() == 2u);
}

BOOST_AUTO_TEST_CASE(a_store_that_dies_delays_nothing_and_what_it_missed_is_written_by_the_next) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.kill("context-1");
  BOOST_TEST(type(rig, "one"));
  BOOST_TEST(last_error(rig) == "");
  BOOST_REQUIRE(rig.gateway().turns.size() == 1u);
  BOOST_TEST(rig.gateway().degraded.back());
  BOOST_TEST(stored(rig).empty());
  rig.add("context-2", "context");
  BOOST_TEST(rig.run_until([&] { return !stored(rig).empty(); }, 5));
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_store_that_stands_still_is_waited_for_300_ms) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  BOOST_TEST(type(rig, "one"));
  const auto steps = rig.steps;
  rig.gateway().say(Say{"two"});
  rig.run(4);
  rig.suspend("context-1");
  BOOST_TEST(rig.run_until([&] { return rig.gateway().turns.size() == 2; }));
  BOOST_TEST(rig.gateway().degraded.back());
  BOOST_TEST(rig.steps - steps < 100);
  rig.wake("context-1");
  BOOST_TEST(rig.run_until([&] { return !stored(rig, 2).empty(); }, 5));
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(turns_that_wait_outlive_their_client_for_a_minute) {
  for (const bool in_time : {true, false}) {
    Rig rig;
    rig.furnish();
    telemetry::Metrics metrics;
    rig.controller().add_metrics(metrics);
    rig.run(8);
    rig.store->fails = Errc::io;
    BOOST_TEST(type(rig, "one"));
    rig.gateway().close();
    rig.run(8);
    BOOST_TEST(rig.controller().load() == 0);
    BOOST_TEST(!rig.controller().drain());
    rig.run(in_time ? 2000 : 3100);
    rig.store->fails.reset();
    rig.run(400);
    BOOST_TEST(stored(rig).empty() != in_time);
    BOOST_TEST(rig.controller().drain());
    const bool lost = metrics.text().find("commits_lost_total 1") != std::string::npos;
    BOOST_TEST(lost != in_time);
  }
}

BOOST_AUTO_TEST_CASE(a_turn_that_another_owner_has_stored_in_its_place_is_counted_as_lost) {
  for (const bool same : {true, false}) {
    Rig rig;
    rig.furnish();
    telemetry::Metrics metrics;
    rig.controller().add_metrics(metrics);
    rig.run(8);
    rig.swallow = [](const std::string&, const std::string&, const Message& m) {
      return m.head.type == MessageType::committed;
    };
    BOOST_TEST(type(rig, "one"));
    BOOST_TEST(!stored(rig).empty());
    if (!same) rig.store->sessions[kSession].turns[1] = R"({"user":"other","assistant":"other"})";
    rig.gateway().close();
    rig.run(8);
    rig.swallow = {};
    rig.gateway().open("controller-1");
    rig.run(16);
    const bool lost = metrics.text().find("commits_lost_total 1") != std::string::npos;
    BOOST_TEST(lost != same);
  }
}

BOOST_AUTO_TEST_CASE(a_store_that_refused_once_is_used_again_when_the_other_goes) {
  for (const bool other_answers : {true, false}) {
    Rig rig;
    rig.furnish(2);
    rig.run(8);
    const std::string at = rig.get<Core>("context-1").load() == 1 ? "context-1" : "context-2";
    const std::string other = at == "context-1" ? "context-2" : "context-1";
    bool once = false;
    rig.swallow = [&](const std::string&, const std::string& to, const Message& m) {
      if (m.head.type != MessageType::commit) return false;
      if (to == other) return !other_answers;
      if (std::exchange(once, true)) return false;
      rig.controller().on_message(at, pack(ErrorMessage{"unavailable", "busy", 500}, m.head), rig.now);
      return true;
    };
    BOOST_TEST(type(rig, "one"));
    rig.run(20);
    BOOST_TEST(once);
    BOOST_TEST(stored(rig, 1).empty() != other_answers);
    rig.kill(other);
    rig.run(500);
    for (const char* text : {"two", "three", "four"}) BOOST_TEST(type(rig, text));
    rig.run(500);
    BOOST_TEST(last_error(rig) == "");
    for (const int turn : {1, 2, 3, 4}) BOOST_TEST(!stored(rig, turn).empty());
    BOOST_TEST(!rig.gateway().degraded.back());
  }
}

BOOST_AUTO_TEST_CASE(a_draining_store_is_left_when_the_commit_under_way_is_done) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.add("context-2", "context");
  rig.run(2);
  rig.gateway().say(Say{"one"});
  BOOST_REQUIRE(rig.run_until([&] { return !stored(rig).empty(); }));  // the answer is on its way
  rig.describe("context-1", true, true, 1);
  rig.run(10);
  BOOST_TEST(rig.gateway().turns.size() == 1u);
  BOOST_TEST(rig.get<Core>("context-1").load() == 0);
}

BOOST_AUTO_TEST_CASE(a_turn_after_what_waited_was_found_stored_is_not_degraded) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.swallow = [](const std::string&, const std::string&, const Message& m) {
    return m.head.type == MessageType::committed;
  };
  BOOST_TEST(type(rig, "one"));
  rig.gateway().close();
  rig.run(8);
  rig.swallow = {};
  rig.gateway().open("controller-1");
  rig.run(16);
  BOOST_TEST(type(rig, "two"));
  BOOST_TEST(!rig.gateway().degraded.back());
}

BOOST_AUTO_TEST_CASE(a_session_that_comes_back_brings_the_turns_that_wait) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.store->fails = Errc::io;
  BOOST_TEST(type(rig, "one"));
  rig.gateway().close();
  rig.run(8);
  rig.gateway().open("controller-1");
  rig.run(8);
  BOOST_TEST(rig.gateway().opened_degraded);
  BOOST_TEST(type(rig, "two"));
  BOOST_TEST(rig.gateway().turns.back()["turn"] == 2);
  BOOST_TEST(json::parse(rig.get<FakeChat>("llm-chat-1").last_past)[0]["content"] == "one");
  rig.store->fails.reset();
  BOOST_TEST(rig.run_until([&] { return !stored(rig, 2).empty(); }, 400));
  BOOST_TEST(json::parse(stored(rig, 1))["user"] == "one");
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(turns_that_wait_are_on_disk_and_written_by_the_next_process) {
  TemporaryDirectory directory;
  const auto file = (directory.path() / "waiting.jsonl").string();
  Rig rig;
  rig.config.commit_queue_file = file;
  rig.furnish();
  rig.run(8);
  rig.store->fails = Errc::io;
  BOOST_TEST(type(rig, "one"));
  rig.kill("controller-1");
  rig.store->fails.reset();
  auto core = ControllerCore::make(rig.config);
  BOOST_REQUIRE(core.has_value());
  auto& next = rig.add_core("controller-2", "controller", std::move(*core));
  BOOST_TEST(rig.run_until([&] { return !stored(rig).empty(); }, 20));
  rig.run(8);
  BOOST_TEST(next.drain());
  BOOST_TEST(std::filesystem::file_size(file) == 0u);
}

BOOST_AUTO_TEST_CASE(a_line_that_was_cut_off_is_not_glued_to_the_next) {
  TemporaryDirectory directory;
  const auto file = (directory.path() / "waiting.jsonl").string();
  const JournalEntry entry{kSession, {3}, 1, R"({"user":"one"})"};
  {
    Journal journal(file);
    BOOST_REQUIRE(journal.append(entry).has_value());
    std::ofstream(file, std::ios::app) << R"({"session":"0123)";  // killed within the write
  }
  Journal journal(file);
  BOOST_TEST(journal.load()->size() == 1u);
  BOOST_REQUIRE(journal.append(entry).has_value());
  const auto again = Journal(file).load();
  BOOST_REQUIRE(again.has_value());
  BOOST_TEST(again->size() == 2u);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(ownership)

BOOST_AUTO_TEST_CASE(who_opens_with_a_wrong_epoch_is_told_the_true_one) {
  Rig rig;
  rig.store->sessions[kSession] = {5, "another", {}};
  rig.furnish();
  rig.run(6);
  BOOST_REQUIRE(rig.gateway().events.size() == 1u);
  BOOST_TEST(rig.gateway().events[0].text == "stale_epoch");
  BOOST_TEST(rig.gateway().events[0].epoch == 5u);
  BOOST_TEST(rig.controller().load() == 0);
  rig.gateway().epoch = 5;
  rig.gateway().open("controller-1");
  BOOST_TEST(rig.run_until([&] { return rig.gateway().count(MessageType::opened) == 1; }, 10));
  BOOST_TEST(rig.gateway().epoch == 6u);
}

BOOST_AUTO_TEST_CASE(an_owner_whose_commit_is_refused_says_one_thing_more_and_is_gone) {
  Rig rig(with_tools());
  rig.furnish();
  Speaker speaker(rig.gateway());
  for (int i = 0; i < kLimit && rig.gateway().reply.empty(); ++i) {
    speaker.step();
    rig.step();
  }
  rig.store->sessions[kSession].epoch = 9;
  for (int i = 0; i < 200; ++i) {
    speaker.step();
    rig.step();
  }
  auto& g = rig.gateway();
  BOOST_TEST(g.turns.empty());
  BOOST_TEST(g.count(MessageType::error) == 1u);
  BOOST_TEST(last_error(rig) == "stale_epoch");
  BOOST_TEST(g.last_error()->epoch == 9u);
  BOOST_TEST((g.events.back().type == MessageType::error));
  BOOST_TEST(rig.controller().load() == 0);
  BOOST_TEST(rig.streams_at_services() == 0u);
}

BOOST_AUTO_TEST_CASE(the_lease_is_renewed_when_it_is_half_over_and_a_turn_is_open) {
  Rig rig;
  rig.config.lease_ms = 1000;
  rig.config.reply_seconds_max = 10;
  rig.furnish();
  rig.run(100);
  BOOST_TEST(rig.store->renewals == 0u);
  rig.swallow = [](const std::string& from, const std::string&, const Message& m) {
    return from == "tts-1" && m.head.type == MessageType::speech;
  };
  rig.gateway().say(Say{"hello"});
  rig.run(4);
  BOOST_TEST(rig.store->renewals == 1u);
  rig.run(100);
  BOOST_TEST(rig.store->renewals >= 4u);
  BOOST_TEST(rig.store->renewals <= 6u);
  // A store that is away is no refusal.
  rig.suspend("context-1");
  rig.run(20);
  BOOST_TEST(rig.controller().load() == 1);
  rig.store->sessions[kSession].epoch = 9;
  rig.wake("context-1");
  rig.run(30);
  BOOST_TEST(rig.controller().load() == 0);
  BOOST_TEST(last_error(rig) == "stale_epoch");
}

BOOST_AUTO_TEST_CASE(a_session_opened_on_another_stream_here_leaves_the_first) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  BOOST_TEST(type(rig, "one"));
  rig.gateway().open("controller-1");
  BOOST_TEST(rig.run_until([&] { return rig.gateway().count(MessageType::opened) == 2; }, 8));
  BOOST_TEST(rig.gateway().epoch == 2u);
  BOOST_TEST(rig.controller().load() == 1);
  BOOST_TEST(type(rig, "two"));
  BOOST_TEST(rig.gateway().turns.back()["turn"] == 2);
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_gateway_that_is_gone_takes_its_sessions_along_and_a_suspect_one_does_not) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.gateway().say(Say{"hello"});
  rig.run(3);
  rig.suspend("gateway-1");
  rig.run(20);
  BOOST_TEST(rig.controller().load() == 1);
  rig.wake("gateway-1");
  BOOST_TEST(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  rig.gateway().say(Say{"hello"});
  rig.run(8);
  rig.kill("gateway-1");
  rig.run(3);
  BOOST_TEST(rig.controller().load() == 0);
  BOOST_TEST(rig.streams_at_services() == 0u);
  BOOST_TEST(stored(rig, 2).empty());
}

BOOST_AUTO_TEST_CASE(a_draining_vad_is_left_in_silence_and_hears_a_turn_to_its_end) {
  Rig rig;
  rig.furnish(2);
  rig.run(8);
  const auto load = [&](const std::string& name) { return rig.get<Core>(name).load(); };
  Speaker speaker(rig.gateway());
  speaker.step();
  rig.run(4);
  const std::string at = load("vad-1") == 1 ? "vad-1" : "vad-2", other = at == "vad-1" ? "vad-2" : "vad-1";
  BOOST_REQUIRE(load(at) == 1);
  rig.describe(at, true, true, 1);
  rig.run(2);
  BOOST_TEST(load(at) == 0);
  BOOST_TEST(load(other) == 1);
  // Both drain: nobody is left, and the one that hears goes on.
  rig.describe(other, true, true, 1);
  rig.run(2);
  BOOST_TEST(load(other) == 1);
  rig.describe(at, true, false, 1);
  rig.run(2);
  BOOST_TEST(load(other) == 0);
  BOOST_TEST(load(at) == 1);
  // In the middle of speech it stays.
  for (int i = 0; i < 20 && rig.gateway().count(MessageType::speech_started) == 0; ++i) {
    speaker.step();
    rig.step();
  }
  BOOST_REQUIRE(rig.gateway().count(MessageType::speech_started) == 1u);
  rig.describe(other, true, false, 1);
  rig.describe(at, true, true, 1);
  rig.run(2);
  BOOST_TEST(load(at) == 1);
  for (int i = 0; i < 60 && rig.gateway().turns.empty(); ++i) {
    speaker.step();
    rig.step();
  }
  BOOST_TEST(rig.gateway().turns.size() == 1u);
  speaker.step();
  rig.run(3);
  BOOST_TEST(load(at) == 0);
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_turn_under_way_ends_well_when_everything_drains_at_once) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.gateway().say(Say{"hello"});
  rig.run(2);
  for (const auto& role : kServiceRoles) rig.describe(role + "-1", true, true, 1);
  (void)rig.controller().drain();
  rig.run(100);
  BOOST_TEST(last_error(rig) == "");
  BOOST_TEST(rig.gateway().turns.size() == 1u);
}

BOOST_AUTO_TEST_CASE(a_stranger_who_names_another_epoch_ends_no_session) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  BOOST_TEST(type(rig, "one"));
  rig.add("gateway-2", "gateway");
  auto& stranger = rig.gateway("gateway-2");
  stranger.epoch = 77;
  stranger.open("controller-1");
  rig.run(8);
  BOOST_TEST(stranger.count(MessageType::opened) == 0u);
  BOOST_TEST(type(rig, "two"));
  BOOST_TEST(rig.gateway().turns.size() == 2u);
}

BOOST_AUTO_TEST_CASE(an_idle_session_leaves_a_draining_store) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  rig.add("context-2", "context");
  rig.run(2);
  rig.describe("context-1", true, true, 1);
  rig.run(2);
  BOOST_TEST(rig.get<Core>("context-1").load() == 0);
  BOOST_TEST(type(rig, "one"));
  BOOST_TEST(!stored(rig).empty());
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_draining_controller_takes_no_session_and_ends_with_its_last) {
  Rig rig;
  rig.furnish();
  rig.run(8);
  BOOST_TEST(!rig.controller().drain());
  auto& other = refuses_another(rig);
  BOOST_TEST(other.last_error()->retry_ms > 0);
  BOOST_TEST(type(rig, "hello"));
  BOOST_TEST(rig.gateway().turns.size() == 1u);
  rig.gateway().close();
  rig.run(3);
  BOOST_TEST(rig.controller().drain());
}

BOOST_AUTO_TEST_CASE(sessions_are_bounded_and_slots_say_so) {
  Rig rig;
  rig.config.sessions_max = 1;
  rig.furnish();
  rig.run(8);
  BOOST_TEST(rig.controller().slots() == 0);
  refuses_another(rig);
  BOOST_TEST(rig.controller().load() == 1);
}

BOOST_AUTO_TEST_CASE(no_more_sessions_are_offered_than_models_can_answer) {
  Rig rig;
  rig.config.sessions_per_slot = 2;
  rig.furnish();
  rig.run(8);
  auto& core = rig.controller();
  BOOST_TEST(core.slots() == 16);     // as the models have said, twice
  const auto own = core.own_slots();  // for autoscalers: more controllers help no model
  BOOST_TEST(own > 16);
  rig.describe("llm-chat-1", true, false, 3);
  BOOST_TEST(core.slots() == 6);
  BOOST_TEST(core.own_slots() == own);
  rig.describe("tts-1", true, false, 1);
  BOOST_TEST(core.slots() == 2);
  rig.add("tts-2", "tts");
  BOOST_TEST(core.slots() == 6);
  rig.describe("llm-chat-1", true, true, 3);  // it takes nothing new
  BOOST_TEST(core.slots() == 0);
  auto& other = refuses_another(rig);
  BOOST_TEST(core.load() == 1);
  // Who was let in elsewhere goes on here.
  rig.store->sessions[{8, 8}].epoch = 4;
  other.epoch = 4;
  other.open("controller-1");
  rig.run(8);
  BOOST_TEST(core.load() == 2);
}

/// Of any role. A controller that starts meanwhile becomes ready; it offers no place.
BOOST_AUTO_TEST_CASE(a_full_role_is_not_a_missing_one) {
  for (const std::string role : {"vad", "tokenizer", "llm-chat", "tts", "context"}) {
    BOOST_TEST_CONTEXT(role) {
      Rig rig;
      rig.furnish();
      rig.run(8);
      auto& core = rig.controller();
      rig.describe(role + "-1", true, false, 0);
      BOOST_TEST(core.why_not_ready() == "");
      BOOST_TEST(core.slots() == 0);
      BOOST_TEST(core.own_slots() > 0);
      refuses_another(rig);
      rig.describe(role + "-1", false, false, 0);
      BOOST_TEST(core.why_not_ready() == "no live replica of " + role);
    }
  }
}

BOOST_AUTO_TEST_CASE(time_passes_slowly_while_nothing_waits) {
  Rig rig;
  rig.furnish();
  BOOST_TEST((rig.controller().tick_interval() == milliseconds(500)));
  rig.run(8);
  BOOST_TEST((rig.controller().tick_interval() == milliseconds(500)));
  rig.gateway().say(Say{"hello"});
  rig.run(3);
  BOOST_TEST((rig.controller().tick_interval() == milliseconds(20)));
  BOOST_TEST(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  rig.run(8);
  BOOST_TEST((rig.controller().tick_interval() == milliseconds(500)));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
