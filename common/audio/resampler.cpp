#include "common/audio/resampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <numeric>

#include "common/base/assert.hpp"

namespace parlando::audio {

bool can_resample(int source, int target) {
  constexpr std::int64_t kKernelMax = 1 << 20;
  const auto measure = std::gcd(source, target);
  return source > 0 && target > 0 && std::int64_t{source / measure} * (target / measure) <= kKernelMax;
}

ResampleKernel make_resample_kernel(int source, int target) {
  PARLANDO_ASSERT(source > 0 && target > 0, "rates are checked by the callers");
  const int g = std::gcd(source, target);
  ResampleKernel k;
  k.block = source / g;
  k.phases = target / g;
  const double base = std::min(k.block, k.phases) * 0.99;
  k.width = static_cast<int>(std::ceil(6.0 * k.block / base));
  k.taps = 2 * k.width + k.block;
  k.values.resize(static_cast<std::size_t>(k.phases) * k.taps);
  k.first.assign(k.phases, k.taps);
  k.last.assign(k.phases, 0);
  for (int p = 0; p < k.phases; ++p) {
    // torchaudio divides integer tensors here, which gives float32.
    const double shift = -static_cast<double>(static_cast<float>(p) / static_cast<float>(k.phases));
    for (int j = 0; j < k.taps; ++j) {
      const double t = std::clamp((shift + static_cast<double>(j - k.width) / k.block) * base, -6.0, 6.0);
      const double c = std::cos(std::numbers::pi * t / 12.0), x = std::numbers::pi * t;
      const double value = (x == 0.0 ? 1.0 : std::sin(x) / x) * c * c * base / k.block;
      k.values[static_cast<std::size_t>(p) * k.taps + j] = static_cast<float>(value);
      if (static_cast<float>(value) != 0.0f) {
        k.first[p] = std::min(k.first[p], j);
        k.last[p] = j + 1;
      }
    }
  }
  return k;
}

StreamResampler::StreamResampler(int source, int target) : kernel_(make_resample_kernel(source, target)) {}

std::vector<float> StreamResampler::drain(std::size_t inputs_total) {
  // Output m·phases + p reads input positions m·block + j − width, j < taps.
  std::vector<float> out;
  const auto& k = kernel_;
  while (true) {
    const auto m = static_cast<std::int64_t>(emitted_ / k.phases);
    const int p = static_cast<int>(emitted_ % k.phases);
    const std::int64_t start = m * k.block - k.width;
    if (start + k.last[p] > static_cast<std::int64_t>(inputs_total)) break;
    double sum = 0;
    const float* taps = k.values.data() + static_cast<std::size_t>(p) * k.taps;
    const auto from = std::max<std::int64_t>(k.first[p], static_cast<std::int64_t>(dropped_) - start);
    const auto to = std::min<std::int64_t>(k.last[p], static_cast<std::int64_t>(dropped_ + held_.size()) - start);
    for (std::int64_t j = from; j < to; ++j)
      sum += static_cast<double>(taps[j]) * held_[static_cast<std::size_t>(start + j) - dropped_];
    out.push_back(static_cast<float>(sum));
    ++emitted_;
  }
  const std::int64_t need = static_cast<std::int64_t>(emitted_ / k.phases) * k.block - k.width;
  if (need > static_cast<std::int64_t>(dropped_)) {
    const auto count = std::min(held_.size(), static_cast<std::size_t>(need) - dropped_);
    held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(count));
    dropped_ += count;
  }
  return out;
}

std::vector<float> StreamResampler::push(std::span<const float> wave) {
  if (kernel_.block == kernel_.phases) return {wave.begin(), wave.end()};
  held_.insert(held_.end(), wave.begin(), wave.end());
  received_ += wave.size();
  return drain(received_);
}

std::vector<float> StreamResampler::finish() {
  std::vector<float> out;
  if (kernel_.block != kernel_.phases) {
    const std::size_t total = (received_ * kernel_.phases + kernel_.block - 1) / kernel_.block;
    const std::size_t before = emitted_;
    out = drain(received_ + kernel_.taps + kernel_.block);
    out.resize(total - before);
  }
  held_.clear();
  dropped_ = received_ = emitted_ = 0;
  return out;
}

std::vector<float> resample(std::span<const float> wave, int source, int target) {
  if (source == target) return {wave.begin(), wave.end()};
  StreamResampler stream(source, target);
  auto out = stream.push(wave);
  const auto rest = stream.finish();
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
}

}  // namespace parlando::audio
