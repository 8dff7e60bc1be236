/// Clients with a lead, and what their owners say of the sound: Hold, Release, Interrupted, Played.
#include <boost/test/unit_test.hpp>

#include "tests/services/gateway/rig.hpp"

using namespace parlando;
using namespace parlando::gateway;
using namespace std::chrono_literals;
using protocol::Hold;
using protocol::Interrupted;
using protocol::Open;
using protocol::Played;
using protocol::Release;

namespace {

constexpr std::int64_t kHeardSecond = kSpeechRate, kHeardLead = 400 * kSpeechRate / 1000;
const std::string kOpen = R"({"type":"open","lead_ms":400})";

/// A client with a lead of 400 ms whose session "a" owns under epoch 1.
struct Play : Rig {
  explicit Play(const std::string& message = kOpen, SessionsConfig config = {}) : Rig(config) {
    up("a");
    open("a", 1, 1, message);
  }
  void say(std::uint32_t turn, std::int64_t samples, std::int64_t first = 0, const std::string& peer = "a",
           std::uint64_t epoch = 1) {
    speech(peer, epoch, turn, 0, first, static_cast<std::size_t>(samples));
  }
  void hold(std::uint32_t turn) { from("a", Hold{{turn}}, 1); }
  void release(std::uint32_t turn) { from("a", Release{{turn}}, 1); }
  void interrupt(std::uint32_t turn, std::int64_t samples = 0, const std::string& heard = "") {
    from("a", Interrupted{{turn}, samples, heard}, 1);
  }
  /// As the gateway's loop does: in time, not with ticks alone.
  void run(int ms) {
    const auto until = now + milliseconds(ms);
    while (sessions.sound_due() <= until) {
      now = std::max(now, sessions.sound_due());
      sessions.play(now);
      collect();
    }
    now = until;
  }
  std::int64_t sent_samples(ClientId id = 1) { return static_cast<std::int64_t>(heard[id].size() / 2); }
  std::string answers() const {
    std::string out;
    for (const auto& m : all<Played>()) {
      const auto& p = std::get<Played>(m.body);
      out += fmt::format("{}{}:{}{}", out.empty() ? "" : " ", p.turn.value, p.samples, p.over ? " over" : "");
    }
    return out;
  }
};

/// A socket that sends nothing by itself.
struct StuckSocket {
  explicit StuckSocket(Play& play) : play(play) {
    play.sessions.set_sockets({[this](ClientId id) { return this->play.heard[id].size() - left; },
                               [this](ClientId id, TurnId) {
                                 std::size_t count = 0;
                                 for (; this->play.heard[id].size() > left; ++count)
                                   this->play.heard[id].resize(this->play.heard[id].size() -
                                                               std::min(kSlice, this->play.heard[id].size() - left));
                                 return count;
                               }});
  }
  static constexpr std::size_t kSlice = 40 * kSpeechRate / 1000 * 2;
  Play& play;
  std::size_t left = 0;  ///< bytes that it has sent
};

}  // namespace

BOOST_AUTO_TEST_SUITE(loudspeaker_test)

BOOST_AUTO_TEST_CASE(a_lead_is_asked_for_with_open) {
  Rig rig;
  rig.up("a");
  rig.connect();
  for (const auto* wrong : {"49", "10001", "-1", "400.5", "\"400\"", "null", "true"})
    rig.text(fmt::format(R"({{"type":"open","lead_ms":{}}})", wrong));
  BOOST_TEST(rig.events[1].size() == 7u);
  for (const auto& e : rig.events[1]) BOOST_TEST(e["code"] == "invalid_argument");
  rig.text(kOpen);
  BOOST_TEST(rig.open_of("a").plays);
  rig.opened("a", 1);
  BOOST_TEST(rig.events[1].back()["lead_ms"] == 400);
  rig.connect(2);
  rig.text(R"({"type":"open"})", 2);
  BOOST_TEST(!rig.open_of("a").plays);
  rig.opened("a", 1);
  BOOST_TEST(!rig.events[2].back().contains("lead_ms"));
}

