#include "common/audio/fft.hpp"

#include <numbers>

#include "common/base/assert.hpp"

namespace parlando::audio {

RealFft::RealFft(int size) : size_(size), twiddle_(size), in_(size), out_(size) {
  int rest = size;
  for (const int factor : {2, 3, 5})
    while (rest % factor == 0) rest /= factor;
  PARLANDO_ASSERT(size > 0 && rest == 1, "only factors 2, 3 and 5 are implemented");
  for (int k = 0; k < size; ++k) twiddle_[k] = std::polar(1.0, -2.0 * std::numbers::pi * k / size);
}

void RealFft::transform(const std::complex<double>* in, std::complex<double>* out, int n, int stride) const {
  if (n == 1) {
    out[0] = in[0];
    return;
  }
  const int p = n % 2 == 0 ? 2 : n % 3 == 0 ? 3 : 5, m = n / p, step = size_ / n;
  for (int r = 0; r < p; ++r) transform(in + r * stride, out + r * m, m, stride * p);
  std::complex<double> part[5];
  for (int k = 0; k < m; ++k) {
    for (int r = 0; r < p; ++r) part[r] = out[r * m + k] * twiddle_[static_cast<std::size_t>(r) * k * step % size_];
    if (p == 2) {
      out[k] = part[0] + part[1];
      out[k + m] = part[0] - part[1];
      continue;
    }
    for (int q = 0; q < p; ++q) {
      std::complex<double> sum = part[0];
      for (int r = 1; r < p; ++r) sum += part[r] * twiddle_[static_cast<std::size_t>(r) * q * m * step % size_];
      out[k + q * m] = sum;
    }
  }
}

void RealFft::power(std::span<const float> frame, std::span<double> out) {
  for (int i = 0; i < size_; ++i) in_[i] = i < static_cast<int>(frame.size()) ? frame[i] : 0.0f;
  transform(in_.data(), out_.data(), size_, 1);
  for (int k = 0; k <= size_ / 2; ++k) out[k] = std::norm(out_[k]);
}

}  // namespace parlando::audio
