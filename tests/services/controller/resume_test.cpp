/// Clients that lose their gateway and come back through another one, at every stage of a turn.
#include <boost/test/unit_test.hpp>

#include "tests/services/controller/talk.hpp"

namespace parlando::controller {
namespace {

const std::string kFirst(64, '1'), kSecond(64, '2'), kThird(64, '3'), kWrong(64, '9');

/// The client's microphone, from any position on: what has not arrived is said again.
void speak(FakeGateway& gateway, std::int64_t frame) {
  Microphone microphone;
  microphone.at = frame * 320;
  gateway.say(microphone.frame(frame >= Speaker::kFirst && frame < Speaker::kLast));
}

void furnish(Rig& rig) {
  for (const auto& role : kServiceRoles) rig.add(role + "-1", role);
  rig.add("controller-1", "controller");
  rig.add("gateway-1", "gateway");
  rig.gateway().token_digest = kFirst;
  rig.gateway().open("controller-1");
  rig.run(8);
  BOOST_REQUIRE(rig.gateway().count(MessageType::opened) == 1u);
}

FakeGateway& second(Rig& rig) {
  if (!rig.is_alive("gateway-2")) rig.add("gateway-2", "gateway");
  return rig.gateway("gateway-2");
}

struct Heard {
  Bytes audio;
  std::string transcript, reply;
  std::size_t calls = 0;
  json record;
  int steps = 0;
};

struct Loss {
  int at = -1;            ///< step at which the gateway dies
  int gap = 1;            ///< steps without one
  int had_percent = 100;  ///< of the sound that was sent when it died
};

/// One spoken turn, heard wholly, with a gateway that dies in it.
Heard lose_gateway(const Loss& loss) {
  Rig rig(with_tools());
  furnish(rig);
  auto* g = &rig.gateway();
  Attach claim;
  std::string transcript, reply;
  std::int64_t frame = 0;
  bool lost = false, back = true;
  int step = 0;
  for (; step < kLimit && (g == nullptr || g->turns.empty() || stored(rig).empty()); ++step) {
    if (step == loss.at) {
      claim = g->claim(kFirst, kSecond);
      claim.samples = claim.samples * loss.had_percent / 100;
      transcript = claim.transcript_bytes > 0 ? g->transcript : "";
      reply = claim.reply_bytes > 0 ? g->reply : "";
      rig.kill("gateway-1");
      g = nullptr;
      lost = true;
      back = false;
    }
    if (step == loss.at + loss.gap && lost) {
      g = &second(rig);
      g->resume(rig.gateway(), "controller-1", claim);
    }
    if (g != nullptr && !back && g->attached) {
      frame = g->attached->position_samples / 320;
      back = true;
    }
    if (back && g->turns.empty()) speak(*g, frame++);
    rig.step();
  }
  BOOST_REQUIRE(g != nullptr);
  BOOST_REQUIRE(g->turns.size() == 1u);
  BOOST_TEST(g->count(MessageType::error) == 0u);
  BOOST_TEST(g->turns[0]["audio_seconds"].get<double>() * 22050 * 2 == static_cast<double>(g->audio.size()),
             boost::test_tools::tolerance(1e-9));
  rig.run(60);
  BOOST_TEST(g->turns.size() == 1u);
  check_calm(rig);
  auto record = json::parse(stored(rig));
  record.erase("last_input");
  const auto rest = [](const std::string& text, const std::string& had) { return had + text.substr(had.size()); };
  return {g->audio, rest(g->transcript, transcript), rest(g->reply, reply), g->calls.size(), record, step};
}

void check_same(const Heard& got, const Heard& want) {
  BOOST_TEST((got.audio == want.audio));
  BOOST_TEST(got.transcript == want.transcript);
  BOOST_TEST(got.reply == want.reply);
  BOOST_TEST(got.calls == want.calls);
  BOOST_TEST((got.record == want.record));
}

std::string error_of(const FakeGateway& g) {
  const auto* e = g.last_error();
  return e == nullptr ? "" : e->text;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(resume)

BOOST_AUTO_TEST_CASE(a_gateway_may_die_at_any_step_and_nothing_is_heard_twice_or_missing) {
  const auto want = lose_gateway({});
  for (const int gap : {1, 4, 120})
    for (const int had : {100, 55, 0})
      for (int at = 0; at < want.steps - 1; ++at) {
        BOOST_TEST_CONTEXT("dies at step " << at << ", back after " << gap << ", had " << had << " %")
        check_same(lose_gateway({at, gap, had}), want);
      }
}

BOOST_AUTO_TEST_CASE(a_turn_whose_end_was_lost_on_the_way_is_told_to_its_end) {
  const auto want = lose_gateway({});
  for (const int had : {100, 70, 0}) {
    Rig rig(with_tools());
    furnish(rig);
    rig.swallow = [](const std::string&, const std::string& to, const Message& m) {
      return to == "gateway-1" && m.head.type == MessageType::turn_done;
    };
    for (std::int64_t frame = 0; frame < kLimit && stored(rig).empty(); ++frame) {
      speak(rig.gateway(), frame);
      rig.step();
    }
    rig.run(5);
    auto claim = rig.gateway().claim(kFirst, kSecond);
    claim.samples = claim.samples * had / 100;
    rig.kill("gateway-1");
    auto& g = second(rig);
    g.resume(rig.gateway(), "controller-1", claim);
    BOOST_REQUIRE(rig.run_until([&] { return g.turns.size() == 1; }));
    BOOST_TEST((g.audio == want.audio));
    BOOST_TEST(rig.store->commits == 1u);
    g.say(Say{"and now?"});
    BOOST_TEST(rig.run_until([&] { return g.turns.size() == 2; }));
    BOOST_TEST(g.turns.back()["turn"] == 2);
    check_calm(rig);
  }
}

BOOST_AUTO_TEST_CASE(who_resumes_before_its_new_owner_has_heard_sound_goes_on_behind_that_of_turns_that_are_over) {
  Rig rig(with_tools());
  furnish(rig);
  std::int64_t frame = 0;
  while (rig.gateway().turns.empty() || stored(rig).empty()) {
    BOOST_REQUIRE(frame < kLimit);
    speak(rig.gateway(), frame++);
    rig.step();
  }
  rig.run(10);
  const auto behind = json::parse(stored(rig))["sound_end"].get<std::int64_t>();
  BOOST_TEST(behind > 0);
  // Typed, so that no sound is kept to be said again.
  rig.gateway().say(Say{"and now?"});
  BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().turns.size() == 2 && !stored(rig, 2).empty(); }));
  rig.run(60);
  rig.add("controller-2", "controller");
  rig.kill("controller-1");
  rig.gateway().open("controller-2");
  BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().count(MessageType::opened) == 2; }));
  rig.run(2);
  const auto claim = rig.gateway().claim(kFirst, kSecond);
  rig.kill("gateway-1");
  auto& g = second(rig);
  g.resume(rig.gateway(), "controller-2", claim);
  BOOST_REQUIRE(rig.run_until([&] { return g.attached.has_value(); }));
  const auto from = g.attached->position_samples;
  BOOST_TEST(from >= behind);
  // What is said from there on is heard.
  Microphone microphone;
  microphone.at = from;
  for (int i = 0; i < kLimit && g.turns.size() < 3; ++i) {
    g.say(microphone.frame(i >= 5 && i < 25));
    rig.step();
  }
  BOOST_TEST(g.turns.size() == 3u);
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(a_turn_that_the_store_alone_knows_is_told_to_its_end) {
  Rig rig(with_tools());
  furnish(rig);
  rig.swallow = [](const std::string&, const std::string& to, const Message& m) {
    return to == "gateway-1" && m.head.type == MessageType::turn_done;
  };
  rig.gateway().say(Say{"hello"});
  BOOST_REQUIRE(rig.run_until([&] { return !stored(rig).empty(); }));
  rig.run(5);
  const auto want = rig.gateway().audio;
  auto claim = rig.gateway().claim(kFirst, kSecond);
  claim.samples = claim.samples * 2 / 3;
  // Another controller has the session before the gateway dies, and has told nothing of the turn yet.
  rig.add("controller-2", "controller");
  rig.kill("controller-1");
  rig.gateway().open("controller-2");
  rig.swallow = [](const std::string& from, const std::string& to, const Message& m) {
    return from == "controller-2" && to == "gateway-1" && m.head.type != MessageType::opened;
  };
  BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().count(MessageType::opened) == 2; }));
  rig.run(40);
  rig.kill("gateway-1");
  auto& g = second(rig);
  g.pieces_may_jump = true;
  g.resume(rig.gateway(), "controller-2", claim);
  BOOST_REQUIRE(rig.run_until([&] { return g.turns.size() == 1; }));
  BOOST_TEST((g.audio == want));
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(behind_an_adoption_the_client_may_have_less_than_was_told_in_pieces_of_unknown_length) {
  const auto want = lose_gateway({});
  for (int at = 0; at < 6; ++at) {
    BOOST_TEST_CONTEXT("the gateway dies " << at << " steps behind the adoption") {
      Rig rig(with_tools());
      furnish(rig);
      std::int64_t frame = 0;
      while (rig.gateway().audio.size() * 3 < want.audio.size() * 2) {
        BOOST_REQUIRE(frame < kLimit);
        speak(rig.gateway(), frame++);
        rig.step();
      }
      auto claim = rig.gateway().claim(kFirst, kSecond);
      claim.samples /= 3;
      rig.add("controller-2", "controller");
      rig.kill("controller-1");
      rig.gateway().open("controller-2");
      BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().count(MessageType::opened) == 2; }));
      rig.run(at);
      rig.kill("gateway-1");
      auto& g = second(rig);
      g.pieces_may_jump = true;
      g.resume(rig.gateway(), "controller-2", claim);
      if (!rig.run_until([&] { return g.turns.size() == 1 || g.last_error() != nullptr; })) BOOST_TEST(false);
      // What was said is with the gateway that died; the turn is made if the controller had all of it.
      if (!g.turns.empty()) BOOST_TEST((g.audio == want.audio));
      check_calm(rig);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_wrong_token_a_used_one_and_a_session_with_a_client_are_all_the_same_refusal) {
  Rig rig;
  furnish(rig);
  auto& g = second(rig);
  const auto attempt = [&](const std::string& digest, const std::string& next) {
    const auto errors = g.count(MessageType::error);
    g.attached.reset();
    auto claim = rig.gateway().claim(digest, next);
    g.resume(rig.gateway(), "controller-1", claim);
    BOOST_REQUIRE(rig.run_until([&] { return g.attached || g.count(MessageType::error) > errors; }, 20));
    return g.attached ? std::string("attached") : error_of(g);
  };
  BOOST_TEST(attempt(kFirst, kSecond) == "not_found");  // its gateway lives
  rig.gateway().say(Say{"hello"});
  BOOST_TEST(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  rig.kill("gateway-1");
  BOOST_TEST(attempt(kWrong, kSecond) == "not_found");
  BOOST_TEST(attempt("", kSecond) == "not_found");
  BOOST_TEST(attempt(kFirst, kSecond) == "attached");
  BOOST_TEST(g.attached->turns == 1);
  BOOST_TEST(g.attached->open_turn.value == 0u);
  rig.kill("gateway-2");
  auto& third = static_cast<FakeGateway&>(rig.add("gateway-3", "gateway"));
  third.resume(g, "controller-1", g.claim(kFirst, kThird));  // a replay
  rig.run(6);
  BOOST_TEST(error_of(third) == "not_found");
  third.resume(g, "controller-1", g.claim(kSecond, kThird));
  rig.run(6);
  BOOST_TEST(third.attached.has_value());
  third.say(Say{"again"});
  BOOST_TEST(rig.run_until([&] { return third.turns.size() == 2; }));
  BOOST_TEST(rig.controller().load() == 1);
}

BOOST_AUTO_TEST_CASE(a_session_without_a_token_or_not_opened_yet_ends_with_its_gateway) {
  for (const bool token : {false, true}) {
    Rig rig;
    for (const auto& role : kServiceRoles) rig.add(role + "-1", role);
    rig.add("controller-1", "controller");
    rig.add("gateway-1", "gateway");
    if (token) rig.gateway().token_digest = kFirst;
    rig.gateway().open("controller-1");
    rig.run(token ? 2 : 8);
    rig.kill("gateway-1");
    rig.run(3);
    BOOST_TEST(rig.controller().load() == 0);
  }
}

BOOST_AUTO_TEST_CASE(a_session_waits_for_its_time_only) {
  for (const int seconds : {0, 2}) {
    Rig rig;
    rig.config.detached_seconds_max = seconds;
    furnish(rig);
    rig.gateway().say(Say{"hello"});
    rig.run(4);
    rig.kill("gateway-1");
    rig.run(3);
    BOOST_TEST(rig.controller().load() == (seconds > 0 ? 1 : 0));
    rig.run(seconds * 50 + 30);
    BOOST_TEST(rig.controller().load() == 0);
    BOOST_TEST(rig.streams_at_services() == 0u);
    BOOST_TEST((rig.controller().tick_interval() == milliseconds(500)));
    auto& g = second(rig);
    g.resume(rig.gateway(), "controller-1", rig.gateway().claim(kFirst, kSecond));
    rig.run(6);
    BOOST_TEST(error_of(g) == "not_found");
  }
}

BOOST_AUTO_TEST_CASE(a_turn_goes_on_without_a_client_and_its_sound_is_not_kept) {
  Rig rig(with_tools());
  furnish(rig);
  rig.gateway().say(Say{"hello"});
  rig.run(4);
  rig.kill("gateway-1");
  BOOST_TEST(rig.run_until([&] { return !stored(rig).empty(); }));
  rig.run(10);
  BOOST_TEST(rig.streams_at_services() == 0u);
  BOOST_TEST((rig.controller().tick_interval() == milliseconds(500)));
  const auto* turn = rig.controller().turn_of(kSession);
  BOOST_REQUIRE(turn != nullptr);
  BOOST_TEST((turn->stage == Turn::Stage::closing));
  BOOST_TEST(turn->samples > 0);
}

BOOST_AUTO_TEST_CASE(an_error_that_came_meanwhile_is_told) {
  Rig rig;
  furnish(rig);
  rig.gateway().say(Say{"hello"});
  rig.run(3);
  rig.kill("gateway-1");
  rig.get<FakeChat>("llm-chat-1").fails_at_third = Errc::internal;
  rig.run(40);
  auto& g = second(rig);
  g.resume(rig.gateway(), "controller-1", rig.gateway().claim(kFirst, kSecond));
  rig.run(6);
  BOOST_TEST(g.attached->open_turn.value == 0u);
  BOOST_TEST(error_of(g) == "internal");
  BOOST_TEST(g.events.back().turn == 1u);
  rig.get<FakeChat>("llm-chat-1").fails_at_third.reset();
  g.say(Say{"hello"});
  BOOST_TEST(rig.run_until([&] { return g.turns.size() == 1; }));
}

BOOST_AUTO_TEST_CASE(a_broken_socket_leaves_the_session_and_a_closed_one_ends_it) {
  for (const bool broken : {false, true}) {
    Rig rig;
    furnish(rig);
    rig.gateway().close(broken);
    rig.run(3);
    BOOST_TEST(rig.controller().load() == (broken ? 1 : 0));
    auto& g = second(rig);
    g.resume(rig.gateway(), "controller-1", rig.gateway().claim(kFirst, kSecond));
    rig.run(6);
    BOOST_TEST(g.attached.has_value() == broken);
  }
}

BOOST_AUTO_TEST_CASE(a_session_whose_gateway_is_silent_is_not_said_to_be_gone) {
  Rig rig;
  furnish(rig);
  auto& g = second(rig);
  const auto resumes_with = [&](const std::string& token) {
    g.resume(rig.gateway(), "controller-1", rig.gateway().claim(token, kSecond));
    rig.run(6);
    return g.attached ? std::string("attached") : g.last_error() == nullptr ? "nothing" : g.last_error()->text;
  };
  const auto state = [&](transport::PeerState s) {
    rig.controller().on_peer({"gateway-1", "gateway", 1, true}, s, rig.now);
  };
  state(transport::PeerState::suspect);
  BOOST_TEST(resumes_with(kFirst) == "unavailable");
  BOOST_TEST(resumes_with(kWrong) == "not_found");  // who has no token learns nothing
  state(transport::PeerState::up);
  BOOST_TEST(resumes_with(kFirst) == "not_found");  // it is there: it has the session
  state(transport::PeerState::suspect);
  state(transport::PeerState::down);
  BOOST_TEST(resumes_with(kFirst) == "attached");
}

/// Its client has the right to what is stored, and opens it by its name.
BOOST_AUTO_TEST_CASE(a_session_whose_gateway_is_silent_is_opened_by_its_name_later) {
  Rig rig;
  furnish(rig);
  auto& g = second(rig);
  g.token_digest = kSecond;
  const auto opens_when = [&](transport::PeerState s) {
    rig.controller().on_peer({"gateway-1", "gateway", 1, true}, s, rig.now);
    g.open("controller-1");
    rig.run(6);
    return error_of(g);
  };
  BOOST_TEST(opens_when(transport::PeerState::suspect) == "unavailable");
  BOOST_TEST(g.last_error()->retry_ms > 0);
  BOOST_TEST(opens_when(transport::PeerState::up) == "not_found");
}

/// A page that crashed is opened anew; the session of the lost socket has nobody.
BOOST_AUTO_TEST_CASE(a_session_that_waits_for_its_client_is_opened_by_its_name_at_once) {
  Rig rig;
  furnish(rig);
  rig.gateway().say(Say{"hello"});
  BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  rig.gateway().close(true);
  rig.run(6);
  BOOST_REQUIRE(rig.controller().turn_of(kSession) != nullptr);
  auto& g = second(rig);
  g.token_digest = kSecond;
  g.number_inputs_from((std::uint64_t{1} << 32) + 1);
  g.open("controller-1");
  BOOST_REQUIRE(rig.run_until([&] { return g.is_open(); }));
  g.say(Say{"and now"});
  BOOST_REQUIRE(rig.run_until([&] { return g.turns.size() == 1; }));
  BOOST_TEST(g.turns[0]["turn"] == 2);
  // The token of the lost socket is void.
  rig.add("gateway-3", "gateway");
  auto& third = rig.gateway("gateway-3");
  third.resume(rig.gateway(), "controller-1", rig.gateway().claim(kFirst, kThird));
  rig.run(6);
  BOOST_TEST(error_of(third) == "not_found");
}

BOOST_AUTO_TEST_CASE(who_resumes_a_session_with_turns_that_wait_is_told_when_they_are_stored) {
  Rig rig;
  furnish(rig);
  rig.store->fails = Errc::io;
  rig.gateway().say(Say{"hello"});
  BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  rig.kill("gateway-1");
  auto& g = second(rig);
  g.resume(rig.gateway(), "controller-1", rig.gateway().claim(kFirst, kSecond));
  rig.run(6);
  BOOST_REQUIRE(g.attached);
  BOOST_TEST(g.attached->degraded);
  BOOST_TEST(g.checkpoints.empty());
  rig.store->fails.reset();
  BOOST_REQUIRE(rig.run_until([&] { return !stored(rig).empty(); }));
  rig.run(2);
  BOOST_REQUIRE(g.checkpoints.size() == 1u);
  BOOST_TEST(!g.checkpoint.degraded);
}

BOOST_AUTO_TEST_CASE(chats_are_told_when_a_session_is_over_and_not_when_it_moves) {
  enum class End { closed, lost, moved, erased };
  for (const auto end : {End::closed, End::lost, End::moved, End::erased}) {
    Rig rig;
    furnish(rig);
    rig.add("controller-2", "controller");
    auto& g = rig.gateway();
    g.say(Say{"hello"});
    BOOST_REQUIRE(rig.run_until([&] { return g.turns.size() == 1; }));
    BOOST_TEST(rig.get<FakeChat>("llm-chat-1").over.empty());
    if (end == End::moved) {
      g.leave();
      g.open("controller-2");
    } else if (end == End::erased) {
      Envelope wish;
      wish.session = kSession;
      wish.stream = {77};
      rig.controller().on_message("gateway-1", pack(Erase{}, wish), rig.now);
    } else {
      g.close(end == End::lost);
    }
    rig.run(12);
    const auto over = rig.get<FakeChat>("llm-chat-1").over.size();
    const bool is_over = end == End::closed || end == End::erased;
    BOOST_TEST(over == (is_over ? 1u : 0u), "end " << static_cast<int>(end));
    BOOST_TEST(rig.get<FakeChat>("llm-chat-1").streams() == 0u);
  }
}

BOOST_AUTO_TEST_CASE(a_gateway_asks_again_with_the_same_token_when_the_answer_came_too_late) {
  Rig rig;
  furnish(rig);
  rig.kill("gateway-1");
  auto& g = second(rig);
  const auto claim = rig.gateway().claim(kFirst, kSecond);
  g.resume(rig.gateway(), "controller-1", claim);
  rig.run(3);
  g.close(true);
  rig.run(3);
  g.attached.reset();
  g.resume(rig.gateway(), "controller-1", claim);
  rig.run(6);
  BOOST_TEST(g.attached.has_value());
}

BOOST_AUTO_TEST_CASE(a_gateway_that_stood_still_cannot_take_a_resumed_session_back) {
  Rig rig;
  furnish(rig);
  rig.kill("gateway-1");
  auto& g = second(rig);
  g.resume(rig.gateway(), "controller-1", rig.gateway().claim(kFirst, kSecond));
  rig.run(6);
  BOOST_REQUIRE(g.attached);
  auto& old = static_cast<FakeGateway&>(rig.add("gateway-1", "gateway"));
  old.token_digest = kFirst;
  old.epoch = g.epoch;
  old.open("controller-1");
  rig.run(6);
  BOOST_TEST(error_of(old) == "not_found");
  g.say(Say{"hello"});
  BOOST_TEST(rig.run_until([&] { return g.turns.size() == 1; }));
}

BOOST_AUTO_TEST_CASE(a_resumed_session_moves_on_and_its_open_turn_fails_at_once_when_its_inputs_are_lost) {
  Rig rig(with_tools());
  furnish(rig);
  rig.gateway().say(Say{"hello"});
  BOOST_REQUIRE(rig.run_until([&] { return !rig.gateway().reply.empty(); }));
  const auto claim = rig.gateway().claim(kFirst, kSecond);
  rig.kill("gateway-1");
  auto& g = second(rig);
  g.token_digest = kSecond;
  g.resume(rig.gateway(), "controller-1", claim);
  BOOST_REQUIRE(rig.run_until([&] { return g.attached.has_value(); }, 6));
  BOOST_TEST(g.attached->open_turn.value == 1u);
  BOOST_TEST(g.attached->first_input == 2u);
  rig.add("controller-2", "controller");
  rig.kill("controller-1");
  g.inputs_kept = false;
  g.open("controller-2");
  BOOST_REQUIRE(rig.run_until([&] { return g.last_error() != nullptr; }, 20));
  BOOST_TEST(error_of(g) == "unavailable");
  BOOST_TEST(g.events.back().turn == 1u);
  g.say(Say{"hello"});
  BOOST_TEST(rig.run_until([&] { return g.turns.size() == 1; }));
  check_calm(rig);
}

/// The answer to the first question behind a resume is stored, and its controller is lost before a word of it reaches
/// the gateway: the next one knows that it was not told.
BOOST_AUTO_TEST_CASE(the_first_turn_behind_a_resume_is_not_lost_with_its_controller) {
  for (const bool in_turn : {false, true}) {
    BOOST_TEST_CONTEXT("resumed in a turn " << in_turn) {
      Rig rig;
      furnish(rig);
      rig.add("controller-2", "controller");
      rig.gateway().say(Say{"first"});
      if (in_turn)
        rig.run(4);
      else
        BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
      const auto claim = rig.gateway().claim(kFirst, kSecond);
      rig.kill("gateway-1");
      rig.run(2);
      auto& g = second(rig);
      g.resume(rig.gateway(), "controller-1", claim);
      BOOST_REQUIRE(rig.run_until([&] { return g.attached.has_value() && g.turns.size() == 1; }));
      rig.swallow = [](const std::string& from, const std::string& to, const Message&) {
        return from == "controller-1" && to == "gateway-2";
      };
      g.say(Say{"second"});
      BOOST_REQUIRE(rig.run_until([&] { return !stored(rig, 2).empty(); }));
      rig.kill("controller-1");
      g.token_digest = kSecond;
      g.open("controller-2");
      BOOST_REQUIRE(rig.run_until([&] { return g.turns.size() == 2; }));
      BOOST_TEST(g.turns[1]["user"] == "second");
      rig.run(50);
      BOOST_TEST(g.turns.size() == 2u);
      BOOST_TEST(stored(rig, 3).empty());
      check_calm(rig);
    }
  }
}

/// The gateway that had it is lost while it waits, and the controller when it is about to answer: nobody has it to say
/// it again, but that it was to be answered is known.
BOOST_AUTO_TEST_CASE(a_wish_that_went_with_its_gateway_and_its_controller_ends_with_an_error) {
  Talk t(talking(0), false, 1, [](FakeGateway& g) {
    g.settings.answers = false;
    g.token_digest = kFirst;
  });
  t.rig.add("controller-2", "controller");
  t.say(5, false);
  t.say(kSpeech, true);
  BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::speech_ended) == 1; }));
  t.g().say(Respond{});
  t.rig.unlink("gateway-1");
  t.rig.run(1);
  t.rig.link("gateway-1");
  t.g().come_back("controller-1", kSecond);
  const auto told = t.g().count(MessageType::decided);
  BOOST_REQUIRE(t.until([&] { return t.g().count(MessageType::decided) == told + 1; }));
  BOOST_TEST(t.g().noted.size() == 1u);
  BOOST_TEST(t.g().open_questions().size() == 1u);
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  BOOST_REQUIRE(t.rig.run_until([&] { return t.g().last_error() != nullptr; }, 20));
  BOOST_TEST(error_of(t.g()) == "unavailable");
  BOOST_TEST(t.g().last_error()->turn == 2u);
  BOOST_TEST(t.g().lost.empty());
  BOOST_TEST(t.g().open_questions().empty());
  t.g().say(Respond{});
  BOOST_REQUIRE(t.answered(1));
  BOOST_TEST(t.g().turns[0]["turn"] == 2);
  t.check_calm();
}

