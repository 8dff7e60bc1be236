#pragma once
/// A session's relation to the store (`context`): whose it is, what was said before, and the turns that wait to be
/// durable. It outlives its session while turns wait. What happened is asked of it (`stale`, `take_failure`,
/// `durable`), never called back. A plain class.
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>

#include "services/controller/call.hpp"
#include "services/controller/config.hpp"
#include "services/controller/items.hpp"
#include "services/controller/journal.hpp"
#include "services/controller/past.hpp"

namespace parlando::controller {

class Ledger {
 public:
  static constexpr std::size_t kWaitingMax = 2;  ///< turns that may wait for a store that is away
  /// Records that a new owner reads, however few the model is told: what a former one may have done unheard before its
  /// gateway gave it up. The client is told of those, and nothing that they settle is done again.
  static constexpr int kClaimedMin = 20;
  /// @param owner  under which name sessions are claimed
  Ledger(SessionId session, const ControllerConfig& config, std::string owner, Fleet& fleet, Outlet& outlet,
         Journal& journal);

  /// Claims the session; again for one that was left with turns waiting. Nothing may be said in its name until
  /// `is_open`.
  void open(Epoch expected, Time now);
  /// A session that nobody stores: nobody is asked, and what is committed is only remembered here.
  void open_unstored();
  /// Turns of a former process: written under the epoch they were made in.
  void restore(const JournalEntry& entry);
  /// Asks whether the session is still ours when that was granted more than half a lease ago. No answer is no refusal.
  void renew(Time now);
  /// Queues a turn; sooner or later `durable` reaches it, or `is_degraded` says that this may take a while.
  void commit(std::int64_t turn, nlohmann::json record, Time now);
  /// In the place of a record that the store would not have, so that a turn that was committed behind it can follow.
  void replace_lost(std::int64_t turn, nlohmann::json record, Time now);
  /// What the model is told of the past says so from now on. It lasts with a later turn's record.
  void correct(const Correction& correction);
  /// Nothing waits and nobody asks any more.
  void close();

  void on_message(protocol::Message message, Time now);
  void on_peer(const std::string& instance, transport::PeerState state, Time now);
  void on_refused(const Error& error, Time now);
  void tick(Time now);
  bool is_current(const std::string& peer, StreamId stream) const { return call_.is_current(peer, stream); }
  void set_trace(std::uint64_t trace) { head_.trace = trace; }

  bool is_open() const { return head_.epoch.value != 0 && history_known_; }
  Epoch epoch() const { return head_.epoch; }
  /// The session is another owner's, under this epoch (0: not told).
  std::optional<Epoch> stale() const { return stale_; }
  /// Why the session cannot be opened, or why a turn that was not reported yet cannot be stored.
  std::optional<Error> take_failure() { return std::exchange(failure_, std::nullopt); }
  /// Turns so far, those that wait included.
  std::int64_t turns() const { return durable_ + static_cast<std::int64_t>(waiting_.size()); }
  std::int64_t durable() const { return durable_; }
  /// It is stored or waits to be: the store has not refused it for good.
  bool has(std::int64_t turn) const;
  std::size_t waiting() const { return waiting_.size(); }
  /// Those that wait and are in the journal, behind what is there.
  void add_journaled(std::vector<JournalEntry>& to) const;
  bool is_degraded() const { return degraded_ && !waiting_.empty(); }
  bool is_full() const { return waiting_.size() >= kWaitingMax; }
  /// At most `history_turns`, oldest first.
  const std::deque<Past>& history() const { return history_; }
  /// The latest turn in the store when the session was claimed.
  const std::optional<Past>& latest() const { return latest_; }
  /// The latest turns in the store when the session was claimed, at least kClaimedMin of them, oldest first; once.
  std::vector<Past> take_claimed() { return std::exchange(claimed_, {}); }

 private:
  struct Waiting {
    std::int64_t turn;
    std::string record;
    bool journaled = false;
  };
  void say(Time now);
  void send_commit(Time now);
  void on_granted(const protocol::Granted& granted, Time now);
  void on_records(protocol::Records records, Time now);
  void on_committed(const protocol::Committed& committed, Time now);
  void on_error(const protocol::ErrorMessage& error, Epoch known, Time now);
  void troubled(Error error, Time now);
  void degrade();
  void wait_longer(Time now);
  void give_up_first(Error error);
  void remember(Past past);

  const ControllerConfig* config_;
  std::string owner_;
  Outlet* outlet_;
  Journal* journal_;
  Call call_;
  protocol::Envelope head_;  ///< session, granted epoch, turn, trace
  Epoch expected_;
  bool history_known_ = false, degraded_ = false, stored_ = true;
  std::optional<Epoch> stale_;
  std::optional<Error> failure_;
  std::int64_t durable_ = 0;
  std::deque<Past> history_;
  std::optional<Past> latest_;
  std::vector<Past> claimed_;
  std::deque<Waiting>
      waiting_;  ///< at most kWaitingMax and the one that is not degraded yet; leave when stored, stale or lost
  Time granted_at_{}, renewed_at_{}, sent_at_{}, retry_at_{};
  milliseconds back_off_{0};
};

}  // namespace parlando::controller