BOOST_AUTO_TEST_CASE(sound_is_sent_a_lead_ahead_texts_at_once_and_the_turn_behind_its_sound) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.reply("a", 1, 1, 0, "hello");
  play.done("a", 1, 1);
  BOOST_TEST(play.tape[1] == " ~ text");
  BOOST_TEST(play.sent_samples() <= kHeardLead);
  BOOST_TEST(play.answers() == "");
  BOOST_TEST(play.sessions.counters().held_samples > kHeardSecond);
  play.run(1000);
  BOOST_TEST(play.sent_samples() <= kHeardSecond + kHeardLead);
  BOOST_TEST(play.sent_samples() >= kHeardSecond + kHeardLead - kHeardSecond / 20);
  play.run(620);
  BOOST_TEST(play.tape[1] == " ~ text ~ turn");
  BOOST_TEST(play.answers() == "");
  play.run(400);
  BOOST_TEST(play.answers() == "1:44100 over");
  BOOST_TEST(play.sent_samples() == 2 * kHeardSecond);
  BOOST_TEST(play.sessions.counters().sent_samples == 2 * kHeardSecond);
  BOOST_TEST(play.sessions.counters().held_samples == 0);
  BOOST_TEST(play.sessions.counters().underruns == 0u);
}

BOOST_AUTO_TEST_CASE(played_is_no_input) {
  Play play;
  play.audio();
  play.say(1, kHeardSecond);
  play.hold(1);
  play.audio();
  BOOST_TEST(play.inputs("a") == (std::vector<std::uint64_t>{1, 2}));
  BOOST_TEST(play.all<Played>()[0].head.sequence == 0u);
  BOOST_TEST(play.all<Played>()[0].head.epoch.value == 1u);
  play.sent.clear();
  play.up("b");
  play.down("a");
  play.opened("b", 2);
  BOOST_TEST(play.all<Played>("b").empty());
  BOOST_TEST(play.inputs("b") == (std::vector<std::uint64_t>{1, 2}));
}

/// Its turn was told of and comes to no answer: nothing is under way, nothing plays and nothing is to be cancelled.
BOOST_AUTO_TEST_CASE(behind_a_noted_utterance_nothing_is_to_be_heard) {
  Play play;
  play.from("a", protocol::SpeechStarted{100}, 1, 1);
  play.from("a", protocol::Text{protocol::TextKind::transcript, 0, "hello", {}}, 1, 1);
  play.from("a", protocol::Noted{"utterance_1_100", "hello", 100, 9000}, 1, 1);
  BOOST_TEST(play.story() == "speech_started text:hello noted");
  play.text(R"({"type":"cancel"})");
  BOOST_TEST(std::get<protocol::Cancel>(play.all<protocol::Cancel>()[0].body).turn.value == 0u);
  play.run(1000);
  BOOST_TEST(play.answers() == "");
  play.up("b");
  play.drains("a");
  play.tick(100);
  BOOST_TEST(play.all<Open>("b").size() == 1u);
}

BOOST_AUTO_TEST_CASE(an_utterance_is_noted_over_an_answer_that_plays_on) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.done("a", 1, 1);
  play.run(500);
  play.from("a", protocol::SpeechStarted{100}, 1, 2);
  play.from("a", protocol::Text{protocol::TextKind::transcript, 0, "hello", {}}, 1, 2);
  play.from("a", protocol::Noted{"utterance_2_100", "hello", 100, 9000}, 1, 2);
  play.tape[1].clear();
  play.up("b");
  play.drains("a");
  play.run(1200);
  play.tick(20);
  BOOST_TEST(play.all<Open>("b").empty());
  BOOST_TEST(play.sent_samples() == 2 * kHeardSecond);
  play.run(400);
  BOOST_TEST(play.tape[1] == " ~ turn text");
  BOOST_TEST(play.answers() == "1:44100 over");
  play.tick(20);
  BOOST_TEST(play.all<Open>("b").size() == 1u);
}

