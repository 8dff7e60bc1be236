#pragma once
/// Bytes as text.
#include <span>
#include <string>

namespace parlando {

/// Two lower-case hexadecimal digits a byte.
inline std::string to_hex(std::span<const unsigned char> bytes) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string out;
  out.reserve(2 * bytes.size());
  for (const auto b : bytes) {
    out += kDigits[b >> 4];
    out += kDigits[b & 15];
  }
  return out;
}

}  // namespace parlando
