#pragma once
/// bfloat16 as its bits, one number at a time.
#include <cstdint>
#include <cstring>

namespace parlando::kernels {

/// Rounded to the nearest, to even where two are as near. NaN stays NaN.
inline std::uint16_t bf16_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline float float_of_bf16(std::uint16_t h) {
  const auto bits = std::uint32_t{h} << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

}  // namespace parlando::kernels
