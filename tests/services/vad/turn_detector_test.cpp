#define BOOST_TEST_MODULE vad
#include <boost/test/unit_test.hpp>

#include "services/vad/turn_detector.hpp"

namespace parlando::vad {
namespace {

std::vector<std::pair<int, std::int64_t>> run(const std::vector<float>& probabilities, TurnConfig config = {}) {
  TurnDetector detector(config);
  std::vector<std::pair<int, std::int64_t>> out;
  for (std::size_t n = 0; n < probabilities.size(); ++n)
    if (const auto e = detector.push(probabilities[n], static_cast<std::int64_t>(n) * 512))
      out.emplace_back(static_cast<int>(e->kind), e->sample);
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
  BOOST_TEST(config.problems("turn").size() == 3u);
}

}  // namespace parlando::vad
