#pragma once
/// The context service without its process. `open {}` adopts a session: answers `open {epoch}`; `history {turns}` answers `history` with a JSON
/// array of records as payload; `turn {turn, epoch}` with the record as payload answers `turn {turn, digest}` once it is durable.
#include "common/config/fields.hpp"
#include "common/service/core.hpp"
#include "services/context/store.hpp"

namespace parlando::context {

struct ContextConfig {
  std::string store = "out/context.sqlite";
  int turns_max = 20;  ///< of a history answered at once
  template <class V>
  void fields(V&& v) {
    v("store", store), v("turns_max", turns_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

class ContextCore final : public service::Core {
 public:
  static Result<std::unique_ptr<service::Core>> make(const ContextConfig& config);
  ContextCore(ContextConfig config, std::unique_ptr<Store> store) : config_(std::move(config)), store_(std::move(store)) {}
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void add_metrics(telemetry::Metrics& metrics) override;

 private:
  ContextConfig config_;
  std::unique_ptr<Store> store_;
  telemetry::Metrics::Counter turns_;
};

/// A session's id as the store and logs write it.
std::string session_text(protocol::SessionId id);

}  // namespace parlando::context
