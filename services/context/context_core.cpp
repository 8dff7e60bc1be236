#include "services/context/context_core.hpp"

#include <nlohmann/json.hpp>

#include "common/base/pcm.hpp"

namespace parlando::context {
using nlohmann::json;
using protocol::MessageType;

std::string session_text(protocol::SessionId id) { return fmt::format("{:016x}{:016x}", id.high, id.low); }

std::vector<config::Problem> ContextConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".turns_max", turns_max, 1, 1000);
  if (store.empty()) out.push_back({path + ".store", "is empty, expected a file name"});
  return out;
}

Result<std::unique_ptr<service::Core>> ContextCore::make(const ContextConfig& config) {
  PARLANDO_TRY(auto store, Store::open(config.store));
  return std::unique_ptr<service::Core>(std::make_unique<ContextCore>(config, std::move(store)));
}

void ContextCore::add_metrics(telemetry::Metrics& metrics) { turns_ = metrics.counter("parlando_context_turns_total", "Turns made durable"); }

void ContextCore::on_message(const std::string& peer, protocol::Message m, Time) {
  const auto session = session_text(m.head.session);
  const auto body = protocol::body_of(m);
  const auto done = [&]() -> Result<void> {
    switch (m.head.type) {
      case MessageType::open: {
        PARLANDO_TRY(const auto epoch, store_->adopt(session));
        answer(peer, m.head, MessageType::open, fmt::format(R"({{"epoch":{}}})", epoch));
        return {};
      }
      case MessageType::history: {
        PARLANDO_TRY(const auto turns, store_->history(session, config_.turns_max));
        auto list = json::array();
        for (const auto& t : turns) list.push_back({{"turn", t.turn}, {"record", json::parse(t.record, nullptr, false)}});
        const auto text = list.dump();
        answer(peer, m.head, MessageType::history, "{}", to_bytes(std::span<const char>(text)));
        return {};
      }
      case MessageType::turn: {
        const std::string record(reinterpret_cast<const char*>(m.payload.data()), m.payload.size());
        if (!json::parse(record, nullptr, false).is_object()) return fail(Errc::bad_json, "the record of a turn is not a JSON object");
        if (!body.contains("turn") || !body["turn"].is_number_integer()) return fail(Errc::invalid_argument, "a turn needs its number");
        PARLANDO_TRY(const auto digest,
                     store_->commit(session, static_cast<std::uint32_t>(protocol::integer_in(body, "epoch")), body["turn"].get<std::int64_t>(), record));
        turns_.add();
        answer(peer, m.head, MessageType::turn, json{{"turn", body["turn"]}, {"digest", digest}}.dump());
        return {};
      }
      case MessageType::close:
      case MessageType::cancel:
        return {};
      default:
        return fail(Errc::unsupported, "context takes no message of type {}", static_cast<int>(m.head.type));
    }
  }();
  if (!done) answer_error(peer, m.head, done.error());
}

}  // namespace parlando::context