/// The store has not got the turn before it either: it fails under the number that it would have begun again with, also
/// when the next owner is lost before it has said so.
BOOST_AUTO_TEST_CASE(a_turn_that_was_resumed_behind_one_that_is_lost_fails_under_the_number_that_is_free) {
  for (const bool again : {false, true}) {
    BOOST_TEST_CONTEXT("again " << again) {
      Talk t(talking(0), false, 1, [](FakeGateway& g) { g.token_digest = kFirst; });
      t.rig.add("controller-2", "controller");
      t.rig.add("controller-3", "controller");
      t.rig.swallow = [&](const std::string& from, const std::string&, const Message& m) {
        return again && from == "controller-2" && m.head.type == MessageType::error;
      };
      t.rig.store->fails = Errc::io;
      t.g().say(Utter{"Lost."});
      BOOST_REQUIRE(t.rig.run_until([&] { return t.g().turns.size() == 1; }));
      BOOST_TEST(t.g().degraded[0]);
      t.chat().sentences = 20;
      t.g().say(Say{"two"});
      BOOST_REQUIRE(t.rig.run_until([&] { return !t.g().reply.empty(); }));
      t.rig.unlink("gateway-1");
      t.rig.run(1);
      t.rig.link("gateway-1");
      t.g().come_back("controller-1", kSecond);
      BOOST_REQUIRE(t.rig.run_until([&] { return t.g().attached.has_value(); }, 6));
      BOOST_TEST(t.g().attached->open_turn.value == 2u);
      t.rig.kill("controller-1");
      t.g().open("controller-2");
      if (again) {
        BOOST_REQUIRE(t.rig.run_until([&] { return t.g().is_open(); }, 20));
        t.rig.run(3);
        t.rig.kill("controller-2");
        t.g().open("controller-3");
      }
      BOOST_REQUIRE(t.rig.run_until([&] { return t.g().last_error() != nullptr; }, 20));
      BOOST_TEST(error_of(t.g()) == "unavailable");
      BOOST_TEST(t.g().last_error()->turn == 1u);
      BOOST_TEST(t.g().lost.empty());
      BOOST_TEST(t.g().open_questions().empty());
      t.rig.store->fails.reset();
      t.g().say(Say{"three"});
      BOOST_REQUIRE(t.rig.run_until([&] { return t.g().turns.size() == 2; }));
      BOOST_TEST(t.g().turns[1]["turn"] == 1);
      t.check_calm();
    }
  }
}

