#pragma once
/// Speed and volume of finished speech, computed by libsox exactly as the official code asks it: `tempo RATIO` and `vol
/// RATIO`.
#include <memory>
#include <span>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::tts {

/// @param speed  0.5…2, 1 = unchanged: tempo without change of pitch   @param volume  0.1…10, 1 = unchanged
Result<std::vector<float>> apply_effects(std::span<const float> wave, int rate, double speed, double volume);

/// The same for sound that comes in parts. How it is cut has no influence on what comes out, so that a place in the
/// result means the same whoever makes it. Not for two threads at a time.
class EffectStream {
 public:
  /// @param speed  0.25…4   @param volume  0.1…10   @error Errc::invalid_argument
  static Result<std::unique_ptr<EffectStream>> make(int rate, double speed, double volume);
  ~EffectStream();
  /// @param last  nothing follows: what is held back comes, too. @error Errc::internal
  Result<std::vector<float>> push(std::span<const float> wave, bool last);

 private:
  struct Impl;
  explicit EffectStream(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace parlando::tts
