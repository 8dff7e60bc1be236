#pragma once
/// The replicas of one role that a service calls, and which of them serves a session: the highest hash of (session,
/// replica) among those that are up, ready, not draining and have room; so that adding or losing one moves only its own
/// share. A plain class.
#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/transport/mesh.hpp"

namespace parlando::service {

class Replicas {
 public:
  void on_peer(const transport::Peer& peer, transport::PeerState state);
  /// @param except  replicas that have refused this request already. @return its instance, or nothing when none can
  /// take it
  std::optional<std::string> choose(SessionId session, const std::set<std::string>& except = {}) const;
  /// The same; when none can, one that drains: it finishes what is under way, and this belongs to something that is.
  std::optional<std::string> choose_at_last(SessionId session, const std::set<std::string>& except = {}) const;
  /// Known and not suspect: what is sent to it arrives soon.
  bool is_up(const std::string& instance) const;
  /// Known, suspect or not: its streams live.
  bool is_linked(const std::string& instance) const;
  /// Takes no new sessions: it drains.
  bool is_draining(const std::string& instance) const;
  /// Some replica can take a session now.
  bool any() const;
  /// Some replica takes sessions, if it has room: a role that is full is not missing.
  bool any_live() const;
  /// Free places of those that take new work, as they said last (`transport::Peer::slots`); a suspect one may be back
  /// in a moment.
  std::int64_t slots() const;
  /// Some replica is known and not suspect.
  bool any_up() const;
  std::size_t size() const { return replicas_.size(); }

 private:
  struct Replica {
    transport::Peer peer;
    bool suspect = false;
  };
  static bool is_live(const Replica& r) { return !r.suspect && r.peer.ready && !r.peer.draining; }
  static bool works(const Replica& r) { return !r.suspect && r.peer.ready && r.peer.slots > 0; }
  static bool can_take(const Replica& r) { return works(r) && !r.peer.draining; }
  std::optional<std::string> best(SessionId session, const std::set<std::string>& except,
                                  bool (*fits)(const Replica&)) const;
  const Replica* find(const std::string& instance) const;
  std::vector<Replica> replicas_;
};

/// The weight of a replica for a session: rendezvous hashing. Pinned by a test: placement must not move with a build.
std::uint64_t rendezvous_weight(SessionId session, std::string_view instance);

}  // namespace parlando::service
