#include "kernels/memory/read_stream.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>

#include "kernels/vector/dispatch.hpp"

#define PARLANDO_BODY "kernels/memory/read_stream.inc"
#include "kernels/vector/for_each_isa.inc"

namespace parlando::kernels {

float read_stream(const float* x, std::int64_t size) { return PARLANDO_DISPATCH(read_all, x, size); }

}  // namespace parlando::kernels
