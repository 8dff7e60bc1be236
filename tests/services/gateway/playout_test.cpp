#include "services/gateway/playout.hpp"

#include <boost/test/unit_test.hpp>
#include <random>

using namespace parlando;
using namespace parlando::gateway;
using namespace std::chrono_literals;

namespace {

constexpr std::int64_t kSecond = kSpeechRate, kLead = 400 * kSpeechRate / 1000;

/// A playout and a client that takes what leaves, with the time turned by hand.
struct Mouth {
  explicit Mouth(milliseconds lead = 400ms, PlayoutLimits limits = {}) : playout(lead, limits) {}

  void sound(std::uint32_t turn, std::int64_t samples) {
    std::vector<std::byte> pcm(static_cast<std::size_t>(samples) * kSampleBytes);
    for (std::int64_t i = 0; i < samples; ++i) {
      const auto value = static_cast<std::int16_t>(made++);
      std::memcpy(&pcm[static_cast<std::size_t>(i) * 2], &value, 2);
    }
    playout.sound({turn}, pcm);
    take();
  }
  void event(std::uint32_t turn, const std::string& text) {
    playout.event({turn}, text);
    take();
  }
  void end(std::uint32_t turn) {
    playout.end({turn}, fmt::format("end{}", turn));
    take();
  }
  /// Time passes; the playout is asked when it wants to be.
  void run(milliseconds span) {
    const auto until = now + span;
    while (playout.due() <= until) {
      now = std::max(now, playout.due());
      take();
      ++looks;
      BOOST_REQUIRE(looks < 100000);
    }
    now = until;
  }
  void take() {
    for (auto& out : playout.take(now, unsent)) {
      if (out.kind == Playout::Out::Kind::sound) {
        sent += static_cast<std::int64_t>(out.data.size() / kSampleBytes);
        pcm += out.data;
        messages.push_back(static_cast<std::int64_t>(out.data.size() / kSampleBytes));
        if (tape.empty() || tape.back() != "~") tape.push_back("~");
      } else {
        tape.push_back(out.kind == Playout::Out::Kind::over ? fmt::format("over{}:{}", out.turn.value, out.samples)
                                                            : out.data);
      }
    }
  }
  /// The socket gives its last messages back.
  void take_back(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      sent -= messages.back();
      pcm.resize(pcm.size() - static_cast<std::size_t>(messages.back()) * kSampleBytes);
      messages.pop_back();
    }
    playout.take_back(count, now);
  }
  std::int64_t heard(std::uint32_t turn) const { return playout.heard({turn}, now).samples; }
  bool over(std::uint32_t turn) const { return playout.heard({turn}, now).over; }
  std::string story() const { return fmt::format("{}", fmt::join(tape, " ")); }

