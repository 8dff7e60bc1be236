#pragma once
/// Rates of the sound that travels between services, and what follows from them. Positions are counted in samples and
/// say so in their names.
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace parlando {

inline constexpr std::int64_t kInputRate = 16000;   ///< Hz, s16le mono, from clients
inline constexpr std::int64_t kSpeechRate = 22050;  ///< Hz, s16le mono, what the vocoder makes
inline constexpr std::size_t kSampleBytes = 2;

/// Samples of input sound in a span of time.
constexpr std::int64_t input_samples(std::chrono::milliseconds span) { return span.count() * kInputRate / 1000; }
/// How long samples of input sound last.
constexpr std::chrono::microseconds input_time(std::int64_t samples) {
  return std::chrono::microseconds(samples * 1000000 / kInputRate);
}

}  // namespace parlando
