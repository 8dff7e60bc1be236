#pragma once
/// The services that a controller calls: their roles, the replicas of each, the numbers of its streams, and the way
/// out. Plain classes.
#include <array>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "common/protocol/messages.hpp"
#include "common/service/replicas.hpp"

namespace parlando::controller {

enum class Role : std::size_t { context, vad, tokenizer, chat, tts };
inline constexpr std::array<std::string_view, 5> kRoleNames{"context", "vad", "tokenizer", "llm-chat", "tts"};
inline constexpr std::size_t kRoles = kRoleNames.size();
constexpr std::string_view to_string(Role role) { return kRoleNames[static_cast<std::size_t>(role)]; }
std::optional<Role> role_named(std::string_view name);

/// Where messages go; the core implements it.
class Outlet {
 public:
  virtual ~Outlet() = default;
  virtual void post(const std::string& peer, protocol::Message message) = 0;
  /// The work of a role was begun again on another stream.
  virtual void count_replay(Role /*role*/) {}
  /// Turns that were reported as degraded will never be stored.
  virtual void count_lost(std::size_t /*turns*/) {}
  /// What the wall clock shows.
  virtual std::time_t wall_time(Time /*now*/) const { return std::time(nullptr); }
  /// @param deadline  when nobody waits for it any more
  template <protocol::WireMessage T>
  void send(const std::string& peer, const protocol::Envelope& head, T body, Time deadline = Time::max()) {
    auto message = protocol::pack(std::move(body), head);
    message.deadline = deadline;
    post(peer, std::move(message));
  }
};

class Fleet {
 public:
  /// @return its role when it is one that we call
  std::optional<Role> on_peer(const transport::Peer& peer, transport::PeerState state);
  std::optional<Role> role_of(const std::string& instance) const;
  /// A replica that can take the session's work now. @param except  those that have refused it
  std::optional<std::string> choose(Role role, SessionId session, const std::set<std::string>& except) const;
  /// The same; when none can, one that drains.
  std::optional<std::string> choose_at_last(Role role, SessionId session, const std::set<std::string>& except) const {
    return of(role).choose_at_last(session, except);
  }
  bool is_up(Role role, const std::string& instance) const { return of(role).is_up(instance); }
  bool is_linked(Role role, const std::string& instance) const { return of(role).is_linked(instance); }
  bool is_draining(Role role, const std::string& instance) const { return of(role).is_draining(instance); }
  bool any(Role role) const { return of(role).any(); }
  bool any_live(Role role) const { return of(role).any_live(); }
  /// Free places of all replicas that take new work, as they said last.
  std::int64_t slots(Role role) const { return of(role).slots(); }
  bool was_ever_linked(Role role) const { return seen_[static_cast<std::size_t>(role)]; }
  /// Every replica that is linked has refused.
  bool all_refused(Role role, const std::set<std::string>& refused) const;
  std::size_t linked(Role role) const { return of(role).size(); }
  /// Never used twice by this process: a session that is opened again must not meet its former streams.
  StreamId next_stream() { return {++streams_}; }

 private:
  const service::Replicas& of(Role role) const { return replicas_[static_cast<std::size_t>(role)]; }
  std::array<service::Replicas, kRoles> replicas_;
  std::array<bool, kRoles> seen_{};
  std::map<std::string, Role> roles_;  ///< instance -> role; erased when it is down
  std::uint32_t streams_ = 0;
};

}  // namespace parlando::controller
