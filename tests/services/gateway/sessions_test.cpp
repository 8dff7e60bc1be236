#include "services/gateway/sessions.hpp"

#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>

#include "tests/services/gateway/rig.hpp"

using namespace parlando;
using namespace parlando::gateway;
using namespace std::chrono_literals;
namespace data = boost::unit_test::data;
using protocol::Audio;
using protocol::Cancel;
using protocol::Close;
using protocol::Flush;
using protocol::Open;
using protocol::Say;

namespace {

using Numbers = std::vector<std::uint64_t>;

/// The other one of two controllers.
std::string other(const std::string& name) { return name == "a" ? "b" : "a"; }
/// Two controllers and an open session. @return who owns it
std::string two_controllers(Rig& rig, std::uint64_t epoch = 5) {
  rig.up("a");
  rig.up("b");
  rig.connect();
  rig.text(R"({"type":"open"})");
  const auto owner = rig.opens.contains("a") ? "a" : "b";
  rig.opened(owner, epoch);
  rig.events.clear();
  rig.sent.clear();
  return owner;
}
/// Lost in this way.
void lose(Rig& rig, const std::string& owner, Reason how) {
  switch (how) {
    case Reason::suspect:
      return rig.suspect(owner);
    case Reason::down:
      return rig.down(owner);
    case Reason::draining:
      return rig.drains(owner);
    case Reason::stale:
      return rig.error(owner, "stale_epoch", 9);
    case Reason::broken:
      return rig.error(owner, "credit_exceeded");
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(sessions_test)

// ------------------------------------------------------------------------------------------------ opening

BOOST_AUTO_TEST_CASE(an_open_names_session_seed_and_options_and_is_told_to_the_client) {
  Rig rig;
  rig.up("a");
  rig.connect();
  rig.text(R"({"type":"open","system":"be brief","speaker":"clara","speak":false,"seed":7})");
  const auto& open = rig.open_of("a");
  BOOST_TEST(open.system == "be brief");
  BOOST_TEST(open.speaker == "clara");
  BOOST_TEST(!open.speak);
  BOOST_TEST(open.seed == 7u);
  BOOST_TEST(open.first_input == 1u);
  BOOST_TEST(open.expected_epoch.value == 0u);
  BOOST_TEST(rig.last_open("a").head.trace != 0u);
  BOOST_TEST(rig.story() == "");
  rig.from("a", protocol::Opened{3, 7, false}, 1);
  BOOST_TEST(rig.story() == "opened");
  const auto& told = rig.events[1].front();
  BOOST_TEST(told["rate"] == 22050);
  BOOST_TEST(told["turns"] == 3);
  BOOST_TEST(told["seed"] == 7);
  BOOST_TEST(told["session"].get<std::string>() == rig.last_open("a").head.session.text());
}

BOOST_AUTO_TEST_CASE(without_a_seed_one_is_drawn_that_javascript_can_read) {
  Rig rig;
  rig.up("a");
  rig.connect();
  rig.text(R"({"type":"open"})");
  BOOST_TEST(rig.open_of("a").seed != 0u);
  BOOST_TEST(rig.open_of("a").seed < (std::uint64_t{1} << 53));
}

BOOST_AUTO_TEST_CASE(a_wrong_option_opens_nothing_and_the_socket_may_try_again) {
  Rig rig;
  rig.up("a");
  rig.connect();
  for (const auto* wrong :
       {R"({"type":"open","speak":"yes"})", R"({"type":"open","speaker":7})", R"({"type":"open","sneaker":"Clara"})",
        R"({"type":"open","seed":-1})", R"({"type":"open","seed":1.5})", R"({"type":"open","system":null})"})
    rig.text(wrong);
  rig.text(R"({"type":"open","speaker":")" + std::string(300, 'x') + "\"}");
  rig.text(R"({"type":"open","system":")" + std::string(40000, 'x') + "\"}");
  BOOST_TEST(rig.events[1].size() == 8u);
  for (const auto& e : rig.events[1]) BOOST_TEST(e["code"] == "invalid_argument");
  BOOST_TEST(rig.sent.empty());
  BOOST_TEST(!rig.closed.contains(1));
  rig.text(R"({"type":"open"})");
  rig.opened("a", 1);
  BOOST_TEST(rig.events[1].back()["type"] == "opened");
}

BOOST_AUTO_TEST_CASE(a_refusal_asks_the_next_replica_and_closes_the_refused_stream) {
  for (const auto* code : {"overloaded", "not_ready", "unavailable"}) {
    Rig rig;
    rig.up("a");
    rig.up("b");
    rig.connect();
    rig.text(R"({"type":"open"})");
    const auto first = std::string(rig.opens.contains("a") ? "a" : "b");
    rig.error(first, code);
    BOOST_TEST(rig.all<Close>(first).size() == 1u);
    BOOST_TEST(rig.opens.contains(other(first)));
    BOOST_TEST(rig.last_open(other(first)).head.stream.value != rig.last_open(first).head.stream.value);
    rig.opened(other(first), 1);
    BOOST_TEST(rig.story() == "opened");
  }
}

BOOST_AUTO_TEST_CASE(when_all_refuse_the_client_is_told_when_to_try_again_and_may) {
  Rig rig;
  rig.up("a");
  rig.connect();
  rig.text(R"({"type":"open"})");
  rig.error("a", "overloaded");
  BOOST_TEST(rig.story() == "error:overloaded");
  BOOST_TEST(rig.events[1].back()["retry_ms"] == 1000);
  BOOST_TEST(rig.events[1].back()["session_ended"] == true);
  BOOST_TEST(rig.sessions.sessions() == 0u);
  rig.text(R"({"type":"open"})");
  rig.opened("a", 1);
  BOOST_TEST(rig.story() == "error:overloaded opened");
}

BOOST_AUTO_TEST_CASE(what_the_controller_does_not_accept_is_the_clients_to_know) {
  Rig rig;
  rig.up("a");
  rig.up("b");
  rig.connect();
  rig.text(R"({"type":"open","speaker":"nobody"})");
  const auto first = std::string(rig.opens.contains("a") ? "a" : "b");
  rig.error(first, "not_found");
  BOOST_TEST(rig.story() == "error:not_found");
  BOOST_TEST(rig.all<Close>(first).size() == 1u);
  BOOST_TEST(!rig.opens.contains(other(first)));
}

BOOST_AUTO_TEST_CASE(without_a_controller_an_open_fails_at_once_but_not_at_our_own_start) {
  Rig late;
  late.connect();
  late.text(R"({"type":"open"})");
  BOOST_TEST(late.story() == "error:unavailable");

  Rig early;
  early.sessions = Sessions({}, [] { return 4; });
  early.connect();
  early.text(R"({"type":"open"})");
  BOOST_TEST(early.story() == "");
  early.tick(500);
  early.up("a");
  early.opened("a", 1);
  BOOST_TEST(early.story() == "opened");

  Rig never;
  never.sessions = Sessions({}, [] { return 4; });
  never.connect();
  never.text(R"({"type":"open"})");
  never.tick(980);
  BOOST_TEST(never.story() == "");
  never.tick(20);
  BOOST_TEST(never.story() == "error:unavailable");
}

BOOST_AUTO_TEST_CASE(an_open_waits_for_a_suspect_controller_for_a_second) {
  Rig rig;
  rig.up("a");
  rig.suspect("a");
  rig.connect();
  rig.text(R"({"type":"open"})");
  rig.tick(900);
  BOOST_TEST(rig.story() == "");
  rig.up("a");
  rig.opened("a", 1);
  BOOST_TEST(rig.story() == "opened");
  rig.suspect("a");
  rig.connect(2);
  rig.text(R"({"type":"open"})", 2);
  rig.tick(1000);
  BOOST_TEST(rig.story(2).starts_with("error:"));
}

BOOST_AUTO_TEST_CASE(controllers_without_room_are_not_asked) {
  Rig rig;
  rig.peer(Rig::controller("full", true, false, 0), transport::PeerState::up);
  rig.peer(Rig::controller("cold", false), transport::PeerState::up);
  rig.connect();
  rig.text(R"({"type":"open"})");
  BOOST_TEST(rig.story() == "error:overloaded");
  BOOST_TEST(rig.sent.empty());
}

BOOST_AUTO_TEST_CASE(a_controller_that_does_not_answer_open_is_asked_no_further) {
  Rig rig;
  rig.up("a");
  rig.connect();
  rig.text(R"({"type":"open"})");
  rig.tick(4980);
  BOOST_TEST(rig.story() == "");
  rig.tick(20);
  BOOST_TEST(rig.story() == "error:unavailable");
  BOOST_TEST(rig.all<Close>("a").size() == 1u);
}

BOOST_AUTO_TEST_CASE(callers_are_no_controllers) {
  Rig rig;
  auto peer = Rig::controller("a");
  peer.caller = true;
  rig.peer(peer, transport::PeerState::up);
  BOOST_TEST(!rig.sessions.any_controller());
}

// ------------------------------------------------------------------------------------------------ inputs

BOOST_AUTO_TEST_CASE(inputs_are_numbered_carry_positions_and_wait_for_opened) {
  Rig rig;
  rig.up("a");
  rig.connect();
  rig.text(R"({"type":"open"})");
  rig.audio(320);
  rig.audio(160);
  rig.text(R"({"type":"flush"})");
  rig.text(R"({"type":"text","text":"hi"})");
  rig.text(R"({"type":"cancel"})");
  BOOST_TEST(rig.sent.size() == 1u);
  rig.opened("a", 3);
  BOOST_TEST(rig.inputs("a") == (Numbers{1, 2, 3, 4, 5}));
  const auto audio = rig.all<Audio>();
  BOOST_TEST(std::get<Audio>(audio[0].body).first_sample == 0);
  BOOST_TEST(std::get<Audio>(audio[1].body).first_sample == 320);
  BOOST_TEST(std::get<Audio>(audio[1].body).payload.size() == 320u);
  BOOST_TEST(std::get<Flush>(rig.all<Flush>()[0].body).end_sample == 480);
  BOOST_TEST(std::get<Say>(rig.all<Say>()[0].body).text == "hi");
  BOOST_TEST(std::get<Cancel>(rig.all<Cancel>()[0].body).turn.value == 0u);
  for (const auto& m : rig.all<Audio>()) BOOST_TEST(m.head.epoch.value == 3u);
}

BOOST_AUTO_TEST_CASE(a_cancel_names_the_turn_under_way_so_that_it_never_ends_the_next) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.reply("a", 1, 4, 0, "once upon");
  rig.text(R"({"type":"cancel"})");
  BOOST_TEST(std::get<Cancel>(rig.all<Cancel>()[0].body).turn.value == 4u);
  rig.text(R"({"type":"cancel","turn":2})");
  BOOST_TEST(std::get<Cancel>(rig.all<Cancel>()[1].body).turn.value == 2u);
  rig.from("a", protocol::Cancelled{{4}}, 1, 4);
  BOOST_TEST(rig.story() == "text:once upon cancelled");
  BOOST_TEST(rig.events[1].back()["turn"] == 4);
}

