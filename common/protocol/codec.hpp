#pragma once
/// Messages to frames and back: [envelope][body][payload]. Everything is checked before it is used; nothing throws.
#include <string>
#include <vector>

#include "common/protocol/envelope.hpp"

namespace parlando::protocol {

inline constexpr std::size_t kBodyBytesMax = 128 * 1024;
inline constexpr int kBodyDepthMax = 32;
inline constexpr std::size_t kBatchBytesMax = 256 * 1024;  ///< of a batch that grows; one larger message travels alone
inline constexpr std::uint32_t kBatchMessagesMax = 1024;
inline constexpr std::size_t kMessageBytesMax = 8 * 1024 * 1024;  ///< above the largest message of any type

/// Frames in the order they are sent.
struct Frames {
  std::array<std::byte, kEnvelopeBytes> envelope;
  std::string body;
  Bytes payload;
};

/// What `decode` at the other end would say of body and payload: sizes, depth, JSON, UTF-8. Checked by senders, so that
/// nothing leaves that cannot arrive. @error Errc::bad_frame, Errc::bad_json
Result<void> check(const Message& message);

/// One message. `remaining_ms` is written as it stands. The message must have passed `check`.
Frames encode(const Message& message, std::uint16_t version = kVersion);

/// Several numbered messages as one of type `batch`, with consecutive sequence numbers from the first one's on.
Frames encode_batch(std::span<const Message* const> messages, std::uint16_t version = kVersion);

/// One message, or the messages of a batch, in order. @param now  turns `remaining_ms` into deadlines
/// @error Errc::bad_frame (truncated, oversized, sizes that disagree, checksum), Errc::bad_magic, Errc::bad_version,
/// Errc::unknown_type,
///        Errc::bad_json. An unknown type inside a batch is left out, its number is not: `skipped` tells how many.
struct Decoded {
  std::vector<Message> messages;
  std::size_t skipped = 0;
  bool batch = false;
};
Result<Decoded> decode(std::span<const std::span<const std::byte>> frames, Time now = Time::max(),
                       std::uint16_t version_min = kVersionMin, std::uint16_t version_max = kVersion);

/// CRC-32C (Castagnoli), chained through `seed`.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed = 0);
/// The same without special instructions; what machines without SSE 4.2 use.
std::uint32_t crc32c_table(std::span<const std::byte> bytes, std::uint32_t seed = 0);

}  // namespace parlando::protocol
