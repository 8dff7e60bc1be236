#pragma once
/// Comparing what nobody may find out by trying.
#include <cstddef>
#include <string_view>

namespace parlando {

/// The same bytes? Takes the same time wherever two texts of one length differ.
inline bool equal_secrets(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  const volatile unsigned char result = difference;
  return result == 0;
}

}  // namespace parlando
