#pragma once
/// Products of small networks: y = W x in fp32. Chooses the instruction set at run time (Google Highway). Those of the
/// language models are in kernels/linear.
#include <cstdint>

namespace parlando::kernels {

/// @param w  [rows, columns] row-major   @param x [columns]   @param bias [rows] or null   @param y [rows]
void gemv_f32(const float* w, std::int64_t rows, std::int64_t columns, const float* x, const float* bias, float* y);

/// Weights in panels of 16 output rows, column by column: [ceil(rows/16)][columns][16], the last panel filled with
/// zeros. A product then broadcasts inputs and never sums across lanes.
std::int64_t packed_size(std::int64_t rows, std::int64_t columns);
void pack_f32(const float* w, std::int64_t rows, std::int64_t columns, float* packed);

/// A few rows at once: y[n] = W x[n] + bias with packed weights, which come from memory once for all rows. For windows
/// and small batches, where a general GEMM spends its time packing.   @param x [count, columns]   @param y [count,
/// rows]
void gemm_packed_f32(const float* packed, std::int64_t rows, std::int64_t columns, const float* x, std::int64_t count,
                     const float* bias, float* y);

/// The same in double precision, for tests.
void gemv_reference(const float* w, std::int64_t rows, std::int64_t columns, const float* x, const float* bias,
                    double* y);

/// Name of the instruction set in use, for `doctor` and benchmarks.
const char* gemv_target();

}  // namespace parlando::kernels
