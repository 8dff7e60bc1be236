#pragma once
/// Calls the variant of a kernel that was compiled for the instruction set in use. Behind for_each_isa.inc:
///   PARLANDO_DISPATCH(product, arguments…);
#include "kernels/vector/isa.hpp"

#if defined(__x86_64__)
#define PARLANDO_DISPATCH(function, ...)           \
  [&] {                                            \
    switch (isa()) {                               \
      case Isa::amx:                               \
      case Isa::avx512_bf16:                       \
        return avx512_bf16::function(__VA_ARGS__); \
      case Isa::avx512_vnni:                       \
        return avx512_vnni::function(__VA_ARGS__); \
      case Isa::avx512:                            \
        return avx512::function(__VA_ARGS__);      \
      case Isa::avx2:                              \
        return avx2::function(__VA_ARGS__);        \
      case Isa::plain:                             \
        break;                                     \
    }                                              \
    return plain::function(__VA_ARGS__);           \
  }()
/// The same of a kernel that has a variant for tiles (behind tiles.inc, too).
#define PARLANDO_DISPATCH_TILES(function, ...) \
  (isa() == Isa::amx ? amx::function(__VA_ARGS__) : PARLANDO_DISPATCH(function, __VA_ARGS__))
#else
#define PARLANDO_DISPATCH_TILES(function, ...) plain::function(__VA_ARGS__)
#define PARLANDO_DISPATCH(function, ...) plain::function(__VA_ARGS__)
#endif
