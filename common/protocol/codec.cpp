#include "common/protocol/codec.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

#include "common/base/assert.hpp"
#include "common/base/nesting.hpp"

namespace parlando::protocol {

static_assert(std::endian::native == std::endian::little, "the envelope is written as it lies in memory");

namespace {

/// What the codec knows of a type; docs/protocol.md lists the same.
struct TypeFacts {
  MessageType type;
  std::string_view name;
  std::size_t payload_bytes_max;
  bool packed;
};
constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * 1024;
constexpr TypeFacts kTypes[] = {
    {MessageType::hello, "hello", 0, false},
    {MessageType::heartbeat, "heartbeat", 0, true},
    {MessageType::heartbeat_reply, "heartbeat_reply", 0, true},
    {MessageType::window, "window", 64 * kKiB, true},
    {MessageType::refused, "refused", 0, false},
    {MessageType::resync, "resync", 0, true},
    {MessageType::batch, "batch", kMessageBytesMax - kMiB, true},
    {MessageType::cancel, "cancel", 0, false},
    {MessageType::error, "error", 0, false},
    {MessageType::open, "open", kMiB, false},
    {MessageType::close, "close", 0, true},
    {MessageType::open_vad, "open_vad", 0, false},
    {MessageType::open_tokenizer, "open_tokenizer", 0, false},
    {MessageType::tokenize, "tokenize", 4 * kMiB, false},  // a recording as float32
    {MessageType::open_chat, "open_chat", 4 * kMiB, false},
    {MessageType::synthesise, "synthesise", 256 * kKiB, false},
    {MessageType::claim, "claim", 0, false},
    {MessageType::granted, "granted", 0, false},
    {MessageType::renew, "renew", 0, false},
    {MessageType::attach, "attach", 0, false},
    {MessageType::fork_chat, "fork_chat", 0, true},
    {MessageType::audio, "audio", 32 * kKiB, true},  // at most 1 s at 16 kHz
    {MessageType::flush, "flush", 0, true},
    {MessageType::speech_started, "speech_started", 0, true},
    {MessageType::speech_ended, "speech_ended", 0, true},
    {MessageType::cancelled, "cancelled", 0, false},
    {MessageType::speech_paused, "speech_paused", 0, true},
    {MessageType::speech_resumed, "speech_resumed", 0, true},
    {MessageType::played, "played", 0, true},
    {MessageType::configure, "configure", 0, false},
    {MessageType::item, "item", 0, false},
    {MessageType::respond, "respond", 0, false},
    {MessageType::tool_output, "tool_output", 0, false},
    {MessageType::utter, "utter", 0, false},
    {MessageType::truncate, "truncate", 0, true},
    {MessageType::forget, "forget", 0, false},
    {MessageType::tokens, "tokens", 256 * kKiB, true},
    {MessageType::hear, "hear", 256 * kKiB, true},
    {MessageType::generate, "generate", 0, true},
    {MessageType::text, "text", 256 * kKiB, false},
    {MessageType::say, "say", 0, false},
    {MessageType::tool_result, "tool_result", 0, false},
    {MessageType::go_on, "go_on", 256 * kKiB, true},
    {MessageType::speak, "speak", 0, false},
    {MessageType::speech, "speech", 256 * kKiB, true},
    {MessageType::commit, "commit", 4 * kMiB, false},
    {MessageType::history, "history", 0, false},
    {MessageType::committed, "committed", 0, false},
    {MessageType::records, "records", 4 * kMiB, false},
    {MessageType::erase, "erase", 0, true},
    {MessageType::erased, "erased", 0, false},
    {MessageType::opened, "opened", 0, false},
    {MessageType::turn_done, "turn_done", 4 * kMiB, false},
    {MessageType::checkpoint, "checkpoint", 0, true},
    {MessageType::attached, "attached", kMiB, false},
    {MessageType::hold, "hold", 0, true},
    {MessageType::release, "release", 0, true},
    {MessageType::interrupted, "interrupted", 0, false},
    {MessageType::waiting, "waiting", 0, true},
    {MessageType::noted, "noted", 0, false},
    {MessageType::event, "event", 4 * kMiB, true},  // as turn_done, which it may carry
    {MessageType::decided, "decided", 0, true},
};

/// Type number -> place in kTypes, or -1.
constexpr std::array<std::int8_t, kTypeMax> kPlaces = [] {
  std::array<std::int8_t, kTypeMax> places{};
  for (auto& p : places) p = -1;
  for (std::size_t i = 0; i < std::size(kTypes); ++i)
    places[static_cast<std::size_t>(kTypes[i].type)] = static_cast<std::int8_t>(i);
  return places;
}();

const TypeFacts* facts_of(std::uint16_t type) {
  return type < kTypeMax && kPlaces[type] >= 0 ? &kTypes[static_cast<std::size_t>(kPlaces[type])] : nullptr;
}
const TypeFacts* facts_of(MessageType type) { return facts_of(static_cast<std::uint16_t>(type)); }

constexpr std::array<std::uint32_t, 256> kTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = c & 1 ? 0x82f63b78u ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
  return table;
}();

// Offsets of the envelope's fields; docs/protocol.md lists the same.
constexpr std::size_t kAtMagic = 0, kAtVersion = 4, kAtLength = 6, kAtType = 8, kAtFlags = 10, kAtRemaining = 12,
                      kAtSession = 16, kAtEpoch = 32, kAtTurn = 40, kAtStream = 44, kAtSequence = 48, kAtTrace = 56,
                      kAtBody = 64, kAtPayload = 68, kAtCrc = 72, kAtReserved = 76;
static_assert(kAtReserved + 4 == kEnvelopeBytes, "the fields fill the envelope");

// A record inside a batch: the same fields without those that the batch has once for all.
constexpr std::size_t kInType = 0, kInFlags = 2, kInRemaining = 4, kInSession = 8, kInEpoch = 24, kInTurn = 32,
                      kInStream = 36, kInTrace = 40, kInBody = 48, kInPayload = 52, kRecordBytes = 56;

template <class T>
void put(std::byte* to, std::size_t at, T value) {
  std::memcpy(to + at, &value, sizeof value);
}
template <class T>
T get(std::span<const std::byte> from, std::size_t at) {
  T value;
  std::memcpy(&value, from.data() + at, sizeof value);
  return value;
}

std::uint32_t checksum(std::span<const std::byte> envelope, std::span<const std::byte> body,
                       std::span<const std::byte> payload) {
  const std::uint32_t none = 0;  // the checksum's own field counts as zero
  auto c = crc32c(envelope.first(kAtCrc));
  c = crc32c(std::as_bytes(std::span(&none, 1)), c);
  return crc32c(payload, crc32c(body, crc32c(envelope.subspan(kAtCrc + 4), c)));
}

/// A JSON object, checked without building it.
bool is_object(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || text[first] != '{') return false;
  return text == "{}" || (!nested_deeper_than(text, kBodyDepthMax) && nlohmann::json::accept(text));
}

