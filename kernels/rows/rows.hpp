#pragma once
/// What a network does to rows between its products. With `round` every intermediate result is rounded to bf16, as a
/// network in that type does it.
#include <cstdint>

namespace parlando::kernels {

/// y = x · 1/sqrt(mean(x²) + eps) · w, the factor rounded first, then each product. May be in place.
void rms_norm(const float* x, const float* w, float eps, std::int64_t size, bool round, float* y);
/// y = silu(gate) · up.
void swiglu(const float* gate, const float* up, std::int64_t size, bool round, float* y);
/// x += y.
void add_to(float* x, const float* y, std::int64_t size, bool round);
void round_to_bf16(float* x, std::int64_t size);
void widen_bf16(const std::uint16_t* x, std::int64_t size, float* y);

}  // namespace parlando::kernels