/// Behind an answer that is not remembered the number is used again.
BOOST_AUTO_TEST_CASE(an_utterance_is_noted_under_the_number_of_an_answer_that_plays_on) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.from("a", protocol::TurnDone{1, false, Rig::to_payload(R"({"user":"u","assistant":"a","stages":{}})"), false}, 1,
            1);
  play.run(500);
  play.from("a", protocol::SpeechStarted{100}, 1, 1);
  play.from("a", protocol::Noted{"utterance_1_100", "hello", 100, 9000}, 1, 1);
  play.run(2000);
  BOOST_TEST(play.sent_samples() == 2 * kHeardSecond);
  BOOST_TEST(play.answers() == "1:44100 over");
  play.up("b");
  play.drains("a");
  play.tick(20);
  BOOST_TEST(play.all<Open>("b").size() == 1u);
}

/// A new owner can let a voice interrupt what its predecessor has said.
BOOST_AUTO_TEST_CASE(a_new_owner_is_told_what_plays) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.done("a", 1, 1);
  play.run(500);
  play.up("b");
  play.down("a");
  play.audio();
  BOOST_TEST(play.all<Played>("b").empty());  // it does not own the session yet
  play.from("b", protocol::Opened{1, 0, false}, 2);
  BOOST_REQUIRE(play.all<Played>("b").size() == 1u);
  const auto& told = std::get<Played>(play.all<Played>("b")[0].body);
  BOOST_TEST(told.turn.value == 1u);
  BOOST_TEST(told.samples == 11025);
  BOOST_TEST(!told.over);
  // Nothing plays: nothing is said.
  play.run(3000);
  BOOST_TEST(play.all<Played>("b").size() == 2u);
  play.up("a");
  play.down("b");
  play.sent.clear();
  play.from("a", protocol::Opened{1, 0, false}, 3);
  BOOST_TEST(play.all<Played>("a").empty());
}

BOOST_AUTO_TEST_CASE(held_it_stands_still_is_answered_and_goes_on) {
  Play play;
  play.say(1, 3 * kHeardSecond);
  play.run(500);
  play.tape[1].clear();
  play.hold(1);
  BOOST_TEST(play.answers() == "1:11025");
  BOOST_TEST(play.tape[1] == " hold");
  BOOST_TEST(play.events[1].back()["turn"] == 1);
  const auto sent = play.sent_samples();
  play.say(1, kHeardSecond, 3 * kHeardSecond);
  for (int i = 0; i < 100; ++i) play.tick();
  play.run(100);
  BOOST_TEST(play.sent_samples() == sent);
  play.hold(1);
  BOOST_TEST(play.answers() == "1:11025 1:11025");
  BOOST_TEST(play.tape[1] == " hold");
  play.release(1);
  play.release(1);
  BOOST_TEST(play.tape[1].starts_with(" hold release"));
  play.done("a", 1, 1);
  play.run(4000);
  BOOST_TEST(play.tape[1] == " hold release ~ turn");
  BOOST_TEST(play.answers() == "1:11025 1:11025 1:88200 over");
  BOOST_TEST(play.sessions.counters().holds == 2u);
}

BOOST_AUTO_TEST_CASE(interrupted_it_is_silent_and_its_turn_follows) {
  Play play;
  play.say(1, 3 * kHeardSecond);
  play.reply("a", 1, 1, 0, "a long answer");
  play.run(500);
  play.hold(1);
  play.tape[1].clear();
  const auto sent = play.sent_samples();
  play.interrupt(1, 11025, "a long");
  BOOST_TEST(play.tape[1] == " interrupted");
  BOOST_TEST(play.events[1].back()["turn"] == 1);
  BOOST_TEST(play.events[1].back()["samples"] == 11025);
  BOOST_TEST(play.events[1].back()["heard"] == "a long");
  play.say(1, kHeardSecond, 3 * kHeardSecond);  // was under way
  play.run(3000);
  play.done("a", 1, 1);
  BOOST_TEST(play.tape[1] == " interrupted turn");
  BOOST_TEST(play.sent_samples() == sent);
  BOOST_TEST(play.answers() == "1:11025");
  BOOST_TEST(play.sessions.counters().interruptions == 1u);
  play.say(2, 441);
  BOOST_TEST(play.sent_samples() == sent + 441);
}

