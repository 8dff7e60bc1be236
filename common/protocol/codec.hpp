#pragma once
/// Messages to frames and back: [envelope][JSON body][raw payload].
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "common/protocol/body.hpp"
#include "common/protocol/envelope.hpp"

namespace parlando::protocol {

inline constexpr std::size_t kBodyBytesMax = 64 * 1024;
inline constexpr int kBodyDepthMax = 32;

struct Message {
  Envelope head;
  std::string body;  ///< a JSON object, or empty
  std::vector<std::byte> payload;
};

/// Frames in the order they are sent. @error Errc::bad_frame when body or payload is over its limit
struct Frames {
  std::array<std::byte, kEnvelopeBytes> envelope;
  std::string body;
  std::vector<std::byte> payload;
};
Result<Frames> encode(Message message);

/// Checks everything: lengths, magic, version, type, limits, checksum, JSON. Nothing throws.
/// @error Errc::bad_frame (truncated, oversized, sizes that disagree, checksum), Errc::bad_magic, Errc::bad_version, Errc::unknown_type, Errc::bad_json
Result<Message> decode(std::span<const std::span<const std::byte>> frames, std::uint16_t version_min = kVersionMin, std::uint16_t version_max = kVersion);

/// CRC-32C (Castagnoli), chained through `seed`.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed = 0);
/// The same without special instructions; what machines without SSE 4.2 use.
std::uint32_t crc32c_table(std::span<const std::byte> bytes, std::uint32_t seed = 0);

}  // namespace parlando::protocol
