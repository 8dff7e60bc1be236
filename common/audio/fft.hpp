#pragma once
/// Discrete Fourier transform of real frames in double precision, any length with factors 2, 3 and 5.
#include <complex>
#include <span>
#include <vector>

namespace parlando::audio {

class RealFft {
 public:
  explicit RealFft(int size);
  int size() const { return size_; }
  /// |X_k|² for k = 0 … size/2. `frame` holds at most `size` samples; the rest is zero.
  void power(std::span<const float> frame, std::span<double> out);

 private:
  void transform(const std::complex<double>* in, std::complex<double>* out, int n, int stride) const;
  int size_;
  std::vector<std::complex<double>> twiddle_, in_, out_;
};

}  // namespace parlando::audio