BOOST_AUTO_TEST_CASE(each_turn_has_a_trace_of_its_own) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.audio();
  rig.audio();
  rig.done("a", 1, 1);
  rig.audio();
  const auto sent = rig.all<Audio>();
  BOOST_TEST(sent[0].head.trace == sent[1].head.trace);
  BOOST_TEST(sent[2].head.trace != sent[0].head.trace);
}

BOOST_AUTO_TEST_CASE(what_is_no_message_is_refused_and_three_of_them_end_the_socket) {
  const std::pair<const char*, const char*> table[] = {
      {"{", "bad_json"},
      {"[]", "bad_json"},
      {"", "bad_json"},
      {"{\"type\":5}", "bad_json"},
      {"{\"type\":\"open\",\"system\":\"\xff\"}", "bad_json"},
      {R"({"type":"dance"})", "unknown_type"},
  };
  for (const auto& [message, code] : table) {
    Rig rig;
    rig.up("a");
    rig.open("a", 1);
    rig.text(message);
    BOOST_TEST(rig.story() == std::string("error:") + code);
    rig.text(std::string(100, '{'));
    BOOST_TEST(!rig.closed.contains(1));
    rig.sessions.client_audio(1, "odd", rig.now);
    rig.collect();
    BOOST_TEST(rig.events[1].back()["code"] == "bad_frame");
    BOOST_TEST(rig.closed[1] == 1008);
    BOOST_TEST(rig.all<Close>("a").size() == 1u);
    rig.text(R"({"type":"open"})");
    BOOST_TEST(rig.events[1].size() == 3u);
    BOOST_TEST(rig.sessions.sessions() == 0u);
  }
}

BOOST_AUTO_TEST_CASE(well_formed_nonsense_is_answered_and_not_held_against_the_client) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  for (int i = 0; i < 4; ++i) {
    rig.text(R"({"type":"open"})");
    rig.text(R"({"type":"text"})");
    rig.text(R"({"type":"cancel","turn":"x"})");
    rig.text(R"({"type":"text","text":")" + std::string(60001, 'x') + "\"}");
  }
  BOOST_TEST(rig.events[1].size() == 16u);
  for (const auto& e : rig.events[1]) BOOST_TEST(e["code"] == "invalid_argument");
  BOOST_TEST(!rig.closed.contains(1));
  BOOST_TEST(rig.sent.empty());
}

BOOST_AUTO_TEST_CASE(a_text_that_grows_in_json_beyond_any_message_is_refused_here) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  std::string zeros;
  for (int i = 0; i < 24000; ++i) zeros += "\\u0001";
  rig.text(R"({"type":"text","text":")" + zeros + "\"}");
  BOOST_TEST(rig.story() == "error:invalid_argument");
  BOOST_TEST(rig.sent.empty());
}

BOOST_AUTO_TEST_CASE(audio_before_open_is_complained_of_once_and_text_each_time) {
  Rig rig;
  rig.up("a");
  rig.connect();
  for (int i = 0; i < 50; ++i) rig.audio();
  BOOST_TEST(rig.story() == "error:not_ready");
  rig.text(R"({"type":"flush"})");
  rig.text(R"({"type":"text","text":"hi"})");
  BOOST_TEST(rig.story() == "error:not_ready error:not_ready error:not_ready");
  BOOST_TEST(!rig.closed.contains(1));
}

BOOST_AUTO_TEST_CASE(oversized_audio_is_refused) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.audio(16384);
  BOOST_TEST(rig.story() == "");
  rig.audio(16385);
  BOOST_TEST(rig.story() == "error:bad_frame");
}

// ------------------------------------------------------------------------------------------------ answers

