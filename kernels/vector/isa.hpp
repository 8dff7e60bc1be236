#pragma once
/// Instruction sets that kernels of `kernels/vector` are compiled for. The best one of this processor is chosen at run
/// time; tests and benchmarks force others.
#include <cstdint>
#include <optional>
#include <vector>

namespace parlando::kernels {

/// In the order of what they can do: each has everything of those before it.
enum class Isa : int {
  plain = 0,    ///< no extensions beyond what the compiler assumes; for tests and foreign processors
  avx2,         ///< AVX2, FMA, F16C
  avx512,       ///< F, BW, DQ, VL
  avx512_vnni,  ///< and products of pairs of 16-bit integers
  avx512_bf16,  ///< and products of pairs of bf16 numbers
  amx           ///< and of tiles, of bf16 numbers and of bytes; the system lets a process use them when it asks
};
inline constexpr int kIsas = 6;

/// The one in use: the best of this processor, or what was forced.
Isa isa();
/// All that this processor can run, the best last.
std::vector<Isa> isas();
/// For tests and benchmarks, of Highway's products, too; nullopt takes the best again. What is packed stays readable
/// for all of them.
/// @return false when this processor cannot run it; nothing changes then
bool force_isa(std::optional<Isa> wanted);
/// This processor has tiles, but the system does not let this process use them.
bool tiles_refused();
const char* name(Isa isa);
/// As `name` says it. @return nullopt for an unknown name
std::optional<Isa> isa_named(const char* name);

}  // namespace parlando::kernels
