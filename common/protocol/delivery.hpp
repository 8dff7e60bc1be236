#pragma once
/// What makes at-least-once delivery idempotent, as plain classes: fencing by epoch, duplicate suppression, windows with replay, and
/// placement by rendezvous hashing. No sockets, no clock.
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/protocol/codec.hpp"

namespace parlando::protocol {

/// Receiver's side of one peer group: keeps the highest epoch per (session, stream) and the sequence numbers already taken.
/// Bounded: the least recently used stream is forgotten above `streams_max`.
class Inbox {
 public:
  enum class Verdict { accept, duplicate, stale, gap };
  explicit Inbox(std::size_t streams_max = 65536) : streams_max_(streams_max) {}
  /// accept: the next message of its stream. A higher epoch starts the stream again at its own sequence number. gap: something before it
  /// is missing; the message is not taken and must be sent again after the missing one.
  Verdict judge(const Envelope& head);
  /// The highest sequence number taken of a stream, for `window{ack}`.
  std::optional<std::uint64_t> acknowledged(SessionId session, std::uint32_t stream) const;
  void forget(SessionId session);
  void forget(SessionId session, std::uint32_t stream) { streams_.erase({session, stream}); }
  std::size_t streams() const { return streams_.size(); }

 private:
  using Key = std::pair<SessionId, std::uint32_t>;
  struct State {
    Epoch epoch;
    std::uint64_t last = 0, used = 0;
  };
  std::map<Key, State> streams_;
  std::size_t streams_max_;
  std::uint64_t clock_ = 0;
};

/// Sender's side of one stream: numbers messages, keeps what is not acknowledged for replay, and sends up to the peer's limit.
class Outbox {
 public:
  /// @param bytes_max  of unacknowledged messages; @see push
  Outbox(std::uint64_t limit, std::size_t bytes_max) : limit_(limit), bytes_max_(bytes_max) {}
  /// Numbers the message and keeps it; its epoch never falls. @error Errc::overloaded when the unacknowledged messages would pass `bytes_max`
  Result<void> push(Message message);
  /// Messages that may be sent now, in order; each is handed out once per connection.
  std::vector<Message> take();
  /// `window{ack, limit}`; both absolute, so that a duplicate does no harm and an older one is ignored.
  void window(std::uint64_t ack, std::uint64_t limit);
  /// The peer is gone: everything unacknowledged will be handed out again, under this attempt.
  void replay(Epoch epoch);
  std::size_t unacknowledged() const { return kept_.size(); }

 private:
  std::deque<Message> kept_;
  std::uint64_t next_ = 1, limit_, ack_ = 0, handed_ = 0;
  std::size_t bytes_ = 0, bytes_max_;
  Epoch epoch_;
};

/// Replica for a new session: the highest hash of (session, replica) wins, so that adding or losing one moves only its own share.
/// @return index, or nothing when there is no replica
std::optional<std::size_t> rendezvous(SessionId session, const std::vector<std::string>& replicas);

}  // namespace parlando::protocol
