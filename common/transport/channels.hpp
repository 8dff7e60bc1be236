#pragma once
/// At-least-once delivery made exactly-once and in order, per (peer, session, stream): numbers, acknowledgements, windows, sending again.
/// A `close` message ends a stream in both directions; nothing of it is kept once it is acknowledged.
/// A plain class: the host feeds it what arrives and what time it is, and sends what it answers. architecture.md §4.
#include <map>
#include <optional>

#include "common/base/clock.hpp"
#include "common/protocol/delivery.hpp"

namespace parlando::transport {

struct ChannelLimits {
  std::uint64_t window_messages = 256;             ///< how far ahead of the last handled message a sender may be
  std::size_t unacknowledged_bytes_max = 8 << 20;  ///< per outgoing stream
  std::size_t streams_max = 4096;                  ///< incoming streams per peer, and outgoing ones per peer
  milliseconds resend_after{250};                  ///< without an acknowledgement
};

struct ChannelCounters {
  std::uint64_t duplicates = 0, stale = 0, gaps = 0, resent = 0, credit_exceeded = 0, refused = 0;
};

class Channels {
 public:
  explicit Channels(ChannelLimits limits = {}) : limits_(limits) {}

  /// Numbers and keeps a message; what may leave now is in `due`. Control messages pass through unnumbered.
  /// @error Errc::overloaded when the peer is behind by `unacknowledged_bytes_max` or has too many streams
  Result<void> send(const std::string& peer, protocol::Message message, Time now);
  /// Judges a message that arrived. @return it when it is next in its stream (or exempt), else nothing.
  std::optional<protocol::Message> receive(const std::string& peer, protocol::Message message, Time now);
  /// The message has been worked on: its place in the window is free again.
  void handled(const std::string& peer, const protocol::Envelope& head);
  /// Acknowledgements, new messages within the window, and messages that were not acknowledged in time.
  struct Due {
    std::string peer;
    protocol::Message message;
  };
  std::vector<Due> due(Time now);
  /// The peer is gone: everything of it is forgotten; the application decides where its work goes.
  void forget(const std::string& peer);

  const ChannelCounters& counters() const { return counters_; }
  /// Streams that are kept, outgoing and incoming.
  std::size_t streams() const;

 private:
  using Key = std::pair<protocol::SessionId, std::uint32_t>;
  struct Outgoing {
    protocol::Outbox box;
    Time last_progress;
    bool fresh = true, closing = false;
  };
  struct Incoming {
    std::uint64_t handled = 0, told = 0;
    bool tell = false, closing = false;
  };
  struct Side {
    protocol::Inbox inbox;
    std::map<Key, Incoming> incoming;
  };
  ChannelLimits limits_;
  ChannelCounters counters_;
  std::map<std::pair<std::string, Key>, Outgoing> outgoing_;
  std::map<std::string, Side> sides_;
};

}  // namespace parlando::transport