/// It is told to its end from its record; what waited behind it only the former controller knew.
BOOST_AUTO_TEST_CASE(a_turn_that_was_resumed_and_is_stored_comes_to_its_end_and_what_waited_behind_it_is_lost) {
  Talk t(talking(0), false, 1, [](FakeGateway& g) { g.token_digest = kFirst; });
  t.rig.add("controller-2", "controller");
  t.chat().calls_tool = false;
  for (int i = 0; i < 30; ++i) t.g().say(t.microphone.frame(i >= 15));
  t.g().say(Respond{});
  t.g().say(Utter{"Given."});
  BOOST_REQUIRE(t.rig.run_until([&] { return !t.g().reply.empty(); }));
  t.rig.unlink("gateway-1");
  BOOST_REQUIRE(t.rig.run_until([&] { return !stored(t.rig).empty(); }));
  t.rig.link("gateway-1");
  t.g().come_back("controller-1", kSecond);
  BOOST_REQUIRE(t.rig.run_until([&] { return t.g().attached.has_value(); }, 6));
  BOOST_TEST(t.g().attached->open_turn.value == 1u);
  BOOST_TEST(t.g().open_questions().size() == 2u);
  t.rig.kill("controller-1");
  t.g().open("controller-2");
  BOOST_REQUIRE(t.rig.run_until([&] { return t.g().turns.size() == 1; }));
  BOOST_TEST(t.g().turns[0]["responds"] == true);
  BOOST_TEST(t.g().open_questions().empty());
  BOOST_TEST(t.g().lost.size() == 1u);
  t.g().say(Say{"more"});
  BOOST_REQUIRE(t.rig.run_until([&] { return t.g().turns.size() == 2; }));
  t.check_calm();
}

