#pragma once
/// All links of one instance: HELLO, resumption, liveness, fencing, windows, batches. A plain class: connections
/// ("routes") and frames in, frames and events out, time as an argument. ZeroMQ (`zmq/sockets.hpp`) and the seeded
/// network (`sim/network.hpp`) carry what it says.
///
/// A peer is *up* after HELLO; *suspect* when it is silent or its work stands still: its link is kept, so that both go
/// on where they were when it wakes, while services turn elsewhere if they can; *down* when its process was replaced,
/// when it is a silent caller whose connection was closed for `gone`, or when it stayed away for `resume`. Who is right
/// after a loss: both ends name the incarnation and the last number they received; if they agree, both resume; if not,
/// both reset, and a reset is down + up at both. ARCHITECTURE.md, "The mesh".
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <unordered_set>
#include <vector>

#include "common/transport/link.hpp"
#include "common/transport/owners.hpp"

namespace parlando::transport {

/// Another instance, as it describes itself.
struct Peer {
  std::string instance;       ///< unique per process start
  std::string role;           ///< vad, tokenizer, llm-chat, …
  std::uint16_t version = 1;  ///< the highest both know; what is written to it
  bool caller = false;        ///< it connected to us; else we connected to it
  bool ready = true, draining = false;
  std::int64_t slots = 1;  ///< sessions it has room for
  bool operator==(const Peer&) const = default;
};

enum class PeerState {
  up,       ///< linked, anew or again
  changed,  ///< ready, draining, or its slots: none or some, or twice or half as many as it was said to have
  suspect,  ///< silent or hung; what was sent to it is kept
  down,     ///< gone, and all streams with it
};
std::string_view to_string(PeerState state);

struct MeshOptions {
  std::string instance, role;
  LinkLimits link;
  milliseconds heartbeat{100};
  int misses_max = 3;
  milliseconds resume{30000};   ///< a suspect peer is down after this
  milliseconds gone{1000};      ///< a silent caller without a connection is down after this
  milliseconds batch{5};        ///< sound waits this long for company, when there is much of it:
  int hurry_per_second = 1000;  ///< times a second that a peer gets its sound at once
  milliseconds tick{20};        ///< windows are told this often
  std::size_t peers_max = 4096;
  std::size_t sessions_max = 65536;  ///< in the table of owners
  std::uint64_t seed = 0;            ///< of incarnations; 0: from the system
};

struct MeshCounters {
  LinkCounters links;  ///< of links that are gone; `Mesh::counters` adds those that live
  std::uint64_t malformed = 0, version_refused = 0, unroutable = 0, hello_refused = 0, hello_late = 0,
                unknown_words = 0;
  std::uint64_t peers_suspect = 0, peers_down = 0, peers_hung = 0, resumed = 0, resets = 0, resyncs = 0, stale = 0,
                frames_out = 0, frames_in = 0;
};

/// What callers are told of us.
struct Status {
  bool ready = true, draining = false, busy = false;
  std::int64_t slots = 1, load = 0;
  std::uint64_t progress = 0;
  milliseconds step_limit{2000};
};

/// No callback of a carrier may call back into the mesh.
class Mesh {
 public:
  using Route = std::uint64_t;  ///< a connection; the carrier numbers them and never uses a number twice

  explicit Mesh(MeshOptions options);
  ~Mesh();

  // ---- from the carrier
  /// A connection that we make. HELLO leaves with the next `flush`.
  void connected(Route route, const std::string& role, Time now);
  /// The connection of a call was made anew: its link goes on over the fresh one.
  void reconnected(Route old, Route fresh, Time now);
  /// The connection of a call is given up: its peer is down.
  void disconnected(Route route);
  /// The endpoint of a call is named no more. Its peer counts as draining; when no stream is left on its link, or when
  /// it has been silent for `gone`, the call is over: `take_finished` names it.
  void retire(Route route, Time now);
  /// It is named again.
  void reinstate(Route route);
  /// Calls that are over since the last time, to be closed by the carrier.
  std::vector<Route> take_finished();
  /// Frames of a route; of one that we did not make, when it is not known yet, a caller's. Whatever they are, they do
  /// no harm.
  /// @param key_role  the role that the connection's key stands for; empty: there are no keys
  /// @param key_instance  the name of its service: the instance is the name, `-` and eight digits; empty: any
  void receive(Route route, std::span<const std::span<const std::byte>> frames, std::string_view key_role, Time now,
               std::string_view key_instance = {});
  /// The route takes no more for now; `writable` makes it flush again.
  void writable(Route route);
  /// A caller's connection is closed at its end. Not to be called inside `flush`. A caller that stands still keeps its
  /// connection; one that is silent *and* has none has died: it is down after `gone` instead of `resume`.
  void unreachable(Route route, Time now);
  /// Hands out what may leave now. @param out  false: the route is full, the frames are kept and come again
  using Out = std::function<bool(Route, const protocol::Frames&)>;
  void flush(Time now, const Out& out);
  /// Routes of ours that nothing arrives on, to be made anew by the carrier (it answers with `reconnected`).
  std::vector<Route> take_reconnects();

