#include "common/protocol/codec.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

#include "common/base/nesting.hpp"

namespace parlando::protocol {

static_assert(std::endian::native == std::endian::little, "the envelope is written as it lies in memory");

namespace {

constexpr MessageType kTypes[] = {MessageType::hello,        MessageType::heartbeat,      MessageType::heartbeat_reply,
                                  MessageType::window,       MessageType::cancel,         MessageType::error,
                                  MessageType::open,         MessageType::close,          MessageType::audio,
                                  MessageType::flush,        MessageType::speech_started, MessageType::speech_maybe_ended,
                                  MessageType::speech_ended, MessageType::tokens,         MessageType::append,
                                  MessageType::fork,         MessageType::truncate,       MessageType::generate,
                                  MessageType::adopt,        MessageType::release,        MessageType::text,
                                  MessageType::speak,        MessageType::speech,         MessageType::turn,
                                  MessageType::history};

constexpr std::array<std::uint32_t, 256> kTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = c & 1 ? 0x82f63b78u ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
  return table;
}();

// Offsets of the fields; docs/protocol.md lists the same.
constexpr std::size_t kAtMagic = 0, kAtVersion = 4, kAtLength = 6, kAtType = 8, kAtFlags = 10, kAtRemaining = 12, kAtSession = 16, kAtEpoch = 32, kAtTurn = 40,
                      kAtStream = 44, kAtSequence = 48, kAtTrace = 56, kAtBody = 64, kAtPayload = 68, kAtCrc = 72, kAtReserved = 76;
static_assert(kAtReserved + 4 == kEnvelopeBytes, "the fields fill the envelope");

template <class T>
void put(std::span<std::byte> to, std::size_t at, T value) {
  std::memcpy(to.data() + at, &value, sizeof value);
}
template <class T>
T get(std::span<const std::byte> from, std::size_t at) {
  T value;
  std::memcpy(&value, from.data() + at, sizeof value);
  return value;
}

std::uint32_t checksum(std::span<const std::byte> envelope, std::span<const std::byte> body, std::span<const std::byte> payload) {
  const std::uint32_t none = 0;  // the checksum's own field counts as zero
  auto c = crc32c(envelope.first(kAtCrc));
  c = crc32c(std::as_bytes(std::span(&none, 1)), c);
  return crc32c(payload, crc32c(body, crc32c(envelope.subspan(kAtCrc + 4), c)));
}

/// A JSON object, checked without building it.
bool is_object(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && text[first] == '{' && (text == "{}" || nlohmann::json::accept(text));
}

}  // namespace

#if defined(__x86_64__)
/// With the processor's own instruction, eight bytes at a time.
__attribute__((target("sse4.2"))) std::uint32_t crc32c_sse(std::span<const std::byte> bytes, std::uint32_t seed) {
  std::uint64_t c = ~seed;
  const auto* p = bytes.data();
  std::size_t n = bytes.size();
  for (; n >= 8; p += 8, n -= 8) {
    std::uint64_t word;
    std::memcpy(&word, p, 8);
    c = __builtin_ia32_crc32di(c, word);
  }
  auto tail = static_cast<std::uint32_t>(c);
  for (; n > 0; ++p, --n) tail = __builtin_ia32_crc32qi(tail, std::to_integer<unsigned char>(*p));
  return ~tail;
}
#endif

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed) {
#if defined(__x86_64__)
  static const bool has_sse = __builtin_cpu_supports("sse4.2");
  if (has_sse) return crc32c_sse(bytes, seed);
#endif
  return crc32c_table(bytes, seed);
}

std::uint32_t crc32c_table(std::span<const std::byte> bytes, std::uint32_t seed) {
  std::uint32_t c = ~seed;
  for (const auto b : bytes) c = kTable[(c ^ std::to_integer<std::uint32_t>(b)) & 0xff] ^ (c >> 8);
  return ~c;
}

bool is_known(std::uint16_t type) {
  return std::any_of(std::begin(kTypes), std::end(kTypes), [type](MessageType t) { return static_cast<std::uint16_t>(t) == type; });
}

std::size_t payload_bytes_max(MessageType type) {
  switch (type) {
    case MessageType::audio:
      return 32 * 1024;  // a client's frame, at most 341 ms at 48 kHz
    case MessageType::speech:
      return 256 * 1024;
    case MessageType::tokens:
    case MessageType::append:
    case MessageType::generate:
    case MessageType::text:
      return 256 * 1024;
    case MessageType::speak:
    case MessageType::open:
      return 4 * 1024 * 1024;  // a cloning recording as float32
    case MessageType::turn:
    case MessageType::history:
      return 4 * 1024 * 1024;
    default:
      return 0;
  }
}

bool is_control(MessageType type) {
  return type == MessageType::hello || type == MessageType::heartbeat || type == MessageType::heartbeat_reply || type == MessageType::window ||
         type == MessageType::cancel || type == MessageType::error;
}