BOOST_AUTO_TEST_CASE(a_session_without_a_client_gives_way_to_a_new_one_when_its_turn_is_over) {
  Rig rig;
  rig.config.sessions_max = 1;
  furnish(rig);
  rig.run(8);
  rig.gateway().say(Say{"hello"});
  rig.run(4);
  rig.kill("gateway-1");
  BOOST_TEST(rig.controller().slots() == 0);
  rig.add("gateway-2", "gateway");
  auto& g = rig.gateway("gateway-2");
  g.session = {8, 8};
  g.open("controller-1");
  rig.run(3);
  BOOST_TEST(error_of(g) == "overloaded");
  BOOST_REQUIRE(rig.run_until([&] { return !stored(rig).empty(); }));
  BOOST_REQUIRE(rig.run_until([&] { return rig.controller().slots() == 1; }, 5));
  BOOST_TEST(rig.controller().load() == 1);
  g.open("controller-1");
  rig.run(8);
  BOOST_TEST(rig.controller().load() == 1);
  g.say(Say{"hello"});
  BOOST_TEST(rig.run_until([&] { return g.turns.size() == 1; }));
  // The one that left can be opened anew, with all that it had stored.
  BOOST_TEST(json::parse(stored(rig))["user"] == "hello");
  check_calm(rig);
}

