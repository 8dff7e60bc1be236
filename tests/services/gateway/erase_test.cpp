/// Clients that have a session erased, or open one again that is stored: who may, whom their gateway asks, what it
/// says.
#include <boost/test/unit_test.hpp>

#include "tests/services/gateway/rig.hpp"

using namespace parlando;
using namespace parlando::gateway;
using protocol::Close;
using protocol::Erase;
using protocol::Erased;
using protocol::Open;

namespace {

const SessionTokens kTokens("a key of tests");
const SessionId kErased{7, 9};

SessionsConfig config() {
  SessionsConfig out;
  out.tokens = kTokens;
  return out;
}

std::string named(const std::string& type, const std::string& token, SessionId session = kErased) {
  return R"({"type":")" + type + R"(","session":")" + session.text() + R"(","token":")" + token + "\"}";
}

struct Erasing {
  Rig rig{config()};
  Erasing() {
    rig.up("a");
    rig.up("b");
  }
  const Rig::Sent asked() const { return rig.all<Erase>().back(); }
  void erased(std::int64_t turns) { rig.from(asked().peer, Erased{turns}, asked().head, 0); }
  void refused(const std::string& code) {
    rig.from(asked().peer, protocol::ErrorMessage{code, "no", 0}, asked().head, 0);
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(erase_test)

BOOST_AUTO_TEST_CASE(a_token_is_of_one_session_one_owner_and_one_key) {
  const auto token = kTokens.of(kErased, "anna");
  BOOST_TEST(token.size() == SessionTokens::kDigits);
  BOOST_TEST(kTokens.is_right(token, kErased, "anna"));
  BOOST_TEST(!kTokens.is_right(token, kErased, "ben"));
  BOOST_TEST(!kTokens.is_right(token, {7, 10}, "anna"));
  BOOST_TEST(!kTokens.is_right("", kErased, "anna"));
  BOOST_TEST(!SessionTokens("another").is_right(token, kErased, "anna"));
  BOOST_TEST(SessionTokens().of(kErased, "anna").empty());
  BOOST_TEST(!SessionTokens().is_right("", kErased, "anna"));
}

BOOST_AUTO_TEST_CASE(who_has_the_token_erases_a_session_that_nobody_holds) {
  Erasing e;
  e.rig.connect();
  e.rig.text(named("erase", kTokens.of(kErased, "")));
  BOOST_TEST(e.rig.all<Erase>().size() == 1u);
  BOOST_TEST((e.asked().head.session == kErased));
  e.erased(3);
  BOOST_TEST(e.rig.story() == "erased");
  BOOST_TEST(e.rig.events[1].back()["turns"] == 3);
  BOOST_TEST(e.rig.events[1].back()["session"] == kErased.text());
  BOOST_TEST(e.rig.all<Close>().size() == 1u);  // of its stream
  e.rig.text(named("erase", kTokens.of(kErased, "")));
  e.refused("not_found");
  BOOST_TEST(e.rig.story() == "erased error:not_found");
}

BOOST_AUTO_TEST_CASE(a_wrong_token_asks_nobody) {
  Erasing e;
  e.rig.connect();
  e.rig.text(named("erase", std::string(32, '0')));
  e.rig.text(named("erase", kTokens.of(kErased, "ben")));
  e.rig.text(named("open", std::string(32, '0')));
  e.rig.text(R"({"type":"erase"})");
  e.rig.text(R"({"type":"erase","session":"7"})");
  BOOST_TEST(e.rig.story() == "error:not_found error:not_found error:not_found error:not_ready error:invalid_argument");
  BOOST_TEST(e.rig.all<Erase>().empty());
  BOOST_TEST(e.rig.all<Open>().empty());
}

BOOST_AUTO_TEST_CASE(an_open_session_ends_before_it_is_erased_at_its_own_controller) {
  Erasing e;
  e.rig.connect();
  e.rig.text(R"({"type":"open"})");
  const auto peer = e.rig.all<Open>().back().peer;
  e.rig.opened(peer, 1);
  BOOST_TEST(e.rig.events[1].back()["session_token"] == kTokens.of(e.rig.last_open(peer).head.session, ""));
  e.rig.sent.clear();
  e.rig.text(R"({"type":"erase"})");
  BOOST_REQUIRE(e.rig.sent.size() == 2u);
  BOOST_TEST(std::holds_alternative<Close>(e.rig.sent[0].body));
  BOOST_TEST(std::holds_alternative<Erase>(e.rig.sent[1].body));
  BOOST_TEST(e.asked().peer == peer);
  e.refused("not_found");  // it came before anything was stored
  BOOST_TEST(e.rig.story() == "opened erased");
  e.rig.text(R"({"type":"text","text":"hi"})");
  BOOST_TEST(e.rig.story() == "opened erased error:not_ready");
}

BOOST_AUTO_TEST_CASE(a_client_whose_session_another_one_erases_is_told) {
  Erasing e;
  e.rig.connect(1);
  e.rig.text(R"({"type":"open"})", 1);
  const auto peer = e.rig.all<Open>().back().peer;
  const auto session = e.rig.last_open(peer).head.session;
  e.rig.opened(peer, 1);
  e.rig.connect(2);
  e.rig.text(named("erase", kTokens.of(session, ""), session), 2);
  BOOST_TEST(e.rig.story(1) == "opened error:not_found");
  BOOST_TEST(e.rig.events[1].back()["session_ended"] == true);
  e.erased(1);
  BOOST_TEST(e.rig.story(2) == "erased");
}

BOOST_AUTO_TEST_CASE(what_is_not_stored_is_gone_with_its_session) {
  Erasing e;
  e.rig.connect();
  e.rig.text(R"({"type":"open","stored":false})");
  e.rig.opened(e.rig.all<Open>().back().peer, 1);
  e.rig.text(R"({"type":"erase"})");
  BOOST_TEST(e.rig.story() == "opened erased");
  BOOST_TEST(e.rig.all<Erase>().empty());
}

BOOST_AUTO_TEST_CASE(another_controller_is_asked_when_one_is_lost_and_what_it_may_have_done_counts) {
  Erasing e;
  e.rig.connect();
  e.rig.text(named("erase", kTokens.of(kErased, "")));
  const auto first = e.asked();
  e.rig.down(first.peer);
  BOOST_TEST(e.asked().peer != first.peer);
  e.rig.from(first.peer, Erased{1}, first.head, 0);  // nobody listens to it any more
  BOOST_TEST(e.rig.story().empty());
  e.refused("not_found");
  BOOST_TEST(e.rig.story() == "erased");
  // None is left.
  e.rig.text(named("erase", kTokens.of(kErased, "")));
  e.rig.down(e.asked().peer);
  BOOST_TEST(e.rig.story() == "erased error:unavailable");
}

BOOST_AUTO_TEST_CASE(a_store_that_does_not_answer_is_not_waited_for_and_a_client_that_goes_changes_nothing) {
  Erasing e;
  e.rig.connect();
  e.rig.text(named("erase", kTokens.of(kErased, "")));
  e.rig.tick(14'000);
  BOOST_TEST(e.rig.story().empty());
  e.rig.tick(2'000);
  BOOST_TEST(e.rig.story() == "error:unavailable");
  e.erased(1);  // too late
  BOOST_TEST(e.rig.story() == "error:unavailable");
  e.rig.text(named("erase", kTokens.of(kErased, "")));
  e.rig.leave();
  e.erased(1);
  BOOST_TEST(e.rig.all<Close>().size() == 2u);
}

BOOST_AUTO_TEST_CASE(only_so_many_are_erased_at_a_time) {
  Erasing e;
  e.rig.connect();
  for (std::uint64_t i = 0; i < 65; ++i) e.rig.text(named("erase", kTokens.of({1, i}, ""), {1, i}));
  BOOST_TEST(e.rig.all<Erase>().size() == 64u);
  BOOST_TEST(e.rig.story() == "error:overloaded");
}

BOOST_AUTO_TEST_CASE(a_stored_session_is_opened_again_by_its_name) {
  Erasing e;
  e.rig.connect();
  e.rig.text(named("open", kTokens.of(kErased, "")));
  const auto first = e.rig.all<Open>().back();
  BOOST_TEST((first.head.session == kErased));
  // The store has an epoch, which its controller tells.
  e.rig.from(first.peer, protocol::ErrorMessage{"stale_epoch", "it is 4", 0}, first.head, 4);
  const auto again = e.rig.all<Open>().back();
  const auto& open = std::get<Open>(again.body);
  BOOST_TEST(open.expected_epoch.value == 4u);
  e.rig.from(first.peer, protocol::Opened{.turns = 5}, again.head, 5);
  const auto told = e.rig.events[1].back();
  BOOST_TEST(told["type"] == "opened");
  BOOST_TEST(told["turns"] == 5);
  // Nothing that follows is taken for something that its records name: numbers are this opening's.
  constexpr int kOpeningShift = 32;
  const auto opening = open.first_input >> kOpeningShift;
  BOOST_TEST(opening > 0u);
  BOOST_TEST(open.first_input == (opening << kOpeningShift) + 1);
  BOOST_TEST(open.last_input == open.first_input - 1);
  BOOST_TEST(open.first_input < std::uint64_t{1} << 63);
  BOOST_TEST(!told.contains("input_samples"));
  e.rig.audio(320);
  const auto audio = e.rig.all<protocol::Audio>().back();
  BOOST_TEST(std::get<protocol::Audio>(audio.body).first_sample == 0);
  BOOST_TEST(audio.head.sequence == open.first_input);
  // Somebody else comes with the token.
  e.rig.connect(2);
  e.rig.text(named("open", kTokens.of(kErased, "")), 2);
  BOOST_TEST(e.rig.story(1) == "opened error:not_found");
  BOOST_TEST(std::get<Open>(e.rig.all<Open>().back().body).first_input >> kOpeningShift != opening);
}

BOOST_AUTO_TEST_CASE(a_session_that_was_opened_again_tells_its_next_owner_what_its_client_knows) {
  Erasing e;
  e.rig.connect();
  e.rig.text(named("open", kTokens.of(kErased, "")));
  const auto refused = e.rig.all<Open>().back();
  e.rig.from(refused.peer, protocol::ErrorMessage{"stale_epoch", "it is 4", 0}, refused.head, 4);
  const auto first = e.rig.all<Open>().back();
  e.rig.from(first.peer, protocol::Opened{.turns = 5}, first.head, 5);
  e.rig.text(R"({"type":"text","text":"hello"})");
  // Its owner has stored an answer and told nothing of it: that one is to be told by the next.
  e.rig.down(first.peer);
  const auto next = e.rig.all<Open>().back();
  BOOST_TEST(next.peer != first.peer);
  BOOST_TEST(std::get<Open>(next.body).turn_told == 5);
}

BOOST_AUTO_TEST_CASE(a_session_that_its_controller_still_keeps_is_asked_for_again) {
  Erasing e;
  e.rig.connect();
  e.rig.text(named("open", kTokens.of(kErased, "")));
  const auto refuse = [&] {
    const auto asked = e.rig.all<Open>().back();
    e.rig.from(asked.peer, protocol::ErrorMessage{"not_found", "it goes on elsewhere", 0}, asked.head, 0);
  };
  refuse();  // its `close` is on its way
  BOOST_TEST(e.rig.story().empty());
  BOOST_TEST(e.rig.all<Open>().size() == 1u);
  e.rig.tick(600);
  BOOST_REQUIRE(e.rig.all<Open>().size() == 2u);
  const auto second = e.rig.all<Open>().back();
  e.rig.from(second.peer, protocol::Opened{.turns = 1}, second.head, 2);
  BOOST_TEST(e.rig.story() == "opened");
  // Not for ever.
  e.rig.connect(2);
  const SessionId other{1, 2};
  e.rig.text(named("open", kTokens.of(other, ""), other), 2);
  int times = 0;
  for (; times < 20 && e.rig.story(2).empty(); ++times) {
    refuse();
    e.rig.tick(500);
  }
  BOOST_TEST(e.rig.story(2) == "error:not_found");
  BOOST_TEST(times >= 8);
  BOOST_TEST(times <= 11);
}

BOOST_AUTO_TEST_SUITE_END()
