/// Clients that bring a token: whom their gateway asks, what it believes, what it tells them.
#include <boost/test/unit_test.hpp>

#include "services/gateway/resume_token.hpp"
#include "tests/services/gateway/rig.hpp"

using namespace parlando;
using namespace parlando::gateway;
using namespace std::chrono_literals;
using protocol::Attach;
using protocol::Attached;
using protocol::Close;
using protocol::Open;

namespace {

const std::string kSession = "00000000000000070000000000000009", kToken = "0123456789abcdef0123456789abcdef";

std::string resume(const std::string& more = "") {
  return R"({"type":"resume","session":")" + kSession + R"(","token":")" + kToken + "\"" + more + "}";
}

/// Two controllers and a client that wants its session back.
struct Back {
  Rig rig;
  explicit Back(const std::string& more = "") {
    rig.up("a");
    rig.up("b");
    rig.connect();
    rig.text(resume(more));
  }
  const Rig::Sent asked(const std::string& peer) const { return rig.all<Attach>(peer).back(); }
  const Attach claim(const std::string& peer) const { return std::get<Attach>(asked(peer).body); }
  void attached(const std::string& peer, std::uint64_t epoch, Attached body = {}) {
    rig.from(peer, std::move(body), asked(peer).head, epoch);
  }
  void refused(const std::string& peer, const std::string& code = "not_found") {
    rig.from(peer, protocol::ErrorMessage{code, "no", 0}, asked(peer).head, 0);
  }
};

