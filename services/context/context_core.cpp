#include "services/context/context_core.hpp"

#include <nlohmann/json.hpp>

#include "common/base/nesting.hpp"
#include "common/base/pcm.hpp"
#include "common/telemetry/log.hpp"
#include "services/context/open_store.hpp"

namespace parlando::context {
using nlohmann::json;
using protocol::MessageType;

namespace {

/// A record lies two levels deep in the array of a history, and bodies have at most this many.
constexpr int kRecordDepthMax = protocol::kBodyDepthMax - 2;
/// Bytes of a history around one record: {"turn":,"record":}, and a number of 20 digits.
constexpr std::size_t kRecordFrame = 40;

std::size_t history_bytes_max() { return protocol::payload_bytes_max(MessageType::records) - 2; }
std::size_t record_bytes_max() { return history_bytes_max() - kRecordFrame; }

bool is_record(const std::string& text) {
  return !nested_deeper_than(text, kRecordDepthMax) && json::parse(text, nullptr, false).is_object();
}

bool is_ours(Errc code) {
  return code == Errc::io || code == Errc::unavailable || code == Errc::bad_format || code == Errc::internal;
}

}  // namespace

std::vector<config::Problem> ContextConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".turns_max", turns_max, 1, 1000);
  if (auto problem = place_problem(store); !problem.empty()) out.push_back({path + ".store", std::move(problem)});
  return out;
}

void Leases::grant(SessionId session, milliseconds lease, Time now) {
  if (lease <= milliseconds(0)) {
    ends_.erase(session);
    return;
  }
  if (ends_.size() >= kept_max_ && !ends_.contains(session)) return;
  ends_[session] = now + lease;
}

milliseconds Leases::left(SessionId session, Time now) const {
  const auto found = ends_.find(session);
  if (found == ends_.end() || found->second <= now) return milliseconds(0);
  return std::chrono::ceil<milliseconds>(found->second - now);
}

void Leases::expire(Time now) {
  std::erase_if(ends_, [now](const auto& entry) { return entry.second <= now; });
}

Result<std::unique_ptr<service::Core>> ContextCore::make(const ContextConfig& config) {
  PARLANDO_TRY(auto store, open_store(config.store));
  return std::unique_ptr<service::Core>(std::make_unique<ContextCore>(config, std::move(store)));
}

ContextCore::ContextCore(ContextConfig config, std::unique_ptr<Store> store, std::shared_ptr<const Clock> clock)
    : config_(std::move(config)), store_(std::move(store)), clock_(std::move(clock)) {}

void ContextCore::add_metrics(telemetry::Metrics& metrics) {
  turns_ = metrics.counter("parlando_context_turns_total", "Turns made durable");
  claims_ = metrics.counter("parlando_context_claims_total", "Sessions granted to an owner");
  stale_ = metrics.counter("parlando_context_stale_total", "Requests refused because another owner has the session");
  store_errors_ =
      metrics.counter("parlando_context_store_errors_total", "Requests that the store failed: busy, full, broken");
  reconnects_ = metrics.counter("parlando_context_store_reconnects_total",
                                "Connections to the store that were made anew after one was lost");
  leases_running_ =
      metrics.gauge("parlando_context_leases", "Sessions with a lease that this process granted and that runs");
  commit_seconds_ =
      metrics.histogram("parlando_context_commit_seconds", "From a turn's arrival to its record on the disk");
}

void ContextCore::on_message(const std::string& peer, protocol::Message m, Time now) {
  auto head = m.head;
  const auto done = [&]() -> Stored<void> {
    switch (head.type) {
      case MessageType::claim:
        return claim(peer, m, now);
      case MessageType::renew:
        return renew(peer, m, now);
      case MessageType::history:
        return history(peer, m);
      case MessageType::commit:
        return commit(peer, m);
      case MessageType::erase: {
        const auto erased = store_->erase(head.session.text(), head.epoch);
        if (!erased) return tl::make_unexpected(erased.error());
        leases_.grant(head.session, milliseconds(0), now);
        answer(peer, head, protocol::Erased{erased->turns});
        return {};
      }
      case MessageType::close:
        return {};
      default:
        return fail(Errc::unsupported, "context takes no message of type {}", to_string(head.type));
    }
  }();
  if (done) return;
  const auto& error = done.error();
  if (error.code == Errc::stale_epoch) {
    stale_.add();
    head.epoch = error.epoch;
  } else if (is_ours(error.code)) {
    store_errors_.add();
    telemetry::log(telemetry::Level::error, "context fails a {} session={}: {}: {}", to_string(head.type),
                   head.session.text(), to_string(error.code), error.message);
  }
  answer_error(peer, head, error, error.retry);
}

