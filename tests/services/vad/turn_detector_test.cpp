#define BOOST_TEST_MODULE vad
#include <boost/test/unit_test.hpp>
#include <random>

#include "services/vad/turn_detector.hpp"

namespace parlando::vad {
namespace {
using Kind = TurnEvent::Kind;
using Events = std::vector<std::pair<Kind, std::int64_t>>;

constexpr TurnConfig kWithoutPauses{.pause_ms = 0};

Events run(const std::vector<float>& probabilities, TurnConfig config = kWithoutPauses) {
  TurnDetector detector(config);
  Events out;
  for (std::size_t n = 0; n < probabilities.size(); ++n)
    if (const auto e = detector.push(probabilities[n], static_cast<std::int64_t>(n) * 512))
      out.emplace_back(e->kind, e->sample);
  return out;
}

std::vector<float> pattern(std::initializer_list<std::pair<int, float>> runs) {
  std::vector<float> out;
  for (const auto& [count, p] : runs) out.insert(out.end(), static_cast<std::size_t>(count), p);
  return out;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_turn_starts_at_its_first_frame_and_ends_behind_its_last) {
  const auto events = run(pattern({{10, 0.1f}, {20, 0.9f}, {40, 0.1f}}));
  BOOST_REQUIRE(events.size() == 2u);
  BOOST_TEST(events[0].second == 10 * 512);
  BOOST_TEST(events[1].second == 30 * 512);
}

BOOST_AUTO_TEST_CASE(a_click_is_no_turn_and_a_short_pause_no_end) {
  BOOST_TEST(run(pattern({{10, 0.1f}, {1, 0.9f}, {30, 0.1f}})).empty());
  BOOST_TEST(run(pattern({{10, 0.9f}, {10, 0.1f}, {10, 0.9f}})).size() == 1u);
  BOOST_TEST(run(pattern({{10, 0.9f}, {40, 0.4f}})).size() == 1u);  // above the lower threshold speech goes on
}

BOOST_AUTO_TEST_CASE(a_flush_ends_speech_where_the_caller_says_but_not_before_it_started) {
  const auto flushed = [](std::int64_t end) {
    TurnDetector detector({});
    for (int n = 0; n < 10; ++n) detector.push(n < 2 ? 0.1f : 0.9f, 512 * n);
    const auto event = detector.flush(end);
    BOOST_TEST(!detector.flush().has_value());
    return event->sample;
  };
  BOOST_TEST(flushed(100000) == 10 * 512);
  BOOST_TEST(flushed(3000) == 3000);
  BOOST_TEST(flushed(0) == 2 * 512);
}

BOOST_AUTO_TEST_CASE(values_outside_their_range_are_named) {
  TurnConfig config;
  BOOST_TEST(config.problems("turn").empty());
  config.offset_probability = 0.6;
  config.onset_frames = 0;
  config.silence_ms = 1;
  config.pause_ms = 0;
  BOOST_TEST(config.problems("turn").size() == 3u);
  config = {};
  for (const auto& [pause, problems] : {std::pair(0, 0u), {1, 0u}, {499, 0u}, {500, 1u}, {-1, 1u}}) {
    config.pause_ms = pause;
    BOOST_TEST(config.problems("turn").size() == problems, "pause_ms " << pause);
  }
}

BOOST_AUTO_TEST_CASE(a_pause_is_told_once_and_taken_back_when_speech_goes_on) {
  // 160 ms are five frames.
  constexpr TurnConfig kFive{.pause_ms = 160};
  const auto frames = [](int n) { return std::int64_t{512} * n; };
  BOOST_TEST((run(pattern({{10, 0.9f}, {4, 0.1f}, {10, 0.9f}}), kFive) == Events{{Kind::started, 0}}));
  BOOST_TEST((run(pattern({{10, 0.9f}, {5, 0.1f}, {3, 0.4f}, {11, 0.1f}, {1, 0.36f}, {40, 0.1f}}), kFive) ==
              Events{{Kind::started, 0},
                     {Kind::paused, frames(10)},
                     {Kind::resumed, frames(15)},
                     {Kind::paused, frames(18)},
                     {Kind::resumed, frames(29)},
                     {Kind::paused, frames(30)},
                     {Kind::ended, frames(30)}}));
  // Silence that is both at once is an end.
  BOOST_TEST((run(pattern({{10, 0.9f}, {40, 0.1f}}), {.pause_ms = 490}) ==
              Events{{Kind::started, 0}, {Kind::ended, frames(10)}}));
  BOOST_TEST(run(pattern({{40, 0.1f}}), kFive).empty());
}

BOOST_AUTO_TEST_CASE(a_pause_that_lasts_is_told_once_more) {
  // 160 ms are five frames, 480 ms are fifteen.
  constexpr TurnConfig kPatient{.silence_ms = 1200, .pause_ms = 160, .pause_again_ms = 480};
  const auto frames = [](int n) { return std::int64_t{512} * n; };
  BOOST_TEST((run(pattern({{10, 0.9f}, {14, 0.1f}, {10, 0.9f}, {15, 0.1f}, {1, 0.9f}, {50, 0.1f}}), kPatient) ==
              Events{{Kind::started, 0},
                     {Kind::paused, frames(10)},
                     {Kind::resumed, frames(24)},
                     {Kind::paused, frames(34)},
                     {Kind::paused, frames(34)},
                     {Kind::resumed, frames(49)},
                     {Kind::paused, frames(50)},
                     {Kind::paused, frames(50)},
                     {Kind::ended, frames(50)}}));
  TurnDetector detector(kPatient);
  std::vector<int> told;
  for (int n = 0; n < 40; ++n)
    if (const auto e = detector.push(n < 10 ? 0.9f : 0.1f, frames(n)); e && e->kind == Kind::paused) told.push_back(n);
  BOOST_TEST((told == std::vector{14, 24}));
  const auto told_once = [&](int again_ms) {
    auto config = kPatient;
    config.pause_again_ms = again_ms;
    return run(pattern({{10, 0.9f}, {30, 0.1f}}), config).size() == 2;
  };
  BOOST_TEST(told_once(0));
  BOOST_TEST(told_once(1200));
  BOOST_TEST(!told_once(960));
}

BOOST_AUTO_TEST_CASE(a_flush_ends_a_pause) {
  TurnDetector detector({});
  std::int64_t at = 0;
  const auto push = [&](float p) {
    at += 512;
    return detector.push(p, at - 512);
  };
  for (int n = 0; n < 10; ++n) push(0.9f);
  for (int n = 0; n < 6; ++n) push(0.1f);
  const auto ended = detector.flush();
  BOOST_REQUIRE(ended.has_value());
  BOOST_TEST((ended->kind == Kind::ended));
  BOOST_TEST(ended->sample == 10 * 512);
  // The next turn knows nothing of it.
  BOOST_TEST(!push(0.9f).has_value());
  const auto started = push(0.9f);
  BOOST_REQUIRE(started.has_value());
  BOOST_TEST((started->kind == Kind::started));
  BOOST_TEST(!push(0.9f).has_value());
}

/// Pauses are told beside turns: where these start and end does not depend on them.
BOOST_AUTO_TEST_CASE(random_probabilities_have_the_same_turns_with_and_without_pauses) {
  std::size_t pauses = 0, resumed = 0, ended = 0;
  for (unsigned seed = 1; seed <= 400; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      const auto below = [&](unsigned n) { return static_cast<int>(random() % n); };
      TurnConfig config{.onset_frames = 1 + below(4), .silence_ms = 32 + below(600)};
      config.pause_ms = 1 + below(static_cast<unsigned>(config.silence_ms) - 1);
      BOOST_TEST(config.problems("turn").empty());
      auto without = config;
      without.pause_ms = 0;
      TurnDetector detector(config), reference(without);
      std::int64_t at = below(1000);
      std::optional<TurnEvent> last;
      bool again = false;
      float p = 0;
      for (int n = 0; n < 600; ++n, at += 512) {
        if (below(6) == 0) p = static_cast<float>(below(1000)) / 1000;
        const bool flush = below(97) == 0;
        const auto event = flush ? detector.flush(at - below(9000)) : detector.push(p, at);
        // The same draw for both.
        const auto expected = flush ? reference.flush(event ? event->sample : at) : reference.push(p, at);
        const bool between = event && (event->kind == Kind::paused || event->kind == Kind::resumed);
        if (between) {
          BOOST_TEST(!expected.has_value());
        } else {
          BOOST_REQUIRE(event.has_value() == expected.has_value());
          if (event) BOOST_TEST((event->kind == expected->kind && event->sample == expected->sample));
        }
        BOOST_TEST(detector.speaking() == reference.speaking());
        if (!event) continue;
        switch (event->kind) {
          case Kind::started:
            BOOST_TEST((!last || last->kind == Kind::ended));
            break;
          case Kind::paused:
            BOOST_REQUIRE((last && last->kind != Kind::ended));
            if (last->kind == Kind::paused) {  // told once more
              BOOST_TEST(last->sample == event->sample);
              BOOST_TEST(at + 512 - event->sample >= 16 * config.pause_again_ms);
              BOOST_TEST(!std::exchange(again, true));
              break;
            }
            again = false;
            BOOST_TEST(at + 512 - event->sample >= 16 * config.pause_ms);
            ++pauses;
            break;
          case Kind::resumed:
            BOOST_TEST((last && last->kind == Kind::paused && last->sample < event->sample));
            BOOST_TEST(event->sample == at);
            ++resumed;
            break;
          case Kind::ended:
            BOOST_TEST((last && last->kind != Kind::ended));
            if (last && last->kind == Kind::paused) {
              if (!flush) BOOST_TEST(last->sample == event->sample);
              ++ended;
            }
            break;
        }
        last = event;
      }
    }
  }
  BOOST_TEST(pauses > 1000u);
  BOOST_TEST(resumed > 500u);
  BOOST_TEST(ended > 500u);
}

/// What the silences come to in frames: an end is decided first.
BOOST_AUTO_TEST_CASE(a_pause_is_told_again_where_the_turn_does_not_end_before) {
  int again = 0, never = 0;
  for (const int lag : {0, 50, 108, 400})
    for (const int told : {100, 320, 450, 480, 481})
      for (int silence = 97; silence <= 1000; ++silence) {
        const TurnConfig config{.silence_ms = silence, .lag_ms = lag, .pause_again_ms = told};
        const auto events = run(pattern({{10, 0.9f}, {40, 0.1f}}), config);
        BOOST_REQUIRE(events.back().first == Kind::ended);
        const auto pauses =
            std::count_if(events.begin(), events.end(), [](auto& e) { return e.first == Kind::paused; });
        const bool may = config.end_samples() > config.again_samples();
        BOOST_TEST((pauses == 2) == may, "lag " << lag << ", told " << told << ", silence " << silence);
        ++(may ? again : never);
      }
  BOOST_TEST(again > 1000);
  BOOST_TEST(never > 1000);
}

}  // namespace parlando::vad
