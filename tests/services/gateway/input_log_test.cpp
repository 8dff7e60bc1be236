#define BOOST_TEST_MODULE gateway_sessions
#include "services/gateway/input_log.hpp"

#include <boost/test/unit_test.hpp>
#include <random>

using namespace parlando;
using namespace parlando::gateway;

namespace {

Input audio(std::int64_t samples, std::int64_t first = 0) {
  return protocol::Audio{first, protocol::Bytes(static_cast<std::size_t>(samples) * kSampleBytes)};
}
/// Hands out all that waits. @return the numbers and whether they hold audio
std::vector<std::pair<std::uint64_t, bool>> hand_out(InputLog& log) {
  std::vector<std::pair<std::uint64_t, bool>> out;
  while (const auto* entry = log.next()) {
    const auto* sound = std::get_if<protocol::Audio>(&entry->input);
    out.emplace_back(log.next_number(), sound != nullptr && !sound->payload.empty());
    log.handed_out();
  }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(input_log_test)

BOOST_AUTO_TEST_CASE(inputs_are_numbered_from_one_and_handed_out_once) {
  InputLog log;
  BOOST_TEST(log.add(audio(320), 7) == 1u);
  BOOST_TEST(log.add(protocol::Flush{320}, 7) == 2u);
  BOOST_TEST(log.next()->trace == 7u);
  BOOST_TEST(hand_out(log).size() == 2u);
  BOOST_TEST(log.next() == nullptr);
  log.go_back();
  BOOST_TEST(hand_out(log).size() == 2u);
}

BOOST_AUTO_TEST_CASE(a_checkpoint_lets_inputs_go_but_none_that_were_not_handed_out) {
  InputLog log;
  for (int i = 0; i < 4; ++i) log.add(audio(320), 0);
  hand_out(log);
  log.add(protocol::Say{"later"}, 0);
  log.checkpoint(2, 0);
  BOOST_TEST(log.first() == 3u);
  BOOST_TEST(log.audio_samples() == 640);
  log.checkpoint(99, 0);
  BOOST_TEST(log.first() == 5u);
  BOOST_TEST(log.size() == 1u);
  log.checkpoint(1, 0);
  BOOST_TEST(log.first() == 5u);
}

/// An utterance has begun before anybody noticed: the last of what lies behind a decision stays.
BOOST_AUTO_TEST_CASE(the_last_sound_behind_keep_until_stays_as_it_comes) {
  InputLog log;
  for (int i = 0; i < 3; ++i) log.add(audio(320, 320 * i), 0);
  hand_out(log);
  log.checkpoint(0, 2, 640);
  for (int i = 3; i < 8; ++i) log.add(audio(320, 320 * i), 0);
  hand_out(log);
  BOOST_TEST(log.audio_samples() == 4 * 320);
  log.go_back();
  std::string kept;
  for (const auto& [number, sound] : hand_out(log)) kept += sound ? 'x' : '-';
  BOOST_TEST(kept == "xx----xx");
}

BOOST_AUTO_TEST_CASE(what_is_settled_keeps_its_number_and_nothing_else) {
  InputLog log;
  log.add(audio(320), 0);
  log.add(protocol::Say{"answered"}, 0);
  log.add(protocol::Say{"not yet"}, 0);
  hand_out(log);
  log.settle({"[1,2,99]"}, 320);
  log.settle({"nonsense"}, -1);
  log.settle({R"({"a":[2]})"}, 100);
  log.go_back();
  std::vector<std::size_t> kinds;
  for (; log.next() != nullptr; log.handed_out()) kinds.push_back(log.next()->input.index());
  BOOST_TEST(kinds == (std::vector<std::size_t>{0, 0, 2}), boost::test_tools::per_element());
  protocol::Open open;
  log.describe(open);
  BOOST_TEST(open.first_input == 1u);
  BOOST_TEST(open.last_input == 3u);
  BOOST_TEST(open.sound_from == 320);
}

/// A number beyond what any owner was handed is a mistake: that input is still to be answered.
BOOST_AUTO_TEST_CASE(what_no_owner_was_handed_cannot_be_settled) {
  InputLog log;
  log.add(protocol::Say{"answered"}, 0);
  log.add(protocol::Say{"answered by the owner before"}, 0);
  hand_out(log);
  log.add(protocol::Say{"waits"}, 0);
  log.go_back_to(2);
  log.settle({"[1,2,3]"}, 0);
  log.go_back();
  std::vector<std::size_t> kinds;
  for (; log.next() != nullptr; log.handed_out()) kinds.push_back(log.next()->input.index());
  BOOST_TEST(kinds == (std::vector<std::size_t>{0, 2}), boost::test_tools::per_element());
  BOOST_TEST(log.last() == 3u);
}

BOOST_AUTO_TEST_CASE(a_decision_is_told_until_its_turn_is_over) {
  InputLog log;
  protocol::TurnFacts facts;
  facts.of_turn = {2};
  facts.answers_input = 7;
  log.decide(facts);
  log.turn_over({1}, true);
  protocol::Open open;
  log.describe(open);
  BOOST_TEST(open.decided.answers_input == 7u);
  BOOST_TEST(open.turn_told == 1);
  log.turn_over({2}, false);
  log.describe(open);
  BOOST_TEST(open.decided.of_turn.value == 0u);
  BOOST_TEST(open.turn_told == 1);
  log.opened(0);
  log.describe(open);
  BOOST_TEST(open.turn_told == 0);
  // Nobody knows what a client that has resumed was told, until it is told something: turns are told in order.
  InputLog resumed({}, 5);
  resumed.turn_over({3}, false);
  resumed.describe(open);
  BOOST_TEST(open.turn_told == -1);
  resumed.turn_over({4}, true);
  resumed.describe(open);
  BOOST_TEST(open.turn_told == 4);
  InputLog told({}, 5);
  told.resumed(3);
  told.describe(open);
  BOOST_TEST(open.turn_told == 3);
  // A stored session that is opened again: what is stored then was told.
  InputLog again({}, 1001);
  again.opened(5);
  again.describe(open);
  BOOST_TEST(open.turn_told == 5);
}

BOOST_AUTO_TEST_CASE(audio_behind_keep_until_goes_and_keeps_its_number) {
  InputLog log;
  for (int i = 0; i < 5; ++i) log.add(audio(320, 320 * i), 0);
  log.add(protocol::Say{"typed meanwhile"}, 0);
  hand_out(log);
  log.checkpoint(1, 3);
  log.add(audio(320, 1600), 0);  // comes later and goes, too
  BOOST_TEST(hand_out(log).size() == 1u);
  BOOST_TEST(log.audio_samples() == 640);
  log.go_back();
  const auto again = hand_out(log);
  BOOST_TEST(again.size() == 6u);
  const std::vector<bool> sound{true, true, false, false, false, false};
  for (std::size_t i = 0; i < again.size(); ++i) {
    BOOST_TEST(again[i].first == i + 2);
    BOOST_TEST(again[i].second == sound[i]);
  }
  log.checkpoint(1, 0);
  log.add(audio(320), 0);
  hand_out(log);
  BOOST_TEST(log.audio_samples() == 960);
}

BOOST_AUTO_TEST_CASE(above_its_limit_the_oldest_audio_goes_first_and_typed_turns_stay) {
  InputLog log;
  log.add(protocol::Say{"first"}, 0);
  for (int i = 0; i < 31; ++i) {
    log.add(audio(kInputRate), 0);
    hand_out(log);
  }
  BOOST_TEST(log.audio_samples() == 30 * kInputRate);
  BOOST_TEST(log.dropped_samples() == kInputRate);
  BOOST_TEST(log.first() == 1u);
  log.go_back();
  const auto again = hand_out(log);
  BOOST_TEST(again.size() == 32u);
  BOOST_TEST(!again[1].second);
  BOOST_TEST(again[2].second);
}

BOOST_AUTO_TEST_CASE(what_was_not_handed_out_is_never_dropped_but_fills_the_log) {
  InputLog log;
  for (int i = 0; i < 28; ++i) log.add(audio(kInputRate), 0);
  BOOST_TEST(!log.is_full());
  log.add(audio(kInputRate), 0);
  BOOST_TEST(log.is_full());
  for (int i = 0; i < 5; ++i) log.add(audio(kInputRate), 0);
  BOOST_TEST(log.dropped_samples() == 0);
  BOOST_TEST(log.size() == 34u);
  hand_out(log);
  BOOST_TEST(!log.is_full());
  BOOST_TEST(log.audio_samples() == 30 * kInputRate);
  BOOST_TEST(log.first() == 5u);  // those without sound in front need no number
}

BOOST_AUTO_TEST_CASE(texts_and_numbers_are_bounded_too) {
  InputLog log({.audio_samples_max = 1000, .inputs_max = 10, .text_bytes_max = 100});
  for (int i = 0; i < 20; ++i) {
    log.add(protocol::Flush{}, 0);
    hand_out(log);
  }
  BOOST_TEST(log.size() == 10u);
  BOOST_TEST(log.first() == 11u);
  for (int i = 0; i < 5; ++i) log.add(protocol::Say{std::string(30, 'x')}, 0);
  BOOST_TEST(log.is_full());
  hand_out(log);
  BOOST_TEST(log.size() == 3u);
}

BOOST_AUTO_TEST_CASE(whatever_happens_numbers_have_no_gaps_and_sums_are_true) {
  const auto seed = std::random_device()();
  BOOST_TEST_MESSAGE("seed " << seed);
  std::mt19937 random(seed);
  const auto upto = [&](std::uint64_t n) { return std::uniform_int_distribution<std::uint64_t>(0, n)(random); };
  InputLog log({.audio_samples_max = 2000, .inputs_max = 40, .text_bytes_max = 200});
  std::uint64_t expected_last = 0;
  for (int step = 0; step < 20000; ++step) {
    switch (upto(6)) {
      case 0:
        log.add(protocol::Say{std::string(upto(30), 'x')}, 0), ++expected_last;
        break;
      case 1:
        log.checkpoint(upto(log.last() + 2), upto(1) == 0 ? 0 : upto(log.last() + 2));
        break;
      case 2:
        upto(3) == 0 ? log.go_back() : log.go_back_to(upto(log.last() + 1));
        break;
      case 3:
      case 4:
        for (auto n = upto(20); n > 0 && log.next() != nullptr; --n) log.handed_out();
        break;
      default:
        if (!log.is_full()) log.add(audio(static_cast<std::int64_t>(1 + upto(200))), 0), ++expected_last;
    }
    BOOST_REQUIRE(log.last() == expected_last);
    BOOST_REQUIRE(log.next_number() >= log.first());
    BOOST_REQUIRE(log.next_number() <= log.last() + 1);
  }
  hand_out(log);
  log.checkpoint(log.last(), 0);
  BOOST_TEST(log.audio_samples() == 0);
  BOOST_TEST(log.size() == 0u);
}

BOOST_AUTO_TEST_SUITE_END()
