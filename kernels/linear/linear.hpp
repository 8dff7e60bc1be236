#pragma once
/// Products with packed weights, y = W x for one row or many: what a decode step spends its time in. Weights lie in
/// panels of 16 output rows, one behind the other, so that a thread reads one stream; a panel comes from memory once
/// for all rows of x.
///   f32   weights and x in fp32; weights that are fp16 numbers may lie as these (`halves`), to the same bits
///   bf16  weights in bf16, x rounded to bf16, products exact, sums in fp32
///   int8  weights in 8 bits with a scale for each output row; x in 16 bits with a scale for each 256 columns; sums of
///         256 products exact
///   int4  weights in 4 bits with a bf16 scale for each 32 or 64 columns of a row; x as for int8; sums of a group exact
/// The packed bytes are the same for all instruction sets.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/team/team.hpp"

namespace parlando::kernels {

enum class WeightFormat : std::int32_t { f32 = 0, bf16 = 1, int8 = 2, int4 = 3 };
const char* name(WeightFormat format);

inline constexpr std::int64_t kPanelRows = 16;

struct PackedShape {
  WeightFormat format = WeightFormat::f32;
  std::int64_t rows = 0, columns = 0;
  std::int64_t group = 32;  ///< columns that share a scale in int4: 32 or 64
  bool halves = false;      ///< f32 whose weights are all fp16 numbers: they lie as these
  std::int64_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  std::int64_t panel_bytes() const;
  std::int64_t bytes() const { return panels() * panel_bytes(); }
  bool operator==(const PackedShape&) const = default;
};

/// Packs rows [first, first + count) of a matrix into the place of these rows. `first` is a multiple of 16, `count`,
/// too, unless the rows are the last. Weights are rounded to the format, to nearest.
/// @param w  [count, columns] row-major   @param packed  shape.bytes(), 64-byte aligned for speed
void pack_rows(const PackedShape& shape, const float* w, std::int64_t first, std::int64_t count, std::byte* packed);
/// What the packed weights stand for. @param w  [rows, columns]
void unpack(const PackedShape& shape, const std::byte* packed, float* w);

/// Columns that lie together or share a scale: a part of a packed matrix begins and ends at a multiple of these, or
/// with the matrix.
std::int64_t columns_together(const PackedShape& shape);
/// Copies a part of a packed matrix as it lies, so that it stands for the same numbers: rows [first, first + count),
/// columns from `column` on as many as `to` has, to rows `at` and on of `to`. Reads no other bytes.
/// @param out  zeros where nothing was copied to
void copy_part(const PackedShape& from, const std::byte* packed, std::int64_t first, std::int64_t count,
               std::int64_t column, const PackedShape& to, std::int64_t at, std::byte* out);

/// Rows of x as a format's products want them. Keeps its memory from use to use.
class LinearInput {
 public:
  /// @param x  [count, columns], rows `stride` apart
  void set(Team& team, const PackedShape& shape, const float* x, std::int64_t count, std::int64_t stride);
  std::int64_t count() const { return count_; }
  /// What the rows stand for, after rounding. @param x  [count, columns]
  void values(float* x) const;
  float value_in_tiles(std::int64_t n, std::int64_t column) const;

  std::int64_t count_ = 0, columns_ = 0, tile_ = 0;  ///< rows that lie together
  std::int64_t words_ = 0;                           ///< of a row
  WeightFormat format_ = WeightFormat::f32;
  bool floats_ = false;     ///< bf16 numbers, widened: this instruction set multiplies no pairs
  bool tiles_ = false;      ///< laid out for tiles: steps of [rows of the tile][64 bytes], see linear_tiles.inc
  std::int64_t depth_ = 0;  ///< then, of integers: columns of a step
  std::vector<std::uint32_t> words;  ///< tiles of [words_][rows of the tile]
  std::vector<float> scales;         ///< [count][blocks of 256]
  std::vector<std::int32_t> sums;    ///< int4: [count][groups] of the integers
};

/// About the time of one thread for a product with so many rows of x, on the instruction set in use.
Cost product_cost(const PackedShape& shape, std::int64_t count);
/// y[n] = W x[n] for all rows n.
/// @param y  [count, rows], rows `stride` apart
void linear(Team& team, const PackedShape& shape, const std::byte* packed, const LinearInput& x, float* y,
            std::int64_t stride);
/// The same of x and W as they stand (not rounded), in double precision, one thread.
void linear_reference(const float* w, std::int64_t rows, std::int64_t columns, const float* x, std::int64_t count,
                      double* y);

}  // namespace parlando::kernels
