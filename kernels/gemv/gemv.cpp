#include "kernels/gemv/gemv.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemv/gemv.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace parlando::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <int kRows>
void rows_f32(const float* HWY_RESTRICT w, std::int64_t columns, const float* HWY_RESTRICT x, float* HWY_RESTRICT y) {
  const hn::ScalableTag<float> d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d)), full = columns / lanes * lanes;
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  const float *w0 = w, *w1 = w + (kRows > 1 ? columns : 0), *w2 = w + (kRows > 2 ? 2 * columns : 0),
              *w3 = w + (kRows > 3 ? 3 * columns : 0);
  for (std::int64_t c = 0; c < full; c += lanes) {
    const auto v = hn::LoadU(d, x + c);
    s0 = hn::MulAdd(hn::LoadU(d, w0 + c), v, s0);
    if constexpr (kRows > 1) {
      s1 = hn::MulAdd(hn::LoadU(d, w1 + c), v, s1);
      s2 = hn::MulAdd(hn::LoadU(d, w2 + c), v, s2);
      s3 = hn::MulAdd(hn::LoadU(d, w3 + c), v, s3);
    }
  }
  float sum[4] = {hn::GetLane(hn::SumOfLanes(d, s0)), hn::GetLane(hn::SumOfLanes(d, s1)),
                  hn::GetLane(hn::SumOfLanes(d, s2)), hn::GetLane(hn::SumOfLanes(d, s3))};
  for (std::int64_t c = full; c < columns; ++c)
    for (int r = 0; r < kRows; ++r) sum[r] += w[r * columns + c] * x[c];
  for (int r = 0; r < kRows; ++r) y[r] = sum[r];
}

void GemvF32(const float* w, std::int64_t rows, std::int64_t columns, const float* x, const float* bias, float* y) {
  std::int64_t r = 0;
  for (; r + 4 <= rows; r += 4) rows_f32<4>(w + r * columns, columns, x, y + r);
  for (; r < rows; ++r) rows_f32<1>(w + r * columns, columns, x, y + r);
  if (bias != nullptr)
    for (r = 0; r < rows; ++r) y[r] += bias[r];
}

constexpr std::int64_t kPanel = 16;

// kP panels times kX input rows: kP·16 outputs of each row stay in registers while the columns stream by.
template <int kP, int kX>
void tile_packed(const float* HWY_RESTRICT packed, std::int64_t columns, const float* HWY_RESTRICT x,
                 float (*HWY_RESTRICT out)[kPanel * 2]) {
  const hn::CappedTag<float, 16> d;
  using V = hn::Vec<decltype(d)>;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::CappedTag<float, 16>())),
                kV = kP * static_cast<int>(kPanel) / kLanes;
  V sum[kV * kX];
  for (auto& s : sum) s = hn::Zero(d);
  const std::int64_t panel = columns * kPanel;
  for (std::int64_t c = 0; c < columns; ++c) {
    V w[kV];
    for (int v = 0; v < kV; ++v)
      w[v] = hn::LoadU(d, packed + (v * kLanes / kPanel) * panel + c * kPanel + v * kLanes % kPanel);
    for (int n = 0; n < kX; ++n) {
      const auto b = hn::Set(d, x[n * columns + c]);
      for (int v = 0; v < kV; ++v) sum[n * kV + v] = hn::MulAdd(w[v], b, sum[n * kV + v]);
    }
  }
  for (int n = 0; n < kX; ++n)
    for (int v = 0; v < kV; ++v) hn::StoreU(sum[n * kV + v], d, out[n] + v * kLanes);
}

