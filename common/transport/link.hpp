#pragma once
/// One peer's link: everything between two instances in one incarnation. Messages are numbered per direction and arrive
/// once and in order; what the other side has not received is kept and sent again after a resumed connection, never on
/// a timer (ZMTP keeps order while a connection lives). Streams have credit: a sender is at most a window ahead of what
/// the other side's service has *handled*; *received* alone frees what is kept for replay. Only the caller begins and
/// ends streams; a stream is gone on both sides when its Close was handled there and answered here. The callee ends
/// streams only by `fence`; then the caller's link gives the answer. All costs are O(what changed). A plain class: no
/// sockets, no clock. ARCHITECTURE.md, "The mesh".
#include <deque>
#include <optional>
#include <unordered_map>

#include "common/protocol/messages.hpp"

namespace parlando::transport {

struct LinkLimits {
  std::uint32_t window_messages = 256;      ///< a sender's messages on a stream ahead of the last one handled here
  std::size_t stream_bytes_max = 8u << 20;  ///< waiting for credit on one outgoing stream
  std::size_t link_bytes_max = 64u << 20;   ///< kept on a link in all
  std::size_t streams_max = 4096;           ///< open at a time
  std::size_t ack_bytes = 256u << 10;       ///< received without a word of it
};

struct LinkCounters {
  std::uint64_t sent = 0;             ///< messages, the first time
  std::uint64_t resent = 0;           ///< messages handed out again after a resumed connection
  std::uint64_t received = 0;         ///< messages taken in
  std::uint64_t duplicates = 0;       ///< arrived again
  std::uint64_t gaps = 0;             ///< arrived before an earlier one; answered by a resync
  std::uint64_t late = 0;             ///< on a stream that has ended here, or was refused
  std::uint64_t refused = 0;          ///< by `send`
  std::uint64_t credit_exceeded = 0;  ///< streams ended because their sender ignored the window
  std::uint64_t unknown_types = 0;
  void operator+=(const LinkCounters& other);
};

class Link {
 public:
  /// @param caller  we begin the streams; else the peer does   @param peer_window  what the peer lets a new stream be
  /// ahead
  Link(bool caller, LinkLimits limits, std::uint32_t peer_window);

  // ---- sending
  /// Takes a message: it is numbered now, or when its stream has credit. Taken means it arrives, unless the link is
  /// reset.
  /// @error what the peer's decoder would say of it (`protocol::check`); Errc::invalid_argument for the link's own
  ///        words and for a callee's Close; Errc::overloaded when a limit of streams or bytes is reached;
  ///        Errc::cancelled on a stream that has ended
  Result<void> send(protocol::Message message);
  /// The next frames to leave, a single message or a batch; nothing when all is out. @param now  deadlines become what
  /// is left of them.
  std::optional<protocol::Frames> next(Time now, std::uint16_t version);
  /// The frames that `next` gave could not leave: they come again.
  void put_back();
  bool has_output() const { return next_ < kept_.size(); }
  /// Everything that waits to leave is sound under way (`audio`), which may wait a little for company.
  bool output_may_wait() const { return urgent_ == 0; }
  std::size_t output_messages() const { return kept_.size() - next_; }

  // ---- receiving
  struct Arrival {
    std::vector<protocol::Message> messages;  ///< for the service, in order
    bool gap = false;                         ///< ask for a resync
    bool violation = false;  ///< twice as many streams or bytes as a fair peer has at most: reset the link
  };
  Arrival receive(protocol::Decoded decoded);
  /// The service has worked on a message: its place in the window is free again; a Close is answered.
  void handled(const protocol::Envelope& head);
  void on_window(const protocol::Message& message);
  /// What there is to tell about received and handled; nothing when nothing changed. @see window_urgent
  std::optional<protocol::Frames> window(std::uint16_t version);
  bool window_due() const { return received_ != told_received_ || !moved_.empty(); }
  /// Should be told at once: a stream's credit is half used or much is kept at the other side.
  bool window_urgent() const { return urgent_window_; }

  // ---- resumption
  std::uint64_t received() const { return received_; }
  /// The last number that has left on this connection.
  std::uint64_t sent() const { return numbered_ - output_messages(); }
  /// The peer is there again and has received up to here: what follows is sent again, and all windows are told again.
  /// @return false when the peer claims more than was sent: the link must be reset
  bool resume(std::uint64_t peer_received);

  std::size_t streams() const { return streams_.size(); }
  std::size_t kept_bytes() const { return bytes_; }
  const LinkCounters& counters() const { return counters_; }
  /// What arrives on the stream of `head` is dropped from now on, until it is closed; the peer is told why.
  void refuse(const protocol::Envelope& head, Errc code, const std::string& why);
  /// The session got another owner: refuses its streams. @return those that our service knows and that are to be closed
  /// there; `handled` of such a Close ends the stream at both ends
  std::vector<StreamKey> fence(SessionId session, const std::string& why);

 private:
  struct Stream {
    std::uint64_t sent = 0, limit = 0;                 ///< outgoing: numbered so far; how many may be
    std::uint64_t arrived = 0, handled = 0, told = 0;  ///< incoming; `told`: the limit the peer knows
    std::deque<protocol::Message> waiting;             ///< for credit
    std::size_t waiting_bytes = 0;
    bool closed_here = false;   ///< our Close is numbered
    bool closed_there = false;  ///< callee: the caller's Close has arrived
    bool known = false;         ///< our service has been given a message of it
    bool refused = false;       ///< everything but Close is dropped
    bool fenced = false;        ///< our service is told of its end already
    bool moved = false;         ///< stands in `moved_`
  };
  using Streams = std::unordered_map<StreamKey, Stream>;
  void number(Stream& stream, protocol::Message message);
  void mark_moved(const StreamKey& key, Stream& stream);
  void refuse(Stream& stream, const protocol::Envelope& head, Errc code, const std::string& why);
  void answer_close(Stream& stream, const StreamKey& key);
  void drop_waiting(Stream& stream);
  bool on_close(Streams::iterator at);
  static bool is_patient(const protocol::Message& message) { return message.head.type == protocol::MessageType::audio; }

  bool caller_;
  LinkLimits limits_;
  std::uint32_t peer_window_;
  Streams streams_;
  std::deque<protocol::Message> kept_;  ///< numbered, from the first one the peer has not received
  std::size_t next_ = 0, handed_ = 0;   ///< place in kept_ of the next to leave; how many `next` handed out last
  std::uint64_t highest_before_ = 0;    ///< highest_out_ before that
  std::size_t urgent_ = 0;              ///< messages to leave that do not wait for company
  std::uint64_t numbered_ = 0, highest_out_ = 0, received_ = 0, told_received_ = 0;
  std::size_t bytes_ = 0, unacknowledged_in_ = 0;
  std::vector<StreamKey> moved_;
  bool urgent_window_ = false;
  LinkCounters counters_;
};

}  // namespace parlando::transport
