#include "services/controller/ledger.hpp"

#include <algorithm>

#include "common/base/nesting.hpp"
#include "common/base/pcm.hpp"
#include "common/telemetry/log.hpp"
#include "services/controller/errors.hpp"
#include "services/controller/json_text.hpp"

namespace parlando::controller {
using namespace protocol;
using nlohmann::json;
using transport::PeerState;

namespace {
constexpr milliseconds kSuspectMax{300};  // a store that is silent for longer is away
constexpr milliseconds kBackOffFirst{250}, kBackOffMax{5000};
constexpr int kRecordDepthMax = 64;

/// Another replica, or the same one later, may do what this one did not.
bool is_transient(Errc code) {
  static constexpr Errc kCodes[] = {Errc::overloaded, Errc::not_ready, Errc::unavailable,      Errc::io,
                                    Errc::internal,   Errc::cancelled, Errc::deadline_exceeded};
  return std::find(std::begin(kCodes), std::end(kCodes), code) != std::end(kCodes);
}

Result<std::vector<Past>> read_records(const Bytes& payload) {
  const std::string_view text(reinterpret_cast<const char*>(payload.data()), payload.size());
  const auto list = nested_deeper_than(text, kRecordDepthMax) ? json() : json::parse(text, nullptr, false);
  if (!list.is_array()) return fail(Errc::bad_json, "the stored history is no JSON array");
  std::vector<Past> out;
  for (const auto& item : list) {
    if (!item.is_object() || !item.contains("record") || !item["record"].is_object() || !item.contains("turn") ||
        !item["turn"].is_number_integer())
      return fail(Errc::bad_json, "the stored history holds something that is no turn");
    out.push_back({item["turn"].get<std::int64_t>(), item["record"]});
  }
  return out;
}

/// Does the store hold something else in a turn's place?
bool is_another(std::int64_t turn, const std::string& record, const std::vector<Past>& stored) {
  const auto found = std::find_if(stored.begin(), stored.end(), [&](const auto& past) { return past.turn == turn; });
  return found != stored.end() && found->record != json::parse(record, nullptr, false);
}
}  // namespace

Ledger::Ledger(SessionId session, const ControllerConfig& config, std::string owner, Fleet& fleet, Outlet& outlet,
               Journal& journal)
    : config_(&config),
      owner_(std::move(owner)),
      outlet_(&outlet),
      journal_(&journal),
      call_(Role::context, session, fleet, outlet) {
  head_.session = session;
}

void Ledger::open(Epoch expected, Time now) {
  call_.end(head_);
  head_.epoch = {};
  expected_ = expected;
  history_known_ = false;
  history_.clear();
  claimed_.clear();
  stale_.reset();
  failure_.reset();
  if (call_.begin(now)) say(now);
}

void Ledger::open_unstored() {
  stored_ = false;
  head_.epoch = {1};
  history_known_ = true;
}

void Ledger::restore(const JournalEntry& entry) {
  head_.epoch = std::max(head_.epoch, entry.epoch);
  history_known_ = degraded_ = true;
  // One that was put in the place of another was written behind those that follow it.
  const auto behind =
      std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& w) { return w.turn >= entry.turn; });
  if (behind != waiting_.end() && behind->turn == entry.turn) return;
  waiting_.insert(behind, {entry.turn, entry.record, true});
  durable_ = waiting_.front().turn - 1;
}

bool Ledger::has(std::int64_t turn) const {
  return turn <= durable_ ||
         std::any_of(waiting_.begin(), waiting_.end(), [&](const Waiting& w) { return w.turn == turn; });
}

/// Everything that a fresh stream needs to know.
void Ledger::say(Time now) {
  if (head_.epoch.value == 0) return call_.send(head_, Claim{expected_, owner_, config_->lease_ms});
  if (!history_known_) return call_.send(head_, History{std::max(kClaimedMin, config_->history_turns)});
  if (!waiting_.empty()) send_commit(now);
}