BOOST_AUTO_TEST_CASE(a_turn_reaches_the_client_as_events_and_sound) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.from("a", protocol::SpeechStarted{1000}, 1, 1);
  rig.from("a", protocol::SpeechEnded{9000}, 1, 1);
  rig.from("a", protocol::Text{protocol::TextKind::transcript, 0, "what time is it", {}}, 1, 1);
  rig.from("a",
           protocol::Text{protocol::TextKind::tool_call, 0, R"({"name":"get_time","arguments":{},"result":1})", {}}, 1,
           1);
  rig.reply("a", 1, 1, 0, "noon");
  rig.from("a", protocol::Text{protocol::TextKind::done, 4, "", {}}, 1, 1);
  rig.speech("a", 1, 1, 0, 0, 10, true);
  rig.done("a", 1, 1);
  const std::string call = R"({"name":"get_time","arguments":{},"result":1})";
  BOOST_TEST(rig.story() == "speech_started speech_ended text:what time is it text:" + call + " text:noon turn");
  BOOST_TEST(rig.events[1][0]["sample"] == 1000);
  BOOST_TEST(rig.events[1].back()["turn"] == 1);
  BOOST_TEST(rig.events[1].back()["assistant"] == "a");
  BOOST_TEST(rig.heard[1].size() == 20u);
}

BOOST_AUTO_TEST_CASE(an_error_of_a_turn_ends_the_turn_and_not_the_session) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.from("a", protocol::SpeechStarted{100}, 1, 1);
  rig.reply("a", 1, 1, 0, "hel");
  rig.from("a", protocol::ErrorMessage{"no_speech", "nothing was said", 250}, 1, 1);
  BOOST_TEST(rig.events[1].back()["retry_ms"] == 250);
  BOOST_TEST(!rig.events[1].back().contains("session_ended"));
  rig.from("a", protocol::SpeechStarted{5000}, 1, 1);
  rig.reply("a", 1, 1, 0, "hello");
  BOOST_TEST(rig.story() == "speech_started text:hel error:no_speech speech_started text:hello");
}

BOOST_AUTO_TEST_CASE(an_error_without_a_turn_leaves_the_one_under_way_alone) {
  Rig rig;
  rig.up("a");
  rig.up("b");
  rig.open("a", 1);
  if (!rig.opens.contains("a")) return;
  rig.reply("a", 1, 1, 0, "hello ");
  rig.error("a", "invalid_argument", 1, 0);
  rig.reply("a", 1, 1, 6, "world");
  rig.down("a");
  BOOST_TEST(rig.open_of("b").open_turn.value == 1u);
  BOOST_TEST(rig.open_of("b").reply_bytes == 11);
}

BOOST_AUTO_TEST_CASE(a_turn_that_begins_anew_after_its_error_is_heard) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.reply("a", 1, 1, 0, "hello ");
  rig.error("a", "deadline_exceeded", 1, 1);
  rig.reply("a", 1, 1, 0, "hello again");
  BOOST_TEST(rig.story() == "text:hello  error:deadline_exceeded text:hello again");
}

BOOST_AUTO_TEST_CASE(nothing_is_told_twice) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  for (int i = 0; i < 2; ++i) {
    rig.from("a", protocol::SpeechStarted{1000}, 1, 1);
    rig.from("a", protocol::SpeechEnded{2000}, 1, 1);
    rig.reply("a", 1, 1, 0, "noon");
    rig.speech("a", 1, 1, 0, 0, 10, true);
  }
  rig.done("a", 1, 1);
  rig.done("a", 1, 1);
  rig.reply("a", 1, 1, 4, " late");
  rig.speech("a", 1, 1, 1, 0, 10);
  BOOST_TEST(rig.story() == "speech_started speech_ended text:noon turn");
  BOOST_TEST(rig.heard[1].size() == 20u);
  BOOST_TEST(rig.sessions.counters().repeats == 7u);
}

BOOST_AUTO_TEST_CASE(records_that_are_no_objects_do_no_harm) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.from("a", protocol::TurnDone{1, true, Rig::to_payload("[1]")}, 1, 1);
  rig.from("a", protocol::TurnDone{2, false, Rig::to_payload(std::string(5000, '{'))}, 1, 2);
  BOOST_TEST(rig.story() == "turn turn");
  BOOST_TEST(rig.events[1][0]["degraded"] == true);
}

BOOST_AUTO_TEST_CASE(what_only_services_among_themselves_say_is_counted) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.from("a", protocol::Tokens{}, 1);
  protocol::Message garbage = protocol::pack(protocol::Cancelled{}, rig.last_open("a").head);
  garbage.head.epoch = {1};
  garbage.body = R"({"turn":"x"})";
  rig.sessions.on_message("a", std::move(garbage), rig.now);
  BOOST_TEST(rig.sessions.counters().malformed == 2u);
  BOOST_TEST(rig.story() == "");
}

// ------------------------------------------------------------------------------------------------ owners

BOOST_AUTO_TEST_CASE(only_the_owner_on_its_stream_in_its_epoch_is_heard) {
  Rig rig;
  const auto owner = two_controllers(rig);
  const auto head = rig.last_open(owner).head;
  rig.from(other(owner), protocol::Text{protocol::TextKind::text, 0, "no owner", {}}, head, 5, 1);
  auto wrong = head;
  wrong.stream.value += 1;
  rig.from(owner, protocol::Text{protocol::TextKind::text, 0, "no stream", {}}, wrong, 5, 1);
  rig.from(owner, protocol::Text{protocol::TextKind::text, 0, "old epoch", {}}, head, 4, 1);
  BOOST_TEST(rig.story() == "");
  BOOST_TEST(rig.sessions.counters().stale == 3u);
  rig.from(owner, protocol::Text{protocol::TextKind::text, 0, "owner", {}}, head, 6, 1);
  BOOST_TEST(rig.story() == "text:owner");
  rig.from(owner, protocol::Text{protocol::TextKind::text, 5, "behind", {}}, head, 5, 1);
  BOOST_TEST(rig.story() == "text:owner");
}

BOOST_AUTO_TEST_CASE(an_owner_that_wakes_up_replaced_never_reaches_the_client) {
  Rig rig;
  const auto owner = two_controllers(rig);
  const auto old = rig.last_open(owner).head;
  rig.reply(owner, 5, 1, 0, "hello ");
  rig.suspect(owner);
  rig.opened(other(owner), 6);
  rig.up(owner);
  rig.from(owner, protocol::Text{protocol::TextKind::text, 6, "ghost", {}}, old, 5, 1);
  rig.from(owner, protocol::Speech{0, 0, 22050, false, protocol::Bytes(20)}, old, 5, 1);
  rig.from(owner, protocol::Text{protocol::TextKind::text, 6, "ghost", {}}, old, 99, 1);
  rig.from(owner, protocol::ErrorMessage{"stale_epoch", "late", 0}, old, 99);
  BOOST_TEST(rig.story() == "text:hello ");
  BOOST_TEST(rig.heard[1].empty());
  BOOST_TEST(rig.sessions.counters().stale == 4u);
  rig.reply(other(owner), 6, 1, 6, "world");
  BOOST_TEST(rig.story() == "text:hello  text:world");
}

