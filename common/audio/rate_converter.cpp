#include "common/audio/rate_converter.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <numbers>
#include <numeric>

namespace parlando::audio {

namespace {

constexpr int kCrossings = 32;
constexpr double kCutoff = 0.92;  // of the lower Nyquist frequency: in the middle of the slope
constexpr double kBeta = 7.86;    // Kaiser's, for 80 dB: 0.1102 (80 - 8.7)
constexpr int kLanes = 8;

using Vector = float __attribute__((vector_size(4 * kLanes), aligned(4)));

double bessel0(double x) {
  double sum = 1, term = 1;
  for (int k = 1; term > 1e-12 * sum; ++k) {
    term *= x * x / (4.0 * k * k);
    sum += term;
  }
  return sum;
}

std::int16_t to_sample(float value) {
  return static_cast<std::int16_t>(std::lrint(std::clamp(value, -32768.0f, 32767.0f)));
}

}  // namespace

struct RateConverter::Kernel {
  Kernel(int source, int target) {
    const int common = std::gcd(source, target);
    up = target / common;
    down = source / common;
    const double cutoff = kCutoff * std::min(1.0, static_cast<double>(up) / down);
    width = static_cast<int>(std::ceil(kCrossings * std::max(1.0, static_cast<double>(down) / up)));
    taps = (2 * width + kLanes - 1) / kLanes * kLanes;
    values.resize(static_cast<std::size_t>(up) * taps);
    for (int phase = 0; phase < up; ++phase) {
      double sum = 0;
      auto* row = values.data() + static_cast<std::size_t>(phase) * taps;
      for (int j = 0; j < 2 * width; ++j) {
        const double x = j - (width - 1) - static_cast<double>(phase) / up, t = x / width;
        if (std::abs(t) >= 1) continue;
        const double angle = std::numbers::pi * cutoff * x;
        const double value = (x == 0 ? 1 : std::sin(angle) / angle) * cutoff * bessel0(kBeta * std::sqrt(1 - t * t));
        row[j] = static_cast<float>(value);
        sum += value;
      }
      // Each phase passes a constant unchanged: no hum at the rate of the phases.
      for (int j = 0; j < taps; ++j) row[j] = static_cast<float>(row[j] / sum);
    }
  }
  int up, down, width, taps;  ///< output n reads `taps` inputs from n · down / up - (width - 1) on
  std::vector<float> values;  ///< [up, taps]
};

namespace {

/// A kernel of 160 phases takes a millisecond to make: each pair of rates has one.
std::shared_ptr<const RateConverter::Kernel> kernel_of(int source, int target) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, std::weak_ptr<const RateConverter::Kernel>> known;
  const std::lock_guard lock(mutex);
  auto& entry = known[{source, target}];
  auto kernel = entry.lock();
  if (!kernel) entry = kernel = std::make_shared<const RateConverter::Kernel>(source, target);
  return kernel;
}

}  // namespace

RateConverter::RateConverter(int source, int target) {
  if (source != target) kernel_ = kernel_of(source, target);
  clear();
}

/// Emits up to output number `outputs`; their input is there, or is silence.
std::vector<std::int16_t> RateConverter::drain(std::int64_t outputs) {
  const auto& k = *kernel_;
  std::vector<std::int16_t> out;
  out.reserve(static_cast<std::size_t>(std::max<std::int64_t>(0, outputs - emitted_)));
  for (; emitted_ < outputs; ++emitted_) {
    const auto at = emitted_ * k.down;
    const auto* taps = k.values.data() + static_cast<std::size_t>(at % k.up) * k.taps;
    const auto* in = held_.data() + (at / k.up - (k.width - 1) - first_);
    Vector sums{};
    for (int j = 0; j < k.taps; j += kLanes)
      sums += *reinterpret_cast<const Vector*>(taps + j) * *reinterpret_cast<const Vector*>(in + j);
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
    out.push_back(to_sample(sum));
  }
  const auto next = emitted_ * k.down / k.up - (k.width - 1);
  const auto gone = std::clamp<std::int64_t>(next - first_, 0, static_cast<std::int64_t>(held_.size()));
  held_.erase(held_.begin(), held_.begin() + gone);
  first_ += gone;
  return out;
}

std::vector<std::int16_t> RateConverter::push(std::span<const std::int16_t> samples) {
  if (!kernel_) return {samples.begin(), samples.end()};
  const auto& k = *kernel_;
  held_.insert(held_.end(), samples.begin(), samples.end());
  received_ += static_cast<std::int64_t>(samples.size());
  // Output n needs the inputs before n · down / up - (width - 1) + taps.
  const auto reach = received_ - k.taps + (k.width - 1);
  return drain(reach < 0 ? 0 : reach * k.up / k.down + 1);
}

std::vector<std::int16_t> RateConverter::finish() {
  if (!kernel_) return {};
  const auto& k = *kernel_;
  held_.resize(held_.size() + static_cast<std::size_t>(k.taps + k.down), 0.0f);
  auto out = drain((received_ * k.up + k.down - 1) / k.down);
  clear();
  return out;
}

void RateConverter::clear() {
  if (!kernel_) return;
  first_ = -(kernel_->width - 1);
  held_.assign(static_cast<std::size_t>(kernel_->width - 1), 0.0f);
  received_ = emitted_ = 0;
}

}  // namespace parlando::audio
