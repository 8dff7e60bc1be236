#pragma once
/// Speed and volume of finished speech, computed by libsox exactly as the official code asks it: `tempo RATIO` and `vol
/// RATIO`.
#include <span>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::tts {

/// @param speed  0.5…2, 1 = unchanged: tempo without change of pitch   @param volume  0.1…10, 1 = unchanged
Result<std::vector<float>> apply_effects(std::span<const float> wave, int rate, double speed, double volume);

}  // namespace parlando::tts