Attached within_turn() {
  Attached out;
  out.seed = 5;
  out.speaker = "clara";
  out.speak = false;
  out.turns = 2;
  out.first_input = 40;
  out.position_samples = 6400;
  out.open_turn = {3};
  out.reply_bytes = 5;
  out.transcript_bytes = 4;
  out.tool_calls = 1;
  out.tool_results.text = "[7]";
  out.pieces = 1;
  out.piece_samples = 10;
  out.turn_samples = 110;
  out.payload = protocol::Bytes(8);
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(resume_test)

BOOST_AUTO_TEST_CASE(the_digest_is_sha_256) {
  BOOST_TEST(digest_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

BOOST_AUTO_TEST_CASE(opened_brings_a_token_of_which_the_controller_knows_the_digest_only) {
  Rig rig;
  rig.up("a");
  rig.connect(1);
  rig.connect(2);
  std::set<std::string> tokens;
  for (const ClientId id : {1, 2}) {
    rig.text(R"({"type":"open"})", id);
    const auto digest = rig.open_of("a").token_digest;
    rig.opened("a", 1);
    const auto token = rig.events[id].back()["resume_token"].get<std::string>();
    BOOST_TEST(token.size() == 32u);
    BOOST_TEST(digest == digest_of(token));
    tokens.insert(token);
  }
  BOOST_TEST(tokens.size() == 2u);
}

BOOST_AUTO_TEST_CASE(the_next_controller_gets_the_same_digest_and_the_client_hears_nothing_of_it) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  const auto digest = rig.open_of("a").token_digest;
  rig.up("b");
  rig.down("a");
  BOOST_TEST(rig.open_of("b").token_digest == digest);
  rig.opened("b", 2);
  BOOST_TEST(rig.story() == "");
}

BOOST_AUTO_TEST_CASE(the_next_controller_is_told_which_turns_a_client_knew_when_it_came_back) {
  for (const bool in_turn : {false, true}) {
    Back back;
    auto body = within_turn();
    body.turns = 2;
    if (!in_turn) body.open_turn = {};
    back.attached("a", 4, std::move(body));
    back.refused("b");
    back.rig.down("a");
    BOOST_TEST(back.rig.open_of("b").turn_told == 2);
  }
}

BOOST_AUTO_TEST_CASE(all_controllers_are_asked_with_what_the_client_has) {
  Back back(R"(,"turn":3,"samples":500,"reply_bytes":12)");
  for (const auto* peer : {"a", "b"}) {
    const auto claim = back.claim(peer);
    BOOST_TEST(back.asked(peer).head.session.text() == kSession);
    BOOST_TEST(claim.token_digest == digest_of(kToken));
    BOOST_TEST(claim.next_digest.size() == 64u);
    BOOST_TEST(claim.turn.value == 3u);
    BOOST_TEST(claim.samples == 500);
    BOOST_TEST(claim.reply_bytes == 12);
    BOOST_TEST(claim.transcript_bytes == -1);
    BOOST_TEST(claim.tool_calls == -1);
  }
}

BOOST_AUTO_TEST_CASE(the_one_that_keeps_it_is_the_owner_and_the_client_goes_on_where_it_is) {
  Back back;
  auto& rig = back.rig;
  const auto next = back.claim("a").next_digest;
  back.refused("b");
  BOOST_TEST(rig.all<Close>("b").size() == 1u);
  BOOST_TEST(rig.story() == "");
  back.attached("a", 6, within_turn());
  BOOST_TEST(rig.story() == "opened");
  const auto told = rig.events[1].front();
  BOOST_TEST(told["resumed"] == true);
  BOOST_TEST(told["session"] == kSession);
  BOOST_TEST(told["turns"] == 2);
  BOOST_TEST(told["turn"] == 3);
  BOOST_TEST(told["seed"] == 5);
  BOOST_TEST(told["input_samples"] == 6400);
  BOOST_TEST(digest_of(told["resume_token"].get<std::string>()) == next);
  // What it has is not told again, and its inputs are counted on.
  const auto head = back.asked("a").head;
  rig.from("a", protocol::Text{protocol::TextKind::text, 0, "hello world", {}}, head, 6, 3);
  BOOST_TEST(rig.events[1].back()["text"] == " world");
  rig.from("a", protocol::Speech{1, 0, 22050, false, protocol::Bytes(40)}, head, 6, 3);
  BOOST_TEST(rig.heard[1].size() == 20u);
  rig.audio();
  BOOST_TEST(rig.inputs("a") == std::vector<std::uint64_t>{40});
  BOOST_TEST(std::get<protocol::Audio>(rig.sent.back().body).first_sample == 6400);
  rig.from("a", protocol::TurnDone{3, false, {}}, head, 6, 3);
  BOOST_TEST(rig.story() == "opened text: world turn");
}

BOOST_AUTO_TEST_CASE(a_later_hand_over_tells_the_next_controller_all_of_it) {
  Back back;
  auto& rig = back.rig;
  back.refused("b");
  back.attached("a", 6, within_turn());
  rig.audio();
  rig.down("a");
  const auto& open = rig.open_of("b");
  BOOST_TEST(open.expected_epoch.value == 6u);
  BOOST_TEST(open.speaker == "clara");
  BOOST_TEST(!open.speak);
  BOOST_TEST(open.seed == 5u);
  BOOST_TEST(open.first_input == 40u);
  BOOST_TEST(open.open_turn.value == 3u);
  BOOST_TEST(open.reply_bytes == 5);
  BOOST_TEST(open.tool_calls == 1);
  BOOST_TEST(open.tool_results.text == "[7]");
  BOOST_TEST(open.pieces == 1);
  BOOST_TEST(open.piece_samples == 10);
  BOOST_TEST(open.turn_samples == 110);
  BOOST_TEST(open.payload.size() == 8u);
  BOOST_TEST(!open.inputs_kept);
  BOOST_TEST(open.token_digest == back.claim("a").next_digest);
  BOOST_TEST((rig.last_open("b").head.stream > back.asked("b").head.stream));
  rig.opened("b", 7);
  BOOST_TEST(rig.inputs("b") == std::vector<std::uint64_t>{40});
  rig.reply("b", 7, 4, 0, "a new turn");
  rig.up("a");
  rig.down("b");
  BOOST_TEST(rig.open_of("a").inputs_kept);
}

/// The number of a turn that was cancelled is used again: the inputs of that one were said to this gateway.
BOOST_AUTO_TEST_CASE(a_turn_that_has_the_number_of_one_that_was_resumed_may_move_on) {
  Back back;
  auto& rig = back.rig;
  back.refused("b");
  back.attached("a", 6, within_turn());
  const auto head = back.asked("a").head;
  rig.from("a", protocol::Cancelled{{3}}, head, 6, 3);
  rig.text(R"({"type":"text","text":"once more"})");
  rig.from("a", protocol::Text{protocol::TextKind::text, 0, "a new one", {}}, head, 6, 3);
  rig.down("a");
  BOOST_TEST(rig.open_of("b").open_turn.value == 3u);
  BOOST_TEST(rig.open_of("b").inputs_kept);
}

/// The next owner has not got the turn before it: it is to fail under the number that is free, whoever says so.
BOOST_AUTO_TEST_CASE(a_turn_that_was_resumed_behind_one_that_is_lost_fails_under_the_number_that_is_free) {
  Back back;
  auto& rig = back.rig;
  back.refused("b");
  back.attached("a", 6, within_turn());
  rig.down("a");
  BOOST_TEST(rig.open_of("b").open_turn.value == 3u);
  rig.from("b", protocol::Opened{1, 5, false}, 7);
  BOOST_TEST(rig.story() == "opened cancelled");
  rig.up("a");
  rig.down("b");
  BOOST_TEST(rig.open_of("a").open_turn.value == 2u);
  BOOST_TEST(rig.open_of("a").reply_bytes == 0);
  BOOST_TEST(!rig.open_of("a").inputs_kept);
  rig.from("a", protocol::Opened{1, 5, false}, 8);
  rig.error("a", "unavailable", 8, 2);
  BOOST_TEST(rig.story() == "opened cancelled error:unavailable");
  // The same number is that of the next one, whose inputs are here; and that of the lost one of the one behind it.
  for (const std::uint32_t turn : {2, 3}) {
    rig.text(R"({"type":"text","text":"once more"})");
    rig.reply("a", 8, turn, 0, "a new one");
    if (turn == 2) rig.done("a", 8, turn);
  }
  rig.up("b");
  rig.down("a");
  BOOST_TEST(rig.open_of("b").open_turn.value == 3u);
  BOOST_TEST(rig.open_of("b").inputs_kept);
}

/// It is over with the error; its number is that of the next one.
BOOST_AUTO_TEST_CASE(a_turn_that_was_resumed_and_is_too_large_to_be_handed_over_leaves_its_number) {
  Back back;
  auto& rig = back.rig;
  back.refused("b");
  back.attached("a", 6, within_turn());
  const auto head = back.asked("a").head;
  for (int i = 1; i < 6; ++i)
    rig.from("a",
             protocol::Text{protocol::TextKind::tool_call, i, R"({"result":")" + std::string(30000, 'x') + "\"}", {}},
             head, 6, 3);
  rig.down("a");
  BOOST_TEST(rig.open_of("b").open_turn.value == 0u);
  rig.opened("b", 7);
  rig.text(R"({"type":"text","text":"once more"})");
  rig.reply("b", 7, 3, 0, "a new one");
  rig.up("a");
  rig.down("b");
  BOOST_TEST(rig.open_of("a").open_turn.value == 3u);
  BOOST_TEST(rig.open_of("a").inputs_kept);
}

BOOST_AUTO_TEST_CASE(of_two_that_keep_it_the_one_of_the_higher_epoch_is_believed) {
  for (const bool first : {true, false}) {
    Back back;
    auto& rig = back.rig;
    const std::string owner = first ? "a" : "b", stale = first ? "b" : "a";
    back.attached("a", first ? 9 : 8);
    rig.from("a", protocol::Text{protocol::TextKind::text, 0, "a says", {}}, back.asked("a").head, first ? 9 : 8, 1);
    BOOST_TEST(rig.story() == "");
    back.attached("b", first ? 8 : 9);
    BOOST_TEST(rig.story() == (first ? "opened text:a says" : "opened"));
    BOOST_REQUIRE(rig.all<Close>(stale).size() == 1u);
    BOOST_TEST(!std::get<Close>(rig.all<Close>(stale)[0].body).detached);
    BOOST_TEST(std::get<Close>(rig.all<Close>(stale)[0].body).moves);
    BOOST_TEST(rig.all<Close>(owner).empty());
  }
}

BOOST_AUTO_TEST_CASE(nobody_keeps_it_all_are_asked_again_for_five_seconds_and_then_it_is_not_found) {
  Back back;
  auto& rig = back.rig;
  std::vector<int> rounds;
  for (int ms = 0; ms < 6000 && rig.story().empty(); ms += 10) {
    if (rig.all<Attach>().size() > 2 * rounds.size()) {
      rounds.push_back(ms);
      back.refused("a");
      back.refused("b");
    }
    rig.tick(10);
  }
  BOOST_REQUIRE(rounds.size() == 13u);
  for (std::size_t i = 1; i < rounds.size(); ++i) BOOST_TEST(rounds[i] - rounds[i - 1] == (i < 5 ? 25 << i : 500));
  BOOST_TEST(rig.story() == "error:not_found");
  BOOST_TEST(rig.all<Close>().size() == 26u);
  BOOST_TEST(rig.sessions.counters().not_resumed == 1u);
  rig.text(R"({"type":"open"})");
  BOOST_TEST(rig.all<Open>().size() == 1u);
}

BOOST_AUTO_TEST_CASE(a_controller_that_comes_late_is_asked) {
  Rig rig;
  rig.connect();
  rig.text(resume());
  rig.tick(600);
  rig.up("a");
  rig.tick(600);
  rig.from("a", Attached{}, rig.all<Attach>("a").back().head, 1);
  BOOST_TEST(rig.story() == "opened");
}

BOOST_AUTO_TEST_CASE(a_controller_that_does_not_answer_keeps_the_session_for_the_next_round) {
  Back back;
  auto& rig = back.rig;
  back.refused("b");
  const auto next = back.claim("a").next_digest;
  rig.tick(1001);
  BOOST_REQUIRE(rig.all<Close>("a").size() == 1u);
  BOOST_TEST(std::get<Close>(rig.all<Close>("a")[0].body).detached);
  rig.tick(501);
  BOOST_TEST(back.claim("a").next_digest == next);
  BOOST_TEST(rig.all<Attach>("a").size() == 2u);
  BOOST_TEST((rig.all<Attach>("a")[0].head.stream != rig.all<Attach>("a")[1].head.stream));
  back.refused("b");
  back.attached("a", 1);
  BOOST_TEST(rig.story() == "opened");
}

/// Who keeps it may be stale: the others are waited for, but no longer than a while.
BOOST_AUTO_TEST_CASE(behind_the_first_that_keeps_it_the_others_have_a_while_to_answer) {
  for (const bool in_time : {true, false}) {
    Back back;
    auto& rig = back.rig;
    rig.tick(300);
    back.attached("a", 4);
    rig.tick(390);
    BOOST_TEST(rig.story() == "");
    if (in_time)
      back.attached("b", 5);
    else
      rig.tick(20);
    BOOST_TEST(rig.story() == "opened");
    const auto* loser = in_time ? "a" : "b";
    BOOST_REQUIRE(rig.all<Close>(loser).size() == 1u);
    BOOST_TEST(rig.all<Close>(in_time ? "b" : "a").empty());
    BOOST_TEST(std::get<Close>(rig.all<Close>(loser)[0].body).detached == !in_time);
    if (in_time) continue;
    back.attached("b", 5);
    BOOST_TEST(rig.story() == "opened");
    BOOST_TEST(rig.sessions.counters().stale == 1u);
  }
}

BOOST_AUTO_TEST_CASE(one_that_dies_or_is_suspect_is_not_waited_for) {
  for (const bool dies : {true, false}) {
    Back back;
    back.attached("a", 1);
    BOOST_TEST(back.rig.story() == "");
    dies ? back.rig.down("b") : back.rig.suspect("b");
    BOOST_TEST(back.rig.story() == "opened");
  }
}

BOOST_AUTO_TEST_CASE(a_session_that_a_silent_gateway_has_is_not_said_to_be_gone) {
  // Told by the controller that has it, and asked for every quarter of a second then; or nobody knows, because one
  // has not answered. What was so in a former round counts no more.
  enum class Told { always, first, never };
  for (const auto told : {Told::always, Told::first, Told::never}) {
    Back back;
    auto& rig = back.rig;
    std::vector<int> rounds;
    for (int ms = 0; ms < 6000 && rig.story().empty(); ms += 10) {
      if (rig.all<Attach>().size() > 2 * rounds.size()) {
        const bool is_kept = told == Told::always || rounds.empty();
        back.refused("a");
        if (told != Told::never) back.refused("b", is_kept ? "unavailable" : "not_found");
        rounds.push_back(ms);
      }
      rig.tick(10);
    }
    if (told == Told::always)
      for (std::size_t i = 0; i < 20; ++i) BOOST_TEST(rounds.at(i) == 250 * static_cast<int>(i));
    BOOST_TEST(rig.story() == (told == Told::first ? "error:not_found" : "error:unavailable"));
    BOOST_TEST(rig.events[1].back().contains("retry_ms") == (told != Told::first));
    BOOST_TEST(rig.sessions.sessions() == 0u);
    rig.text(resume());  // it may try again
    BOOST_TEST(rig.all<Attach>().size() == 2 * rounds.size() + 2);
  }
}

BOOST_AUTO_TEST_CASE(a_session_that_a_client_has_here_is_not_given_to_another) {
  Rig rig;
  rig.up("a");
  rig.connect(1);
  rig.text(R"({"type":"open"})", 1);
  rig.opened("a", 1);
  const auto opened = rig.events[1].back();
  rig.connect(2);
  rig.text(R"({"type":"resume","session":")" + opened["session"].get<std::string>() + R"(","token":")" +
               opened["resume_token"].get<std::string>() + "\"}",
           2);
  for (int i = 0; i < 300; ++i) rig.tick();
  BOOST_TEST(rig.all<Attach>().empty());
  BOOST_TEST(rig.story(2) == "error:not_found");
  BOOST_TEST(rig.story(1) == "opened");
}