BOOST_AUTO_TEST_CASE(a_turn_that_was_done_is_interrupted_before_it_was_heard) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.done("a", 1, 1);
  play.run(300);
  const auto sent = play.sent_samples();
  play.tape[1].clear();
  play.hold(1);
  play.interrupt(1, 6615, "half");
  BOOST_TEST(play.tape[1] == " hold interrupted turn");
  play.run(3000);
  BOOST_TEST(play.sent_samples() == sent);
  BOOST_TEST(play.answers() == "1:6615");
  play.hold(1);
  BOOST_TEST(play.answers() == "1:6615 1:6615 over");
  BOOST_TEST(play.tape[1] == " hold interrupted turn");
}

BOOST_AUTO_TEST_CASE(what_was_heard_or_is_unknown_is_not_held) {
  Play play;
  play.say(1, 441);
  play.done("a", 1, 1);
  play.run(100);
  play.tape[1].clear();
  play.hold(1);
  play.hold(7);
  BOOST_TEST(play.answers() == "1:441 over 1:441 over 7:0 over");
  BOOST_TEST(play.tape[1] == "");
}

BOOST_AUTO_TEST_CASE(cancelled_and_failed_turns_are_silent_at_once) {
  for (const bool cancelled : {true, false}) {
    Play play;
    play.say(1, 2 * kHeardSecond);
    play.run(100);
    const auto sent = play.sent_samples();
    play.tape[1].clear();
    if (cancelled)
      play.from("a", protocol::Cancelled{{1}}, 1, 1);
    else
      play.error("a", "deadline_exceeded", 1, 1);
    BOOST_TEST(play.tape[1] == (cancelled ? " cancelled" : " error"));
    play.run(3000);
    BOOST_TEST(play.sent_samples() == sent);
    BOOST_TEST(play.answers() == "");
    play.say(1, 441);  // it begins anew
    BOOST_TEST(play.sent_samples() == sent + 441);
  }
}

BOOST_AUTO_TEST_CASE(a_cancel_names_the_turn_that_is_heard) {
  Play play;
  play.say(4, 2 * kHeardSecond);
  play.done("a", 1, 4);
  play.text(R"({"type":"cancel"})");
  BOOST_TEST(std::get<protocol::Cancel>(play.all<protocol::Cancel>()[0].body).turn.value == 4u);
  play.tape[1].clear();
  play.from("a", protocol::Cancelled{{4}}, 1, 4);
  BOOST_TEST(play.tape[1] == " turn cancelled");
  play.run(3000);
  BOOST_TEST(play.tape[1] == " turn cancelled");
}

/// The history of an answer that is complete ends where its sound did.
BOOST_AUTO_TEST_CASE(a_cancel_says_how_much_was_heard) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.done("a", 1, 1);
  play.run(500);
  play.text(R"({"type":"cancel"})");
  play.collect();
  const auto heard = play.all<Played>();
  BOOST_REQUIRE(heard.size() == 1u);
  const auto& told = std::get<Played>(heard[0].body);
  BOOST_TEST(told.turn.value == 1u);
  BOOST_TEST(!told.over);
  BOOST_TEST(std::abs(told.samples - kHeardSecond / 2) <= kHeardSecond / 50);
  play.interrupt(1, told.samples, "hello");
  play.from("a", protocol::Cancelled{{1}}, 1);
  BOOST_TEST(play.tape[1].ends_with(" interrupted turn cancelled"));
  // Of one that nobody hears nothing is said.
  play.text(R"({"type":"cancel","turn":1})");
  play.collect();
  BOOST_TEST(play.all<Played>().size() == 1u);
}

BOOST_AUTO_TEST_CASE(without_a_lead_all_leaves_at_once_and_the_words_are_events) {
  Play play(R"({"type":"open"})");
  play.say(1, 2 * kHeardSecond);
  BOOST_TEST(play.sent_samples() == 2 * kHeardSecond);
  BOOST_TEST((play.sessions.sound_due() == Time::max()));
  play.hold(1);
  play.release(1);
  play.done("a", 1, 1);
  play.hold(1);
  play.say(2, kHeardSecond);
  play.interrupt(2, 100, "x");
  play.say(2, kHeardSecond, kHeardSecond);
  play.hold(2);
  play.done("a", 1, 2);
  BOOST_TEST(play.tape[1] == " ~ hold release turn hold ~ interrupted hold turn");
  BOOST_TEST(play.answers() == "1:44100 1:44100 over 2:44100 over");
  BOOST_TEST(play.sent_samples() == 3 * kHeardSecond);
}

