#pragma once
/// Windowed-sinc resampling exactly as the reference front ends do it (torchaudio's `Resample` defaults: Hann, width 6,
/// roll-off 0.99).
#include <cstdint>
#include <span>
#include <vector>

namespace parlando::audio {

/// Kernel of a rate pair: `phases` rows of `taps` values, read at offset −`width` from each block of `block` input
/// samples.
struct ResampleKernel {
  int block = 1, phases = 1, width = 0, taps = 0;
  std::vector<float> values;     ///< [phases, taps], zeros included
  std::vector<int> first, last;  ///< per phase: range of taps that are not zero
};

/// Whether a kernel of these rates is of a sane size: two rates without a common measure need as many values as their
/// product (11025 to 16000 Hz: 0.3 million; 44101 to 16000 Hz: 700 million). Whoever takes recordings of strangers
/// asks.
bool can_resample(int source, int target);

/// @param source, target  rates in Hz, both > 0
ResampleKernel make_resample_kernel(int source, int target);

/// [n] at `source` Hz -> [ceil(target·n/source)] at `target` Hz. Equal rates copy.
std::vector<float> resample(std::span<const float> wave, int source, int target);

/// The same in pieces: any way of cutting the input gives the same output.
class StreamResampler {
 public:
  StreamResampler(int source, int target);
  /// Output that is final so far; about `width` input samples are held back.
  std::vector<float> push(std::span<const float> wave);
  /// The rest, as if zeros followed; the object is then at its start again.
  std::vector<float> finish();

 private:
  std::vector<float> drain(std::size_t inputs_total);
  ResampleKernel kernel_;
  std::vector<float> held_;
  std::size_t dropped_ = 0, received_ = 0, emitted_ = 0;
};

}  // namespace parlando::audio
