#include "common/audio/front_end.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace parlando::audio {

std::vector<float> kaldi_mel_filters(int bins, int rate, int n_fft, double low, double high) {
  // In float32 like torchaudio, whose table the models were trained with.
  auto mel = [](float f) { return 1127.0f * std::log(1.0f + f / 700.0f); };
  const double from = 1127.0 * std::log(1.0 + low / 700.0),
               step = (1127.0 * std::log(1.0 + high / 700.0) - from) / (bins + 1);
  std::vector<float> out(static_cast<std::size_t>(bins) * (n_fft / 2), 0.0f);
  for (int b = 0; b < bins; ++b) {
    auto edge = [&](int n) { return static_cast<float>(from) + static_cast<float>(n) * static_cast<float>(step); };
    const float left = edge(b), centre = edge(b + 1), right = edge(b + 2);
    for (int k = 0; k < n_fft / 2; ++k) {
      const float m = mel(static_cast<float>(rate / static_cast<double>(n_fft)) * static_cast<float>(k));
      out[static_cast<std::size_t>(b) * (n_fft / 2) + k] =
          std::max(0.0f, std::min((m - left) / (centre - left), (right - m) / (right - centre)));
    }
  }
  return out;
}

std::vector<float> slaney_mel_filters(int bins, int rate, int n_fft, double low, double high) {
  const double linear = 200.0 / 3.0, knee = 1000.0, knee_mel = knee / linear, log_step = std::log(6.4) / 27.0;
  auto to_mel = [&](double f) { return f < knee ? f / linear : knee_mel + std::log(f / knee) / log_step; };
  auto to_hz = [&](double m) { return m < knee_mel ? m * linear : knee * std::exp(log_step * (m - knee_mel)); };
  std::vector<double> edge(bins + 2);
  for (int i = 0; i < bins + 2; ++i) edge[i] = to_hz(to_mel(low) + (to_mel(high) - to_mel(low)) * i / (bins + 1));
  const int columns = n_fft / 2 + 1;
  std::vector<float> out(static_cast<std::size_t>(bins) * columns, 0.0f);
  for (int b = 0; b < bins; ++b) {
    const double area = 2.0 / (edge[b + 2] - edge[b]);
    for (int k = 0; k < columns; ++k) {
      const double f = static_cast<double>(k) * rate / n_fft;
      const double w =
          std::min((f - edge[b]) / (edge[b + 1] - edge[b]), (edge[b + 2] - f) / (edge[b + 2] - edge[b + 1]));
      out[static_cast<std::size_t>(b) * columns + k] = static_cast<float>(std::max(0.0, w) * area);
    }
  }
  return out;
}

namespace {
/// Range of non-zero weights per filter, so that a row costs what its triangle covers.
void ranges_of(const std::vector<float>& filters, int bins, int columns, std::vector<int>& first,
               std::vector<int>& last) {
  first.assign(bins, columns);
  last.assign(bins, 0);
  for (int b = 0; b < bins; ++b)
    for (int k = 0; k < columns; ++k)
      if (filters[static_cast<std::size_t>(b) * columns + k] != 0.0f) {
        first[b] = std::min(first[b], k);
        last[b] = k + 1;
      }
}

double weighted(const std::vector<float>& filters, int columns, int bin, int first, int last,
                std::span<const double> power) {
  double sum = 0;
  for (int k = first; k < last; ++k)
    sum += static_cast<double>(filters[static_cast<std::size_t>(bin) * columns + k]) * power[k];
  return sum;
}

std::vector<float> reflect_padded(std::span<const float> wave, int pad) {
  std::vector<float> out(wave.size() + 2 * static_cast<std::size_t>(pad));
  for (int i = 0; i < pad; ++i) {
    out[pad - 1 - i] = wave[i + 1];
    out[pad + wave.size() + i] = wave[wave.size() - 2 - i];
  }
  std::copy(wave.begin(), wave.end(), out.begin() + pad);
  return out;
}
}  // namespace

