#pragma once
/// Reads memory as fast as the processor can and does nothing with it but a sum: what products are measured against.
#include <cstdint>

namespace parlando::kernels {

float read_stream(const float* x, std::int64_t size);

}  // namespace parlando::kernels