BOOST_AUTO_TEST_CASE(messages_before_opened_are_not_believed) {
  Rig rig;
  rig.up("a");
  rig.connect();
  rig.text(R"({"type":"open"})");
  rig.reply("a", 1, 1, 0, "too early");
  BOOST_TEST(rig.story() == "");
  rig.opened("a", 1);
  rig.opened("a", 1);
  BOOST_TEST(rig.story() == "opened");
}

// ------------------------------------------------------------------------------------------------ handing over

/// At each point of a turn the owner is lost in each way: the next one is told how far the client has got, gets every
/// input that the former one had not let go, in order and under the same numbers, and the client hears and sees
/// everything exactly once.
BOOST_DATA_TEST_CASE(a_session_is_handed_over_at_every_point_of_a_turn,
                     data::make({Reason::suspect, Reason::down, Reason::stale, Reason::broken}) * data::xrange(9), how,
                     point) {
  Rig rig;
  const auto owner = two_controllers(rig);
  const auto next = other(owner);
  if (how == Reason::stale || how == Reason::broken)
    rig.peer(Rig::controller(owner, false), transport::PeerState::changed);
  const std::function<void(const std::string&, std::uint64_t)> steps[] = {
      [&](const std::string&, std::uint64_t) { rig.audio(); },
      [&](const std::string& c, std::uint64_t e) { rig.from(c, protocol::SpeechStarted{100}, e, 1); },
      [&](const std::string&, std::uint64_t) { rig.text(R"({"type":"flush"})"); },
      [&](const std::string& c, std::uint64_t e) { rig.from(c, protocol::SpeechEnded{320}, e, 1); },
      [&](const std::string& c, std::uint64_t e) {
        rig.from(c, protocol::Text{protocol::TextKind::transcript, 0, "question", protocol::Bytes(8)}, e, 1);
      },
      [&](const std::string& c, std::uint64_t e) { rig.reply(c, e, 1, 0, "long answer"); },
      [&](const std::string& c, std::uint64_t e) { rig.speech(c, e, 1, 0, 0, 40); },
      [&](const std::string& c, std::uint64_t e) { rig.speech(c, e, 1, 0, 40, 20, true); },
      [&](const std::string& c, std::uint64_t e) { rig.speech(c, e, 1, 1, 0, 30, true); },
  };
  for (int i = 0; i <= point; ++i) steps[i](owner, 5);
  const auto inputs = rig.inputs(owner);
  lose(rig, owner, how);
  BOOST_TEST(rig.handovers(how) == 1u);
  const auto& open = rig.open_of(next);
  BOOST_TEST(open.expected_epoch.value == (how == Reason::stale ? 9u : 5u));
  BOOST_TEST(open.first_input == 1u);
  BOOST_TEST(open.open_turn.value == (point >= 1 ? 1u : 0u));
  BOOST_TEST(open.transcript_bytes == (point >= 4 ? 8 : 0));
  BOOST_TEST(open.reply_bytes == (point >= 5 ? 11 : 0));
  BOOST_TEST(open.payload.size() == (point >= 5 ? 12u : point >= 4 ? 8u : 0u));
  BOOST_TEST(open.pieces == (point >= 8 ? 2 : point >= 7 ? 1 : 0));
  BOOST_TEST(open.piece_samples == (point == 6 ? 40 : 0));
  BOOST_TEST(open.turn_samples == (point >= 8 ? 90 : point >= 7 ? 60 : point >= 6 ? 40 : 0));
  BOOST_TEST(rig.all<Close>(owner).size() == (how == Reason::down ? 0u : 1u));
  BOOST_TEST(rig.inputs(next).empty());
  rig.opened(next, 10);
  BOOST_TEST(rig.inputs(next) == inputs);
  // The next one tells everything from the start.
  for (const auto& step : steps)
    if (&step != &steps[0] && &step != &steps[2]) step(next, 10);
  rig.done(next, 10, 1);
  BOOST_TEST(rig.story() == "speech_started speech_ended text:question text:long answer turn");
  std::string expected;
  for (int i = 0; i < 60; ++i) expected += {static_cast<char>(i), '\0'};
  for (int i = 0; i < 30; ++i) expected += {static_cast<char>(i), '\0'};
  BOOST_TEST(rig.heard[1] == expected);
}

BOOST_AUTO_TEST_CASE(inputs_keep_their_numbers_across_owners) {
  Rig rig;
  const auto owner = two_controllers(rig);
  for (int i = 0; i < 4; ++i) rig.audio();
  rig.from(owner, protocol::Checkpoint{2, 0}, 5);
  rig.suspect(owner);
  rig.audio();
  const auto next = other(owner);
  BOOST_TEST(rig.open_of(next).first_input == 3u);
  rig.opened(next, 6);
  rig.audio();
  BOOST_TEST(rig.inputs(next) == (Numbers{3, 4, 5, 6}));
  BOOST_TEST(std::get<Audio>(rig.all<Audio>(next)[0].body).first_sample == 640);
  rig.from(next, protocol::Checkpoint{5, 0}, 6);
  rig.up(owner);
  rig.down(next);
  BOOST_TEST(rig.open_of(owner).first_input == 6u);
  BOOST_TEST(rig.open_of(owner).expected_epoch.value == 6u);
}

BOOST_AUTO_TEST_CASE(audio_of_an_answer_is_not_kept_but_counted) {
  Rig rig;
  const auto owner = two_controllers(rig);
  for (int i = 0; i < 3; ++i) rig.audio();
  rig.from(owner, protocol::Checkpoint{1, 2}, 5);
  rig.audio();
  rig.text(R"({"type":"text","text":"next"})");
  rig.suspect(owner);
  const auto next = other(owner);
  rig.opened(next, 6);
  BOOST_TEST(rig.inputs(next) == (Numbers{2, 3, 4, 5}));
  const auto audio = rig.all<Audio>(next);
  BOOST_TEST(std::get<Audio>(audio[0].body).payload.size() == 640u);
  BOOST_TEST(std::get<Audio>(audio[1].body).payload.empty());
  BOOST_TEST(std::get<Audio>(audio[1].body).first_sample == 640);
  BOOST_TEST(std::get<Audio>(audio[2].body).payload.empty());
}

BOOST_AUTO_TEST_CASE(what_an_owner_does_not_keep_the_next_one_may) {
  Rig rig;
  const auto owner = two_controllers(rig);
  rig.audio();
  rig.from(owner, protocol::Checkpoint{0, 1}, 5);
  rig.suspect(owner);
  const auto next = other(owner);
  rig.opened(next, 6);
  rig.audio();
  rig.up(owner);
  rig.down(next);
  rig.opened(owner, 7);
  const auto audio = rig.all<Audio>(owner);
  BOOST_TEST(std::get<Audio>(audio.back().body).first_sample == 320);
  BOOST_TEST(!std::get<Audio>(audio.back().body).payload.empty());
}

BOOST_AUTO_TEST_CASE(a_suspect_owner_without_another_keeps_the_session_and_gets_its_inputs_when_it_wakes) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.suspect("a");
  for (int i = 0; i < 5; ++i) rig.audio();
  BOOST_TEST(rig.sent.empty());
  rig.tick(2000);
  rig.up("a");
  BOOST_TEST(rig.inputs("a") == (Numbers{1, 2, 3, 4, 5}));
  BOOST_TEST(rig.all<Open>().empty());
  rig.suspect("a");
  rig.up("b");  // now there is another
  BOOST_TEST(rig.all<Open>("b").size() == 1u);
}