struct Fbank::Tables {
  std::vector<float> window = std::vector<float>(kFrame), filters = kaldi_mel_filters();
  std::vector<int> first, last;
  explicit Tables(FbankWindow shape) {
    for (int n = 0; n < kFrame; ++n) {
      const double c = std::cos(2.0 * std::numbers::pi * n / (kFrame - 1));
      window[n] = static_cast<float>(shape == FbankWindow::hamming ? 0.54 - 0.46 * c : std::pow(0.5 - 0.5 * c, 0.85));
    }
    ranges_of(filters, kBins, 256, first, last);
  }
};

Fbank::Fbank(FbankWindow window, float scale) : scale_(scale) {
  static const auto hamming = std::make_shared<const Tables>(FbankWindow::hamming),
                    povey = std::make_shared<const Tables>(FbankWindow::povey);
  tables_ = window == FbankWindow::hamming ? hamming : povey;
}

Features Fbank::operator()(std::span<const float> wave) {
  Features out{frames_of(wave.size()), kBins, {}};
  out.values.resize(static_cast<std::size_t>(out.frames) * kBins);
  const auto& t = *tables_;
  float frame[kFrame];
  double power[257];
  for (int f = 0; f < out.frames; ++f) {
    double mean = 0;
    for (int i = 0; i < kFrame; ++i) mean += frame[i] = wave[static_cast<std::size_t>(f) * kShift + i] * scale_;
    mean /= kFrame;
    for (int i = 0; i < kFrame; ++i) frame[i] -= static_cast<float>(mean);
    for (int i = kFrame - 1; i > 0; --i) frame[i] = (frame[i] - 0.97f * frame[i - 1]) * t.window[i];
    frame[0] = (frame[0] - 0.97f * frame[0]) * t.window[0];
    fft_.power({frame, kFrame}, power);
    for (int b = 0; b < kBins; ++b)
      out.values[static_cast<std::size_t>(f) * kBins + b] = static_cast<float>(
          std::log(std::max(weighted(t.filters, 256, b, t.first[b], t.last[b], power), 1.1920928955078125e-7)));
  }
  return out;
}

std::vector<float> whisper_log_power(std::span<const float> wave, int from, int to) {
  constexpr int kFft = 400, kHop = 160, kBins = 128, kColumns = 201;
  struct Tables {
    std::vector<float> filters = slaney_mel_filters(kBins, 16000, kFft);
    std::vector<int> first, last;
    float window[kFft];
    Tables() {
      ranges_of(filters, kBins, kColumns, first, last);
      for (int i = 0; i < kFft; ++i)
        window[i] = static_cast<float>(0.5 - 0.5 * std::cos(2.0 * std::numbers::pi * i / kFft));
    }
  };
  static const Tables tables;
  const auto n = static_cast<std::int64_t>(wave.size());
  RealFft fft(kFft);
  float frame[kFft];
  double power[kColumns];
  std::vector<float> out(static_cast<std::size_t>(to - from) * kBins);
  for (int f = from; f < to; ++f) {
    for (int i = 0; i < kFft; ++i) {
      auto at = static_cast<std::int64_t>(f) * kHop + i - kFft / 2;
      if (at < 0) at = -at;
      if (at >= n) at = 2 * (n - 1) - at;
      frame[i] = wave[static_cast<std::size_t>(at)] * tables.window[i];
    }
    fft.power({frame, kFft}, power);
    for (int b = 0; b < kBins; ++b) {
      const double sum = weighted(tables.filters, kColumns, b, tables.first[b], tables.last[b], power);
      out[static_cast<std::size_t>(f - from) * kBins + b] = static_cast<float>(std::log10(std::max(sum, 1e-30)));
    }
  }
  return out;
}

float whisper_scale(std::span<float> power, float gain, float top) {
  for (float& v : power) top = std::max(top, v);
  const float floor = std::max(top + gain - 8.0f, kWhisperFloor);
  for (float& v : power) v = (std::max(v + gain, floor) + 4.0f) / 4.0f;
  return top;
}

