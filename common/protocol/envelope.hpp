#pragma once
/// The fixed header of every message between services, 80 bytes, little-endian. Byte for byte in docs/protocol.md.
/// No absolute times travel: `remaining_ms` is what is left of the request's budget.
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/base/result.hpp"

namespace parlando::protocol {

inline constexpr std::uint32_t kMagic = 0x444c5250;            // "PRLD"
inline constexpr std::uint16_t kVersion = 1, kVersionMin = 1;  ///< this build writes kVersion and reads from kVersionMin on
inline constexpr std::size_t kEnvelopeBytes = 80;

struct SessionId {
  std::uint64_t high = 0, low = 0;
  auto operator<=>(const SessionId&) const = default;
};

/// High half: the session's epoch, granted by `context`. Low half: the attempt, raised by the owner at each re-route or replay.
struct Epoch {
  std::uint64_t value = 0;
  static Epoch of(std::uint32_t session, std::uint32_t attempt) { return {static_cast<std::uint64_t>(session) << 32 | attempt}; }
  std::uint32_t session() const { return static_cast<std::uint32_t>(value >> 32); }
  std::uint32_t attempt() const { return static_cast<std::uint32_t>(value); }
  auto operator<=>(const Epoch&) const = default;
};

/// Numbers travel and are never reused.
enum class MessageType : std::uint16_t {
  hello = 1,            ///< role, instance, version range, limits
  heartbeat = 2,        ///< asks the socket thread for its worker's progress
  heartbeat_reply = 3,  ///< progress, step limit, load, free slots
  window = 4,           ///< {ack, limit} of a stream, absolute sequence numbers
  cancel = 5,           ///< ends a stream's work
  error = 6,            ///< {code, message}
  open = 16,            ///< a session's work begins here
  close = 17,
  audio = 32,           ///< PCM, s16le payload
  flush = 33,           ///< the utterance ends here
  speech_started = 34,  ///< {sample}
  speech_maybe_ended = 35,
  speech_ended = 36,
  tokens = 48,  ///< {first_group, final_groups}, int32 payload
  append = 64,  ///< ids behind a position of a sequence
  fork = 65,
  truncate = 66,
  generate = 67,
  adopt = 68,
  release = 69,
  text = 70,     ///< generated text and ids
  speak = 80,    ///< text chunk to be spoken
  speech = 81,   ///< generated PCM, s16le payload
  turn = 96,     ///< a turn's record for the store; answered when it is durable
  history = 97,  ///< committed turns of a session
};
/// Bound on the type numbers, for tables.
inline constexpr std::uint16_t kTypeMax = 128;
bool is_known(std::uint16_t type);
/// Largest payload of a type; a frame over it is refused.
std::size_t payload_bytes_max(MessageType type);
/// Cancel, window and heartbeats are exempt from credit.
bool is_control(MessageType type);

/// Flag: everything before this message of its stream has been acknowledged, so a receiver that does not know the stream may begin here.
inline constexpr std::uint16_t kFlagStart = 1;

struct Envelope {
  std::uint16_t version = kVersion;
  MessageType type = MessageType::hello;
  std::uint16_t flags = 0;
  std::uint32_t remaining_ms = 0;  ///< 0 = no deadline
  SessionId session;
  Epoch epoch;
  std::uint32_t turn = 0, stream = 0;
  std::uint64_t sequence = 0, trace = 0;
};

}  // namespace parlando::protocol
