#include "common/audio/g711.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>

namespace parlando::audio {
namespace {

// Both laws are 13- or 14-bit codes; their 16-bit forms are what every implementation exchanges.
constexpr int kMuBias = 132, kMuMost = 8158;

std::int16_t mu_sample(std::uint8_t code) {
  code = static_cast<std::uint8_t>(~code);
  const int magnitude = (((code & 15) << 3) + kMuBias) << (code >> 4 & 7);
  return static_cast<std::int16_t>((code & 128) != 0 ? kMuBias - magnitude : magnitude - kMuBias);
}

std::int16_t a_sample(std::uint8_t code) {
  code ^= 0x55;
  const int segment = code >> 4 & 7, step = (code & 15) << 4;
  const int magnitude = segment == 0 ? step + 8 : (step + 264) << (segment - 1);
  return static_cast<std::int16_t>((code & 128) != 0 ? magnitude : -magnitude);
}

std::uint8_t mu_code(std::int16_t sample) {
  const int sign = sample < 0 ? 128 : 0;
  const int whole = sample >> 2;  // of 14 bits, towards minus infinity
  const int magnitude = std::min(std::abs(whole), kMuMost) * 4 + kMuBias;
  const int segment = std::bit_width(static_cast<unsigned>(magnitude)) - 8;
  return static_cast<std::uint8_t>(~(sign | segment << 4 | (magnitude >> (segment + 3) & 15)));
}

std::uint8_t a_code(std::int16_t sample) {
  const int sign = sample >= 0 ? 128 : 0;
  const int magnitude = sample >= 0 ? sample : -static_cast<int>(sample) - 1;  // -1 is the least negative step
  const int segment = std::max(0, static_cast<int>(std::bit_width(static_cast<unsigned>(magnitude))) - 8);
  return static_cast<std::uint8_t>((sign | segment << 4 | (magnitude >> (segment == 0 ? 4 : segment + 3) & 15)) ^ 0x55);
}

/// Codes of all samples, and samples of all codes.
struct Tables {
  explicit Tables(G711 law) {
    for (int s = -32768; s < 32768; ++s) {
      const auto sample = static_cast<std::int16_t>(s);
      codes[static_cast<std::uint16_t>(sample)] = law == G711::mu_law ? mu_code(sample) : a_code(sample);
    }
    for (int c = 0; c < 256; ++c) {
      const auto code = static_cast<std::uint8_t>(c);
      samples[code] = law == G711::mu_law ? mu_sample(code) : a_sample(code);
    }
  }
  std::array<std::uint8_t, 65536> codes;
  std::array<std::int16_t, 256> samples;
};

const Tables& tables(G711 law) {
  static const Tables kMu(G711::mu_law), kA(G711::a_law);
  return law == G711::mu_law ? kMu : kA;
}

}  // namespace

std::uint8_t g711_code(G711 law, std::int16_t sample) { return tables(law).codes[static_cast<std::uint16_t>(sample)]; }
std::int16_t g711_sample(G711 law, std::uint8_t code) { return tables(law).samples[code]; }

std::vector<std::byte> g711_encode(G711 law, std::span<const std::int16_t> samples) {
  const auto& codes = tables(law).codes;
  std::vector<std::byte> out(samples.size());
  for (std::size_t i = 0; i < samples.size(); ++i) out[i] = std::byte{codes[static_cast<std::uint16_t>(samples[i])]};
  return out;
}

std::vector<std::int16_t> g711_decode(G711 law, std::span<const std::byte> codes) {
  const auto& samples = tables(law).samples;
  std::vector<std::int16_t> out(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) out[i] = samples[std::to_integer<std::uint8_t>(codes[i])];
  return out;
}

}  // namespace parlando::audio