BOOST_AUTO_TEST_CASE(what_is_held_here_is_not_made_again_by_the_next_owner) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.up("b");
  play.down("a");
  BOOST_TEST(play.open_of("b").plays);
  BOOST_TEST(play.open_of("b").turn_samples == 2 * kHeardSecond);
  BOOST_TEST(play.open_of("b").piece_samples == 2 * kHeardSecond);
  play.run(1000);  // it is played meanwhile
  play.opened("b", 2);
  play.say(1, 3 * kHeardSecond, 0, "b", 2);  // from the start
  play.done("b", 2, 1);
  play.run(5000);
  BOOST_TEST(play.sent_samples() == 3 * kHeardSecond);
  BOOST_TEST(play.tape[1] == " ~ turn");
  BOOST_TEST(play.answers() == "1:66150 over");
  BOOST_TEST(play.all<Played>("b").size() == 1u);
  BOOST_TEST(play.sessions.counters().underruns == 0u);
}

BOOST_AUTO_TEST_CASE(a_turn_that_is_done_is_heard_to_its_end_whoever_owns_the_session) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.done("a", 1, 1);
  play.up("b");
  play.down("a");
  BOOST_TEST(play.open_of("b").open_turn.value == 0u);
  play.from("b", protocol::Opened{1, 0, false}, 2);
  play.run(3000);
  BOOST_TEST(play.tape[1] == " ~ turn");
  BOOST_TEST(play.sent_samples() == 2 * kHeardSecond);
  BOOST_REQUIRE(play.all<Played>("b").size() == 2u);
  BOOST_TEST(!std::get<Played>(play.all<Played>("b")[0].body).over);
  BOOST_TEST(std::get<Played>(play.all<Played>("b")[1].body).over);
}

BOOST_AUTO_TEST_CASE(an_owner_that_is_lost_while_it_holds_does_not_hold_for_ever) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.hold(1);
  play.up("b");
  play.down("a");
  BOOST_TEST(play.tape[1] == " ~ hold");
  play.opened("b", 2);
  BOOST_TEST(play.tape[1] == " ~ hold release");
  play.run(500);
  BOOST_TEST(play.tape[1] == " ~ hold release ~");
}

BOOST_AUTO_TEST_CASE(an_answer_that_the_link_refused_is_given_again) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.hold(1);
  play.refuse(play.all<Played>()[0]);
  play.audio();
  BOOST_TEST(play.inputs("a") == (std::vector<std::uint64_t>{1}));
  play.tick(50);
  BOOST_TEST(play.all<Played>().size() == 1u);
  play.tick(60);
  BOOST_TEST(play.answers() == "1:0 1:0");
  play.tick(200);
  BOOST_TEST(play.all<Played>().size() == 2u);
}

BOOST_AUTO_TEST_CASE(who_is_heard_is_busy) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  play.done("a", 1, 1);
  BOOST_TEST(!play.sessions.drain(play.now));
  play.run(1900);
  play.tick();
  BOOST_TEST(!play.closed.contains(1));
  play.run(200);
  play.tick();
  BOOST_TEST(play.closed[1] == 1001);
  BOOST_TEST(play.sent_samples() == 2 * kHeardSecond);
}

BOOST_AUTO_TEST_CASE(a_session_that_fails_tells_the_turns_that_were_done) {
  Play play;
  play.say(1, 60 * kHeardSecond);
  play.done("a", 1, 1);
  play.tape[1].clear();
  play.down("a");
  play.tick(30000);
  BOOST_TEST(play.tape[1].ends_with(" turn error"));
  BOOST_TEST((play.sessions.sound_due() == Time::max()));
  play.run(1000);
}

BOOST_AUTO_TEST_CASE(a_client_that_goes_leaves_nothing_due) {
  Play play;
  play.say(1, 2 * kHeardSecond);
  BOOST_TEST((play.sessions.sound_due() != Time::max()));
  play.leave();
  BOOST_TEST((play.sessions.sound_due() == Time::max()));
}

