#define BOOST_TEST_MODULE audio_encoder
#include "common/audio/audio_encoder.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <numbers>
#include <vector>

#include "common/audio/audio_file.hpp"

using namespace parlando;
using namespace parlando::audio;

namespace {

constexpr int kRate = 24000;

std::vector<std::int16_t> tone(std::size_t samples) {
  std::vector<std::int16_t> out(samples);
  for (std::size_t i = 0; i < samples; ++i)
    out[i] = static_cast<std::int16_t>(8000 * std::sin(2 * std::numbers::pi * 440 * static_cast<double>(i) / kRate));
  return out;
}

/// What leaves before the end, and all of it.
struct Encoded {
  std::string early, all;
};
Encoded encode(Encoding encoding, std::span<const std::int16_t> pcm, std::size_t step) {
  auto made = Encoder::make(encoding, kRate);
  BOOST_REQUIRE_MESSAGE(made, (made ? "" : made.error().message));
  Encoded out;
  for (std::size_t at = 0; at < pcm.size(); at += step)
    out.early += (*made)->push(pcm.subspan(at, std::min(step, pcm.size() - at)));
  out.all = out.early + (*made)->finish();
  return out;
}

double level(std::span<const float> wave) {
  double sum = 0;
  for (const float x : wave) sum += static_cast<double>(x) * x;
  return wave.empty() ? 0 : std::sqrt(sum / static_cast<double>(wave.size()));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(audio_encoder_test)

BOOST_AUTO_TEST_CASE(every_format_is_read_again_as_it_was_said) {
  const auto pcm = tone(2 * kRate + 123);
  for (const auto encoding : {Encoding::wav, Encoding::flac, Encoding::opus, Encoding::mp3}) {
    const auto out = encode(encoding, pcm, 480);
    BOOST_TEST_CONTEXT(media_type(encoding)) {
      BOOST_TEST(!out.early.empty());
      BOOST_TEST(out.early.size() > out.all.size() / 2);  // most of it leaves while it is made
      const auto back = read_audio(std::as_bytes(std::span(out.all)), "encoded");
      BOOST_REQUIRE_MESSAGE(back, (back ? "" : back.error().message));
      BOOST_TEST(std::abs(back->seconds() - static_cast<double>(pcm.size()) / kRate) < 0.2);
      BOOST_TEST(std::abs(level(back->wave) - 8000 / 32768.0 / std::sqrt(2.0)) < 0.02);
    }
  }
}

BOOST_AUTO_TEST_CASE(plain_and_lossless_formats_are_exact) {
  const auto pcm = tone(10'001);
  const auto raw = encode(Encoding::pcm, pcm, 999).all;
  BOOST_REQUIRE(raw.size() == 2 * pcm.size());
  BOOST_TEST(std::memcmp(raw.data(), pcm.data(), raw.size()) == 0);
  for (const auto encoding : {Encoding::wav, Encoding::flac}) {
    const auto file = encode(encoding, pcm, 999).all;
    const auto back = read_audio(std::as_bytes(std::span(file)), "encoded");
    BOOST_REQUIRE(back);
    BOOST_TEST(back->rate == kRate);
    BOOST_REQUIRE(back->wave.size() == pcm.size());
    for (std::size_t i = 0; i < pcm.size(); ++i) BOOST_REQUIRE(back->wave[i] * 32768.0f == pcm[i]);
  }
}

BOOST_AUTO_TEST_CASE(a_whole_wav_file_knows_its_sizes) {
  auto file = encode(Encoding::wav, tone(1000), 100).all;
  set_wav_sizes(file);
  std::vector<float> wave(1000);
  const auto pcm = tone(1000);
  for (std::size_t i = 0; i < wave.size(); ++i) wave[i] = static_cast<float>(pcm[i]) / 32767.0f;
  BOOST_TEST((file == encode_wav(wave, kRate)));
}

BOOST_AUTO_TEST_CASE(a_file_is_read_piece_by_piece_as_it_is_read_whole) {
  for (const auto encoding : {Encoding::wav, Encoding::flac, Encoding::mp3}) {
    const auto file = encode(encoding, tone(50'000), 480).all;
    const auto whole = read_audio(std::as_bytes(std::span(file)), "whole");
    auto reader = Reader::open(file, "pieces");
    BOOST_REQUIRE(whole);
    BOOST_REQUIRE_MESSAGE(reader, (reader ? "" : reader.error().message));
    BOOST_TEST(reader->rate() == kRate);
    std::vector<float> pieces;
    for (auto part = reader->read(997); !part.empty(); part = reader->read(997))
      pieces.insert(pieces.end(), part.begin(), part.end());
    BOOST_TEST((pieces == whole->wave));
  }
  BOOST_TEST((Reader::open("no sound", "x").error().code == Errc::bad_format));
  BOOST_TEST((Reader::open("", "x").error().code == Errc::bad_format));
  const auto second = encode(Encoding::flac, tone(kRate), 480).all;
  BOOST_TEST(Reader::open(second, "x", 1.0).has_value());
  // It does not say how long it is: found out on the way.
  auto endless = Reader::open(second, "x", 0.9);
  BOOST_REQUIRE(endless);
  while (!endless->read(1000).empty()) {
  }
  BOOST_TEST(endless->is_too_long());
  const auto sized = encode(Encoding::wav, tone(kRate), 480).all;
  BOOST_TEST((Reader::open(sized, "x", 0.9).error().code == Errc::bad_format));
}

BOOST_AUTO_TEST_CASE(any_cut_gives_the_same_bytes) {
  const auto pcm = tone(9'000);
  for (const auto encoding : {Encoding::wav, Encoding::pcm, Encoding::flac})
    BOOST_TEST((encode(encoding, pcm, 1).all == encode(encoding, pcm, 9'000).all));
}

BOOST_AUTO_TEST_CASE(no_sound_is_a_file_all_the_same) {
  BOOST_TEST(encode(Encoding::wav, {}, 1).all.size() == 44u);
  for (const auto encoding : {Encoding::flac, Encoding::opus, Encoding::mp3}) encode(encoding, {}, 1);
}

BOOST_AUTO_TEST_CASE(what_cannot_be_written_is_refused) {
  BOOST_TEST(!encoding_of("aac"));
  BOOST_TEST((encoding_of("pcm16") == Encoding::pcm));
  const auto odd = Encoder::make(Encoding::opus, 22050);
  BOOST_REQUIRE(!odd);
  BOOST_TEST((odd.error().code == Errc::unsupported));
}

BOOST_AUTO_TEST_SUITE_END()
