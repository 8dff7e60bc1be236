#include "services/controller/fleet.hpp"

#include <algorithm>

namespace parlando::controller {
using transport::PeerState;

std::optional<Role> role_named(std::string_view name) {
  const auto found = std::find(kRoleNames.begin(), kRoleNames.end(), name);
  if (found == kRoleNames.end()) return std::nullopt;
  return static_cast<Role>(found - kRoleNames.begin());
}

std::optional<Role> Fleet::on_peer(const transport::Peer& peer, PeerState state) {
  const auto role = peer.caller ? std::nullopt : role_named(peer.role);
  if (!role) return std::nullopt;
  replicas_[static_cast<std::size_t>(*role)].on_peer(peer, state);
  seen_[static_cast<std::size_t>(*role)] = true;
  if (state == PeerState::down)
    roles_.erase(peer.instance);
  else
    roles_[peer.instance] = *role;
  return role;
}

std::optional<Role> Fleet::role_of(const std::string& instance) const {
  const auto found = roles_.find(instance);
  return found == roles_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<std::string> Fleet::choose(Role role, SessionId session, const std::set<std::string>& except) const {
  return of(role).choose(session, except);
}

bool Fleet::all_refused(Role role, const std::set<std::string>& refused) const {
  bool any = false;
  for (const auto& [instance, its_role] : roles_) {
    if (its_role != role) continue;
    if (!refused.contains(instance)) return false;
    any = true;
  }
  return any;
}

}  // namespace parlando::controller