BOOST_AUTO_TEST_CASE(ticks_alone_are_enough) {
  Play play;
  play.say(1, kHeardSecond);
  play.done("a", 1, 1);
  for (int i = 0; i < 52; ++i) play.tick();
  BOOST_TEST(play.sent_samples() == kHeardSecond);
  BOOST_TEST(play.answers() == "1:22050 over");
}

BOOST_AUTO_TEST_CASE(a_socket_that_sends_nothing_holds_at_most_a_lead_and_gives_it_back) {
  Play play;
  StuckSocket socket(play);
  play.say(1, 2 * kHeardSecond);
  for (int i = 0; i < 100; ++i) {
    play.run(10);
    BOOST_TEST(play.sent_samples() <= kHeardLead);
  }
  socket.left = StuckSocket::kSlice;  // one message is being written
  play.hold(1);
  BOOST_TEST(play.sent_samples() == 882);
  BOOST_TEST(play.answers() == "1:0");
  play.run(1000);
  BOOST_TEST(play.sent_samples() == 882);
  play.release(1);
  BOOST_TEST(play.sent_samples() > 882);
  play.hold(1);
  play.interrupt(1, 0, "");
  play.run(3000);
  BOOST_TEST(play.sent_samples() == 882);
}

BOOST_AUTO_TEST_CASE(what_was_given_back_is_sent_whole_and_in_order) {
  Play play;
  StuckSocket socket(play);
  play.say(1, 2 * kHeardSecond);
  play.done("a", 1, 1);
  for (int i = 0; i < 500 && play.answers().find("over") == std::string::npos; ++i) {
    play.run(10);
    socket.left = std::min(play.heard[1].size(), socket.left + StuckSocket::kSlice * (i % 3 == 0));
    if (i % 50 != 0) continue;
    play.hold(1);
    play.run(30);
    play.release(1);
  }
  BOOST_TEST(play.sent_samples() == 2 * kHeardSecond);
  for (std::int64_t i = 0; i < 2 * kHeardSecond; ++i)
    BOOST_REQUIRE(play.heard[1][static_cast<std::size_t>(2 * i)] == static_cast<char>(i));
  BOOST_TEST(play.sessions.counters().sent_samples == 2 * kHeardSecond);
}

BOOST_AUTO_TEST_CASE(a_client_that_takes_nothing_for_two_minutes_is_closed) {
  SessionsConfig config;
  config.playout = {2 * kHeardSecond, 4 * kHeardSecond};
  Play play(kOpen, config);
  StuckSocket socket(play);
  for (int i = 0; i < 5 && !play.closed.contains(1); ++i) play.say(1, kHeardSecond, i * kHeardSecond);
  BOOST_TEST(play.closed[1] == 1013);
}

BOOST_AUTO_TEST_CASE(a_session_that_is_resumed_goes_on_with_its_lead_from_what_the_client_has) {
  for (const bool says : {true, false}) {
    Play play;
    play.connect(2);
    play.text(fmt::format(R"({{"type":"resume","session":"{}","token":"{}"{}}})", std::string(32, '1'),
                          std::string(32, '2'), says ? R"(,"lead_ms":1000)" : ""),
              2);
    auto head = play.all<protocol::Attach>("a").back().head;
    protocol::Attached attached;
    attached.plays = true;
    attached.open_turn = {3};
    attached.turn_samples = 1000;
    attached.piece_samples = 1000;
    play.from("a", attached, head, 7);
    BOOST_TEST(play.events[2].back()["lead_ms"] == (says ? 1000 : 400));
    play.from("a", protocol::Speech{0, 1000, 22050, false, protocol::Bytes(4 * kHeardSecond)}, head, 7, 3);
    BOOST_TEST(play.sent_samples(2) <= (says ? kHeardSecond : kHeardLead));
    play.run(100);
    play.from("a", Hold{{3}}, head, 7);
    BOOST_TEST(play.answers() == "3:3205");
  }
}

BOOST_AUTO_TEST_SUITE_END()
