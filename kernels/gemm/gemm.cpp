#include "kernels/gemm/gemm.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>

#include "kernels/vector/dispatch.hpp"

#define PARLANDO_BODY "kernels/gemm/gemm.inc"
#include "kernels/vector/for_each_isa.inc"

#define PARLANDO_BODY "kernels/gemm/gemm_tiles.inc"
#include "kernels/vector/tiles.inc"

namespace parlando::kernels {

void gemm_bf16(Team& team, const PackedShape& s, const std::byte* packed, const std::uint16_t* x, std::int64_t count,
               std::int64_t stride, const GemmOut& out) {
  if (count == 0) return;
  // Pairs of panels: a thread writes whole lines.
  team.run((s.panels() + 1) / 2, 1, [&](std::int64_t first, std::int64_t last) {
    const auto begin = 2 * first, end = std::min(2 * last, s.panels());
    PARLANDO_DISPATCH_TILES(product, s, packed, begin, end, x, count, stride, out);
  });
}

}  // namespace parlando::kernels
