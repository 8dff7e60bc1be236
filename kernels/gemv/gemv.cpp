#include "kernels/gemv/gemv.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemv/gemv.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <vector>

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

// Two neighbouring bf16 weights are one 32-bit word: the odd one is its upper half as it stands, the even one its lower
// half shifted up. x comes split into even and odd elements, so no shuffle is needed.
template <int kRows>
void rows_bf16(const std::uint16_t* HWY_RESTRICT w, std::int64_t columns, const float* HWY_RESTRICT even,
               const float* HWY_RESTRICT odd, float* HWY_RESTRICT y) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d)), pairs = columns / 2, full = pairs / lanes * lanes;
  const auto upper = hn::Set(du, 0xffff0000u);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0, t0 = s0, t1 = s0, t2 = s0, t3 = s0;
  const std::uint16_t *w0 = w, *w1 = w + (kRows > 1 ? columns : 0), *w2 = w + (kRows > 2 ? 2 * columns : 0),
                      *w3 = w + (kRows > 3 ? 3 * columns : 0);
  auto word = [&](const std::uint16_t* p) { return hn::LoadU(du, reinterpret_cast<const std::uint32_t*>(p)); };
  for (std::int64_t c = 0; c < full; c += lanes) {
    const auto e = hn::LoadU(d, even + c), o = hn::LoadU(d, odd + c);
    const auto a = word(w0 + 2 * c);
    s0 = hn::MulAdd(hn::BitCast(d, hn::ShiftLeft<16>(a)), e, s0);
    t0 = hn::MulAdd(hn::BitCast(d, hn::And(a, upper)), o, t0);
    if constexpr (kRows > 1) {
      const auto b = word(w1 + 2 * c), f = word(w2 + 2 * c), g = word(w3 + 2 * c);
      s1 = hn::MulAdd(hn::BitCast(d, hn::ShiftLeft<16>(b)), e, s1);
      t1 = hn::MulAdd(hn::BitCast(d, hn::And(b, upper)), o, t1);
      s2 = hn::MulAdd(hn::BitCast(d, hn::ShiftLeft<16>(f)), e, s2);
      t2 = hn::MulAdd(hn::BitCast(d, hn::And(f, upper)), o, t2);
      s3 = hn::MulAdd(hn::BitCast(d, hn::ShiftLeft<16>(g)), e, s3);
      t3 = hn::MulAdd(hn::BitCast(d, hn::And(g, upper)), o, t3);
    }
  }
  float sum[4] = {hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, t0))), hn::GetLane(hn::SumOfLanes(d, hn::Add(s1, t1))),
                  hn::GetLane(hn::SumOfLanes(d, hn::Add(s2, t2))), hn::GetLane(hn::SumOfLanes(d, hn::Add(s3, t3)))};
  auto widen = [](std::uint16_t h) {
    const std::uint32_t bits = static_cast<std::uint32_t>(h) << 16;
    float out;
    __builtin_memcpy(&out, &bits, 4);
    return out;
  };
  for (std::int64_t c = 2 * full; c < columns; ++c)
    for (int r = 0; r < kRows; ++r) sum[r] += widen(w[r * columns + c]) * (c % 2 == 0 ? even : odd)[c / 2];
  for (int r = 0; r < kRows; ++r) y[r] = sum[r];
}

void GemvBf16(const std::uint16_t* w, std::int64_t rows, std::int64_t columns, const float* x, float* y) {
  thread_local std::vector<float> parts;
  const std::int64_t half = (columns + 1) / 2;
  parts.resize(static_cast<std::size_t>(2 * half));
  for (std::int64_t c = 0; c < columns; ++c) parts[static_cast<std::size_t>((c % 2) * half + c / 2)] = x[c];
  const float *even = parts.data(), *odd = parts.data() + half;
  std::int64_t r = 0;
  for (; r + 4 <= rows; r += 4) rows_bf16<4>(w + r * columns, columns, even, odd, y + r);
  for (; r < rows; ++r) rows_bf16<1>(w + r * columns, columns, even, odd, y + r);
}

const char* Target() { return hwy::TargetName(HWY_TARGET); }

}  // namespace parlando::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parlando::kernels {
HWY_EXPORT(GemvF32);
HWY_EXPORT(GemvBf16);
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
void gemv_bf16(const std::uint16_t* w, std::int64_t rows, std::int64_t columns, const float* x, float* y) {
  HWY_DYNAMIC_DISPATCH(GemvBf16)(w, rows, columns, x, y);
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
