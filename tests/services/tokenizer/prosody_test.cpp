#include "services/tokenizer/model/prosody.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <numbers>

namespace parlando::tokenizer {
namespace {

constexpr int kRate = 16000, kRows = 16, kRowSamples = 960;

/// A voice with overtones whose pitch goes from one frequency to another, and silence behind it.
std::vector<float> voice(double from, double to, double seconds, int silence_rows, float level = 0.3f) {
  std::vector<float> out;
  double phase = 0;
  const auto samples = static_cast<int>(seconds * kRate);
  for (int i = 0; i < samples; ++i) {
    phase += 2 * std::numbers::pi * (from + (to - from) * i / samples) / kRate;
    out.push_back(level * static_cast<float>(std::sin(phase) + 0.5 * std::sin(2 * phase) + 0.3 * std::sin(3 * phase)));
  }
  out.resize(out.size() + static_cast<std::size_t>(silence_rows * kRowSamples), 0.0f);
  return out;
}

float at(const std::vector<float>& rows, int row, int column) {
  return rows.at(static_cast<std::size_t>(row * kProsodyWidth + column));
}
constexpr int kLoud = 1, kPitch = 4, kVoice = 7;  // the middle one of a row's three frames

}  // namespace

BOOST_AUTO_TEST_SUITE(prosody)

BOOST_AUTO_TEST_CASE(pitch_is_told_from_the_middle_in_half_octaves) {
  for (const double hertz : {90.0, 140.0, 190.0}) {
    const auto rows = prosody_of(voice(hertz, 2 * hertz, 0.96, 0), kRows);
    BOOST_REQUIRE(rows.size() == static_cast<std::size_t>(kRows * kProsodyWidth));
    for (int row = 1; row + 1 < kRows; ++row) {
      BOOST_TEST(at(rows, row, kVoice) == 1);
      BOOST_TEST(at(rows, row, kPitch) > at(rows, row - 1, kPitch) - 0.05f, hertz << " Hz, row " << row);
    }
    // An octave is two halves; the first and the last row are not quite it.
    BOOST_TEST(at(rows, kRows - 2, kPitch) - at(rows, 1, kPitch) > 1.5f);
    BOOST_TEST(at(rows, kRows - 2, kPitch) - at(rows, 1, kPitch) < 2.1f);
    const auto falling = prosody_of(voice(2 * hertz, hertz, 0.96, 0), kRows);
    BOOST_TEST(at(falling, kRows - 2, kPitch) < at(falling, 1, kPitch) - 1.5f);
  }
}

BOOST_AUTO_TEST_CASE(silence_has_no_pitch_and_is_sixty_decibels_below) {
  const auto rows = prosody_of(voice(120, 120, 0.72, 4), kRows);
  BOOST_TEST(at(rows, 5, kLoud) > 0.3f);
  for (int row = kRows - 3; row < kRows; ++row) {
    BOOST_TEST(at(rows, row, kLoud) == -2.5f);
    BOOST_TEST(at(rows, row, kPitch) == 0);
    BOOST_TEST(at(rows, row, kVoice) == 0);
  }
}

BOOST_AUTO_TEST_CASE(level_and_what_was_before_change_nothing) {
  const auto loud = voice(150, 110, 1.2, 2);
  const auto soft = voice(150, 110, 1.2, 2, 0.05f);
  const auto a = prosody_of(loud, kRows), b = prosody_of(soft, kRows);
  for (std::size_t i = 0; i < a.size(); ++i) BOOST_TEST(std::abs(a[i] - b[i]) < 0.02f);
  auto longer = voice(300, 80, 2, 0);
  longer.insert(longer.end(), loud.end() - kRows * kRowSamples - 400, loud.end());
  BOOST_TEST((prosody_of(longer, kRows) == prosody_of(loud, kRows)));
}

BOOST_AUTO_TEST_CASE(there_are_rows_for_any_sound) {
  BOOST_TEST(prosody_of({}, 0).empty());
  for (const std::size_t samples : {0u, 1u, 2u, 319u, 960u, 961u}) {
    const auto rows = prosody_of(std::vector<float>(samples, 0.1f), 3);
    BOOST_REQUIRE(rows.size() == static_cast<std::size_t>(3 * kProsodyWidth));
    for (const auto value : rows) BOOST_TEST(std::isfinite(value));
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::tokenizer
