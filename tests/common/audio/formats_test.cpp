#define BOOST_TEST_MODULE formats
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cmath>
#include <numbers>
#include <random>

#include "common/audio/g711.hpp"
#include "common/audio/rate_converter.hpp"
#include "common/base/base64.hpp"

namespace parlando::audio {
namespace {

std::uint32_t crc32(std::span<const std::byte> bytes) {
  std::uint32_t crc = ~0u;
  for (const auto b : bytes) {
    crc ^= std::to_integer<std::uint32_t>(b);
    for (int i = 0; i < 8; ++i) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xEDB88320u : 0u);
  }
  return ~crc;
}

std::vector<std::int16_t> tone(double hz, int rate, std::size_t samples, double amplitude = 10000) {
  std::vector<std::int16_t> out(samples);
  for (std::size_t i = 0; i < samples; ++i)
    out[i] = static_cast<std::int16_t>(std::lround(amplitude * std::sin(2 * std::numbers::pi * hz * i / rate)));
  return out;
}

std::vector<std::int16_t> noise(std::size_t samples, std::mt19937& random) {
  std::vector<std::int16_t> out(samples);
  for (auto& s : out) s = static_cast<std::int16_t>(random());
  return out;
}

BOOST_AUTO_TEST_SUITE(g711)

// The sums are those of Python 3.11's audioop (lin2ulaw, lin2alaw, ulaw2lin, alaw2lin) over all samples and codes.
BOOST_AUTO_TEST_CASE(every_sample_and_every_code_agrees_with_another_implementation) {
  std::vector<std::int16_t> all;
  for (int s = -32768; s < 32768; ++s) all.push_back(static_cast<std::int16_t>(s));
  std::vector<std::byte> codes;
  for (int c = 0; c < 256; ++c) codes.push_back(static_cast<std::byte>(c));
  BOOST_TEST(crc32(g711_encode(G711::mu_law, all)) == 0x3B7C3A3Eu);
  BOOST_TEST(crc32(g711_encode(G711::a_law, all)) == 0x9133796Eu);
  const auto mu = g711_decode(G711::mu_law, codes), a = g711_decode(G711::a_law, codes);
  BOOST_TEST(crc32(std::as_bytes(std::span(mu))) == 0x0C847A9Fu);
  BOOST_TEST(crc32(std::as_bytes(std::span(a))) == 0x9D764657u);
}

BOOST_AUTO_TEST_CASE(a_decoded_code_is_encoded_as_itself) {
  for (const auto law : {G711::mu_law, G711::a_law})
    for (int c = 0; c < 256; ++c) {
      const auto code = static_cast<std::uint8_t>(c);
      if (law == G711::mu_law && code == 0x7F) continue;  // negative zero
      BOOST_TEST(g711_code(law, g711_sample(law, code)) == code);
    }
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(rate_converter)

using Rates = std::pair<int, int>;
const std::vector<Rates> kRates{{24000, 16000}, {8000, 16000}, {22050, 24000}, {22050, 8000}, {16000, 16000}};

BOOST_AUTO_TEST_CASE(any_way_of_cutting_the_input_gives_the_same_output) {
  for (const auto seed : {1u, 2u, 3u})
    for (const auto& [source, target] : kRates) {
      std::mt19937 random(seed);
      const auto wave = noise(20000 + random() % 3000, random);
      RateConverter whole(source, target), pieces(source, target);
      auto expected = whole.push(wave);
      const auto rest = whole.finish();
      expected.insert(expected.end(), rest.begin(), rest.end());
      std::vector<std::int16_t> out;
      for (std::size_t at = 0; at < wave.size();) {
        const auto n = std::min<std::size_t>(random() % 1200, wave.size() - at);
        const auto part = pieces.push(std::span(wave).subspan(at, n));
        out.insert(out.end(), part.begin(), part.end());
        at += n;
      }
      const auto last = pieces.finish();
      out.insert(out.end(), last.begin(), last.end());
      BOOST_TEST_CONTEXT("seed " << seed << " " << source << " -> " << target) {
        BOOST_TEST(out.size() == (wave.size() * static_cast<std::size_t>(target) + source - 1) / source);
        BOOST_TEST((out == expected));
      }
    }
}

BOOST_AUTO_TEST_CASE(it_begins_anew_after_its_end) {
  const auto wave = tone(440, 22050, 5000);
  RateConverter converter(22050, 24000);
  auto once = converter.push(wave);
  auto rest = converter.finish();
  once.insert(once.end(), rest.begin(), rest.end());
  converter.push(std::span(wave).first(777));
  converter.clear();
  auto again = converter.push(wave);
  rest = converter.finish();
  again.insert(again.end(), rest.begin(), rest.end());
  BOOST_TEST((once == again));
  BOOST_TEST(RateConverter(22050, 24000).finish().empty());
}

/// A tone stays the tone it was, at its place: no click, no shift. -60 dB of its level; rounding alone is -76 dB.
BOOST_AUTO_TEST_CASE(a_tone_keeps_its_level_and_its_position) {
  for (const auto& [source, target] : kRates)
    for (const double hz : {200.0, 1000.0, 3000.0}) {
      const auto wave = tone(hz, source, static_cast<std::size_t>(source));
      RateConverter converter(source, target);
      std::vector<std::int16_t> out;
      for (std::size_t at = 0; at < wave.size(); at += 441) {
        const auto part = converter.push(std::span(wave).subspan(at, std::min<std::size_t>(441, wave.size() - at)));
        out.insert(out.end(), part.begin(), part.end());
      }
      const auto ideal = tone(hz, target, out.size());
      double worst = 0;
      for (std::size_t i = static_cast<std::size_t>(target) / 20; i + 1 < out.size(); ++i)
        worst = std::max(worst, std::abs(static_cast<double>(out[i]) - ideal[i]));
      BOOST_TEST_CONTEXT(hz << " Hz, " << source << " -> " << target) { BOOST_TEST(worst < 10.0); }
    }
}

BOOST_AUTO_TEST_CASE(it_holds_back_no_more_than_5_ms) {
  for (const auto& [source, target] : kRates) {
    RateConverter converter(source, target);
    double in = 0, out = 0;
    for (int i = 0; i < 50; ++i) {
      const auto frame = static_cast<std::size_t>(source / 50);
      in += static_cast<double>(frame) / source;
      out += static_cast<double>(converter.push(std::vector<std::int16_t>(frame)).size()) / target;
      BOOST_TEST_CONTEXT(source << " -> " << target) { BOOST_TEST(in - out < 0.005); }
    }
  }
}

BOOST_AUTO_TEST_CASE(what_the_lower_rate_cannot_carry_is_gone) {
  const auto wave = tone(6000, 22050, 22050);
  RateConverter converter(22050, 8000);
  const auto out = converter.push(wave);
  int worst = 0;
  for (std::size_t i = 400; i < out.size(); ++i) worst = std::max(worst, std::abs(int{out[i]}));
  BOOST_TEST(worst < 10);
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(base64)

std::vector<std::byte> bytes(std::string_view text) {
  const auto b = std::as_bytes(std::span(text));
  return {b.begin(), b.end()};
}

BOOST_AUTO_TEST_CASE(the_vectors_of_the_rfc) {
  const std::pair<std::string, std::string> vectors[] = {{"", ""},
                                                         {"f", "Zg=="},
                                                         {"fo", "Zm8="},
                                                         {"foo", "Zm9v"},
                                                         {"foob", "Zm9vYg=="},
                                                         {"fooba", "Zm9vYmE="},
                                                         {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, text] : vectors) {
    BOOST_TEST(to_base64(bytes(plain)) == text);
    BOOST_TEST((*from_base64(text) == bytes(plain)));
    BOOST_TEST((*from_base64(text.substr(0, text.find('='))) == bytes(plain)));
  }
}

BOOST_AUTO_TEST_CASE(whatever_is_encoded_comes_back) {
  std::mt19937 random(7);
  for (std::size_t size = 0; size < 300; ++size) {
    std::vector<std::byte> in(size);
    for (auto& b : in) b = static_cast<std::byte>(random());
    BOOST_TEST((*from_base64(to_base64(in)) == in));
  }
}

BOOST_AUTO_TEST_CASE(what_is_no_base64_is_refused_with_its_position) {
  for (const std::string bad : {"A", "AAAAA", "=", "A===", "AA=A", "AAA=AAAA", "AA==A", "====", "AAA =", "AAAA\n",
                                "AA-_", "AAAA=", "\xff\xff\xff\xff"}) {
    const auto got = from_base64(bad);
    BOOST_TEST_CONTEXT(bad) { BOOST_TEST((!got && got.error().code == Errc::bad_format)); }
  }
  BOOST_TEST(from_base64("AAAA!AAA").error().message.find("position 4") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace parlando::audio
