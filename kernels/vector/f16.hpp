#pragma once
/// Numbers of 16 bits with 11 of them for the digits (IEEE 754 binary16), one at a time.
#include <bit>
#include <cmath>
#include <cstdint>

namespace parlando::kernels {

/// Without branches, so that compilers make vectors of many at once.
inline float float_of_f16(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, size = (h & 0x7fffu) << 13;
  // As a float of the same digits, 2^112 times too small, also where there is no leading one; none and infinity apart.
  const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) * 0x1p112f);
  return std::bit_cast<float>(sign | (size >= 31u << 23 ? size | 0x7f800000u : scaled));
}

/// To nearest, ties to even; what is too large becomes infinite, NaN stays NaN.
inline std::uint16_t f16_of(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const float size = std::abs(x);
  std::uint32_t out = 0x7e00;
  if (size >= 65520.0f)
    out = 0x7c00;
  else if (size < 0x1p-14f)
    out = static_cast<std::uint32_t>(std::nearbyint(size * 0x1p24f));
  else if (size == size)
    out = ((bits & 0x7fffffffu) + 0xfff + (bits >> 13 & 1)) / 0x2000 - (112u << 10);
  return static_cast<std::uint16_t>(sign | out);
}

}  // namespace parlando::kernels