BOOST_AUTO_TEST_CASE(a_session_without_an_owner_waits_thirty_seconds_and_then_its_socket_may_open_another) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  const auto session = rig.last_open("a").head.session;
  rig.down("a");
  rig.audio();
  rig.tick(29900);
  BOOST_TEST(rig.story() == "");
  rig.tick(100);
  BOOST_TEST(rig.story() == "error:unavailable");
  BOOST_TEST(rig.events[1].back().contains("retry_ms"));
  rig.audio();  // was under way
  BOOST_TEST(rig.story() == "error:unavailable");
  BOOST_TEST(!rig.closed.contains(1));
  rig.up("a");
  rig.text(R"({"type":"open"})");
  rig.opened("a", 1);
  BOOST_TEST(rig.story() == "error:unavailable opened");
  BOOST_TEST(rig.last_open("a").head.session.text() != session.text());
  BOOST_TEST(rig.inputs("a").empty());
}

BOOST_AUTO_TEST_CASE(a_session_that_waits_is_taken_over_by_whoever_comes_up) {
  Rig rig;
  rig.up("a");
  rig.open("a", 4);
  rig.audio();
  rig.down("a");
  rig.audio();
  rig.tick(10000);
  rig.up("c");
  BOOST_TEST(rig.open_of("c").expected_epoch.value == 4u);
  rig.opened("c", 5);
  BOOST_TEST(rig.inputs("c") == (Numbers{1, 2}));
  BOOST_TEST(rig.story() == "");  // the client has noticed nothing
}

BOOST_AUTO_TEST_CASE(a_link_that_was_reset_is_a_hand_over_to_the_same_controller) {
  Rig rig;
  rig.up("a");
  rig.open("a", 4);
  rig.audio();
  rig.down("a");
  rig.up("a");
  BOOST_TEST(rig.open_of("a").expected_epoch.value == 4u);
  rig.opened("a", 4);  // granted again unchanged
  BOOST_TEST(rig.inputs("a") == (Numbers{1, 1}));
}

BOOST_AUTO_TEST_CASE(a_controller_that_refuses_to_take_over_is_asked_again_until_the_time_is_over) {
  Rig rig;
  const auto owner = two_controllers(rig);
  const auto next = other(owner);
  rig.down(owner);
  rig.error(next, "overloaded");
  BOOST_TEST(rig.all<Open>(next).size() == 1u);
  rig.tick(900);
  BOOST_TEST(rig.all<Open>(next).size() == 1u);
  rig.tick(200);
  BOOST_TEST(rig.all<Open>(next).size() == 2u);
  rig.error(next, "internal");
  for (int i = 0; i < 40; ++i) {
    rig.tick(1000);
    if (rig.sessions.sessions() > 0 && rig.all<Open>(next).size() > rig.all<Close>(next).size())
      rig.error(next, "overloaded");
  }
  BOOST_TEST(rig.story() == "error:overloaded");
  BOOST_TEST(rig.all<Close>(next).size() == rig.all<Open>(next).size());
}

BOOST_AUTO_TEST_CASE(the_next_owner_may_be_lost_before_it_has_answered) {
  Rig rig;
  const auto owner = two_controllers(rig);
  const auto next = other(owner);
  rig.audio();
  rig.suspect(owner);
  BOOST_TEST(rig.all<Open>(next).size() == 1u);
  rig.suspect(next);
  BOOST_TEST(rig.all<Open>(owner).empty());
  rig.up(owner);
  BOOST_TEST(rig.all<Close>(next).size() == 1u);
  BOOST_TEST(rig.all<Open>(owner).size() == 1u);
  BOOST_TEST(rig.last_open(owner).head.stream.value == 3u);
  rig.opened(owner, 7);
  BOOST_TEST(rig.inputs(owner) == (Numbers{1, 1}));
}

BOOST_AUTO_TEST_CASE(a_stale_answer_to_a_take_over_is_tried_once_more_with_the_true_epoch) {
  Rig rig;
  const auto owner = two_controllers(rig);
  const auto next = other(owner);
  rig.down(owner);
  rig.error(next, "stale_epoch", 8);
  BOOST_TEST(rig.all<Open>(next).size() == 2u);
  BOOST_TEST(rig.all<Close>(next).size() == 1u);
  BOOST_TEST(rig.open_of(next).expected_epoch.value == 8u);
  rig.error(next, "stale_epoch", 9);
  BOOST_TEST(rig.all<Open>(next).size() == 2u);  // not at once
  rig.tick(1000);
  BOOST_TEST(rig.all<Open>(next).size() == 3u);
  rig.opened(next, 10);
  rig.reply(next, 10, 1, 0, "here");
  BOOST_TEST(rig.story() == "text:here");
}

BOOST_AUTO_TEST_CASE(a_session_that_nobody_keeps_does_not_go_round_for_ever) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  int opens = 0;
  for (int i = 0; i < 3000 && rig.sessions.sessions() > 0; ++i) {
    const auto n = rig.all<Open>("a").size();
    if (static_cast<int>(n) > opens) {
      opens = static_cast<int>(n);
      rig.opened("a", 1);
    }
    rig.error("a", "stale_epoch", 1);
    rig.tick(10);
  }
  BOOST_TEST(opens == 10);
  BOOST_TEST(rig.story() == "error:unavailable");
}

/// Each of them is replaced at once: what was before a calm time does not count.
BOOST_AUTO_TEST_CASE(owners_that_are_lost_now_and_then_are_replaced_for_ever) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  for (std::size_t loss = 1; loss <= 25; ++loss) {
    rig.error("a", "stale_epoch", 1);
    BOOST_REQUIRE(rig.all<Open>("a").size() == loss);
    rig.opened("a", 1);
    rig.tick(10'001);
  }
  BOOST_TEST(rig.sessions.sessions() == 1u);
  BOOST_TEST(rig.story().empty());
}

BOOST_AUTO_TEST_CASE(from_a_draining_controller_idle_sessions_go_at_once_and_others_after_their_turn) {
  Rig rig;
  const auto owner = two_controllers(rig);
  const auto next = other(owner);
  rig.text(R"({"type":"text","text":"hi"})");
  rig.drains(owner);
  rig.tick();
  BOOST_TEST(rig.all<Open>(next).empty());
  rig.reply(owner, 5, 1, 0, "hello");
  rig.tick();
  BOOST_TEST(rig.all<Open>(next).empty());
  rig.done(owner, 5, 1);
  rig.from(owner, protocol::Checkpoint{1, 0}, 5);  // comes behind it and counts
  rig.tick();
  BOOST_REQUIRE(rig.all<Close>(owner).size() == 1u);
  BOOST_TEST(std::get<Close>(rig.all<Close>(owner)[0].body).moves);
  BOOST_TEST(rig.all<Open>(next).size() == 1u);
  BOOST_TEST(rig.open_of(next).open_turn.value == 0u);
  rig.opened(next, 6);
  BOOST_TEST(rig.inputs(next).empty());
  BOOST_TEST(rig.handovers(Reason::draining) == 1u);
  // Idle now: at once.
  rig.up(owner);
  rig.sent.clear();
  rig.drains(next);
  BOOST_TEST(rig.all<Open>(owner).size() == 1u);
}

