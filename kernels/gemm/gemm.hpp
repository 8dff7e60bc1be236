#pragma once
/// Products of many rows with weights in bf16, what a network that sees whole windows spends its time in: products
/// exact, sums in fp32, what follows a product done while its tile is near. Weights lie as `kernels/linear` packs bf16
/// (PackedShape), which is how AMX wants them, too; processors without AMX take pairs of numbers or widen them.
#include <cstdint>

#include "kernels/linear/linear.hpp"

namespace parlando::kernels {

/// Columns are filled up with zeros to a multiple of this; rows of x are read as far.
inline constexpr std::int64_t kGemmColumns = 32;
inline std::int64_t gemm_columns(std::int64_t columns) {
  return (columns + kGemmColumns - 1) / kGemmColumns * kGemmColumns;
}

/// What follows a product, and where it goes: y = act(sum + bias) + add.
struct GemmOut {
  const float* bias = nullptr;       ///< [rows of W] or null
  bool gelu = false;                 ///< x · Φ(x) within 1e-5 · max(1, |x|)
  const float* add = nullptr;        ///< [count, stride] or null; may be `y`
  float* y = nullptr;                ///< [count, stride] or null
  std::uint16_t* rounded = nullptr;  ///< the same as bf16, or null
  std::int64_t stride = 0;           ///< of each of them
};

/// @param shape   bf16, columns a multiple of kGemmColumns
/// @param x       [count] rows of bf16 numbers, `stride` apart: they may overlap, so that a convolution along time
///                needs no copies. As many finite numbers as `shape` has columns are read from each.
void gemm_bf16(Team& team, const PackedShape& shape, const std::byte* packed, const std::uint16_t* x,
               std::int64_t count, std::int64_t stride, const GemmOut& out);

}  // namespace parlando::kernels
