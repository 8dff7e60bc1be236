#pragma once
/// One session's stream to one role: which replica serves it, which have refused it, since when nobody does. Whoever
/// owns a call says everything it knows when a new stream stands (the functions that can begin one answer true), so
/// that a death costs only time. Messages of former streams are known by their number and ignored. A plain class;
/// movable, because turns that wait for the store outlive their session.
#include "services/controller/fleet.hpp"

namespace parlando::controller {

class Call {
 public:
  Call(Role role, SessionId session, Fleet& fleet, Outlet& outlet)
      : role_(role), session_(session), fleet_(&fleet), outlet_(&outlet) {}

  /// The role is needed from now on. @return a new stream stands; else one stood already, or none can be had yet
  bool begin(Time now);
  /// A stream of its own at the same replica, for a copy of the work there: the caller says what it copies.
  /// @pre is_served
  Call fork() const;
  StreamId stream() const { return stream_; }
  const std::string& replica() const { return replica_; }
  /// It is not needed any more: the stream is closed and everything about it forgotten.
  void end(const protocol::Envelope& head);
  /// On the current stream; without one it is not sent: it will be said when one stands.
  template <protocol::WireMessage T>
  void send(protocol::Envelope head, T body, Time deadline = Time::max()) {
    if (!is_live()) return;
    head.stream = stream_;
    outlet_->send(replica_, head, std::move(body), deadline);
  }

  // Each answers whether a new stream stands.
  bool on_peer(const protocol::Envelope& head, const std::string& instance, transport::PeerState state, Time now);
  /// A replica that drains is left if another can take the work; for work that has nothing under way.
  bool leave_draining(const protocol::Envelope& head, Time now);
  /// The stream is gone without a word.
  bool lost(Time now) { return place(now); }
  /// It works: who refused before may be asked again when this one goes.
  void works() { refused_by_.clear(); }
  /// The replica cannot take the work: it is left and not tried again for this request.
  bool refused(const protocol::Envelope& head, Error error, Time now);

  bool is_live() const { return stream_.value != 0; }
  bool is_wanted() const { return wanted_; }
  /// It has a stream whose replica is not suspect.
  bool is_served() const { return is_live() && waits_since_ == Time::max(); }
  bool is_current(const std::string& peer, StreamId stream) const {
    return is_live() && replica_ == peer && stream_ == stream;
  }
  /// How long nobody has served it; zero when somebody does.
  milliseconds unserved(Time now) const;
  /// Why it makes no sense to wait any longer.
  std::optional<Error> trouble(Time now, milliseconds wait_max) const;

 private:
  bool place(Time now);
  void leave(const protocol::Envelope& head);
  Role role_;
  SessionId session_;
  Fleet* fleet_;
  Outlet* outlet_;
  bool wanted_ = false, placed_before_ = false;
  StreamId stream_;  ///< 0: none
  std::string replica_;
  std::set<std::string> refused_by_;  ///< cleared with `end`
  std::optional<Error> refusal_;      ///< the last one
  Time waits_since_ = Time::max();    ///< since when it has no replica or a suspect one
};

}  // namespace parlando::controller
