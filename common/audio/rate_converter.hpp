#pragma once
/// Another sample rate for sound that comes in pieces, for ears rather than models (whose front ends use
/// `resampler.hpp`): a polyphase windowed sinc, 32 zero crossings to each side under a Kaiser window of 80 dB, flat to
/// 84 % of the lower Nyquist frequency. Output sample n stands at the time of input sample n · source / target, so that
/// positions on both sides are exact.
///
/// Not libsoxr: that works in blocks and holds back 37 ms of 24 kHz and 118 ms of 8 kHz, at any of its qualities; this
/// holds back 32 samples of the lower rate (1.5 to 4.3 ms) and costs less.
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace parlando::audio {

class RateConverter {
 public:
  /// @param source, target  Hz, both > 0; equal rates copy
  RateConverter(int source, int target);

  /// s16 samples in, those that are final out. Any way of cutting the input gives the same output.
  std::vector<std::int16_t> push(std::span<const std::int16_t> samples);
  /// The rest, as if silence followed: altogether as many samples as last as long as the input did, rounded up. The
  /// object is then at its start again.
  std::vector<std::int16_t> finish();
  /// Forgets what came so far.
  void clear();

  struct Kernel;

 private:
  std::vector<std::int16_t> drain(std::int64_t outputs);
  std::shared_ptr<const Kernel> kernel_;  ///< shared by all converters of a pair of rates; none: equal rates
  std::vector<float> held_;               ///< input from position `first_` on
  std::int64_t first_ = 0, received_ = 0, emitted_ = 0;
};

}  // namespace parlando::audio
