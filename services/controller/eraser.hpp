#pragma once
/// A client's wish that everything that was said in a session is deleted. The store decides under which epoch: whoever
/// erases becomes the session's owner first, so that a controller that leads it, this one or another, is one of the
/// past and writes nothing more. Every step may be repeated. A plain class.
#include "services/controller/call.hpp"
#include "services/controller/config.hpp"

namespace parlando::controller {

class Eraser {
 public:
  static constexpr std::size_t kMax = 64;  ///< at a time, in one controller
  Eraser(SessionId session, std::string owner, const ControllerConfig& config, Fleet& fleet, Outlet& outlet, Time now);

  bool is_current(const std::string& peer, StreamId stream) const { return call_.is_current(peer, stream); }
  void on_message(protocol::Message message, Time now);
  void on_peer(const std::string& instance, transport::PeerState state, Time now);
  void on_refused(const Error& error, Time now);
  void tick(Time now);
  void close() { call_.end(head_); }

  bool is_over() const { return turns_ || failure_; }
  /// The number of the last turn that was erased.
  const std::optional<std::int64_t>& turns() const { return turns_; }
  /// Errc::not_found: nothing is stored under this name; else the store's own.
  const std::optional<Error>& failure() const { return failure_; }

 private:
  void say();
  void on_error(const protocol::ErrorMessage& error, Epoch known, Time now);
  const ControllerConfig* config_;
  std::string owner_;
  Call call_;
  protocol::Envelope head_;  ///< its epoch is the one that was granted; 0: none yet
  Epoch expected_;           ///< what the store has, as it said; 0: it was not asked yet
  Time until_;
  std::optional<std::int64_t> turns_;
  std::optional<Error> failure_;
};

}  // namespace parlando::controller