  // ---- from the service
  /// @error Errc::unavailable when there is no such peer, and those of `Link::send`
  Result<void> send(const std::string& peer, protocol::Message message);
  /// A delivered message has been worked on.
  void handled(const std::string& peer, const protocol::Envelope& head);
  /// Told with every heartbeat; a change of ready, draining or of having slots at once.
  void set_status(const Status& status);

  // ---- to the service
  struct Delivery {
    std::string peer;
    protocol::Message message;
  };
  struct PeerEvent {
    Peer peer;
    PeerState state;
  };
  /// In the order in which things happened; a peer's messages and events keep theirs.
  struct Event {
    std::optional<Delivery> delivery;
    std::optional<PeerEvent> peer;
  };
  std::vector<Event> take();

  // ---- time
  /// Heartbeats, silence, windows. To be called when `due` has come.
  void tick(Time now);
  Time due(Time now) const;

  const std::string& instance() const { return options_.instance; }
  /// Does a peer speak on this route?
  bool knows(Route route) const { return calls_.contains(route) || caller_routes_.contains(route); }
  /// Is the peer up (not suspect)?
  bool is_up(const std::string& instance) const;
  std::vector<Peer> peers() const;
  std::size_t streams() const;
  /// What all links keep to send (again).
  std::size_t kept_bytes() const;
  MeshCounters counters() const;

 private:
  struct Side;
  /// Whom a connection's key belongs to.
  struct KeyOwner {
    std::string_view role, instance;
  };
  template <class T>
  void say(Route route, T message);
  void refuse(Route route, Errc code, const std::string& why);
  void hello(Side& side, Time now, bool again = false);
  void missing(Side& side, Time now);
  protocol::Hello describe(const Side& side) const;
  Side* find(Route route);
  void hello_of_caller(Route route, protocol::Message& message, KeyOwner key, Time now);
  void hello_of_callee(Side& side, protocol::Message& message, KeyOwner key, Time now);
  void control(Side& side, protocol::Message& message, Time now);
  void deliver(Side& side, protocol::Decoded decoded, Time now);
  void fence(const Side& owner, const protocol::Envelope& head);
  void make_link(Side& side, Peer peer, std::uint32_t window_messages);
  void link_up(Side& side, Time now);
  void raise_event(Side& side, PeerState state);
  void mark(Side& side);
  void reset(Side& side);
  void suspect(Side& side, Time now);
  void heard(Side& side, Time now);
  bool is_over(const Side& side, Time now) const;
  void describe_peer(Side& side, bool ready, bool draining, std::int64_t slots);
  void forget_caller(Side& side);
  void beat(Side& side, Time now, milliseconds silence_max);
  bool may_hurry(Side& side, Time now);
  void flush_side(Side& side, Time now, bool windows, const Out& out);
  Result<Peer> read_hello(protocol::Message& message, protocol::Hello& hello, bool caller, KeyOwner key);
  void put_off(Side& side, Time now);
  protocol::HeartbeatReply reply() const;

  MeshOptions options_;
  Status status_;
  Owners owners_;
  std::mt19937_64 random_;
  std::map<Route, std::unique_ptr<Side>> calls_;                    ///< connections that we make
  std::unordered_map<std::string, std::unique_ptr<Side>> callers_;  ///< instance -> its side
  std::unordered_map<Route, Side*> caller_routes_;
  std::unordered_map<std::string, Side*> by_instance_;
  std::vector<std::pair<Route, protocol::Frames>>
      control_;                       ///< to leave before everything else; lost when the route is full
  std::vector<Side*> dirty_;          ///< have output or a window to tell
  std::unordered_set<Route> argued_;  ///< were told Refused since the last flush
  std::vector<Route> reconnects_, finished_;
  std::vector<Event> events_;
  Time next_beat_{}, next_window_ = Time::max(), next_batch_ = Time::max();
  Time last_tick_{};         ///< to notice that we stood still ourselves
  std::uint32_t links_ = 0;  ///< made so far
  MeshCounters counters_;
};

}  // namespace parlando::transport