  Playout playout;
  Time now{std::chrono::hours(1)};
  std::int64_t unsent = 0, sent = 0, made = 0;
  std::string pcm;
  std::vector<std::int64_t> messages;
  std::vector<std::string> tape;
  int looks = 0;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(playout_test)

BOOST_AUTO_TEST_CASE(sound_leaves_no_further_ahead_than_the_lead_and_in_time) {
  for (const auto lead : {50ms, 400ms, 2500ms, 10000ms}) {
    Mouth mouth(lead);
    const auto lead_samples = lead.count() * kSpeechRate / 1000;
    mouth.sound(1, 20 * kSecond);
    BOOST_TEST(mouth.sent <= lead_samples);
    BOOST_TEST(mouth.sent > lead_samples - lead_samples / 4 - 1);
    for (int ms = 5; ms < 21000; ms += 5) {
      mouth.run(5ms);
      BOOST_TEST(mouth.sent - mouth.heard(1) <= lead_samples);
      if (mouth.sent < 20 * kSecond) BOOST_TEST(mouth.sent - mouth.heard(1) >= lead_samples - lead_samples / 4 - 1);
      BOOST_TEST(mouth.heard(1) == std::min<std::int64_t>(20 * kSecond, ms * kSpeechRate / 1000));
    }
    BOOST_TEST(mouth.sent == 20 * kSecond);
    BOOST_TEST(mouth.playout.take_underruns() == 0u);
    BOOST_TEST(mouth.looks < 20 * 1000 / std::min<int>(40, static_cast<int>(lead.count()) / 4) + 30);
  }
}

BOOST_AUTO_TEST_CASE(what_is_sent_is_what_came_whatever_the_pieces) {
  std::mt19937 random(7);
  Mouth mouth;
  for (int i = 0; i < 60; ++i) {
    mouth.sound(1, static_cast<std::int64_t>(random() % 9000));
    mouth.run(milliseconds(random() % 200));
  }
  mouth.end(1);
  mouth.run(60s);
  BOOST_TEST(mouth.sent == mouth.made);
  for (std::int64_t i = 0; i < mouth.made; ++i) {
    std::int16_t value = 0;
    std::memcpy(&value, mouth.pcm.data() + 2 * i, 2);
    BOOST_REQUIRE(value == static_cast<std::int16_t>(i));
  }
  BOOST_TEST(mouth.playout.held_samples() == 0);
}

BOOST_AUTO_TEST_CASE(an_end_is_told_behind_the_last_sound_and_over_when_it_was_heard) {
  Mouth mouth;
  mouth.event(1, "a");
  mouth.sound(1, kSecond);
  mouth.event(1, "b");
  mouth.end(1);
  BOOST_TEST(mouth.story() == "a ~ b");
  mouth.run(590ms);
  BOOST_TEST(mouth.story() == "a ~ b ~");
  mouth.run(20ms);
  BOOST_TEST(mouth.story() == "a ~ b ~ end1");
  BOOST_TEST(!mouth.over(1));
  mouth.run(389ms);
  BOOST_TEST(mouth.story() == "a ~ b ~ end1");
  mouth.run(1ms);
  BOOST_TEST(mouth.story() == "a ~ b ~ end1 over1:22050");
  BOOST_TEST(mouth.over(1));
  BOOST_TEST(mouth.heard(1) == kSecond);
  BOOST_TEST(mouth.playout.is_empty());
  BOOST_TEST((mouth.playout.due() == Time::max()));
}

BOOST_AUTO_TEST_CASE(a_turn_without_sound_is_over_at_once) {
  Mouth mouth;
  mouth.event(1, "a");
  mouth.end(1);
  BOOST_TEST(mouth.story() == "a end1 over1:0");
}

BOOST_AUTO_TEST_CASE(a_loudspeaker_that_runs_dry_waits_and_is_counted) {
  Mouth mouth;
  mouth.sound(1, 2205);
  mouth.run(1s);
  BOOST_TEST(mouth.heard(1) == 2205);
  BOOST_TEST(mouth.playout.take_underruns() == 0u);
  mouth.sound(1, 2205);
  BOOST_TEST(mouth.playout.take_underruns() == 1u);
  mouth.run(50ms);
  BOOST_TEST(mouth.heard(1) == 2205 + 1102);
  mouth.sound(1, 2205);
  mouth.end(1);
  mouth.run(1s);
  BOOST_TEST(mouth.playout.take_underruns() == 0u);
  BOOST_TEST(mouth.story() == "~ end1 over1:6615");
}

BOOST_AUTO_TEST_CASE(held_it_stands_still_to_the_sample_and_goes_on_where_it_was) {
  Mouth mouth;
  mouth.sound(1, 3 * kSecond);
  mouth.run(1003ms);
  BOOST_TEST(mouth.playout.hold({1}, mouth.now));
  BOOST_TEST(!mouth.playout.hold({1}, mouth.now));
  const auto heard = mouth.heard(1), sent = mouth.sent;
  BOOST_TEST(heard == 1003 * kSpeechRate / 1000);
  BOOST_TEST((mouth.playout.due() == Time::max()));
  mouth.run(5s);
  mouth.take();
  mouth.sound(1, kSecond);
  mouth.event(1, "text");
  mouth.end(1);
  BOOST_TEST(mouth.heard(1) == heard);
  BOOST_TEST(mouth.sent == sent);
  BOOST_TEST(mouth.tape.back() == "text");
  BOOST_TEST(!mouth.playout.release({2}, mouth.now));
  BOOST_TEST(mouth.playout.release({1}, mouth.now));
  BOOST_TEST(!mouth.playout.release({1}, mouth.now));
  mouth.run(1s);
  BOOST_TEST(mouth.heard(1) == heard + kSecond);
  mouth.run(3s);
  BOOST_TEST(mouth.tape.back() == "over1:88200");
  BOOST_TEST(mouth.playout.take_underruns() == 0u);
}

BOOST_AUTO_TEST_CASE(one_that_ran_dry_while_it_was_held_is_no_underrun) {
  Mouth mouth;
  mouth.sound(1, 2205);
  mouth.run(1s);
  mouth.playout.hold({1}, mouth.now);
  mouth.sound(1, 2205);
  mouth.run(1s);
  mouth.playout.release({1}, mouth.now);
  mouth.take();
  BOOST_TEST(mouth.sent == 4410);
  BOOST_TEST(mouth.playout.take_underruns() == 0u);
}

BOOST_AUTO_TEST_CASE(an_answer_may_be_held_before_it_has_sound) {
  Mouth mouth;
  mouth.event(1, "a");
  BOOST_TEST(mouth.playout.hold({1}, mouth.now));
  mouth.sound(1, kSecond);
  BOOST_TEST(mouth.sent == 0);
  mouth.playout.release({1}, mouth.now);
  mouth.take();
  BOOST_TEST(mouth.sent > 0);
}

BOOST_AUTO_TEST_CASE(what_is_over_or_unknown_cannot_be_held) {
  Mouth mouth;
  BOOST_TEST(!mouth.playout.hold({1}, mouth.now));
  mouth.sound(1, 441);
  mouth.end(1);
  mouth.run(1s);
  BOOST_TEST(!mouth.playout.hold({1}, mouth.now));
  BOOST_TEST(mouth.heard(1) == 441);
  BOOST_TEST(mouth.over(1));
  BOOST_TEST(mouth.heard(9) == 0);
  BOOST_TEST(mouth.over(9));
}

BOOST_AUTO_TEST_CASE(interrupted_nothing_more_of_it_is_sent_and_its_end_is_told_at_once) {
  Mouth mouth;
  mouth.sound(1, 2 * kSecond);
  mouth.end(1);
  mouth.run(500ms);
  mouth.playout.hold({1}, mouth.now);
  const auto heard = mouth.heard(1), sent = mouth.sent;
  mouth.run(200ms);
  mouth.playout.interrupt({1}, mouth.now);
  mouth.take();
  BOOST_TEST(mouth.story() == "~ end1");  // who interrupts knows that it is over
  BOOST_TEST(mouth.sent == sent);
  BOOST_TEST(mouth.heard(1) == heard);
  BOOST_TEST(mouth.over(1));
  BOOST_TEST(mouth.playout.held_samples() == 0);
  mouth.sound(2, 441);
  BOOST_TEST(mouth.sent == sent + 441);
}

BOOST_AUTO_TEST_CASE(what_else_waits_in_the_socket_does_not_change_what_was_heard_of_an_interrupted_one) {
  Mouth mouth;
  mouth.sound(1, 2 * kSecond);
  mouth.run(500ms);
  mouth.playout.interrupt({1}, mouth.now);
  mouth.unsent = 2000;  // the words about it
  mouth.end(1);
  BOOST_TEST(mouth.story() == "~ end1");
  BOOST_TEST(mouth.playout.is_empty());
  BOOST_TEST(mouth.heard(1) == kSecond / 2);
}

BOOST_AUTO_TEST_CASE(interrupted_before_its_end_it_waits_for_the_end_in_silence) {
  Mouth mouth;
  mouth.sound(1, 2 * kSecond);
  mouth.run(500ms);
  mouth.playout.interrupt({1}, mouth.now);
  const auto heard = mouth.heard(1), sent = mouth.sent;
  BOOST_TEST(mouth.over(1));
  mouth.sound(1, kSecond);
  mouth.run(1s);
  BOOST_TEST(mouth.sent == sent);
  mouth.end(1);
  BOOST_TEST(mouth.story() == "~ end1");
  BOOST_TEST(mouth.heard(1) == heard);
  BOOST_TEST(mouth.playout.is_empty());
}

BOOST_AUTO_TEST_CASE(turns_follow_each_other_in_sound_and_in_word) {
  Mouth mouth;
  mouth.sound(1, kSecond);
  mouth.end(1);
  mouth.event(2, "text2");
  mouth.sound(2, kSecond);
  mouth.end(2);
  BOOST_TEST(mouth.story() == "~");
  mouth.run(700ms);
  BOOST_TEST(mouth.story() == "~ end1 text2");
  BOOST_TEST(mouth.sent == kSecond);
  mouth.run(301ms);
  BOOST_TEST(mouth.story() == "~ end1 text2 over1:22050 ~");
  mouth.run(1s);
  BOOST_TEST(mouth.story() == "~ end1 text2 over1:22050 ~ end2 over2:22050");
}

BOOST_AUTO_TEST_CASE(an_interrupted_turn_takes_those_before_it_along) {
  Mouth mouth;
  mouth.sound(1, kSecond);
  mouth.end(1);
  mouth.sound(2, kSecond);
  mouth.run(100ms);
  mouth.playout.hold({2}, mouth.now);
  mouth.playout.interrupt({2}, mouth.now);
  mouth.take();
  BOOST_TEST(mouth.story() == "~ end1 over1:2205");
  mouth.end(2);
  BOOST_TEST(mouth.story() == "~ end1 over1:2205 end2");
  BOOST_TEST(mouth.playout.is_empty());
}

BOOST_AUTO_TEST_CASE(a_dropped_turn_may_begin_anew_under_its_number) {
  Mouth mouth;
  mouth.sound(1, kSecond);
  mouth.run(100ms);
  mouth.playout.hold({1}, mouth.now);
  mouth.playout.drop({1}, mouth.now);
  mouth.take();
  BOOST_TEST(mouth.playout.is_empty());
  BOOST_TEST(mouth.heard(1) == 2205);
  const auto sent = mouth.sent;
  mouth.sound(1, 4410);
  BOOST_TEST(mouth.sent == sent + 4410);
  BOOST_TEST(!mouth.over(1));
  mouth.end(1);
  mouth.run(1s);
  BOOST_TEST(mouth.story() == "~ end1 over1:4410");
}

BOOST_AUTO_TEST_CASE(a_turn_that_is_left_without_an_end_is_heard_and_followed) {
  Mouth mouth;
  mouth.sound(1, 4410);
  mouth.sound(2, 441);
  mouth.end(2);
  mouth.run(1s);
  BOOST_TEST(mouth.story() == "~ over1:4410 ~ end2 over2:441");
}

BOOST_AUTO_TEST_CASE(a_resumed_turn_counts_what_the_client_has) {
  Mouth mouth;
  mouth.playout.resume({3}, 1000);
  BOOST_TEST(mouth.heard(3) == 1000);
  mouth.sound(3, 441);
  BOOST_TEST(mouth.playout.take_underruns() == 0u);
  mouth.run(10ms);
  BOOST_TEST(mouth.heard(3) == 1220);
  mouth.end(3);
  mouth.run(1s);
  BOOST_TEST(mouth.tape.back() == "over3:1441");
}

BOOST_AUTO_TEST_CASE(a_socket_that_takes_nothing_gets_no_more_than_the_lead_and_nothing_of_it_is_heard) {
  Mouth mouth;
  mouth.sound(1, 5 * kSecond);
  for (int ms = 0; ms < 3000; ms += 10) {
    mouth.unsent = mouth.sent;
    mouth.run(10ms);
    mouth.take();
    BOOST_TEST(mouth.sent <= kLead);
    BOOST_TEST(mouth.heard(1) == 0);
  }
  mouth.unsent = 0;
  mouth.run(20ms);
  mouth.run(500ms);
  BOOST_TEST(mouth.heard(1) > kSecond / 2 - 500);
  BOOST_TEST(mouth.sent - mouth.heard(1) <= kLead);
  BOOST_TEST(mouth.playout.take_underruns() == 0u);
}

BOOST_AUTO_TEST_CASE(what_a_socket_gives_back_is_not_heard_and_is_sent_again) {
  Mouth mouth;
  mouth.sound(1, 2 * kSecond);
  mouth.run(100ms);
  const auto messages = mouth.messages.size();
  mouth.take_back(messages - 2);
  BOOST_TEST(mouth.playout.hold({1}, mouth.now));
  BOOST_TEST(mouth.sent == 80 * kSpeechRate / 1000);
  BOOST_TEST(mouth.heard(1) == mouth.sent);
  mouth.playout.release({1}, mouth.now);
  mouth.take();
  mouth.end(1);
  mouth.run(3s);
  BOOST_TEST(mouth.sent == 2 * kSecond);
  for (std::int64_t i = 0; i < mouth.made; ++i) {
    std::int16_t value = 0;
    std::memcpy(&value, mouth.pcm.data() + 2 * i, 2);
    BOOST_REQUIRE(value == static_cast<std::int16_t>(i));
  }
  BOOST_TEST(mouth.tape.back() == "over1:44100");
}

BOOST_AUTO_TEST_CASE(more_than_is_to_be_held_leaves_early_and_is_counted) {
  Mouth mouth(400ms, {2 * kSecond, 4 * kSecond});
  mouth.sound(1, kSecond);
  mouth.sound(1, kSecond);
  BOOST_TEST(mouth.playout.take_early_samples() == 0);
  for (int i = 0; i < 10; ++i) mouth.sound(1, kSecond);
  mouth.run(1s);
  BOOST_TEST(mouth.playout.held_samples() <= 2 * kSecond);
  BOOST_TEST(mouth.playout.take_early_samples() > 7 * kSecond);
  mouth.end(1);
  mouth.run(12s);
  BOOST_TEST(mouth.sent == 12 * kSecond);
  BOOST_TEST(mouth.tape.back() == fmt::format("over1:{}", 12 * kSecond));
}

BOOST_AUTO_TEST_CASE(a_client_that_takes_nothing_at_all_is_an_overrun) {
  Mouth mouth(400ms, {2 * kSecond, 4 * kSecond});
  mouth.unsent = kLead;
  for (int i = 0; i < 4; ++i) mouth.sound(1, kSecond);
  BOOST_TEST(!mouth.playout.is_overrun());
  mouth.sound(1, kSecond);
  BOOST_TEST(mouth.playout.is_overrun());
  BOOST_TEST(mouth.sent == 0);
}

BOOST_AUTO_TEST_CASE(a_session_that_ends_tells_what_waited) {
  Mouth mouth;
  mouth.sound(1, kSecond);
  mouth.end(1);
  mouth.event(2, "text2");
  BOOST_TEST(fmt::format("{}", fmt::join(mouth.playout.give_up(), " ")) == "end1 text2");
  BOOST_TEST(mouth.playout.is_empty());
  BOOST_TEST(mouth.playout.held_samples() == 0);
}

/// Whatever happens in whatever order: heard never goes back within an answer or beyond what was sent, no sound leaves
/// while it is held, what leaves is at most a lead ahead.
BOOST_AUTO_TEST_CASE(whatever_happens_the_clock_tells_the_truth) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    Mouth mouth(milliseconds(50 + random() % 800));
    const auto lead = mouth.playout.lead().count() * kSpeechRate / 1000;
    std::uint32_t turn = 1;
    std::int64_t last = 0;
    std::uint32_t last_turn = 0, dropped = 0;  // one that was dropped counts anew
    for (int i = 0; i < 300; ++i) {
      const auto sent = mouth.sent;
      const bool was_held = mouth.playout.held().has_value();
      switch (random() % 9) {
        case 0:
        case 1:
          mouth.sound(turn, static_cast<std::int64_t>(random() % 12000));
          break;
        case 2:
          mouth.end(turn++);
          break;
        case 3:
          mouth.playout.hold(mouth.playout.playing(), mouth.now);
          break;
        case 4:
          if (was_held) mouth.playout.release(*mouth.playout.held(), mouth.now);
          break;
        case 5:
          if (random() % 4 == 0) mouth.playout.interrupt(mouth.playout.playing(), mouth.now);
          break;
        case 6:
          if (random() % 8 != 0) break;
          mouth.playout.drop({turn}, mouth.now);
          dropped = turn;
          break;
        default:
          mouth.run(milliseconds(random() % 300));
          if (was_held) BOOST_REQUIRE(mouth.sent == sent);
      }
      const auto playing = mouth.playout.playing().value;
      const auto heard = mouth.heard(playing);
      if (playing == last_turn && playing != 0 && playing != dropped) BOOST_REQUIRE(heard >= last);
      last = heard;
      last_turn = playing;
      BOOST_REQUIRE(mouth.playout.held_samples() >= 0);
      if (mouth.sent > sent) BOOST_REQUIRE(mouth.sent - sent <= lead + 300 * kSpeechRate / 1000);
      if (!mouth.playout.is_empty() && mouth.playout.held().has_value())
        BOOST_REQUIRE((mouth.playout.due() == Time::max()));
    }
    while (mouth.playout.held()) mouth.playout.release(*mouth.playout.held(), mouth.now);
    mouth.take();
    mouth.end(turn);
    mouth.run(std::chrono::seconds(300));
    BOOST_REQUIRE(mouth.playout.is_empty());
    BOOST_REQUIRE(mouth.playout.held_samples() == 0);
  }
}

BOOST_AUTO_TEST_SUITE_END()
