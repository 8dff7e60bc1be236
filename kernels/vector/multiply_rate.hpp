#pragma once
/// Multiplies and adds in registers as fast as the processor can: what arithmetic is measured against.
#include <cstdint>

namespace parlando::kernels {

/// @param sink  is given the sums, so that nobody leaves them out
/// @return operations, two for each multiplication with its addition
std::int64_t multiply_add(std::int64_t rounds, float& sink);

}  // namespace parlando::kernels
