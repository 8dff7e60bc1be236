#include "common/base/base64.hpp"

#include <array>

namespace parlando {
namespace {

constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr std::uint32_t kBad = 1u << 31;

/// Two digits for every 12 bits: half the look-ups.
const auto kPairs = [] {
  std::array<std::array<char, 2>, 4096> out{};
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = {kDigits[i >> 6], kDigits[i & 63]};
  return out;
}();

/// Values of a digit at each of the four places of its group.
const auto kPlaces = [] {
  std::array<std::array<std::uint32_t, 256>, 4> out{};
  for (auto& place : out) place.fill(kBad);
  for (std::uint32_t value = 0; value < 64; ++value)
    for (std::size_t place = 0; place < 4; ++place)
      out[place][static_cast<unsigned char>(kDigits[value])] = value << (18 - 6 * place);
  return out;
}();

}  // namespace

void append_base64(std::string& out, std::span<const std::byte> bytes) {
  const auto* in = reinterpret_cast<const unsigned char*>(bytes.data());
  const auto start = out.size();
  out.resize(start + (bytes.size() + 2) / 3 * 4);
  char* to = out.data() + start;
  std::size_t at = 0;
  for (; at + 3 <= bytes.size(); at += 3, to += 4) {
    const auto group = static_cast<std::uint32_t>(in[at] << 16 | in[at + 1] << 8 | in[at + 2]);
    const auto& high = kPairs[group >> 12];
    const auto& low = kPairs[group & 4095];
    to[0] = high[0], to[1] = high[1], to[2] = low[0], to[3] = low[1];
  }
  if (at == bytes.size()) return;
  const bool two = bytes.size() - at == 2;
  const auto group = static_cast<std::uint32_t>(in[at] << 16 | (two ? in[at + 1] << 8 : 0));
  to[0] = kDigits[group >> 18], to[1] = kDigits[group >> 12 & 63];
  to[2] = two ? kDigits[group >> 6 & 63] : '=', to[3] = '=';
}

std::string to_base64(std::span<const std::byte> bytes) {
  std::string out;
  append_base64(out, bytes);
  return out;
}

Result<std::vector<std::byte>> from_base64(std::string_view text) {
  auto digits = text.size();
  while (digits > 0 && text.size() - digits < 2 && text[digits - 1] == '=') --digits;
  const bool padded = digits != text.size();
  if (digits % 4 == 1 || (padded && text.size() % 4 != 0))
    return fail(Errc::bad_format, "base64 has {} characters, expected whole groups of four", text.size());
  const auto* in = reinterpret_cast<const unsigned char*>(text.data());
  std::vector<std::byte> out(digits / 4 * 3 + (digits % 4 == 0 ? 0 : digits % 4 - 1));
  auto* to = reinterpret_cast<unsigned char*>(out.data());
  std::uint32_t bad = 0;
  std::size_t at = 0;
  for (; at + 4 <= digits; at += 4, to += 3) {
    const auto group = kPlaces[0][in[at]] | kPlaces[1][in[at + 1]] | kPlaces[2][in[at + 2]] | kPlaces[3][in[at + 3]];
    bad |= group;
    to[0] = static_cast<unsigned char>(group >> 16);
    to[1] = static_cast<unsigned char>(group >> 8);
    to[2] = static_cast<unsigned char>(group);
  }
  if (digits % 4 != 0) {
    auto group = kPlaces[0][in[at]] | kPlaces[1][in[at + 1]];
    if (digits % 4 == 3) group |= kPlaces[2][in[at + 2]];
    bad |= group;
    to[0] = static_cast<unsigned char>(group >> 16);
    if (digits % 4 == 3) to[1] = static_cast<unsigned char>(group >> 8);
  }
  if ((bad & kBad) != 0) {
    const auto wrong = text.substr(0, digits).find_first_not_of(kDigits);
    return fail(Errc::bad_format, "base64 has the character {} at position {}, expected A-Z, a-z, 0-9, + or /",
                static_cast<int>(in[wrong]), wrong);
  }
  return out;
}

}  // namespace parlando