std::string ContextCore::why_not_ready() const { return store_->why_away(); }

void ContextCore::on_tick(Time now) {
  leases_.expire(now);
  store_->tick();
  reconnects_.set_at_least(static_cast<double>(store_->reconnects()));
  if (leases_running_.impl != nullptr) leases_running_.set(static_cast<double>(leases_.size()));
}

void ContextCore::grant(const std::string& peer, protocol::Envelope to, Epoch epoch, std::int64_t lease_ms, Time now) {
  leases_.grant(to.session, milliseconds(lease_ms), now);
  to.epoch = epoch;
  answer(peer, to, protocol::Granted{epoch, lease_ms});
}

Stored<void> ContextCore::claim(const std::string& peer, protocol::Message& m, Time now) {
  PARLANDO_TRY(const auto claim, protocol::read<protocol::Claim>(m));
  if (claim.owner.empty()) return fail(Errc::invalid_argument, "a claim names no owner");
  PARLANDO_TRY(const auto claimed, store_->claim(m.head.session.text(), claim.expected, claim.owner));
  if (!claimed.repeated) claims_.add();
  if (const auto left = leases_.left(m.head.session, now); left.count() > 0 && claimed.former != claim.owner)
    telemetry::log(telemetry::Level::info,
                   "context hands a session over while its lease runs session={} epoch={} from={} to={} left_ms={}",
                   m.head.session.text(), claimed.epoch.value, claimed.former, claim.owner, left.count());
  grant(peer, m.head, claimed.epoch, claim.lease_ms, now);
  return {};
}

Stored<void> ContextCore::renew(const std::string& peer, protocol::Message& m, Time now) {
  PARLANDO_TRY(const auto renew, protocol::read<protocol::Renew>(m));
  PARLANDO_DO(store_->renew(m.head.session.text(), renew.epoch));
  grant(peer, m.head, renew.epoch, renew.lease_ms, now);
  return {};
}

Stored<void> ContextCore::history(const std::string& peer, protocol::Message& m) {
  PARLANDO_TRY(const auto history, protocol::read<protocol::History>(m));
  const auto turns_max = std::min(history.turns_max, config_.turns_max);
  PARLANDO_TRY(const auto past, store_->history(m.head.session.text(), turns_max, history_bytes_max(), kRecordFrame));
  // Records go out as they were committed, byte for byte: parsing and writing them again would change large numbers.
  std::string text = "[";
  for (const auto& t : past.latest) {
    if (!is_record(t.record))
      return fail(Errc::bad_format, "the record of turn {} of session '{}' is not a JSON object of at most {} levels",
                  t.turn, m.head.session.text(), kRecordDepthMax);
    text += fmt::format(R"({}{{"turn":{},"record":)", text.size() > 1 ? "," : "", t.turn);
    text += t.record;
    text += '}';
  }
  text += ']';
  answer(peer, m.head, protocol::Records{past.turns, to_bytes(std::span<const char>(text))});
  return {};
}

Stored<void> ContextCore::commit(const std::string& peer, protocol::Message& m) {
  const auto start = clock_->now();
  PARLANDO_TRY(const auto commit, protocol::read<protocol::Commit>(m));
  if (commit.payload.size() > record_bytes_max())
    return fail(Errc::invalid_argument, "a record of {} bytes, at most {} fit a history", commit.payload.size(),
                record_bytes_max());
  const std::string record(reinterpret_cast<const char*>(commit.payload.data()), commit.payload.size());
  if (!is_record(record))
    return fail(Errc::bad_json, "the record of a turn is not a JSON object of at most {} levels", kRecordDepthMax);
  PARLANDO_TRY(const auto committed, store_->commit(m.head.session.text(), commit.epoch, commit.turn, record));
  if (!committed.repeated) {
    turns_.add();
    commit_seconds_.observe(std::chrono::duration<double>(clock_->now() - start).count());
  }
  answer(peer, m.head, protocol::Committed{commit.turn, committed.digest});
  return {};
}

}  // namespace parlando::context
