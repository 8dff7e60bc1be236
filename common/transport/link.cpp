#include "common/transport/link.hpp"

#include <algorithm>
#include <cstring>

#include "common/base/assert.hpp"

namespace parlando::transport {
using namespace protocol;

void LinkCounters::operator+=(const LinkCounters& other) {
  sent += other.sent;
  resent += other.resent;
  received += other.received;
  duplicates += other.duplicates;
  gaps += other.gaps;
  late += other.late;
  refused += other.refused;
  credit_exceeded += other.credit_exceeded;
  unknown_types += other.unknown_types;
}

Link::Link(bool caller, LinkLimits limits, std::uint32_t peer_window)
    : caller_(caller), limits_(limits), peer_window_(std::max(peer_window, 1u)) {}

Result<void> Link::send(Message message) {
  const auto refused = [this](Error error) -> Result<void> {
    ++counters_.refused;
    return tl::make_unexpected(std::move(error));
  };
  // With a number, such a word would leave a hole at the other end that nothing fills.
  if (is_control(message.head.type))
    return refused(
        {Errc::invalid_argument, fmt::format("{} is a word of the link itself", to_string(message.head.type))});
  if (auto good = check(message); !good) return refused(good.error());
  const auto key = message.head.key();
  const auto ended = [&key] {
    return fail(Errc::cancelled, "stream {} of session {} has ended", key.stream.value, key.session.text());
  };
  const bool closes = message.head.type == MessageType::close;
  const auto found = streams_.find(key);
  const bool begins = found == streams_.end();
  if (begins && (!caller_ || closes)) return ended();
  if (!begins && found->second.closed_here) return ended();
  const auto size = message.bytes();
  if (closes) {
    if (!caller_) return refused({Errc::invalid_argument, "only the caller ends a stream"});
    // Nobody waits for what had no credit yet, and the end itself needs none.
    drop_waiting(found->second);
    found->second.closed_here = true;
    bytes_ += size;
    number(found->second, std::move(message));
    return {};
  }
  if (begins && streams_.size() >= limits_.streams_max)
    return refused({Errc::overloaded, fmt::format("{} streams are open on the link, at most {} are kept",
                                                  streams_.size(), limits_.streams_max)});
  if (bytes_ + size > limits_.link_bytes_max)
    return refused({Errc::overloaded,
                    fmt::format("{} bytes wait on the link, at most {} are kept", bytes_, limits_.link_bytes_max)});
  auto& stream = begins ? streams_[key] : found->second;
  if (begins) {
    stream.limit = peer_window_;
    stream.told = limits_.window_messages;
  }
  if (stream.sent < stream.limit) {  // then nothing waits before it: `on_window` lets out what it gives room for
    bytes_ += size;
    number(stream, std::move(message));
    return {};
  }
  if (stream.waiting_bytes + size > limits_.stream_bytes_max)
    return refused({Errc::overloaded, fmt::format("{} bytes wait on stream {}, at most {} are kept",
                                                  stream.waiting_bytes, key.stream.value, limits_.stream_bytes_max)});
  bytes_ += size;
  stream.waiting_bytes += size;
  stream.waiting.push_back(std::move(message));
  return {};
}

void Link::drop_waiting(Stream& stream) {
  bytes_ -= stream.waiting_bytes;
  stream.waiting.clear();
  stream.waiting_bytes = 0;
}

/// Gives a message its number; from here on it is kept until the peer has received it.
void Link::number(Stream& stream, Message message) {
  ++stream.sent;
  message.head.sequence = ++numbered_;
  if (!is_patient(message)) ++urgent_;
  kept_.push_back(std::move(message));
}

std::optional<Frames> Link::next(Time now, std::uint16_t version) {
  if (next_ >= kept_.size()) return {};
  const auto left = [now](const Message& m) -> std::uint32_t {
    if (m.deadline == Time::max()) return 0;
    const auto ms = std::chrono::duration_cast<milliseconds>(m.deadline - now).count();
    return static_cast<std::uint32_t>(std::clamp<std::int64_t>(ms, 1, std::numeric_limits<std::uint32_t>::max()));
  };
  std::size_t bytes = 0;
  std::vector<const Message*> together;
  for (auto at = next_; at < kept_.size() && together.size() < kBatchMessagesMax; ++at) {
    bytes += kept_[at].bytes();
    if (!together.empty() && bytes > kBatchBytesMax) break;
    kept_[at].head.remaining_ms = left(kept_[at]);
    together.push_back(&kept_[at]);
  }
  handed_ = together.size();
  highest_before_ = highest_out_;
  for (const auto* m : together) {
    if (!is_patient(*m)) --urgent_;
    if (m->head.sequence > highest_out_)
      ++counters_.sent;
    else
      ++counters_.resent;
  }
  next_ += handed_;
  highest_out_ = std::max(highest_out_, together.back()->head.sequence);
  if (together.size() == 1) return encode(*together.front(), version);
  return encode_batch(together, version);
}

void Link::put_back() {
  PARLANDO_ASSERT(handed_ > 0 && next_ >= handed_, "only what next() handed out can come back");
  for (std::size_t i = 0; i < handed_; ++i) {
    --next_;
    if (!is_patient(kept_[next_])) ++urgent_;
    if (kept_[next_].head.sequence > highest_before_)
      --counters_.sent;
    else
      --counters_.resent;
  }
  handed_ = 0;
  highest_out_ = highest_before_;
}

Link::Arrival Link::receive(Decoded decoded) {
  Arrival out;
  for (auto& message : decoded.messages) {
    const auto sequence = message.head.sequence;
    if (sequence <= received_) {
      ++counters_.duplicates;
      continue;
    }
    if (sequence != received_ + 1) {
      ++counters_.gaps;
      out.gap = true;
      break;
    }
    received_ = sequence;
    ++counters_.received;
    unacknowledged_in_ += message.bytes();
    if (unacknowledged_in_ > limits_.ack_bytes) urgent_window_ = true;
    const auto key = message.head.key();
    const bool closes = message.head.type == MessageType::close && !message.unknown;
    auto found = streams_.find(key);
    if (found == streams_.end()) {
      if (caller_ || closes) {
        ++counters_.late;
        continue;
      }
      // A fair peer keeps its own limits; one that does not, or that never says what it has received, costs no more
      // memory than this.
      if (streams_.size() >= 2 * limits_.streams_max || bytes_ > 2 * limits_.link_bytes_max) {
        out.violation = true;
        break;
      }
      found = streams_.emplace(key, Stream{}).first;
      found->second.limit = peer_window_;
      found->second.told = limits_.window_messages;
      if (streams_.size() > limits_.streams_max)
        refuse(found->second, message.head, Errc::overloaded,
               fmt::format("{} streams are open on the link, at most {} are served", streams_.size() - 1,
                           limits_.streams_max));
    }
    auto& stream = found->second;
    if (closes) {
      if (on_close(found)) out.messages.push_back(std::move(message));
      continue;
    }
    ++stream.arrived;
    counters_.unknown_types += message.unknown;
    if (stream.closed_here || stream.closed_there || stream.refused) {
      counters_.late += !message.unknown;
    } else if (stream.arrived > stream.told &&
               !(message.head.type == MessageType::error && stream.arrived == stream.told + 1)) {
      // An error may be one beyond: a stream that is refused says so whatever its credit.
      ++counters_.credit_exceeded;
      auto why =
          fmt::format("message {} on stream {}, the window ends at {}", stream.arrived, key.stream.value, stream.told);
      if (caller_) {
        // Whoever called is to end the stream: its own service is told in the callee's place.
        stream.refused = true;
        out.messages.push_back(
            pack(ErrorMessage{std::string(to_string(Errc::credit_exceeded)), std::move(why)}, message.head));
        continue;
      }
      refuse(stream, message.head, Errc::credit_exceeded, why);
    } else if (!message.unknown) {
      stream.known = true;
      out.messages.push_back(std::move(message));
      continue;
    }
    ++stream.handled;
    mark_moved(key, stream);
  }
  return out;
}

/// @return whether it is for our service
bool Link::on_close(Streams::iterator at) {
  auto& stream = at->second;
  if (caller_) {
    // The answer to ours; or the callee has ended the stream (`fence`), and our answer lets it forget the stream, too.
    drop_waiting(stream);
    if (!stream.closed_here) answer_close(stream, at->first);
    streams_.erase(at);
    return false;
  }
  if (stream.closed_there) {
    ++counters_.late;
    return false;
  }
  stream.closed_there = true;
  if (stream.closed_here) {
    streams_.erase(at);
    return false;
  }
  if (stream.fenced) return false;  // its Close is under way to our service
  if (stream.known) return true;
  drop_waiting(stream);
  answer_close(stream, at->first);
  streams_.erase(at);
  return false;
}

void Link::answer_close(Stream& stream, const StreamKey& key) {
  Envelope head;
  head.session = key.session;
  head.stream = key.stream;
  auto answer = pack(Close{}, head);
  bytes_ += answer.bytes();
  stream.closed_here = true;
  number(stream, std::move(answer));
}

void Link::refuse(const Envelope& head, Errc code, const std::string& why) {
  const auto found = streams_.find(head.key());
  if (found != streams_.end() && !found->second.closed_here) refuse(found->second, head, code, why);
}

void Link::refuse(Stream& stream, const Envelope& head, Errc code, const std::string& why) {
  stream.refused = true;
  drop_waiting(stream);
  auto message = pack(ErrorMessage{std::string(to_string(code)), why}, head);
  message.head.flags = 0;
  bytes_ += message.bytes();
  number(stream, std::move(message));
}

std::vector<StreamKey> Link::fence(SessionId session, const std::string& why) {
  std::vector<StreamKey> out;
  for (auto& [key, stream] : streams_) {
    if (key.session != session || stream.closed_here || stream.closed_there || stream.fenced) continue;
    Envelope head;
    head.session = key.session;
    head.stream = key.stream;
    if (!stream.refused) refuse(stream, head, Errc::stale_epoch, why);
    if (!stream.known) continue;
    stream.fenced = true;
    out.push_back(key);
  }
  return out;
}

void Link::mark_moved(const StreamKey& key, Stream& stream) {
  if (!stream.moved) {
    stream.moved = true;
    moved_.push_back(key);
  }
  if (stream.handled + limits_.window_messages >= stream.told + limits_.window_messages / 2) urgent_window_ = true;
}

void Link::handled(const Envelope& head) {
  const auto found = streams_.find(head.key());
  if (found == streams_.end()) return;
  auto& stream = found->second;
  if (head.type == MessageType::close && !caller_) {
    if (!stream.closed_there && !stream.fenced) return;  // nobody has asked for it
    drop_waiting(stream);
    if (!stream.closed_here) answer_close(stream, found->first);
    if (stream.closed_there) streams_.erase(found);
    return;
  }
  if (stream.handled < stream.arrived) ++stream.handled;
  mark_moved(found->first, stream);
}

void Link::on_window(const Message& message) {
  PackReader reader(message.body);
  Window window;
  window.fields(reader);
  if (!reader.done(Window::kType)) return;
  while (next_ > 0 && kept_.front().head.sequence <= window.received) {
    bytes_ -= kept_.front().bytes();
    kept_.pop_front();
    --next_;
  }
  handed_ = 0;
  const std::span<const std::byte> records = message.payload;
  for (std::size_t at = 0; at + Window::kRecordBytes <= records.size(); at += Window::kRecordBytes) {
    StreamKey key;
    std::uint64_t limit = 0;
    std::memcpy(&key.session.high, records.data() + at, 8);
    std::memcpy(&key.session.low, records.data() + at + 8, 8);
    std::memcpy(&key.stream.value, records.data() + at + 16, 4);
    std::memcpy(&limit, records.data() + at + 20, 8);
    const auto found = streams_.find(key);
    if (found == streams_.end()) continue;
    auto& stream = found->second;
    stream.limit = std::max(stream.limit, std::min(limit, stream.sent + 65536));
    while (!stream.waiting.empty() && stream.sent < stream.limit) {
      stream.waiting_bytes -= stream.waiting.front().bytes();
      auto waited = std::move(stream.waiting.front());
      stream.waiting.pop_front();
      number(stream, std::move(waited));
    }
  }
}

std::optional<Frames> Link::window(std::uint16_t version) {
  if (!window_due()) return {};
  auto message = pack(Window{received_});
  const auto records_max = payload_bytes_max(MessageType::window) / Window::kRecordBytes;
  const auto count = std::min(moved_.size(), records_max);
  message.payload.reserve(count * Window::kRecordBytes);
  for (std::size_t i = moved_.size() - count; i < moved_.size(); ++i) {
    const auto found = streams_.find(moved_[i]);
    if (found == streams_.end()) continue;
    auto& stream = found->second;
    stream.moved = false;
    stream.told = std::max(stream.told, stream.handled + limits_.window_messages);
    const auto at = message.payload.size();
    message.payload.resize(at + Window::kRecordBytes);
    auto* to = message.payload.data() + at;
    std::memcpy(to, &moved_[i].session.high, 8);
    std::memcpy(to + 8, &moved_[i].session.low, 8);
    std::memcpy(to + 16, &moved_[i].stream.value, 4);
    std::memcpy(to + 20, &stream.told, 8);
  }
  moved_.resize(moved_.size() - count);
  told_received_ = received_;
  unacknowledged_in_ = 0;
  urgent_window_ = !moved_.empty();
  return encode(message, version);
}

bool Link::resume(std::uint64_t peer_received) {
  const auto first = numbered_ - kept_.size() + 1;  // number of kept_.front(), or of the next message
  if (peer_received + 1 < first || peer_received > highest_out_) return false;
  while (!kept_.empty() && kept_.front().head.sequence <= peer_received) {
    bytes_ -= kept_.front().bytes();
    kept_.pop_front();
  }
  next_ = 0;
  handed_ = 0;
  urgent_ = static_cast<std::size_t>(
      std::count_if(kept_.begin(), kept_.end(), [](const Message& m) { return !is_patient(m); }));
  // A window that was lost with the connection is said again.
  for (auto& [key, stream] : streams_)
    if (stream.handled > 0 && !stream.moved) {
      stream.moved = true;
      moved_.push_back(key);
    }
  told_received_ = 0;
  return true;
}

}  // namespace parlando::transport
