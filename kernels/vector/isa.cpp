#include "kernels/vector/isa.hpp"

#include <hwy/targets.h>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstring>

namespace parlando::kernels {

namespace {
constexpr const char* kNames[kIsas] = {"plain", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"};

enum class Tiles { absent, refused, usable };

Tiles tiles() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kProducts = 1u << 22 | 1u << 24 | 1u << 25;  // of bf16 numbers, tiles, of bytes
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kProducts) != kProducts) return Tiles::absent;
  constexpr unsigned kOsSaves = 1u << 27, kTileState = 1u << 17 | 1u << 18;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsSaves) == 0) return Tiles::absent;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kTileState) != kTileState) return Tiles::refused;
  // Of the whole process, threads to come included; children have it, too. Asking twice costs nothing.
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0 ? Tiles::usable : Tiles::refused;
#else
  return Tiles::absent;
#endif
}

const Tiles kTiles = tiles();

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
    return Isa::plain;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::avx2;
  if (!__builtin_cpu_supports("avx512vnni")) return Isa::avx512;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512_vnni;
  return kTiles == Tiles::usable ? Isa::amx : Isa::avx512_bf16;
#else
  return Isa::plain;
#endif
}

const Isa kBest = best();
/// Highway has steps of its own: what is newer than asked for is not to be used.
void limit_highway(Isa most) {
#if defined(__x86_64__)
  std::int64_t newer = 0;
  if (most < Isa::avx512_vnni) newer |= HWY_AVX3_DL;
  if (most < Isa::avx512) newer |= HWY_AVX3;
  if (most < Isa::avx2) newer |= HWY_AVX2;
  hwy::DisableTargets(newer);
#endif
}

constexpr int kNone = -1;
std::atomic<int> forced{kNone};
}  // namespace

Isa isa() {
  const int wanted = forced.load(std::memory_order_relaxed);
  return wanted == kNone ? kBest : static_cast<Isa>(wanted);
}

std::vector<Isa> isas() {
  std::vector<Isa> out;
  for (int i = 0; i <= static_cast<int>(kBest); ++i) out.push_back(static_cast<Isa>(i));
  return out;
}

bool force_isa(std::optional<Isa> wanted) {
  if (wanted && *wanted > kBest) return false;
  limit_highway(wanted.value_or(Isa::amx));
  forced = wanted ? static_cast<int>(*wanted) : kNone;
  return true;
}

bool tiles_refused() { return kTiles == Tiles::refused; }

const char* name(Isa isa) { return kNames[static_cast<int>(isa)]; }

std::optional<Isa> isa_named(const char* name) {
  for (int i = 0; i < kIsas; ++i)
    if (std::strcmp(name, kNames[i]) == 0) return static_cast<Isa>(i);
  return std::nullopt;
}

}  // namespace parlando::kernels