void Ledger::send_commit(Time now) {
  const auto& first = waiting_.front();
  auto to = head_;
  to.turn = {static_cast<std::uint32_t>(first.turn)};
  // Without a deadline: that the turn lasts matters more than when.
  call_.send(to, Commit{first.turn, head_.epoch, to_bytes(std::span<const char>(first.record))});
  sent_at_ = now;
}

void Ledger::renew(Time now) {
  const milliseconds half(config_->lease_ms / 2);
  if (!stored_ || !is_open() || now - granted_at_ < half || now - renewed_at_ < half) return;
  renewed_at_ = now;
  if (call_.begin(now)) say(now);
  call_.send(head_, Renew{head_.epoch, config_->lease_ms});
}

void Ledger::correct(const Correction& correction) {
  if (correction.is_cut())
    apply_cut(history_, correction.change);
  else
    apply_forget(history_, correction.change);
}

void Ledger::remember(Past past) {
  history_.push_back(std::move(past));
  apply_corrections(history_);
  while (static_cast<int>(history_.size()) > config_->history_turns) history_.pop_front();
}

void Ledger::commit(std::int64_t turn, json record, Time now) {
  if (!stored_) {
    durable_ = turn;
    return remember({turn, std::move(record)});
  }
  waiting_.push_back({turn, text_of(record)});
  remember({turn, std::move(record)});
  const bool asks_again = !call_.is_wanted() && now >= retry_at_ && call_.begin(now);
  // On a new stream the first of those that wait is said; else it is on its way.
  if (asks_again || (call_.is_live() && waiting_.size() == 1)) send_commit(now);
  if (!call_.is_live() || degraded_) degrade();
}

void Ledger::replace_lost(std::int64_t turn, json record, Time now) {
  if (turn != durable_ + 1 || (!waiting_.empty() && waiting_.front().turn != turn + 1)) return;
  waiting_.push_front({turn, text_of(record)});
  if (!call_.is_wanted() && now >= retry_at_) call_.begin(now);
  if (call_.is_live()) send_commit(now);
  if (!call_.is_live() || degraded_) degrade();
}

void Ledger::close() { call_.end(head_); }

/// The turns that wait are told as they are: reported, kept, and not durable yet.
void Ledger::degrade() {
  degraded_ = true;
  for (auto& w : waiting_) {
    if (w.journaled) continue;
    w.journaled = true;
    if (auto good = journal_->append({head_.session, head_.epoch, w.turn, w.record}); !good)
      telemetry::log(telemetry::Level::error, "controller keeps a turn in memory only: {}", good.error().message);
  }
}

void Ledger::add_journaled(std::vector<JournalEntry>& to) const {
  for (const auto& w : waiting_)
    if (w.journaled) to.push_back({head_.session, head_.epoch, w.turn, w.record});
}

void Ledger::on_message(Message message, Time now) {
  const auto known = message.head.epoch;
  const auto unread = [&](const Error& error) { troubled(error, now); };
  switch (message.head.type) {
    case MessageType::granted: {
      call_.works();
      const auto granted = read<Granted>(message);
      return granted ? on_granted(*granted, now) : unread(granted.error());
    }
    case MessageType::records: {
      call_.works();
      auto records = read<Records>(message);
      return records ? on_records(std::move(*records), now) : unread(records.error());
    }
    case MessageType::committed: {
      call_.works();
      const auto committed = read<Committed>(message);
      return committed ? on_committed(*committed, now) : unread(committed.error());
    }
    case MessageType::error: {
      const auto error = read<ErrorMessage>(message);
      return error ? on_error(*error, known, now) : unread(error.error());
    }
    default:
      return;
  }
}

void Ledger::on_granted(const Granted& granted, Time now) {
  granted_at_ = now;
  if (head_.epoch.value != 0) return;
  head_.epoch = granted.epoch;
  say(now);
}

