#pragma once
/// The fixed header of every message between services, 80 bytes, little-endian. Byte for byte in docs/protocol.md.
/// No absolute times travel: `remaining_ms` is what is left of the request's budget when the message leaves.
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/base/clock.hpp"
#include "common/base/ids.hpp"
#include "common/base/result.hpp"

namespace parlando::protocol {

using Bytes = std::vector<std::byte>;

inline constexpr std::uint32_t kMagic = 0x444c5250;  // "PRLD"
inline constexpr std::uint16_t kVersion = 1;         ///< the newest this build writes
inline constexpr std::uint16_t kVersionMin = 1;      ///< the oldest it reads and writes
inline constexpr std::size_t kEnvelopeBytes = 80;

/// Numbers travel and are never reused; 1…4 and 7…15 are the link's own words. Retired: 35, 65, 66, 68, 69.
enum class MessageType : std::uint16_t {
  // The link's own: neither numbered nor kept.
  hello = 1,
  heartbeat = 2,
  heartbeat_reply = 3,
  window = 4,
  refused = 7,  ///< frames that are no message, a HELLO that cannot be
  resync = 8,   ///< "something is missing, say HELLO again"
  batch = 9,    ///< several numbered messages in one
  // Numbered, in order, exactly once per incarnation of a link.
  cancel = 5,
  error = 6,
  open = 16,
  close = 17,
  open_vad = 18,
  open_tokenizer = 19,
  tokenize = 20,
  open_chat = 21,
  synthesise = 22,
  claim = 23,
  granted = 24,
  renew = 25,
  attach = 26,
  fork_chat = 27,
  audio = 32,
  flush = 33,
  speech_started = 34,
  speech_ended = 36,
  cancelled = 37,
  speech_paused = 38,
  speech_resumed = 39,
  played = 40,
  configure = 41,
  item = 42,
  respond = 43,
  tool_output = 44,
  utter = 45,
  truncate = 46,
  forget = 47,
  tokens = 48,
  hear = 64,
  generate = 67,
  text = 70,
  say = 71,
  tool_result = 72,
  go_on = 73,
  speak = 80,
  speech = 81,
  commit = 96,
  history = 97,
  committed = 98,
  records = 99,
  erase = 100,
  erased = 101,
  opened = 112,
  turn_done = 113,
  checkpoint = 114,
  attached = 115,
  hold = 116,
  release = 117,
  interrupted = 118,
  waiting = 119,
  noted = 120,
  event = 121,
  decided = 122,
};

/// Bound on the type numbers, for tables.
inline constexpr std::uint16_t kTypeMax = 128;
bool is_known(std::uint16_t type);
/// `hello`, `audio`, …; "unknown" for numbers that are no type.
std::string_view to_string(MessageType type);
/// Largest payload of a type in bytes; a frame over it is refused.
std::size_t payload_bytes_max(MessageType type);
/// The link's own messages: exempt from numbers and from credit.
bool is_control(MessageType type);
/// Types whose body is packed little-endian fields instead of JSON: everything on the path of a frame.
bool is_packed(MessageType type);

struct Envelope {
  std::uint16_t version = kVersion;
  MessageType type = MessageType::hello;
  std::uint16_t flags = 0;         ///< none is defined yet; zero when sent, ignored when read
  std::uint32_t remaining_ms = 0;  ///< on the wire only: 0 = no deadline. In memory `Message::deadline` counts
  SessionId session;
  Epoch epoch;
  TurnId turn;
  StreamId stream;
  std::uint64_t sequence = 0;  ///< of the link and direction, from 1
  std::uint64_t trace = 0;     ///< of the turn, made by the gateway
  std::uint64_t link = 0;  ///< in memory only: the link it arrived on, so that an answer never goes out on a later one
  StreamKey key() const { return {session, stream}; }
};

/// A message in memory: envelope, body (JSON text or packed fields) and raw payload.
struct Message {
  Envelope head;
  std::string body;
  Bytes payload;
  Time deadline = Time::max();  ///< of this machine's clock; from `remaining_ms` on arrival
  bool unknown = false;         ///< of a type this build does not know: only its place on the link and its stream count
  std::size_t bytes() const { return kEnvelopeBytes + body.size() + payload.size(); }
};

}  // namespace parlando::protocol
