#pragma once
/// The context service without its process: who owns a session, and what was said in it. Every request may be repeated.
///   Claim    compare-and-set of the session's epoch -> Granted, or Errc::stale_epoch with the true epoch in text and
///   envelope. A running
///            lease does not stop it: the gateway decides who serves a client, and the compare-and-set lets one adopter
///            win.
///   Renew    is it still mine? -> Granted, or Errc::stale_epoch
///   History  -> Records: the latest turns. What cannot be read is Errc::bad_format, never an empty history.
///   Commit   -> Committed once the record is on the disk; the next turn only, under the epoch that is stored
/// Errc::unavailable and Errc::io come with a time after which to try again.
///
/// A lease is a duration told to its owner. Its end is kept on this process's steady clock and nowhere else, so that no
/// wall clock matters: it tells who is taken over while still at work (a log line, a gauge), and a restart forgets it.
/// Fencing is the epoch's.
#include <unordered_map>

#include "common/config/fields.hpp"
#include "common/service/core.hpp"
#include "services/context/store.hpp"

namespace parlando::context {

struct ContextConfig {
  std::string store = "out/context.sqlite";  ///< a file, or PostgreSQL (`open_store.hpp`)
  int turns_max = 20;                        ///< of a history answered at once
  template <class V>
  void fields(V&& v) {
    v("store", store);
    v("turns_max", turns_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

/// Which sessions are owned until when, as far as this process was asked. Bounded: above `kept_max` leases are granted
/// and not remembered.
class Leases {
 public:
  explicit Leases(std::size_t kept_max = 65536) : kept_max_(kept_max) {}
  /// 0 ms: none.
  void grant(SessionId session, milliseconds lease, Time now);
  /// What is left of it.
  milliseconds left(SessionId session, Time now) const;
  void expire(Time now);
  std::size_t size() const { return ends_.size(); }

 private:
  std::size_t kept_max_;
  std::unordered_map<SessionId, Time> ends_;
};

class ContextCore final : public service::Core {
 public:
  static Result<std::unique_ptr<service::Core>> make(const ContextConfig& config);
  ContextCore(ContextConfig config, std::unique_ptr<Store> store,
              std::shared_ptr<const Clock> clock = std::make_shared<SteadyClock>());
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_tick(Time now) override;
  milliseconds tick_interval() const override { return milliseconds(1000); }
  /// A disk or a server may make it wait.
  bool is_heavy() const override { return true; }
  /// Its store is away.
  std::string why_not_ready() const override;
  void add_metrics(telemetry::Metrics& metrics) override;
  const Leases& leases() const { return leases_; }

 private:
  Stored<void> claim(const std::string& peer, protocol::Message& message, Time now);
  Stored<void> renew(const std::string& peer, protocol::Message& message, Time now);
  Stored<void> history(const std::string& peer, protocol::Message& message);
  Stored<void> commit(const std::string& peer, protocol::Message& message);
  void grant(const std::string& peer, protocol::Envelope to, Epoch epoch, std::int64_t lease_ms, Time now);

  ContextConfig config_;
  std::unique_ptr<Store> store_;
  std::shared_ptr<const Clock> clock_;
  Leases leases_;
  telemetry::Metrics::Counter turns_, claims_, stale_, store_errors_, reconnects_;
  telemetry::Metrics::Gauge leases_running_;
  telemetry::Metrics::Histogram commit_seconds_;
};

}  // namespace parlando::context
