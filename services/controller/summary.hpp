#pragma once
/// What falls out of the past that the model is told is summarised by the model itself, before it falls out and while
/// nobody waits: behind a turn's end, in the class of work that goes behind everything else, and given up as soon as
/// somebody speaks. A summary counts when it stands in the record of a later turn; from then on the model is told it in
/// the place of those turns (`past.hpp`), whoever leads the session. One that is not made costs nothing: the oldest
/// turns fall out as without it. A plain class.
#include "services/controller/call.hpp"
#include "services/controller/config.hpp"
#include "services/controller/past.hpp"
#include "services/controller/tally.hpp"

namespace parlando::controller {

class Summaries {
 public:
  Summaries(SessionId session, const ControllerConfig& config, Fleet& fleet, Outlet& outlet, Tally& tally)
      : config_(&config), tally_(&tally), call_(Role::chat, session, fleet, outlet), fleet_(&fleet) {}

  /// Nobody waits: begins one if the past will have to be cut soon, at most once behind a turn.
  /// @param turns  so far  @param seed  of the answer
  void begin(const std::deque<Past>& history, std::int64_t turns, std::uint64_t seed, const protocol::Envelope& head,
             Time now);
  /// Somebody waits, or the session ends: the model is left at once.
  void give_up(const protocol::Envelope& head);
  /// What is corrected may stand in what was made, or is being made.
  void correct(const nlohmann::json& change, const std::deque<Past>& history, const protocol::Envelope& head);
  /// Into the record of the next turn: the latest one there is.
  void write(nlohmann::json& record, const std::deque<Past>& history) const;

  bool is_current(const std::string& peer, StreamId stream) const { return call_.is_current(peer, stream); }
  bool is_busy() const { return call_.is_wanted(); }
  const std::string& replica() const { return call_.replica(); }  ///< of llm-chat. @pre is_busy
  void on_message(protocol::Message message, const protocol::Envelope& head);
  void on_peer(const std::string& instance, transport::PeerState state, const protocol::Envelope& head);
  void fail(const protocol::Envelope& head) { end(SummaryEnd::failed, head); }
  void tick(const protocol::Envelope& head, Time now);

 private:
  void end(SummaryEnd how, const protocol::Envelope& head);
  const ControllerConfig* config_;
  Tally* tally_;
  Call call_;
  const Fleet* fleet_;
  Summary making_;                 ///< so far, while `call_` is wanted
  std::optional<Summary> made_;    ///< for the next record; superseded by that, or by another one
  std::int64_t tried_behind_ = 0;  ///< this turn
  Time deadline_{};
};

}  // namespace parlando::controller
