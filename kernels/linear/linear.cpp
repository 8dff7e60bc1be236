#include "kernels/linear/linear.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/vector/bf16.hpp"
#include "kernels/vector/dispatch.hpp"
#include "kernels/vector/f16.hpp"

namespace parlando::kernels {
namespace {

/// Columns of x that share a scale in the integer formats: 256 products of 8 and 16 bits fit 32 bits.
constexpr std::int64_t kBlockColumns = 256;
static_assert(kBlockColumns * 127 * 32767 < (std::int64_t{1} << 31));

std::int64_t blocks_of(std::int64_t columns) { return (columns + kBlockColumns - 1) / kBlockColumns; }
std::int64_t groups_of(const PackedShape& s) { return (s.columns + s.group - 1) / s.group; }

/// Where a column of eight stands among those that a word of int4 becomes: its bytes, the lower halves first.
std::int64_t int4_place(std::int64_t column) {
  constexpr std::int64_t kPlaces[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  return column / 8 * 8 + kPlaces[column % 8];
}

float round_one(float x) { return float_of_bf16(bf16_of(x)); }

}  // namespace
}  // namespace parlando::kernels

#define PARLANDO_BODY "kernels/linear/linear.inc"
#include "kernels/vector/for_each_isa.inc"
#define PARLANDO_BODY "kernels/linear/linear_tiles.inc"
#include "kernels/vector/tiles.inc"

namespace parlando::kernels {

namespace {
constexpr std::int64_t kAlignment = 64;

/// Where an element of a panel lies. The integers of int8 begin behind 16 scales, those of int4 behind a row of 16
/// scales for each group.
std::int64_t element(const PackedShape& s, std::int64_t row, std::int64_t column) {
  switch (s.format) {
    case WeightFormat::f32:
      return column * kPanelRows + row;
    case WeightFormat::bf16:
    case WeightFormat::int8:
      return (column / 2 * kPanelRows + row) * 2 + column % 2;
    case WeightFormat::int4:  // in 16-bit units, each with four columns two apart
      return (column / 8 * kPanelRows + row) * 2 + column % 2;
  }
  return 0;
}

/// Integers have no value for what is no number: then all that share its scale are none, as sums of floats would be.
bool numbers(const float* w, std::int64_t count) {
  return std::all_of(w, w + count, [](float x) { return std::isfinite(x); });
}
constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

/// The scale of some weights and what it must be a multiple of: the largest one becomes `most` steps.
float step_of(const float* w, std::int64_t count, float most) {
  float top = 0;
  for (std::int64_t i = 0; i < count; ++i) top = std::max(top, std::abs(w[i]));
  return top / most;
}

void pack_int8(const PackedShape& s, const float* w, std::int64_t row, std::byte* panel) {
  if (!numbers(w, s.columns)) {
    std::memcpy(panel + row * 4, &kNone, 4);
    return;
  }
  const float step = step_of(w, s.columns, 127.0f), factor = step > 0 ? 1.0f / step : 0.0f;
  std::memcpy(panel + row * 4, &step, 4);
  auto* q = reinterpret_cast<std::int8_t*>(panel + 64);
  for (std::int64_t c = 0; c < s.columns; ++c)
    q[element(s, row, c)] = static_cast<std::int8_t>(std::clamp(std::nearbyint(w[c] * factor), -127.0f, 127.0f));
}

/// The error of a group in 4 bits with this step.
double error_of(const float* w, std::int64_t n, float step) {
  double out = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double q = step != 0 ? std::clamp(std::nearbyint(w[i] / step), -8.0f, 7.0f) : 0.0;
    out += (w[i] - q * step) * (w[i] - q * step);
  }
  return out;
}

void pack_int4(const PackedShape& s, const float* w, std::int64_t row, std::byte* panel) {
  const auto groups = groups_of(s);
  auto* steps = reinterpret_cast<std::uint16_t*>(panel);
  auto* q = reinterpret_cast<std::uint16_t*>(panel + groups * 32);
  for (std::int64_t g = 0; g < groups; ++g) {
    const auto first = g * s.group, n = std::min(s.group, s.columns - first);
    if (!numbers(w + first, n)) {
      steps[g * kPanelRows + row] = bf16_of(kNone);
      continue;
    }
    // The weight of the largest size becomes −8, so that all sixteen values are used; a few smaller steps, which cut
    // the largest weights, are tried: the smallest squared error wins. The step is rounded before it is used.
    float top = 0;
    for (std::int64_t i = 0; i < n; ++i)
      if (std::abs(w[first + i]) > std::abs(top)) top = w[first + i];
    std::uint16_t best = bf16_of(top / -8.0f);
    double least = error_of(w + first, n, float_of_bf16(best));
    for (const float part : {0.95f, 0.9f, 0.85f, 0.8f, -1.0f, -0.95f, -0.9f}) {
      const auto tried = bf16_of(part * top / (part < 0 ? -7.5f : -8.0f));
      const double error = error_of(w + first, n, float_of_bf16(tried));
      if (error < least) least = error, best = tried;
    }
    steps[g * kPanelRows + row] = best;
    const float step = float_of_bf16(best);
    for (std::int64_t c = first; c < first + s.group; ++c) {
      const float value = c < s.columns && step != 0 ? std::clamp(std::nearbyint(w[c] / step), -8.0f, 7.0f) : 0.0f;
      q[element(s, row, c)] |= static_cast<std::uint16_t>((static_cast<int>(value) + 8) << (4 * (c % 8 / 2)));
    }
  }
}

}  // namespace

const char* name(WeightFormat format) {
  constexpr const char* kNames[] = {"f32", "bf16", "int8", "int4"};
  return kNames[static_cast<int>(format)];
}

std::int64_t PackedShape::panel_bytes() const {
  std::int64_t bytes = 0;
  switch (format) {
    case WeightFormat::f32:
      bytes = columns * kPanelRows * (halves ? 2 : 4);
      break;
    case WeightFormat::bf16:
      bytes = (columns + 1) / 2 * kPanelRows * 4;
      break;
    case WeightFormat::int8:
      bytes = 64 + (columns + 1) / 2 * kPanelRows * 2;
      break;
    case WeightFormat::int4:
      bytes = groups_of(*this) * (kPanelRows * 2 + group * kPanelRows / 2);
      break;
  }
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

void pack_rows(const PackedShape& s, const float* w, std::int64_t first, std::int64_t count, std::byte* packed) {
  const auto bytes = s.panel_bytes();
  for (std::int64_t r = first; r < first + count; r += kPanelRows) {
    auto* panel = packed + r / kPanelRows * bytes;
    std::memset(panel, 0, static_cast<std::size_t>(bytes));
    const auto rows = std::min(kPanelRows, first + count - r);
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* row = w + (r + i - first) * s.columns;
      switch (s.format) {
        case WeightFormat::f32:
          for (std::int64_t c = 0; c < s.columns; ++c) {
            if (s.halves)
              reinterpret_cast<std::uint16_t*>(panel)[element(s, i, c)] = f16_of(row[c]);
            else
              reinterpret_cast<float*>(panel)[element(s, i, c)] = row[c];
          }
          break;
        case WeightFormat::bf16:
          for (std::int64_t c = 0; c < s.columns; ++c)
            reinterpret_cast<std::uint16_t*>(panel)[element(s, i, c)] = bf16_of(row[c]);
          break;
        case WeightFormat::int8:
          pack_int8(s, row, i, panel);
          break;
        case WeightFormat::int4:
          pack_int4(s, row, i, panel);
          break;
      }
    }
  }
}

void unpack(const PackedShape& s, const std::byte* packed, float* w) {
  const auto bytes = s.panel_bytes();
  for (std::int64_t r = 0; r < s.rows; ++r) {
    const auto* panel = packed + r / kPanelRows * bytes;
    const auto i = r % kPanelRows;
    for (std::int64_t c = 0; c < s.columns; ++c) {
      float value = 0;
      switch (s.format) {
        case WeightFormat::f32:
          value = s.halves ? float_of_f16(reinterpret_cast<const std::uint16_t*>(panel)[element(s, i, c)])
                           : reinterpret_cast<const float*>(panel)[element(s, i, c)];
          break;
        case WeightFormat::bf16:
          value = float_of_bf16(reinterpret_cast<const std::uint16_t*>(panel)[element(s, i, c)]);
          break;
        case WeightFormat::int8:
          value = reinterpret_cast<const float*>(panel)[i] *
                  static_cast<float>(reinterpret_cast<const std::int8_t*>(panel + 64)[element(s, i, c)]);
          break;
        case WeightFormat::int4: {
          const auto groups = groups_of(s);
          const auto unit = reinterpret_cast<const std::uint16_t*>(panel + groups * 32)[element(s, i, c)];
          const auto step = reinterpret_cast<const std::uint16_t*>(panel)[c / s.group * kPanelRows + i];
          value = float_of_bf16(step) * static_cast<float>(((unit >> (4 * (c % 8 / 2))) & 15) - 8);
          break;
        }
      }
      w[r * s.columns + c] = value;
    }
  }
}

std::int64_t columns_together(const PackedShape& s) {
  return s.format == WeightFormat::f32 ? 1 : s.format == WeightFormat::int4 ? s.group : 2;
}

namespace {
/// Words of a panel, each beside those of the 16 rows.
struct Words {
  std::int64_t offset = 0, bytes = 0, first = 0, count = 0;
  std::int64_t at(std::int64_t word, std::int64_t row) const {
    return offset + ((first + word) * kPanelRows + row) * bytes;
  }
};
/// Those of some columns: numbers, or scales and integers.
std::array<Words, 2> words_of(const PackedShape& s, std::int64_t column, std::int64_t columns) {
  const auto pairs = (columns + 1) / 2, groups = (columns + s.group - 1) / s.group;
  switch (s.format) {
    case WeightFormat::f32:
      return {{{0, s.halves ? 2 : 4, column, columns}, {}}};
    case WeightFormat::bf16:
      return {{{0, 4, column / 2, pairs}, {}}};
    case WeightFormat::int8:
      return {{{0, 4, 0, 1}, {64, 2, column / 2, pairs}}};
    case WeightFormat::int4:
      return {{{0, 2, column / s.group, groups}, {groups_of(s) * kPanelRows * 2, 4, column / 8, groups * s.group / 8}}};
  }
  return {};
}
}  // namespace

void copy_part(const PackedShape& from, const std::byte* packed, std::int64_t first, std::int64_t count,
               std::int64_t column, const PackedShape& to, std::int64_t at, std::byte* out) {
  const auto sources = words_of(from, column, to.columns), targets = words_of(to, 0, to.columns);
  for (std::int64_t r = 0, n = 0; r < count; r += n) {
    const auto a = (first + r) % kPanelRows, b = (at + r) % kPanelRows;
    n = std::min({count - r, kPanelRows - a, kPanelRows - b});
    const auto* source = packed + (first + r) / kPanelRows * from.panel_bytes();
    auto* target = out + (at + r) / kPanelRows * to.panel_bytes();
    for (std::size_t k = 0; k < sources.size(); ++k) {
      const auto &s = sources[k], &t = targets[k];
      if (n == kPanelRows) {
        std::memcpy(target + t.at(0, 0), source + s.at(0, 0), static_cast<std::size_t>(s.count * n * s.bytes));
        continue;
      }
      for (std::int64_t word = 0; word < s.count; ++word)
        std::memcpy(target + t.at(word, b), source + s.at(word, a), static_cast<std::size_t>(n * s.bytes));
    }
  }
}

void LinearInput::set(Team& team, const PackedShape& shape, const float* x, std::int64_t count, std::int64_t stride) {
  PARLANDO_DISPATCH_TILES(begin_input, *this, shape, count);
  constexpr double kNumbersPerNanosecond = 4;
  const auto cost = Cost::of(0, static_cast<double>(count * shape.columns), kNumbersPerNanosecond);
  team.run(count, cost, [&](std::int64_t first, std::int64_t last) {
    PARLANDO_DISPATCH_TILES(fill_input, *this, shape, x, stride, first, last);
  });
}

float LinearInput::value_in_tiles(std::int64_t n, std::int64_t c) const {
  const auto begin = n / tile_ * tile_, wide = std::min(tile_, count_ - begin);
  const auto* tile = reinterpret_cast<const std::byte*>(words.data() + begin * words_);
  if (format_ == WeightFormat::bf16) {
    std::uint16_t half;
    std::memcpy(&half, tile + (c / 32 * wide + n - begin) * 64 + c % 32 * 2, 2);
    return float_of_bf16(half);
  }
  const auto* at = tile + c / depth_ * 2 * wide * depth_ + (n - begin) * depth_ +
                   (format_ == WeightFormat::int4 ? int4_place(c % depth_) : c % depth_);
  const auto upper = static_cast<std::int8_t>(at[0]);
  const auto whole = 256 * upper + static_cast<std::uint8_t>(at[wide * depth_]);
  return scales[static_cast<std::size_t>(n * blocks_of(columns_) + c / kBlockColumns)] * static_cast<float>(whole);
}

void LinearInput::values(float* x) const {
  const auto blocks = blocks_of(columns_);
  for (std::int64_t n = 0; n < count_; ++n) {
    const auto begin = n / tile_ * tile_, wide = std::min(tile_, count_ - begin);
    const auto* from = words.data() + begin * words_ + (n - begin);
    for (std::int64_t c = 0; c < columns_; ++c) {
      if (tiles_) {
        x[n * columns_ + c] = value_in_tiles(n, c);
        continue;
      }
      const bool floats = format_ == WeightFormat::f32 || floats_;
      const auto bits = from[(floats ? c : c / 2) * wide];
      const auto half = static_cast<std::uint16_t>(c % 2 == 0 ? bits : bits >> 16);
      float value;
      if (floats)
        std::memcpy(&value, &bits, 4);
      else if (format_ == WeightFormat::bf16)
        value = float_of_bf16(half);
      else
        value = scales[static_cast<std::size_t>(n * blocks + c / kBlockColumns)] * static_cast<std::int16_t>(half);
      x[n * columns_ + c] = value;
    }
  }
}

Cost product_cost(const PackedShape& s, std::int64_t count) {
  // Products of a nanosecond, some more than a core does: whose work is taken for less than it is wakes nobody in vain.
  //                                  f32  bf16  int8  int4
  constexpr double kProducts[][4] = {{3, 3, 2, 2},          // plain
                                     {40, 30, 30, 25},      // avx2
                                     {80, 60, 60, 50},      // avx512
                                     {80, 60, 120, 100},    // avx512_vnni
                                     {80, 120, 120, 100},   // avx512_bf16
                                     {80, 500, 400, 200}};  // amx
  static_assert(std::size(kProducts) == kIsas);
  const auto products = static_cast<double>(s.rows * s.columns * count);
  return Cost::of(static_cast<double>(s.bytes()), products,
                  kProducts[static_cast<int>(isa())][static_cast<int>(s.format)]);
}

void linear(Team& team, const PackedShape& shape, const std::byte* packed, const LinearInput& x, float* y,
            std::int64_t stride) {
  if (x.count() == 0) return;
  team.run(shape.panels(), product_cost(shape, x.count()), [&](std::int64_t first, std::int64_t last) {
    PARLANDO_DISPATCH_TILES(product, shape, packed, x, first, last, y, stride);
  });
}

void linear_reference(const float* w, std::int64_t rows, std::int64_t columns, const float* x, std::int64_t count,
                      double* y) {
  for (std::int64_t n = 0; n < count; ++n)
    for (std::int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (std::int64_t c = 0; c < columns; ++c) sum += static_cast<double>(w[r * columns + c]) * x[n * columns + c];
      y[n * rows + r] = sum;
    }
}

}  // namespace parlando::kernels