BOOST_AUTO_TEST_CASE(how_a_socket_ends_tells_whether_its_session_waits) {
  for (const int way : {0, 1, 2}) {
    Rig rig;
    rig.up("a");
    rig.open("a", 1);
    if (way == 0) rig.leave();
    if (way == 1) rig.sessions.client_lost(1, rig.now);
    if (way == 2) rig.sessions.drain(rig.now);
    rig.collect();
    BOOST_REQUIRE(rig.all<Close>("a").size() == 1u);
    BOOST_TEST(std::get<Close>(rig.all<Close>("a")[0].body).detached == (way != 0));
    BOOST_TEST(!std::get<Close>(rig.all<Close>("a")[0].body).moves);
  }
}

BOOST_AUTO_TEST_CASE(a_client_that_goes_while_it_waits_leaves_nothing) {
  Back back;
  auto& rig = back.rig;
  back.attached("a", 1);
  rig.leave();
  BOOST_TEST(rig.all<Close>("a").size() == 1u);
  BOOST_TEST(rig.all<Close>("b").size() == 1u);
  BOOST_TEST(rig.sessions.sessions() == 0u);
  back.attached("b", 2);
  BOOST_TEST(rig.sessions.sessions() == 0u);
}

BOOST_AUTO_TEST_CASE(a_controller_that_knows_of_a_resumption_elsewhere_ends_the_session_here) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.down("a");
  rig.up("a");
  rig.error("a", "not_found");
  BOOST_TEST(rig.story() == "error:not_found");
  BOOST_TEST(rig.events[1].back()["session_ended"] == true);
}

BOOST_AUTO_TEST_CASE(what_is_no_resume_is_refused_by_name) {
  Rig rig;
  rig.up("a");
  rig.connect();
  for (const auto* wrong : {R"({"type":"resume"})", R"({"type":"resume","session":"7","token":"8"})",
                            R"({"type":"resume","session":7,"token":8})"})
    rig.text(wrong);
  for (const auto* more :
       {R"(,"turn":-1)", R"(,"turn":4294967296)", R"(,"samples":"many")", R"(,"samples":0.5)", R"(,"colour":1)"})
    rig.text(resume(more));
  for (const auto& e : rig.events[1]) BOOST_TEST(e["code"] == "invalid_argument", e.dump());
  BOOST_TEST(rig.events[1].size() == 8u);
  BOOST_TEST(rig.sent.empty());
  rig.text(resume());
  rig.text(resume());
  rig.text(R"({"type":"open"})");
  BOOST_TEST(rig.events[1].size() == 10u);
  BOOST_TEST(rig.all<Attach>().size() == 1u);
}

BOOST_AUTO_TEST_SUITE_END()
