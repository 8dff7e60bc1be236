#pragma once
/// 16-bit PCM on the wire and float samples in [-1, 1] inside. Little-endian, as every machine we run on.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace parlando {

inline std::vector<float> from_pcm16(std::span<const std::byte> bytes) {
  std::vector<float> out(bytes.size() / 2);
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::int16_t v;
    std::memcpy(&v, bytes.data() + 2 * i, 2);
    out[i] = static_cast<float>(v) / 32768.0f;
  }
  return out;
}

inline std::vector<std::byte> to_pcm16(std::span<const float> samples) {
  std::vector<std::byte> out(2 * samples.size());
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const auto v = static_cast<std::int16_t>(std::lround(std::clamp(samples[i], -1.0f, 1.0f) * 32767.0f));
    std::memcpy(out.data() + 2 * i, &v, 2);
  }
  return out;
}

/// Plain values as bytes, and back; a length that does not fit the type loses its tail.
template <class T>
std::vector<std::byte> to_bytes(std::span<const T> values) {
  const auto b = std::as_bytes(values);
  return {b.begin(), b.end()};
}
template <class T>
std::vector<T> from_bytes(std::span<const std::byte> bytes) {
  std::vector<T> out(bytes.size() / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
  return out;
}

}  // namespace parlando
