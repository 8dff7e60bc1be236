#include "kernels/gemm/gemm.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/vector/dispatch.hpp"

#define PARLANDO_BODY "kernels/gemm/gemm.inc"
#include "kernels/vector/for_each_isa.inc"

#if defined(__x86_64__)
#define PARLANDO_AMX "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(PARLANDO_AMX))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16")
#endif
#define PARLANDO_ISA 4
#define PARLANDO_ISA_NAME gemm_tiles
#define PARLANDO_TILES
#include "kernels/vector/vector.inc"
// behind the vectors it is written in
#include "kernels/gemm/gemm.inc"
#undef PARLANDO_TILES
#undef PARLANDO_ISA
#undef PARLANDO_ISA_NAME
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace parlando::kernels {

namespace {
std::atomic<bool> tiles_allowed{true};

/// The processor has AMX for bf16, and the system lets this process use its registers.
bool find_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBf16) == 0 || (d & kTile) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
}  // namespace

bool has_tiles() {
  static const bool found = find_tiles();
  return found && isa() >= Isa::avx512_bf16 && tiles_allowed.load(std::memory_order_relaxed);
}

bool allow_tiles(bool allowed) { return tiles_allowed.exchange(allowed); }

bool multiplies_bf16() { return isa() >= Isa::avx512_bf16; }

void gemm_bf16(Team& team, const PackedShape& s, const std::byte* packed, const std::uint16_t* x, std::int64_t count,
               std::int64_t stride, const GemmOut& out) {
  if (count == 0) return;
  const bool tiles = has_tiles();
  // Pairs of panels: a thread writes whole lines.
  team.run((s.panels() + 1) / 2, 1, [&](std::int64_t first, std::int64_t last) {
    const auto begin = 2 * first, end = std::min(2 * last, s.panels());
#if defined(__x86_64__)
    if (tiles) return gemm_tiles::product(s, packed, begin, end, x, count, stride, out);
#endif
    PARLANDO_DISPATCH(product, s, packed, begin, end, x, count, stride, out);
  });
}

}  // namespace parlando::kernels