/// Another owner's claim would end what the store does not have yet. It has it when a checkpoint says so, or a later
/// turn is told as stored; a store that is away for a minute is not waited for.
BOOST_DATA_TEST_CASE(a_draining_controller_is_left_when_its_turn_is_stored, data::xrange(4), how) {
  Rig rig;
  const auto owner = two_controllers(rig);
  rig.text(R"({"type":"text","text":"hi"})");
  if (how == 3)
    rig.from(owner, protocol::Noted{"utterance_1_0", "hi", 0, 320, {"[1]"}, -1, true}, 5, 1);
  else
    rig.from(owner, protocol::TurnDone{1, true, Rig::to_payload(R"({"user":"u"})"), true, {"[1]"}, -1}, 5, 1);
  rig.from(owner, protocol::Checkpoint{1, 0, 0, true}, 5);  // what was said is not needed any more
  rig.drains(owner);
  rig.tick(59000);
  BOOST_TEST(rig.all<Open>(other(owner)).empty());
  if (how == 0 || how == 3) rig.from(owner, protocol::Checkpoint{1, 0}, 5);
  if (how == 1) rig.done(owner, 5, 2);
  rig.tick(how == 2 ? 1100 : 20);
  BOOST_TEST(rig.all<Open>(other(owner)).size() == 1u);
  BOOST_TEST(rig.handovers(Reason::draining) == 1u);
}

/// There is no input that a checkpoint could let go.
BOOST_AUTO_TEST_CASE(a_draining_controller_that_had_turns_to_store_at_the_opening_is_left_when_it_says_so) {
  Rig rig;
  const auto owner = two_controllers(rig), next = other(owner);
  rig.suspect(owner);
  rig.from(next, protocol::Opened{1, 7, true}, 6);
  rig.up(owner);
  rig.drains(next);
  rig.tick(1000);
  BOOST_TEST(rig.all<Open>(owner).empty());
  rig.from(next, protocol::Checkpoint{0, 0}, 6);
  rig.tick();
  BOOST_TEST(rig.all<Open>(owner).size() == 1u);
}

BOOST_DATA_TEST_CASE(a_turn_that_ends_otherwise_lets_its_session_go_too, data::xrange(2), how) {
  Rig rig;
  const auto owner = two_controllers(rig);
  rig.reply(owner, 5, 1, 0, "hello");
  rig.drains(owner);
  if (how == 0)
    rig.from(owner, protocol::Cancelled{{1}}, 5, 1);
  else
    rig.error(owner, "internal", 5, 1);
  rig.tick();
  BOOST_TEST(rig.all<Open>(other(owner)).size() == 1u);
}

BOOST_AUTO_TEST_CASE(without_another_a_draining_controller_keeps_its_sessions) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.drains("a");
  rig.audio();
  rig.tick(1000);
  BOOST_TEST(rig.all<Close>().empty());
  BOOST_TEST(rig.inputs("a") == (Numbers{1}));
}

BOOST_AUTO_TEST_CASE(a_turn_too_large_to_be_handed_over_begins_again) {
  Rig rig;
  const auto owner = two_controllers(rig);
  rig.text(R"({"type":"text","text":"hi"})");
  for (int i = 0; i < 5; ++i)
    rig.from(owner,
             protocol::Text{protocol::TextKind::tool_call, i, R"({"result":")" + std::string(30000, 'x') + "\"}", {}},
             5, 1);
  rig.events.clear();
  rig.down(owner);
  const auto next = other(owner);
  BOOST_TEST(rig.story() == "error:internal");
  BOOST_TEST(rig.open_of(next).open_turn.value == 0u);
  rig.opened(next, 6);
  BOOST_TEST(rig.inputs(next) == (Numbers{1}));
  rig.reply(next, 6, 1, 0, "hello");
  BOOST_TEST(rig.story() == "error:internal text:hello");
}

// ------------------------------------------------------------------------------------------------ limits

BOOST_AUTO_TEST_CASE(inputs_that_the_link_refuses_pause_the_client_and_come_again) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.audio();
  rig.audio();
  rig.audio();
  const auto sent = rig.all<Audio>();
  rig.refuse(sent[1]);
  rig.refuse(sent[2]);
  BOOST_TEST(rig.paused[1]);
  rig.audio();  // one read was outstanding
  BOOST_TEST(rig.inputs("a") == (Numbers{1, 2, 3}));
  rig.tick(80);
  BOOST_TEST(rig.inputs("a") == (Numbers{1, 2, 3}));
  rig.tick(20);
  BOOST_TEST(rig.inputs("a") == (Numbers{1, 2, 3, 2, 3, 4}));
  rig.tick();
  BOOST_TEST(!rig.paused[1]);
  BOOST_TEST(rig.sessions.counters().paused == 1u);
}

BOOST_AUTO_TEST_CASE(a_smaller_input_that_slipped_past_a_refused_one_makes_the_stream_new) {
  Rig rig;
  rig.up("a");
  rig.open("a", 3);
  rig.audio();
  rig.text(R"({"type":"flush"})");
  rig.refuse(rig.all<Audio>()[0]);
  rig.tick(100);
  BOOST_TEST(rig.all<Close>("a").size() == 1u);
  BOOST_TEST(rig.open_of("a").expected_epoch.value == 3u);
  rig.opened("a", 3);
  BOOST_TEST(rig.inputs("a") == (Numbers{1, 2, 1, 2}));
  BOOST_TEST(rig.handovers(Reason::broken) == 1u);
}

BOOST_AUTO_TEST_CASE(an_input_that_no_link_would_take_loses_its_content_not_its_number) {
  Rig rig;
  rig.up("a");
  rig.open("a", 3);
  rig.audio();
  rig.refuse(rig.all<Audio>()[0], Errc::bad_frame);
  rig.tick(100);
  BOOST_TEST(rig.inputs("a") == (Numbers{1, 1}));
  BOOST_TEST(std::get<Audio>(rig.all<Audio>()[1].body).payload.empty());
}

BOOST_AUTO_TEST_CASE(a_refused_open_asks_another) {
  Rig rig;
  rig.up("a");
  rig.up("b");
  rig.connect();
  rig.text(R"({"type":"open"})");
  const auto first = rig.all<Open>()[0];
  rig.refuse(first, Errc::overloaded);
  rig.opened(other(first.peer), 1);
  BOOST_TEST(rig.story() == "opened");
  // An old refusal, and one of a Close, change nothing.
  rig.refuse(first, Errc::overloaded);
  rig.refuse(rig.all<Close>()[0], Errc::cancelled);
  BOOST_TEST(rig.sessions.sessions() == 1u);
  BOOST_TEST(rig.all<Open>().size() == 2u);
}

BOOST_AUTO_TEST_CASE(a_peer_that_the_link_does_not_know_is_replaced) {
  Rig rig;
  const auto owner = two_controllers(rig);
  rig.audio();
  rig.refuse(rig.all<Audio>()[0], Errc::unavailable);
  BOOST_TEST(rig.all<Open>(other(owner)).size() == 1u);
  rig.opened(other(owner), 6);
  BOOST_TEST(rig.inputs(other(owner)) == (Numbers{1}));
}