void Ledger::on_records(Records records, Time now) {
  if (history_known_) return;
  auto list = read_records(records.payload);
  if (!list) {
    failure_ = list.error();
    return;
  }
  history_known_ = true;
  durable_ = std::max(durable_, records.turns);
  for (; !waiting_.empty() && waiting_.front().turn <= durable_; waiting_.pop_front())
    if (is_another(waiting_.front().turn, waiting_.front().record, *list)) {
      telemetry::log(telemetry::Level::error, "controller loses a turn session={} turn={}: the store has another",
                     head_.session.text(), waiting_.front().turn);
      outlet_->count_lost(1);
    }
  for (auto& past : *list) {
    latest_ = past;
    claimed_.push_back(past);
    remember(std::move(past));
  }
  // Turns of ours that the store does not have yet were said nevertheless.
  for (const auto& w : waiting_) {
    Past said{w.turn, json::parse(w.record, nullptr, false)};
    claimed_.push_back(said);
    remember(std::move(said));
  }
  if (waiting_.empty())
    degraded_ = false;
  else
    send_commit(now);
}

void Ledger::on_committed(const Committed& committed, Time now) {
  if (waiting_.empty() || waiting_.front().turn != committed.turn) return;
  durable_ = committed.turn;
  waiting_.pop_front();
  back_off_ = milliseconds(0);
  if (!waiting_.empty()) return send_commit(now);
  degraded_ = false;
  if (call_.leave_draining(head_, now)) say(now);
}

void Ledger::on_error(const ErrorMessage& error, Epoch known, Time now) {
  const auto code = errc_of(error.code);
  if (code != Errc::stale_epoch) return troubled({code, error.message}, now);
  stale_ = known;
  if (degraded_) outlet_->count_lost(waiting_.size());
  waiting_.clear();
}

void Ledger::on_refused(const Error& error, Time now) {
  if (!is_link_lost(error.code)) return troubled(error, now);
  if (call_.lost(now)) say(now);
}

void Ledger::troubled(Error error, Time now) {
  if (is_transient(error.code)) {
    if (call_.refused(head_, error, now)) return say(now);
    if (!is_open()) return;  // `tick` says when waiting makes no sense
  } else if (!is_open()) {
    failure_ = std::move(error);
    return;
  } else if (!waiting_.empty()) {
    give_up_first(std::move(error));
  }
  wait_longer(now);
  if (!waiting_.empty()) degrade();
}

void Ledger::wait_longer(Time now) {
  call_.end(head_);
  back_off_ = std::clamp(2 * back_off_, kBackOffFirst, kBackOffMax);
  retry_at_ = now + back_off_;
}

/// The store will never take this turn.
void Ledger::give_up_first(Error error) {
  telemetry::log(telemetry::Level::error, "controller loses a turn session={} turn={}: {}", head_.session.text(),
                 waiting_.front().turn, error.message);
  std::erase_if(history_, [&](const Past& p) { return p.turn == waiting_.front().turn; });
  waiting_.pop_front();
  if (degraded_)
    outlet_->count_lost(1);
  else
    failure_ = std::move(error);
}

void Ledger::on_peer(const std::string& instance, PeerState state, Time now) {
  if (call_.on_peer(head_, instance, state, now)) return say(now);
  if (is_open() && waiting_.empty() && call_.leave_draining(head_, now)) return say(now);
  const bool came = state == PeerState::up || state == PeerState::changed;
  if (came && !waiting_.empty() && call_.begin(now)) say(now);
}

void Ledger::tick(Time now) {
  if (!is_open()) {
    if (auto trouble = call_.trouble(now, milliseconds(config_->wait_ms_max)); trouble && !failure_)
      failure_ = std::move(trouble);
    return;
  }
  if (waiting_.empty()) return;
  // Those that are left have refused it: they are asked again, less and less often.
  if (now >= retry_at_ && call_.is_wanted() && !call_.is_live()) wait_longer(now);
  if (now >= retry_at_ && call_.begin(now)) say(now);
  const bool away =
      !call_.is_live() || call_.unserved(now) > kSuspectMax || now - sent_at_ > milliseconds(config_->wait_ms_max);
  if (away && !degraded_) degrade();
}

}  // namespace parlando::controller