template <int kP>
void run_tile(int count, const float* packed, std::int64_t columns, const float* x, float (*out)[kPanel * 2]) {
  switch (count) {
    case 1:
      return tile_packed<kP, 1>(packed, columns, x, out);
    case 2:
      return tile_packed<kP, 2>(packed, columns, x, out);
    case 3:
      return tile_packed<kP, 3>(packed, columns, x, out);
    case 4:
      return tile_packed<kP, 4>(packed, columns, x, out);
    case 5:
      return tile_packed<kP, 5>(packed, columns, x, out);
    case 6:
      return tile_packed<kP, 6>(packed, columns, x, out);
    case 7:
      return tile_packed<kP, 7>(packed, columns, x, out);
    case 8:
      return tile_packed<kP, 8>(packed, columns, x, out);
    default:
      return tile_packed<kP, 9>(packed, columns, x, out);
  }
}

void GemmPackedF32(const float* packed, std::int64_t rows, std::int64_t columns, const float* x, std::int64_t count,
                   const float* bias, float* y) {
  // As many sums as registers allow: 2 panels × 9 rows with 32 wide registers, 1 panel × 5 rows with 16.
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::CappedTag<float, 16>()));
  constexpr int kX = kLanes == 16 ? 9 : kLanes == 8 ? 5 : 2, kP = kLanes == 16 ? 2 : 1;
  const std::int64_t panels = (rows + kPanel - 1) / kPanel, size = columns * kPanel;
  float out[9][kPanel * 2];
  for (std::int64_t p = 0; p < panels;) {
    const std::int64_t wide = kP == 2 && p + 2 <= panels ? 2 : 1, first = p * kPanel,
                       last = std::min(rows, (p + wide) * kPanel);
    for (std::int64_t n = 0; n < count; n += kX) {
      const int take = static_cast<int>(std::min<std::int64_t>(kX, count - n));
      if (wide == 2)
        run_tile<2>(take, packed + p * size, columns, x + n * columns, out);
      else
        run_tile<1>(take, packed + p * size, columns, x + n * columns, out);
      for (int i = 0; i < take; ++i)
        for (std::int64_t r = first; r < last; ++r)
          y[(n + i) * rows + r] = out[i][r - first] + (bias != nullptr ? bias[r] : 0.0f);
    }
    p += wide;
  }
}

const char* Target() { return hwy::TargetName(HWY_TARGET); }

}  // namespace parlando::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parlando::kernels {
HWY_EXPORT(GemvF32);
HWY_EXPORT(GemmPackedF32);
HWY_EXPORT(Target);

void gemv_f32(const float* w, std::int64_t rows, std::int64_t columns, const float* x, const float* bias, float* y) {
  HWY_DYNAMIC_DISPATCH(GemvF32)(w, rows, columns, x, bias, y);
}
void gemm_packed_f32(const float* packed, std::int64_t rows, std::int64_t columns, const float* x, std::int64_t count,
                     const float* bias, float* y) {
  HWY_DYNAMIC_DISPATCH(GemmPackedF32)(packed, rows, columns, x, count, bias, y);
}
std::int64_t packed_size(std::int64_t rows, std::int64_t columns) { return (rows + 15) / 16 * 16 * columns; }
void pack_f32(const float* w, std::int64_t rows, std::int64_t columns, float* packed) {
  for (std::int64_t p = 0; p < (rows + 15) / 16; ++p)
    for (std::int64_t c = 0; c < columns; ++c)
      for (std::int64_t i = 0; i < 16; ++i) *packed++ = p * 16 + i < rows ? w[(p * 16 + i) * columns + c] : 0.0f;
}
const char* gemv_target() { return HWY_DYNAMIC_DISPATCH(Target)(); }

void gemv_reference(const float* w, std::int64_t rows, std::int64_t columns, const float* x, const float* bias,
                    double* y) {
  for (std::int64_t r = 0; r < rows; ++r) {
    double sum = bias != nullptr ? bias[r] : 0.0;
    for (std::int64_t c = 0; c < columns; ++c) sum += static_cast<double>(w[r * columns + c]) * x[c];
    y[r] = sum;
  }
}
}  // namespace parlando::kernels
#endif
