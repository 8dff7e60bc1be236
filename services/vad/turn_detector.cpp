#include "services/vad/turn_detector.hpp"

#include <algorithm>
#include <utility>

namespace parlando::vad {

namespace {
constexpr std::int64_t kFrame = 512;
constexpr std::int64_t kSamplesPerMs = 16;
std::int64_t whole_frames(std::int64_t samples) { return (samples + kFrame - 1) / kFrame * kFrame; }
}  // namespace

std::vector<config::Problem> TurnConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".onset_probability", onset_probability, 0.01, 0.99);
  config::expect_range(out, path + ".offset_probability", offset_probability, 0.01, onset_probability);
  config::expect_range(out, path + ".onset_frames", onset_frames, 1, 50);
  config::expect_range(out, path + ".silence_ms", silence_ms, 32, 10000);
  config::expect_range(out, path + ".lag_ms", lag_ms, 0, 1000);
  config::expect_range(out, path + ".pause_ms", pause_ms, 0, std::max(0, silence_ms - 1));
  config::expect_range(out, path + ".pause_again_ms", pause_again_ms, 0, 10000);
  return out;
}

std::int64_t TurnConfig::end_samples() const {
  return whole_frames(std::max<std::int64_t>(kFrame, (silence_ms - lag_ms) * kSamplesPerMs - kFrame / 2));
}

std::int64_t TurnConfig::again_samples() const { return whole_frames(pause_again_ms * kSamplesPerMs); }

std::optional<TurnEvent> TurnDetector::push(float probability, std::int64_t first) {
  if (!speaking_) {
    run_ = probability >= config_.onset_probability ? run_ + 1 : 0;
    if (run_ == 1) begun_ = first;
    if (run_ < config_.onset_frames) return {};
    speaking_ = true;
    run_ = 0;
    last_ = first + kFrame;
    return TurnEvent{TurnEvent::Kind::started, begun_};
  }
  if (probability >= config_.offset_probability) {
    last_ = first + kFrame;
    if (std::exchange(paused_, false)) return TurnEvent{TurnEvent::Kind::resumed, first};
    return {};
  }
  const auto silence = first + kFrame - last_;
  if (silence >= config_.end_samples()) {
    speaking_ = paused_ = false;
    return TurnEvent{TurnEvent::Kind::ended, last_};
  }
  if (config_.pause_ms == 0 || silence < config_.pause_ms * kSamplesPerMs) return {};
  if (paused_) {
    const bool lasts = config_.pause_again_ms != 0 && silence >= config_.again_samples();
    if (!lasts || std::exchange(told_again_, true)) return {};
  } else {
    paused_ = true;
    told_again_ = false;
  }
  return TurnEvent{TurnEvent::Kind::paused, last_};
}

std::optional<TurnEvent> TurnDetector::flush(std::int64_t end_sample) {
  run_ = 0;
  if (!speaking_) return {};
  speaking_ = paused_ = false;
  return TurnEvent{TurnEvent::Kind::ended, std::clamp(end_sample, begun_, last_)};
}

}  // namespace parlando::vad
