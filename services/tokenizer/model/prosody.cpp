#include "services/tokenizer/model/prosody.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace parlando::tokenizer {

namespace {

// At 8 kHz: frames of 40 ms every 20 ms; pitch from 60 to 400 Hz.
constexpr int kRate = 8000, kFrame = 320, kHop = 160, kFramesPerRow = 3;
constexpr int kLagMin = 20, kLagMax = 133;
constexpr double kLagCost = 0.001;  // of two lags that fit as well the shorter one is the period
constexpr double kVoiced = 0.5;     // autocorrelation of a frame with a pitch
constexpr double kLoudShare = 0.95, kDecibelsPerUnit = 20, kSoftest = -3, kLoudest = 0.5, kVoicedLoud = -1.75;
constexpr double kOctavesMax = 1.5;

struct Frame {
  double decibels = 0, octaves = 0, clarity = 0;
};

using Window = std::array<float, kFrame>;
using Lags = std::array<float, kLagMax + 1>;

/// Each lag is a sum of its own, so that they are added side by side.
Lags autocorrelation(const Window& x) {
  std::array<float, kFrame + kLagMax> reversed{};
  std::reverse_copy(x.begin(), x.end(), reversed.begin());
  Lags out{};
  for (std::size_t i = 0; i < kFrame; ++i)
    for (std::size_t lag = 0; lag <= kLagMax; ++lag) out[lag] += x[i] * reversed[kFrame - 1 - i + lag];
  return out;
}

struct Shape {
  Window window;
  Lags lags;  ///< its own autocorrelation, by which that of a frame is divided
  Shape() : window(), lags() {
    for (int i = 0; i < kFrame; ++i)
      window[static_cast<std::size_t>(i)] =
          static_cast<float>(0.5 - 0.5 * std::cos(2 * std::numbers::pi * i / (kFrame - 1)));
    lags = autocorrelation(window);
    for (int lag = kLagMax; lag >= 0; --lag) lags[static_cast<std::size_t>(lag)] /= lags[0];
  }
};

Frame frame_of(const float* from) {
  static const Shape shape;
  Window x;
  double mean = 0, power = 0;
  for (int i = 0; i < kFrame; ++i) mean += from[i];
  mean /= kFrame;
  for (int i = 0; i < kFrame; ++i) {
    const auto value = from[i] - mean;
    power += value * value;
    x[static_cast<std::size_t>(i)] = static_cast<float>(value) * shape.window[static_cast<std::size_t>(i)];
  }
  const auto lags = autocorrelation(x);
  const auto fits = [&](int lag) {
    const auto k = static_cast<std::size_t>(lag);
    return static_cast<double>(lags[k]) / (lags[0] + 1e-6) / shape.lags[k];
  };
  int best = kLagMin;
  for (int lag = kLagMin; lag < kLagMax; ++lag)
    if (fits(lag) - kLagCost * lag > fits(best) - kLagCost * best) best = lag;
  // The period between two samples: the top of a parabola.
  const auto middle = std::clamp(best, kLagMin + 1, kLagMax - 2);
  const auto a = fits(middle - 1), b = fits(middle), c = fits(middle + 1);
  const auto bend = a - 2 * b + c;
  const auto shift = std::abs(bend) < 1e-9 ? 0.0 : std::clamp(0.5 * (a - c) / bend, -1.0, 1.0);
  return {10 * std::log10(power / kFrame + 1e-9), std::log2(kRate / (middle + shift)), fits(best)};
}

/// The value that a share of them lies below. @pre values is not empty
double share_of(std::vector<double> values, double share) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

}  // namespace

std::vector<float> prosody_of(std::span<const float> wave, std::int64_t rows) {
  const auto count = static_cast<std::size_t>(rows) * kFramesPerRow;
  if (count == 0) return {};
  const auto needed = (count - 1) * kHop + kFrame;
  std::vector<float> sound(needed, 0.0f);
  const auto known = std::min(needed, wave.size() / 2);
  for (std::size_t i = 0; i < known; ++i) {
    const auto* pair = wave.data() + (wave.size() - 2 * (known - i));
    sound[needed - known + i] = 0.5f * (pair[0] + pair[1]);
  }
  std::vector<Frame> frames;
  std::vector<double> levels, pitches;
  for (std::size_t k = 0; k < count; ++k) {
    frames.push_back(frame_of(sound.data() + k * kHop));
    levels.push_back(frames.back().decibels);
  }
  const auto top = share_of(levels, kLoudShare);
  const auto loudness = [&](const Frame& f) {
    return std::clamp((f.decibels - top) / kDecibelsPerUnit, kSoftest, kLoudest);
  };
  const auto has_voice = [&](const Frame& f) { return f.clarity > kVoiced && loudness(f) > kVoicedLoud; };
  for (const auto& f : frames)
    if (has_voice(f)) pitches.push_back(f.octaves);
  const auto middle = pitches.empty() ? 0 : share_of(pitches, 0.5);
  std::vector<float> out(static_cast<std::size_t>(rows * kProsodyWidth));
  for (std::size_t k = 0; k < count; ++k) {
    auto* row = out.data() + k / kFramesPerRow * kProsodyWidth + k % kFramesPerRow;
    const bool voice = has_voice(frames[k]);
    row[0] = static_cast<float>(loudness(frames[k]) + kLoudest);
    row[kFramesPerRow] =
        voice ? static_cast<float>(2 * std::clamp(frames[k].octaves - middle, -kOctavesMax, kOctavesMax)) : 0.0f;
    row[2 * kFramesPerRow] = voice ? 1.0f : 0.0f;
  }
  return out;
}

}  // namespace parlando::tokenizer