Features whisper_log_mel(std::span<const float> wave) {
  Features out{static_cast<int>(wave.size() / 160), 128, {}};
  if (wave.size() <= 200) return Features{0, 128, {}};
  out.values = whisper_log_power(wave, 0, out.frames);
  whisper_scale(out.values, 0, kWhisperFloor);
  return out;
}

Features prompt_mel(std::span<const float> wave) {
  constexpr int kFft = 1024, kHop = 256, kBins = 80, kColumns = 513, kPad = 384;
  static const std::vector<float> filters = slaney_mel_filters(kBins, 22050, kFft);
  std::vector<int> first, last;
  ranges_of(filters, kBins, kColumns, first, last);
  Features out{static_cast<int>(wave.size() / kHop), kBins, {}};
  if (wave.size() <= kPad) return Features{0, kBins, {}};
  const auto padded = reflect_padded(wave, kPad);
  std::vector<float> window(kFft), frame(kFft);
  for (int i = 0; i < kFft; ++i)
    window[i] = static_cast<float>(0.5 - 0.5 * std::cos(2.0 * std::numbers::pi * i / kFft));
  RealFft fft(kFft);
  std::vector<double> power(kColumns);
  out.values.resize(static_cast<std::size_t>(out.frames) * kBins);
  for (int f = 0; f < out.frames; ++f) {
    for (int i = 0; i < kFft; ++i) frame[i] = padded[static_cast<std::size_t>(f) * kHop + i] * window[i];
    fft.power(frame, power);
    for (auto& p : power) p = std::sqrt(p + 1e-9);
    for (int b = 0; b < kBins; ++b)
      out.values[static_cast<std::size_t>(f) * kBins + b] =
          static_cast<float>(std::log(std::max(weighted(filters, kColumns, b, first[b], last[b], power), 1e-5)));
  }
  return out;
}

void peak_normalise(std::span<float> wave) {
  float peak = 0.01f;
  for (const float x : wave) peak = std::max(peak, std::fabs(x));
  for (float& x : wave) x = x / peak * 0.999f;
}

Trimmed trim_silence(std::span<const float> wave) {
  constexpr int kFrame = 512, kHop = 128;
  const auto n = static_cast<std::int64_t>(wave.size());
  const auto frames = 1 + n / kHop;
  std::vector<double> rms(frames);
  double top = 0;
  for (std::int64_t f = 0; f < frames; ++f) {
    double sum = 0;
    for (std::int64_t i = f * kHop - kFrame / 2; i < f * kHop + kFrame / 2; ++i)
      if (i >= 0 && i < n) sum += static_cast<double>(wave[i]) * wave[i];
    rms[f] = std::sqrt(sum / kFrame);
    top = std::max(top, rms[f]);
  }
  const double reference = 20 * std::log10(std::max(top, 1e-5));
  std::int64_t first = -1, last = -1;
  for (std::int64_t f = 0; f < frames; ++f)
    if (20 * std::log10(std::max(rms[f], 1e-5)) - reference > -20.0) {
      if (first < 0) first = f;
      last = f;
    }
  Trimmed out;
  out.start = static_cast<std::size_t>(std::max<std::int64_t>(0, first) * kHop);
  out.end = static_cast<std::size_t>(std::min(n, (last + 1) * kHop));
  const auto frames_kept = (static_cast<std::int64_t>(out.end) - static_cast<std::int64_t>(out.start) + 239) / 240;
  const auto skip = static_cast<std::int64_t>(out.start) - 800;
  out.wave.assign(static_cast<std::size_t>(240 * frames_kept + 4320), 0.0f);
  for (std::size_t i = 0; i < out.wave.size(); ++i) {
    const auto at = skip + static_cast<std::int64_t>(i);
    if (at >= 0 && at < n) out.wave[i] = wave[at];
  }
  return out;
}

}  // namespace parlando::audio
