#pragma once
/// Matrix-vector product for the decode step: y = W x, weights fp32 or bf16, sums in fp32. Chooses the instruction set at run time
/// (Google Highway). Reads every weight once: the speed limit is memory bandwidth.
#include <cstdint>

namespace parlando::kernels {

/// @param w  [rows, columns] row-major   @param x [columns]   @param bias [rows] or null   @param y [rows]
void gemv_f32(const float* w, std::int64_t rows, std::int64_t columns, const float* x, const float* bias, float* y);

/// bf16 weights (the upper half of a float32), x in fp32.
void gemv_bf16(const std::uint16_t* w, std::int64_t rows, std::int64_t columns, const float* x, float* y);

/// The same in double precision, for tests.
void gemv_reference(const float* w, std::int64_t rows, std::int64_t columns, const float* x, const float* bias, double* y);

/// Name of the instruction set in use, for `doctor` and benchmarks.
const char* gemv_target();

}  // namespace parlando::kernels
