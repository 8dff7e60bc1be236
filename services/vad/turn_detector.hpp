#pragma once
/// Finds where a user starts and stops speaking, from one speech probability per 32 ms frame. No clock: time is counted
/// in samples.
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "common/config/fields.hpp"

namespace parlando::vad {

struct TurnConfig {
  /// Hysteresis: speech starts above the first and goes on above the second.
  double onset_probability = 0.5;
  double offset_probability = 0.35;
  int onset_frames = 2;  ///< consecutive frames that start a segment
  int silence_ms = 500;  ///< silence that ends a turn, to the nearest frame
  /// The network hears speech for so long behind its end (median of the bundled questions): it counts as silence.
  int lag_ms = 108;
  int pause_ms = 96;         ///< silence that is told as a pause, less than silence_ms; 0: none is
  int pause_again_ms = 480;  ///< and told once more when it has lasted for so long; 0: it is not
  template <class V>
  void fields(V&& v) {
    v("onset_probability", onset_probability);
    v("offset_probability", offset_probability);
    v("onset_frames", onset_frames);
    v("silence_ms", silence_ms);
    v("lag_ms", lag_ms);
    v("pause_ms", pause_ms);
    v("pause_again_ms", pause_again_ms);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
  /// Samples of silence, in whole frames, that end a turn, and behind which a pause is told again: where both are as
  /// many the turn ends, and nothing is told again.
  std::int64_t end_samples() const;
  std::int64_t again_samples() const;
};

struct TurnEvent {
  /// A pause is where speech has ended if nothing follows; `resumed` or `ended` does. The same one again: it lasts.
  enum class Kind { started, paused, resumed, ended } kind;
  std::int64_t sample;
};

class TurnDetector {
 public:
  explicit TurnDetector(TurnConfig config) : config_(config) {}
  /// The probability of the frame [first, first + 512).
  std::optional<TurnEvent> push(float probability, std::int64_t first);
  /// The user says it is over. @param end_sample  speech does not end behind it (nor before it started)
  /// @return where speech ended, or nothing when there was none
  std::optional<TurnEvent> flush(std::int64_t end_sample = std::numeric_limits<std::int64_t>::max());
  bool speaking() const { return speaking_; }

 private:
  TurnConfig config_;
  bool speaking_ = false, paused_ = false, told_again_ = false;
  int run_ = 0;
  std::int64_t begun_ = 0;
  std::int64_t last_ = 0;  ///< end of the last frame with speech
};

}  // namespace parlando::vad
