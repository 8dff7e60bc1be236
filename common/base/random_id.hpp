#pragma once
/// Unpredictable identifiers from the kernel's generator.
#include <cstdint>
#include <string>

namespace parlando {

/// 64 random bits. Ends the process when the kernel gives none: nothing is safe then.
std::uint64_t random_u64();
/// `bytes` random bytes as lower-case hexadecimal digits.
std::string random_hex(int bytes);

}  // namespace parlando