BOOST_AUTO_TEST_CASE(thirty_seconds_at_once_are_taken_and_more_is_read_at_four_times_real_time) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  for (int i = 0; i < 1500; ++i) rig.audio();
  BOOST_TEST(!rig.paused[1]);
  BOOST_TEST(rig.inputs("a").size() == 1500u);
  for (int i = 0; i < 50; ++i) rig.audio();
  BOOST_TEST(rig.paused[1]);
  std::size_t frames = 0;
  for (int i = 0; i < 500; ++i) {  // ten seconds of a client that sends whenever it is read
    rig.tick(20);
    while (!rig.paused[1] && frames < 100000) {
      rig.audio();
      ++frames;
    }
  }
  const double factor = static_cast<double>(frames) * 0.02 / 10;
  BOOST_TEST(factor > 3.7);
  BOOST_TEST(factor < 4.1);
  BOOST_TEST(rig.sessions.counters().paused < 180u);  // reading does not stutter
  BOOST_TEST(rig.story() == "");
}

BOOST_AUTO_TEST_CASE(tiny_messages_are_a_flood_too) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  std::size_t taken = 0;
  for (; !rig.paused[1] && taken < 100000; ++taken) rig.audio(1);
  BOOST_TEST(taken == 6200u);
  BOOST_TEST(rig.sessions.counters().refused == 0u);
  Rig texts;
  texts.up("a");
  texts.open("a", 1);
  for (taken = 0; !texts.paused[1] && taken < 100000; ++taken) texts.text(R"({"type":"cancel"})");
  BOOST_TEST(taken == 6200u);
}

BOOST_AUTO_TEST_CASE(real_time_never_pauses) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  for (int i = 0; i < 5000; ++i) {
    rig.audio();
    rig.tick(20);
  }
  BOOST_TEST(rig.sessions.counters().paused == 0u);
}

BOOST_AUTO_TEST_CASE(a_session_that_waits_for_a_controller_reads_no_more_than_it_may_keep) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.down("a");
  int seconds = 0;
  for (; !rig.paused[1] && seconds < 100; ++seconds) rig.audio(16000);
  BOOST_TEST(seconds == 29);
  rig.up("a");
  rig.opened("a", 2);
  BOOST_TEST(rig.inputs("a").size() == 29u);
  rig.tick();
  BOOST_TEST(!rig.paused[1]);
  BOOST_TEST(rig.sessions.counters().dropped_input_samples == 0);
}

BOOST_AUTO_TEST_CASE(unacknowledged_audio_is_bounded_and_what_goes_is_counted) {
  Rig rig;
  const auto owner = two_controllers(rig);
  for (int i = 0; i < 40; ++i) {
    rig.audio(16000);
    rig.tick(1000);
  }
  BOOST_TEST(rig.sessions.counters().dropped_input_samples == 10 * 16000);
  rig.suspect(owner);
  BOOST_TEST(rig.open_of(other(owner)).first_input == 11u);
  rig.opened(other(owner), 6);
  const auto first = std::get<Audio>(rig.all<Audio>(other(owner))[0].body);
  BOOST_TEST(first.first_sample == 160000);
  BOOST_TEST(first.payload.size() == 32000u);
}

BOOST_AUTO_TEST_CASE(a_connection_lasts_as_long_as_it_may) {
  Rig rig({.session_max = 60s});
  rig.up("a");
  rig.open("a", 1);
  rig.tick(60000);
  BOOST_TEST(!rig.closed.contains(1));
  rig.tick(20);
  BOOST_TEST(rig.closed[1] == 1000);
  BOOST_TEST(rig.story() == "error:deadline_exceeded");
  BOOST_TEST(rig.all<Close>("a").size() == 1u);
}

BOOST_AUTO_TEST_CASE(a_connection_whose_time_is_over_ends_behind_its_turn) {
  Rig rig({.session_max = 60s, .session_grace = 30s});
  rig.up("a");
  rig.open("a", 1);
  rig.tick(59000);
  rig.text(R"({"type":"text","text":"hi"})");
  rig.tick(2000);
  BOOST_TEST(!rig.closed.contains(1));  // asked, and not answered
  rig.reply("a", 1, 1, 0, "hello");
  rig.tick(27000);
  BOOST_TEST(!rig.closed.contains(1));
  rig.done("a", 1, 1);
  BOOST_TEST(!rig.closed.contains(1));
  rig.tick();
  BOOST_TEST(rig.story() == "text:hello turn error:deadline_exceeded");
  BOOST_TEST(rig.closed[1] == 1000);
}

BOOST_AUTO_TEST_CASE(a_connection_whose_time_is_over_ends_behind_what_its_client_still_hears) {
  Rig rig({.session_max = 60s});
  rig.up("a");
  rig.open("a", 1, 1, R"({"type":"open","lead_ms":100})");
  rig.tick(59000);
  rig.speech("a", 1, 1, 0, 0, 2 * 22050, true);
  rig.done("a", 1, 1);
  rig.tick(1500);
  BOOST_TEST(!rig.closed.contains(1));
  for (int i = 0; i < 100 && !rig.closed.contains(1); ++i) rig.tick();
  BOOST_TEST(rig.heard[1].size() == 2u * 2 * 22050);
  BOOST_TEST(rig.story() == "turn error:deadline_exceeded");
  BOOST_TEST(rig.closed[1] == 1000);
}

BOOST_AUTO_TEST_CASE(the_grace_of_a_connection_that_never_stands_still_is_over_in_a_turn) {
  Rig rig({.session_max = 60s, .session_grace = 30s});
  rig.up("a");
  rig.open("a", 1);
  rig.reply("a", 1, 1, 0, "hello");
  rig.tick(90000);
  BOOST_TEST(!rig.closed.contains(1));
  rig.tick(20);
  BOOST_TEST(rig.story() == "text:hello error:deadline_exceeded");
  BOOST_TEST(rig.events[1].back()["message"].get<std::string>().find("30 s more") != std::string::npos);
  BOOST_TEST(rig.closed[1] == 1000);
}

// ------------------------------------------------------------------------------------------------ ends

BOOST_AUTO_TEST_CASE(a_client_that_goes_leaves_nothing_behind) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.audio();
  rig.leave();
  BOOST_TEST(rig.all<Close>("a").size() == 1u);
  BOOST_TEST(rig.sessions.clients() == 0u);
  BOOST_TEST(rig.sessions.sessions() == 0u);
  rig.reply("a", 1, 1, 0, "too late");
  rig.leave();
  rig.audio();
  rig.text(R"({"type":"flush"})");
  BOOST_TEST(rig.story() == "");
  BOOST_TEST(rig.sessions.counters().stale == 0u);
  BOOST_TEST(rig.all<Close>("a").size() == 1u);
}

BOOST_AUTO_TEST_CASE(a_client_may_go_in_every_state) {
  for (int state = 0; state < 4; ++state) {
    Rig rig;
    rig.connect();
    if (state > 0) rig.up("a");
    if (state > 0) rig.text(R"({"type":"open"})");
    if (state > 1) rig.opened("a", 1);
    if (state > 2) rig.down("a");
    rig.leave();
    BOOST_TEST(rig.all<Close>("a").size() == (state == 1 || state == 2 ? 1u : 0u));
    BOOST_TEST(rig.sessions.clients() == 0u);
    BOOST_TEST(rig.sessions.sessions() == 0u);
    rig.up("a");
    rig.tick(40000);
  }
}