Result<Frames> encode(Message message) {
  if (message.body.size() > kBodyBytesMax) return fail(Errc::bad_frame, "a body of {} bytes, at most {} are sent", message.body.size(), kBodyBytesMax);
  if (message.payload.size() > payload_bytes_max(message.head.type))
    return fail(Errc::bad_frame, "a payload of {} bytes for message type {}, at most {} are sent", message.payload.size(), static_cast<int>(message.head.type),
                payload_bytes_max(message.head.type));
  Frames out{{}, std::move(message.body), std::move(message.payload)};
  const std::span<std::byte> e = out.envelope;
  const auto& h = message.head;
  put(e, kAtMagic, kMagic), put(e, kAtVersion, h.version), put(e, kAtLength, static_cast<std::uint16_t>(kEnvelopeBytes)),
      put(e, kAtType, static_cast<std::uint16_t>(h.type));
  put(e, kAtFlags, h.flags), put(e, kAtRemaining, h.remaining_ms), put(e, kAtSession, h.session.high), put(e, kAtSession + 8, h.session.low),
      put(e, kAtEpoch, h.epoch.value);
  put(e, kAtTurn, h.turn), put(e, kAtStream, h.stream), put(e, kAtSequence, h.sequence), put(e, kAtTrace, h.trace);
  put(e, kAtBody, static_cast<std::uint32_t>(out.body.size())), put(e, kAtPayload, static_cast<std::uint32_t>(out.payload.size())),
      put(e, kAtReserved, std::uint32_t{0});
  put(e, kAtCrc, checksum(e, std::as_bytes(std::span(out.body)), out.payload));
  return out;
}

Result<Message> decode(std::span<const std::span<const std::byte>> frames, std::uint16_t version_min, std::uint16_t version_max) {
  if (frames.size() != 3) return fail(Errc::bad_frame, "a message of {} frames, 3 are expected", frames.size());
  const auto e = frames[0], body = frames[1], payload = frames[2];
  if (e.size() < 8) return fail(Errc::bad_frame, "an envelope of {} bytes, at least {} are expected", e.size(), kEnvelopeBytes);
  if (get<std::uint32_t>(e, kAtMagic) != kMagic) return fail(Errc::bad_magic, "magic 0x{:08x}, expected 0x{:08x}", get<std::uint32_t>(e, kAtMagic), kMagic);
  const auto version = get<std::uint16_t>(e, kAtVersion);
  if (version < version_min || version > version_max)
    return fail(Errc::bad_version, "protocol version {}, agreed are {} to {}", version, version_min, version_max);
  // The envelope carries its own length, so that a later version may append fields.
  const auto length = get<std::uint16_t>(e, kAtLength);
  if (length != e.size() || length < kEnvelopeBytes)
    return fail(Errc::bad_frame, "an envelope of {} bytes that says {}, at least {} are expected", e.size(), length, kEnvelopeBytes);
  const auto type = get<std::uint16_t>(e, kAtType);
  if (!is_known(type)) return fail(Errc::unknown_type, "message type {}", type);
  Message out;
  auto& h = out.head;
  h.version = version, h.type = static_cast<MessageType>(type), h.flags = get<std::uint16_t>(e, kAtFlags), h.remaining_ms = get<std::uint32_t>(e, kAtRemaining);
  h.session = {get<std::uint64_t>(e, kAtSession), get<std::uint64_t>(e, kAtSession + 8)}, h.epoch = {get<std::uint64_t>(e, kAtEpoch)};
  h.turn = get<std::uint32_t>(e, kAtTurn), h.stream = get<std::uint32_t>(e, kAtStream), h.sequence = get<std::uint64_t>(e, kAtSequence),
  h.trace = get<std::uint64_t>(e, kAtTrace);
  const auto body_bytes = get<std::uint32_t>(e, kAtBody), payload_bytes = get<std::uint32_t>(e, kAtPayload);
  if (body_bytes != body.size() || body.size() > kBodyBytesMax)
    return fail(Errc::bad_frame, "a body of {} bytes, the envelope says {}, at most {} are read", body.size(), body_bytes, kBodyBytesMax);
  if (payload_bytes != payload.size() || payload.size() > payload_bytes_max(h.type))
    return fail(Errc::bad_frame, "a payload of {} bytes, the envelope says {}, type {} takes at most {}", payload.size(), payload_bytes, type,
                payload_bytes_max(h.type));
  if (get<std::uint32_t>(e, kAtCrc) != checksum(e, body, payload)) return fail(Errc::bad_frame, "the checksum of message type {} does not fit", type);
  const std::string_view text(reinterpret_cast<const char*>(body.data()), body.size());
  if (!text.empty() && (nested_deeper_than(text, kBodyDepthMax) || !is_object(text)))
    return fail(Errc::bad_json, "the body of message type {} is not a JSON object of at most {} levels", type, kBodyDepthMax);
  out.body = text;
  out.payload.assign(payload.begin(), payload.end());
  return out;
}

}  // namespace parlando::protocol
