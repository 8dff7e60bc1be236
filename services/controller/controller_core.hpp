#pragma once
/// The controller service without its process: its sessions, who may speak for them, and which turns still wait to be
/// stored. From gateways, on one stream per session: Open or Attach, Audio, Flush, Say, Cancel, Close. Answered by
/// Opened or Attached, SpeechStarted, SpeechEnded, Text, Speech, TurnDone, Cancelled, Checkpoint and ErrorMessage. An
/// error ends the turn that its head names; turn 0: only an input was refused. Before Opened any error, and later
/// Errc::stale_epoch, is the last word of the session.
#include <unordered_map>

#include "common/service/core.hpp"
#include "common/service/recording.hpp"
#include "services/controller/eraser.hpp"
#include "services/controller/session.hpp"

namespace parlando::controller {

class ControllerCore final : public service::Core, public service::Replayable, private Outlet {
 public:
  /// @error Errc::io, Errc::bad_format when the file of waiting turns cannot be read
  static Result<std::unique_ptr<service::Core>> make(const ControllerConfig& config);
  /// @param tools  executes calls; null: `config.tools` does
  explicit ControllerCore(ControllerConfig config, Personas personas = {}, std::unique_ptr<ToolServer> tools = {});
  ~ControllerCore() override;

  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time now) override;
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) override;
  void on_tick(Time now) override;
  bool work(Time now) override;
  int wait(std::span<pollfd> descriptors, milliseconds timeout) override;
  milliseconds tick_interval() const override;
  std::string why_not_ready() const override;
  std::int64_t load() const override { return static_cast<std::int64_t>(sessions_.size()); }
  /// For new sessions: its own places, as long as every model that answers has some free (`sessions_per_slot`), and
  /// none when all replicas of a role are full.
  std::int64_t slots() const override;
  std::int64_t own_slots() const override;
  /// True when no session and no waiting turn is left; gateways move idle sessions away.
  bool drain() override;
  void add_metrics(telemetry::Metrics& metrics) override;
  /// What its decisions depend on besides its configuration, as JSON: its name, personas, the turns that a former
  /// process has left, the time zone.
  std::string identity() const override;
  void set_identity(std::string identity) override;
  void set_wall_clock(std::chrono::seconds ahead) override { wall_ahead_ = ahead; }
  std::string why_not_replayable() const override;

  /// For tests: the session's turn under way. @return nullptr when there is no such session
  const Turn* turn_of(SessionId session) const;

 private:
  using Sessions = std::unordered_map<SessionId, std::unique_ptr<Session>>;
  /// Turns that wait for the store after their session ended.
  struct Leftover {
    Ledger ledger;
    Time until;
  };

  void post(const std::string& peer, protocol::Message message) override {
    service::Core::post(peer, std::move(message));
  }
  void count_replay(Role role) override { tally_.replays[static_cast<std::size_t>(role)].add(); }
  std::time_t wall_time(Time now) const override;
  void count_lost(std::size_t turns) override { tally_.lost.add(static_cast<double>(turns)); }

  void from_gateway(const std::string& peer, protocol::Message message, Time now);
  void open(const ClientStream& client, protocol::Message message, Time now);
  std::optional<Error> why_not_open(const Session* known, const ClientStream& client, const protocol::Open& open) const;
  void attach(const ClientStream& client, protocol::Message message, Time now);
  void part(Sessions::iterator at, Time now);
  void tick_detached(Time now);
  std::int64_t slots_of_models() const;
  void make_room(Time now);
  void drop_detached(SessionId id, std::string_view why, Time now);
  void refuse(const ClientStream& client, const protocol::Envelope& to, const Error& error);
  void erase(const ClientStream& client, const protocol::Envelope& to, Time now);
  void settle_erasures(Time now);
  Ledger ledger_for(SessionId id, Time now);
  template <class F>
  void with(SessionId id, Time now, F&& f);
  void follow(SessionId id, Time now);
  void remove(Sessions::iterator at, Time now);
  void forget_gateway(const std::string& gateway, Time now);
  void tick_leftovers(Time now);
  void restore_journal(std::vector<JournalEntry> entries, Time until);
  std::size_t commits_waiting() const;

  ControllerConfig config_;
  Personas personas_;
  std::unique_ptr<ToolServer> tools_;
  std::string owner_;  ///< under which sessions are claimed: random, one per process start
  Fleet fleet_;
  Tally tally_;
  Journal journal_;
  Time journal_again_{};                ///< when it may be written anew: not in every tick while the disk is full
  std::vector<JournalEntry> left_;      ///< by a former process, as it was found
  std::chrono::seconds zone_shift_{0};  ///< a replay's: from the time zone here to that of the recording
  std::optional<std::chrono::seconds> wall_ahead_;  ///< of the steady clock; as told, else as the system says
  bool draining_ = false;
  Sessions sessions_;                        ///< erased by the client's Close, its gateway's end, or the session's own
  std::set<std::string> silent_gateways_;    ///< suspect ones; `on_peer` takes them out again, whatever becomes of them
  std::map<SessionId, Time> detached_;       ///< those of `sessions_` without a client, and until when
  std::set<SessionId> busy_;                 ///< those of `sessions_` that time matters to
  std::map<SessionId, Leftover> leftovers_;  ///< erased when stored, stale, taken over or lost; at most sessions_max
  /// Wishes to erase a session, by the stream that the answer goes to. Erased by the answer; at most Eraser::kMax.
  struct Erasure {
    protocol::Envelope to;
    Eraser eraser;
  };
  std::map<std::pair<SessionId, ClientStream>, Erasure> erasures_;
  std::set<std::pair<SessionId, ClientStream>>
      ended_;  ///< have had their last word; erased by Close or the gateway's end
};

}  // namespace parlando::controller
