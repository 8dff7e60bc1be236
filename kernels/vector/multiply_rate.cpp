#include "kernels/vector/multiply_rate.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>

#include "kernels/vector/dispatch.hpp"

#define PARLANDO_BODY "kernels/vector/multiply_rate.inc"
#include "kernels/vector/for_each_isa.inc"

namespace parlando::kernels {

std::int64_t multiply_add(std::int64_t rounds, float& sink) {
  return PARLANDO_DISPATCH(multiply_add_all, rounds, sink);
}

}  // namespace parlando::kernels