BOOST_AUTO_TEST_CASE(draining_ends_idle_sockets_at_once_and_others_after_their_turn) {
  Rig rig;
  rig.up("a");
  rig.connect(1);
  rig.open("a", 1, 2);
  rig.open("a", 2, 3);
  rig.reply("a", 2, 1, 0, "hello");
  BOOST_TEST(!rig.sessions.drain(rig.now));
  rig.collect();
  BOOST_TEST(rig.closed[1] == 1001);
  BOOST_TEST(rig.closed[2] == 1001);
  BOOST_TEST(!rig.closed.contains(3));
  rig.connect(4);
  BOOST_TEST(rig.closed[4] == 1001);
  for (const ClientId id : {1, 2, 4}) rig.leave(id);
  rig.done("a", 2, 1);
  BOOST_TEST(!rig.sessions.drain(rig.now));
  rig.collect();
  BOOST_TEST(rig.story(3) == "text:hello turn");
  BOOST_TEST(rig.closed[3] == 1001);
  BOOST_TEST(rig.all<Close>("a").size() >= 1u);
  rig.leave(3);
  BOOST_TEST(rig.sessions.drain(rig.now));
}

BOOST_AUTO_TEST_CASE(draining_waits_for_what_was_asked_but_not_for_ever) {
  Rig rig;
  rig.up("a");
  rig.open("a", 1);
  rig.text(R"({"type":"text","text":"hi"})");
  rig.sessions.drain(rig.now);
  rig.tick(14980);
  BOOST_TEST(!rig.closed.contains(1));
  rig.tick(20);
  BOOST_TEST(rig.closed[1] == 1001);
}

BOOST_AUTO_TEST_CASE(a_turn_behind_a_degraded_one_that_was_lost_is_heard) {
  Rig rig;
  const std::string a = two_controllers(rig), b = other(a);
  rig.text(R"({"type":"text","text":"one"})");
  rig.from(a, protocol::TurnDone{1, true, Rig::to_payload(R"({"user":"u","assistant":"a","stages":{}})")}, 5, 1);
  rig.from(a, protocol::Checkpoint{1, 0}, 5);
  rig.down(a);
  rig.from(b, protocol::Opened{0, 7, false}, 6);  // the store never got turn 1
  rig.events.clear();
  rig.text(R"({"type":"text","text":"two"})");
  rig.reply(b, 6, 1, 0, "hello");
  rig.done(b, 6, 1);
  BOOST_TEST(rig.story() == "text:hello turn");
}
BOOST_AUTO_TEST_CASE(a_cancel_before_anything_was_told_leaves_no_request) {
  Rig rig;
  const std::string a = two_controllers(rig), b = other(a);
  rig.text(R"({"type":"text","text":"one"})");
  rig.text(R"({"type":"cancel"})");
  rig.from(a, protocol::Cancelled{{1}}, 5, 1);
  rig.drains(a);
  rig.tick();
  BOOST_TEST(rig.opens.contains(b));
}
BOOST_AUTO_TEST_CASE(a_refused_input_does_not_make_the_turn_forget_its_transcript) {
  Rig rig;
  const std::string a = two_controllers(rig), b = other(a);
  rig.audio();
  rig.from(a, protocol::Text{protocol::TextKind::transcript, 0, "hi", protocol::Bytes(8)}, 5, 1);
  rig.text(R"({"type":"text","text":"too early"})");
  rig.error(a, "invalid_argument", 5, 0);  // "a turn is under way"
  rig.reply(a, 5, 1, 0, "hello");
  rig.down(a);
  BOOST_TEST(rig.open_of(b).transcript_bytes == 2);
  BOOST_TEST(rig.open_of(b).payload.size() == 12u);
}
BOOST_AUTO_TEST_CASE(a_recording_is_read_as_fast_as_it_is_understood) {
  SessionsConfig config;
  config.upload.burst = std::chrono::seconds(2);
  Rig r(config);
  r.up("a");
  for (const bool of_file : {false, true}) {
    const ClientId id = of_file ? 2 : 1;
    r.sessions.client_opened(id, r.now, {.of_file = of_file});
    r.text(R"({"type":"open"})", id);
    r.opened("a", 1);
    for (int i = 0; i < 9; ++i) r.audio(16000, id);
    BOOST_TEST(r.paused[id] == !of_file);
  }
  r.audio(16000, 2);  // ten seconds that the controller has not let go
  BOOST_TEST(r.paused[2]);
  r.from("a", protocol::Checkpoint{5, 0}, 1);
  r.tick();
  BOOST_TEST(!r.paused[2]);
}

BOOST_AUTO_TEST_CASE(places_are_counted_until_their_controller_says_more) {
  Rig r;
  BOOST_TEST(r.sessions.why_full(0, r.now)->code == "unavailable");
  r.peer(Rig::controller("a", true, false, 2), transport::PeerState::up);
  BOOST_TEST(!r.sessions.why_full(0, r.now));
  BOOST_TEST(!r.sessions.why_full(1, r.now));
  BOOST_TEST(r.sessions.why_full(2, r.now)->code == "overloaded");
  r.connect(1);
  r.text(R"({"type":"open"})", 1);
  BOOST_TEST(!r.sessions.why_full(0, r.now));
  r.connect(2);
  r.text(R"({"type":"open"})", 2);
  BOOST_TEST(r.sessions.why_full(0, r.now)->code == "overloaded");
  r.leave(2);  // between two words of the controller: it will not tell
  BOOST_TEST(!r.sessions.why_full(0, r.now));
  r.peer(Rig::controller("a", true, false, 0), transport::PeerState::changed);
  BOOST_TEST(r.sessions.why_full(0, r.now)->code == "overloaded");
  r.peer(Rig::controller("a", true, false, 1), transport::PeerState::changed);
  BOOST_TEST(!r.sessions.why_full(0, r.now));
  // Sessions of other gateways come and go, too, and nobody tells us.
  r.connect(3);
  r.text(R"({"type":"open"})", 3);
  BOOST_TEST(r.sessions.why_full(0, r.now)->code == "overloaded");
  r.tick(1600);  // it would have said by now that it is full
  BOOST_TEST(!r.sessions.why_full(0, r.now));
  r.suspect("a");
  BOOST_TEST(!r.sessions.why_full(0, r.now));  // it may wake, and an open waits for that
  r.down("a");
  BOOST_TEST(r.sessions.why_full(0, r.now)->code == "unavailable");
}

BOOST_AUTO_TEST_CASE(a_voice_of_somebody_else_is_none) {
  Rig r;
  r.up("a");
  const auto tag = digest_of("anna").substr(0, 8);
  const auto voice = "voice_" + tag + std::string(24, 'a'), common = "voice_" + std::string(32, '0');
  r.sessions.client_opened(1, r.now, {.owner = "ben"});
  r.text(R"({"type":"open","speaker":")" + voice + "\"}");
  BOOST_TEST(r.story() == "error:not_found");
  BOOST_TEST(r.sent.empty());
  r.text(R"({"type":"open","speaker":")" + common + "\"}");
  r.opened("a", 1);
  r.events[1].clear();
  r.text(R"({"type":"configure","speaker":")" + voice + "\"}");
  r.text(R"({"type":"respond","speaker":")" + voice + "\"}");
  BOOST_TEST(r.story() == "error:not_found error:not_found");
  r.text(R"({"type":"configure","speaker":"Clara"})");
  BOOST_TEST(r.all<protocol::Configure>().size() == 1u);
  r.sessions.client_opened(2, r.now, {.owner = "anna"});
  r.text(R"({"type":"open","speaker":")" + voice + "\"}", 2);
  BOOST_TEST(r.open_of("a").speaker == voice);
}

BOOST_AUTO_TEST_SUITE_END()
