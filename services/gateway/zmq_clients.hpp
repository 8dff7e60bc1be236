#pragma once
/// Clients of the mesh (role `client`, the SDKs): each stream of theirs is one conversation, as one WebSocket is. The
/// text form travels as Event, sound as Audio and Speech. This class translates between streams and `Sessions`; it
/// knows no sockets. docs/protocol.md, "A client".
///
/// A client that is to be read no further (`ToClient::pause`) has its messages put by: they keep their places in the
/// stream's window, so that it has no credit for more. One that takes its events too slowly has the link refuse them:
/// its conversation ends then.
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <unordered_map>

#include "common/service/stream_table.hpp"
#include "services/gateway/sessions.hpp"

namespace parlando::gateway {

struct ZmqClientLimits {
  std::size_t streams_max = 512;             ///< conversations in all; 0: none are taken
  std::size_t per_peer_max = 64;             ///< of one client
  std::size_t waiting_bytes_max = 2u << 20;  ///< put by on one stream; the window bounds their number
};

/// What the gateway's core does for them.
struct ZmqClientWire {
  std::function<void(const std::string& peer, protocol::Message)> send;
  std::function<void()> put_by;  ///< the message that is being worked on
  std::function<void(const std::string& peer, const protocol::Envelope&)> worked_on;
};

struct ZmqClientCounters {
  std::uint64_t opened = 0, refused = 0, malformed = 0, put_by = 0, slow = 0, lost = 0;
};

class ZmqClients {
 public:
  ZmqClients(Sessions& sessions, ZmqClientLimits limits, ZmqClientWire wire)
      : sessions_(sessions), limits_(limits), wire_(std::move(wire)) {}

  // ---- from the link; each says whether it was about a caller of ours
  bool on_peer(const transport::Peer& peer, transport::PeerState state, Time now);
  bool on_message(const std::string& peer, protocol::Message& message, Time now);
  /// There is no room for what was sent to a client.
  bool on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now);
  void on_tick();

  // ---- from the sessions
  /// @return whether the client is one of ours
  bool act_on(ToClient& action, Time now);
  /// Works on what waited for clients that are read again. @return whether there was something
  bool go_on(Time now);

  static bool is_ours(ClientId id) { return (id & kOurs) != 0; }
  /// Conversations that go on.
  std::size_t open() const { return by_id_.size(); }
  /// Streams that are known: those that have ended and are not closed yet included.
  std::size_t streams() const { return streams_.size(); }
  std::size_t room() const { return limits_.streams_max - std::min(limits_.streams_max, open()); }
  const ZmqClientCounters& counters() const { return counters_; }

 private:
  /// Sockets count from 1.
  static constexpr ClientId kOurs = ClientId{1} << 62;
  struct Stream {
    protocol::Envelope head;  ///< answers go to it
    ClientId id = 0;          ///< 0: it has ended, and what still comes is dropped until `close`
    bool paused = false;
    std::deque<protocol::Message> waiting;
    std::size_t waiting_bytes = 0;
    protocol::ErrorMessage last_word;  ///< it has ended with
    TurnId turn;                       ///< whose sound was sent last
    std::int64_t samples = 0;          ///< of it
  };
  struct Peer {
    std::string role;
    std::size_t open = 0;  ///< conversations of it that go on
  };
  using Key = service::CallerStream;
  void begin(const Key& key, Peer& peer, const protocol::Envelope& head, Time now);
  void take(const Key& key, Stream& stream, const protocol::Message& message, Time now);
  void put_by(const Key& key, Stream& stream, protocol::Message message, Time now);
  void forget(const Key& key, Stream& stream, bool lost, Time now);
  void end(const Key& key, Stream& stream, Errc code, const std::string& why, Time now);
  void say(const Key& key, Stream& stream, std::string event);
  void sound(const Key& key, Stream& stream, const ToClient& action);
  template <class T>
  void send(const Key& key, const protocol::Envelope& head, T body);

  Sessions& sessions_;
  ZmqClientLimits limits_;
  ZmqClientWire wire_;
  std::unordered_map<std::string, Peer> peers_;  ///< callers, until they are down
  std::map<Key, Stream> streams_;                ///< until their `close` or the end of their peer
  std::unordered_map<ClientId, Key> by_id_;
  std::set<Key> ready_;  ///< read again, with messages that wait
  std::set<Key> owed_;   ///< ended, and the link had no room to say so
  ClientId last_ = 0;
  ZmqClientCounters counters_;
};

}  // namespace parlando::gateway