Result<void> check_parts(const TypeFacts& facts, std::string_view body, std::size_t payload_bytes) {
  if (body.size() > kBodyBytesMax)
    return fail(Errc::bad_frame, "a body of {} bytes for {}, at most {} are sent", body.size(), facts.name,
                kBodyBytesMax);
  if (payload_bytes > facts.payload_bytes_max)
    return fail(Errc::bad_frame, "a payload of {} bytes for {}, at most {} are sent", payload_bytes, facts.name,
                facts.payload_bytes_max);
  if (!facts.packed && !body.empty() && !is_object(body))
    return fail(Errc::bad_json, "the body of {} is not a JSON object of at most {} levels", facts.name, kBodyDepthMax);
  return {};
}

Time deadline_of(std::uint32_t remaining_ms, Time now) {
  return remaining_ms == 0 || now == Time::max() ? Time::max() : now + milliseconds(remaining_ms);
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

bool is_known(std::uint16_t type) { return facts_of(type) != nullptr; }
std::string_view to_string(MessageType type) {
  const auto* facts = facts_of(type);
  return facts != nullptr ? facts->name : "unknown";
}
std::size_t payload_bytes_max(MessageType type) {
  const auto* facts = facts_of(type);
  return facts != nullptr ? facts->payload_bytes_max : 0;
}
bool is_packed(MessageType type) {
  const auto* facts = facts_of(type);
  return facts != nullptr && facts->packed;
}
bool is_control(MessageType type) {
  const auto number = static_cast<std::uint16_t>(type);
  return number <= 4 || (number >= 7 && number <= 15);
}

Result<void> check(const Message& message) {
  const auto* facts = facts_of(message.head.type);
  if (facts == nullptr) return fail(Errc::unknown_type, "message type {}", static_cast<int>(message.head.type));
  return check_parts(*facts, message.body, message.payload.size());
}

namespace {

void put_envelope(std::array<std::byte, kEnvelopeBytes>& to, const Envelope& h, std::uint16_t version, std::size_t body,
                  std::size_t payload) {
  auto* e = to.data();
  put(e, kAtMagic, kMagic);
  put(e, kAtVersion, version);
  put(e, kAtLength, static_cast<std::uint16_t>(kEnvelopeBytes));
  put(e, kAtType, static_cast<std::uint16_t>(h.type));
  put(e, kAtFlags, h.flags);
  put(e, kAtRemaining, h.remaining_ms);
  put(e, kAtSession, h.session.high);
  put(e, kAtSession + 8, h.session.low);
  put(e, kAtEpoch, h.epoch.value);
  put(e, kAtTurn, h.turn.value);
  put(e, kAtStream, h.stream.value);
  put(e, kAtSequence, h.sequence);
  put(e, kAtTrace, h.trace);
  put(e, kAtBody, static_cast<std::uint32_t>(body));
  put(e, kAtPayload, static_cast<std::uint32_t>(payload));
  put(e, kAtCrc, std::uint32_t{0});
  put(e, kAtReserved, std::uint32_t{0});
}

}  // namespace

Frames encode(const Message& message, std::uint16_t version) {
  Frames out{{}, message.body, message.payload};
  put_envelope(out.envelope, message.head, version, out.body.size(), out.payload.size());
  put(out.envelope.data(), kAtCrc, checksum(out.envelope, std::as_bytes(std::span(out.body)), out.payload));
  return out;
}

Frames encode_batch(std::span<const Message* const> messages, std::uint16_t version) {
  PARLANDO_ASSERT(!messages.empty() && messages.size() <= kBatchMessagesMax,
                  "a batch holds 1 to kBatchMessagesMax messages");
  std::size_t size = 0;
  for (const auto* m : messages) size += kRecordBytes + m->body.size() + m->payload.size();
  Frames out;
  out.payload.resize(size);
  auto* to = out.payload.data();
  for (const auto* m : messages) {
    const auto& h = m->head;
    put(to, kInType, static_cast<std::uint16_t>(h.type));
    put(to, kInFlags, h.flags);
    put(to, kInRemaining, h.remaining_ms);
    put(to, kInSession, h.session.high);
    put(to, kInSession + 8, h.session.low);
    put(to, kInEpoch, h.epoch.value);
    put(to, kInTurn, h.turn.value);
    put(to, kInStream, h.stream.value);
    put(to, kInTrace, h.trace);
    put(to, kInBody, static_cast<std::uint32_t>(m->body.size()));
    put(to, kInPayload, static_cast<std::uint32_t>(m->payload.size()));
    to += kRecordBytes;
    std::memcpy(to, m->body.data(), m->body.size());
    to += m->body.size();
    if (!m->payload.empty()) std::memcpy(to, m->payload.data(), m->payload.size());
    to += m->payload.size();
  }
  Envelope head;
  head.type = MessageType::batch;
  head.sequence = messages.front()->head.sequence;
  put_envelope(out.envelope, head, version, 0, size);
  put(out.envelope.data(), kAtCrc, checksum(out.envelope, {}, out.payload));
  return out;
}

namespace {

/// The records of a batch's payload. All of it is read before any of it counts.
Result<Decoded> decode_batch(const Envelope& outer, std::span<const std::byte> payload, Time now) {
  Decoded out;
  out.batch = true;
  auto sequence = outer.sequence;
  for (std::uint32_t n = 0; !payload.empty(); ++n, ++sequence) {
    if (n == kBatchMessagesMax) return fail(Errc::bad_frame, "a batch of more than {} messages", kBatchMessagesMax);
    if (payload.size() < kRecordBytes)
      return fail(Errc::bad_frame, "a batch ends with {} bytes, a message in it has at least {}", payload.size(),
                  kRecordBytes);
    const auto body_bytes = get<std::uint32_t>(payload, kInBody);
    const auto payload_bytes = get<std::uint32_t>(payload, kInPayload);
    const auto rest = payload.size() - kRecordBytes;
    if (body_bytes > rest || payload_bytes > rest - body_bytes)
      return fail(Errc::bad_frame, "a message of {} and {} bytes in a batch of which {} are left", body_bytes,
                  payload_bytes, rest);
    const auto record = payload.first(kRecordBytes);
    const auto body = payload.subspan(kRecordBytes, body_bytes);
    const auto data = payload.subspan(kRecordBytes + body_bytes, payload_bytes);
    payload = payload.subspan(kRecordBytes + body_bytes + payload_bytes);
    const auto type = get<std::uint16_t>(record, kInType);
    const auto* facts = facts_of(type);
    if (facts != nullptr && is_control(facts->type)) return fail(Errc::bad_frame, "{} inside a batch", facts->name);
    const std::string_view text(reinterpret_cast<const char*>(body.data()), body.size());
    Message m;
    auto& h = m.head;
    h.version = outer.version;
    if (facts != nullptr) {
      PARLANDO_DO(check_parts(*facts, text, payload_bytes));
      h.type = facts->type;
      m.body = text;
      m.payload.assign(data.begin(), data.end());
    } else {
      m.unknown = true;
      ++out.skipped;
    }
    h.flags = get<std::uint16_t>(record, kInFlags);
    h.remaining_ms = get<std::uint32_t>(record, kInRemaining);
    h.session = {get<std::uint64_t>(record, kInSession), get<std::uint64_t>(record, kInSession + 8)};
    h.epoch = {get<std::uint64_t>(record, kInEpoch)};
    h.turn = {get<std::uint32_t>(record, kInTurn)};
    h.stream = {get<std::uint32_t>(record, kInStream)};
    h.trace = get<std::uint64_t>(record, kInTrace);
    h.sequence = sequence;
    m.deadline = deadline_of(h.remaining_ms, now);
    out.messages.push_back(std::move(m));
  }
  if (out.messages.empty()) return fail(Errc::bad_frame, "a batch without a message");
  return out;
}

}  // namespace

Result<Decoded> decode(std::span<const std::span<const std::byte>> frames, Time now, std::uint16_t version_min,
                       std::uint16_t version_max) {
  if (frames.size() != 3) return fail(Errc::bad_frame, "a message of {} frames, 3 are expected", frames.size());
  const auto e = frames[0], body = frames[1], payload = frames[2];
  if (e.size() < 8)
    return fail(Errc::bad_frame, "an envelope of {} bytes, at least {} are expected", e.size(), kEnvelopeBytes);
  if (get<std::uint32_t>(e, kAtMagic) != kMagic)
    return fail(Errc::bad_magic, "magic 0x{:08x}, expected 0x{:08x}", get<std::uint32_t>(e, kAtMagic), kMagic);
  const auto version = get<std::uint16_t>(e, kAtVersion);
  if (version < version_min || version > version_max)
    return fail(Errc::bad_version, "protocol version {}, agreed are {} to {}", version, version_min, version_max);
  // The envelope carries its own length, so that a later version may append fields.
  const auto length = get<std::uint16_t>(e, kAtLength);
  if (length != e.size() || length < kEnvelopeBytes)
    return fail(Errc::bad_frame, "an envelope of {} bytes that says {}, at least {} are expected", e.size(), length,
                kEnvelopeBytes);
  const auto type = get<std::uint16_t>(e, kAtType);
  const auto* facts = facts_of(type);
  const auto sequence = get<std::uint64_t>(e, kAtSequence);
  // A later version's numbered message keeps its place on the link; anything else of an unknown type has none.
  if (facts == nullptr && sequence == 0) return fail(Errc::unknown_type, "message type {}", type);
  Message m;
  auto& h = m.head;
  h.version = version;
  if (facts != nullptr) h.type = facts->type;
  h.flags = get<std::uint16_t>(e, kAtFlags);
  h.remaining_ms = get<std::uint32_t>(e, kAtRemaining);
  h.session = {get<std::uint64_t>(e, kAtSession), get<std::uint64_t>(e, kAtSession + 8)};
  h.epoch = {get<std::uint64_t>(e, kAtEpoch)};
  h.turn = {get<std::uint32_t>(e, kAtTurn)};
  h.stream = {get<std::uint32_t>(e, kAtStream)};
  h.sequence = sequence;
  h.trace = get<std::uint64_t>(e, kAtTrace);
  const auto body_bytes = get<std::uint32_t>(e, kAtBody), payload_bytes = get<std::uint32_t>(e, kAtPayload);
  if (body_bytes != body.size() || payload_bytes != payload.size())
    return fail(Errc::bad_frame, "a body of {} and a payload of {} bytes, the envelope says {} and {}", body.size(),
                payload.size(), body_bytes, payload_bytes);
  if (facts != nullptr && (body.size() > kBodyBytesMax || payload.size() > facts->payload_bytes_max))
    return fail(Errc::bad_frame, "a body of {} and a payload of {} bytes, {} takes at most {} and {}", body.size(),
                payload.size(), facts->name, kBodyBytesMax, facts->payload_bytes_max);
  if (get<std::uint32_t>(e, kAtCrc) != checksum(e, body, payload))
    return fail(Errc::bad_frame, "the checksum of message type {} does not fit", type);
  if (facts == nullptr) {
    m.unknown = true;
    Decoded out;
    out.messages.push_back(std::move(m));
    out.skipped = 1;
    return out;
  }
  if (facts->type == MessageType::batch) return decode_batch(h, payload, now);
  const std::string_view text(reinterpret_cast<const char*>(body.data()), body.size());
  PARLANDO_DO(check_parts(*facts, text, payload.size()));
  m.body = text;
  m.payload.assign(payload.begin(), payload.end());
  m.deadline = deadline_of(h.remaining_ms, now);
  Decoded out;
  out.messages.push_back(std::move(m));
  return out;
}

}  // namespace parlando::protocol