BOOST_AUTO_TEST_CASE(the_session_that_waited_longest_gives_way) {
  Rig rig;
  rig.config.sessions_max = 2;
  furnish(rig);
  rig.add("gateway-2", "gateway");
  auto& g = rig.gateway("gateway-2");
  g.session = {1, 1};  // in front of the other in every table
  g.token_digest = kSecond;
  g.open("controller-1");
  rig.run(8);
  rig.kill("gateway-1");
  rig.run(50);
  rig.kill("gateway-2");
  rig.add("gateway-3", "gateway");
  auto& third = rig.gateway("gateway-3");
  third.session = {9, 9};
  third.open("controller-1");
  rig.run(8);
  BOOST_TEST(third.count(MessageType::opened) == 1u);
  BOOST_TEST(rig.controller().turn_of({1, 1}) != nullptr);
  BOOST_TEST(rig.controller().turn_of(kSession) == nullptr);
}

BOOST_AUTO_TEST_CASE(a_draining_controller_waits_for_turns_but_not_for_clients) {
  Rig rig;
  furnish(rig);
  rig.gateway().say(Say{"hello"});
  rig.run(4);
  rig.kill("gateway-1");
  BOOST_TEST(!rig.controller().drain());
  rig.run(3);
  BOOST_TEST(!rig.controller().drain());
  BOOST_TEST(rig.run_until([&] { return rig.controller().drain(); }));
  BOOST_TEST(!stored(rig).empty());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
