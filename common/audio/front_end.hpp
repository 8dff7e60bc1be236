#pragma once
/// Spectral front ends of the models and the preprocessing in front of them. Waves are float32 in [-1, 1], mono.
/// Source: docs/tokenizer.md §3–§5 (linguistic, semantic), docs/vocoder.md §3 (speaker encoder, prompt mel).
#include <memory>
#include <span>
#include <vector>

#include "common/audio/fft.hpp"

namespace parlando::audio {

/// Row-major matrix of features.
struct Features {
  int frames = 0, bins = 0;
  std::vector<float> values;
  std::span<const float> row(int frame) const {
    return {values.data() + static_cast<std::size_t>(frame) * bins, static_cast<std::size_t>(bins)};
  }
};

/// [bins, bins_fft] triangles that are linear on the Kaldi mel axis, 20 Hz to 8 kHz; the Nyquist bin is not covered
/// (n_fft/2 columns).
std::vector<float> kaldi_mel_filters(int bins = 80, int rate = 16000, int n_fft = 512, double low = 20,
                                     double high = 8000);
/// [bins, n_fft/2+1] Slaney filters with Slaney area normalisation.
std::vector<float> slaney_mel_filters(int bins, int rate, int n_fft, double low = 0, double high = 8000);

enum class FbankWindow { hamming, povey };

/// Kaldi filter bank: frames of 400 every 160, snip edges, no dither. Stateless per frame.
class Fbank {
 public:
  /// @param scale  32768 with `hamming` for the linguistic tokenizer, 1 with `povey` for the speaker encoder
  Fbank(FbankWindow window, float scale);
  static constexpr int kFrame = 400, kShift = 160, kBins = 80;
  static int frames_of(std::size_t samples) {
    return samples < kFrame ? 0 : static_cast<int>((samples - kFrame) / kShift) + 1;
  }
  Features operator()(std::span<const float> wave);

 private:
  struct Tables;
  float scale_;
  std::shared_ptr<const Tables> tables_;
  RealFft fft_{512};
};

/// Whisper log-mel, 128 bins: [frames = n/160, 128]; the floor uses the maximum of the whole piece.
Features whisper_log_mel(std::span<const float> wave16k);

/// What it is made of, for a piece that is still growing: log10 of the power of frames [from, to), which are final when
/// they end 200 samples before the piece does …
std::vector<float> whisper_log_power(std::span<const float> wave16k, int from, int to);
inline constexpr float kWhisperFloor = -10.0f;
/// … and in place the log-mel of it. @param gain  log10 of what its power is multiplied by  @param top  maximum of the
/// piece so far  @return the maximum with these frames, before the gain
float whisper_scale(std::span<float> power, float gain, float top);

/// HiFi-GAN log-mel of a prompt at 22.05 kHz: [n/256, 80]. Needs more than 384 samples.
Features prompt_mel(std::span<const float> wave22k);

/// x / max(max|x|, 0.01) · 0.999 over the whole utterance.
void peak_normalise(std::span<float> wave);

/// Cuts silence at both ends as the reference does: 50 ms before, 220 ms after, length ≡ 4320 (mod 240).
struct Trimmed {
  std::vector<float> wave;
  std::size_t start = 0, end = 0;
};
Trimmed trim_silence(std::span<const float> wave16k);

}  // namespace parlando::audio
