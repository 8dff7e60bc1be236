#pragma once
/// How something is said, beside what is said: loudness, pitch and voicing of the latest sound, in rows of 60 ms as the
/// linguistic encoder has them. Whether a sentence is over is heard in its melody as much as in its words, and the
/// encoder's states hold little of it. All values are relative (to the loudest moments, to the middle of the pitch), so
/// that level and voice do not matter. Plain arithmetic in a fixed order: the same sound gives the same values.
#include <cstdint>
#include <span>
#include <vector>

namespace parlando::tokenizer {

inline constexpr std::int64_t kProsodyWidth = 9;

/// @param wave  mono at 16 kHz up to the moment that is asked about; what is before its begin counts as silence
/// @return [rows, 9], the latest sound in the last row: of three frames of 20 ms loudness (0.5: loud, −2.5: 60 dB
///     below), pitch (half octaves from the middle, 0 without voice) and voice (0 or 1)
std::vector<float> prosody_of(std::span<const float> wave, std::int64_t rows);

}  // namespace parlando::tokenizer
