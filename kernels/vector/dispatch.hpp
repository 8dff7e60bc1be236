#pragma once
/// Calls the variant of a kernel that was compiled for the instruction set in use. Behind for_each_isa.inc:
///   PARLANDO_DISPATCH(product, arguments…);
#include "kernels/vector/isa.hpp"

#if defined(__x86_64__)
#define PARLANDO_DISPATCH(function, ...)           \
  [&] {                                            \
    switch (isa()) {                               \
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
#else
#define PARLANDO_DISPATCH(function, ...) plain::function(__VA_ARGS__)
#endif
