#include "services/controller/call.hpp"

namespace parlando::controller {
using transport::PeerState;

bool Call::begin(Time now) {
  if (wanted_) return false;
  wanted_ = true;
  return place(now);
}

Call Call::fork() const {
  Call out(role_, session_, *fleet_, *outlet_);
  out.wanted_ = out.placed_before_ = true;
  out.stream_ = fleet_->next_stream();
  out.replica_ = replica_;
  return out;
}

void Call::end(const protocol::Envelope& head) {
  leave(head);
  *this = Call(role_, session_, *fleet_, *outlet_);
}

void Call::leave(const protocol::Envelope& head) {
  send(head, protocol::Close{});
  stream_ = {};
}

bool Call::place(Time now) {
  stream_ = {};
  const auto chosen = fleet_->choose_at_last(role_, session_, refused_by_);
  if (!chosen) {
    waits_since_ = std::min(waits_since_, now);
    return false;
  }
  if (placed_before_) outlet_->count_replay(role_);
  placed_before_ = true;
  stream_ = fleet_->next_stream();
  replica_ = *chosen;
  waits_since_ = Time::max();
  return true;
}

bool Call::on_peer(const protocol::Envelope& head, const std::string& instance, PeerState state, Time now) {
  if (!wanted_) return false;
  const bool mine = is_live() && replica_ == instance;
  if (state == PeerState::down && mine) return lost(now);
  if (state == PeerState::down) return false;
  if (mine && state != PeerState::suspect) {
    waits_since_ = Time::max();
    return false;
  }
  if (mine) waits_since_ = std::min(waits_since_, now);
  if (waits_since_ == Time::max()) return false;
  if (!is_live()) return place(now);
  // A suspect replica keeps its stream until another can take the work: nothing of it is lost when it wakes.
  if (!fleet_->choose(role_, session_, refused_by_)) return false;
  leave(head);
  return place(now);
}

bool Call::leave_draining(const protocol::Envelope& head, Time now) {
  if (!is_live() || !fleet_->is_draining(role_, replica_)) return false;
  if (!fleet_->choose(role_, session_, refused_by_)) return false;
  leave(head);
  return place(now);
}

bool Call::refused(const protocol::Envelope& head, Error error, Time now) {
  refused_by_.insert(replica_);
  refusal_ = std::move(error);
  leave(head);
  return place(now);
}

milliseconds Call::unserved(Time now) const {
  if (!wanted_ || waits_since_ >= now) return milliseconds(0);
  return std::chrono::duration_cast<milliseconds>(now - waits_since_);
}

std::optional<Error> Call::trouble(Time now, milliseconds wait_max) const {
  if (!wanted_ || waits_since_ == Time::max()) return std::nullopt;
  if (!is_live() && refusal_ && fleet_->all_refused(role_, refused_by_))
    return Error{refusal_->code, fmt::format("every replica of {} refuses: {}", to_string(role_), refusal_->message)};
  if (fleet_->was_ever_linked(role_) && unserved(now) < wait_max) return std::nullopt;
  return Error{Errc::unavailable,
               fmt::format("no replica of {} can take the work: {} linked", to_string(role_), fleet_->linked(role_))};
}

}  // namespace parlando::controller
