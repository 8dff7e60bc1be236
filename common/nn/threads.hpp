#pragma once
/// How many threads compute for the calling one.

namespace parlando::nn {

/// Products of floats that a core does in a nanosecond, on AVX2: what `kernels::Cost` is asked with here.
inline constexpr double kProductsPerNanosecond = 40;

/// Our own loops (`common/nn`, `kernels`) share what the calling thread computes among at most so many threads of the
/// process's pool. libtorch's operations keep to the calling thread: each thread that calls would have a team of its
/// own there, which spins between two calls and knows of no other.
void use_threads(int threads);

}  // namespace parlando::nn
