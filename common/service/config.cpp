#include "common/service/config.hpp"

namespace parlando::service {

std::vector<config::Problem> WireConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  auto endpoint = [&](const std::string& key, const std::string& value) {
    if (!value.starts_with("inproc://") && !value.starts_with("ipc://") && !value.starts_with("tcp://"))
      out.push_back({path + "." + key, "is '" + value + "', expected inproc://, ipc:// or tcp://"});
  };
  if (!bind.empty()) endpoint("bind", bind);
  for (const auto& [role, endpoints] : connect)
    for (const auto& e : endpoints) endpoint("connect." + role, e);
  config::expect_range(out, path + ".heartbeat_ms", heartbeat_ms, 10, 10000);
  config::expect_range(out, path + ".misses_max", misses_max, 1, 100);
  config::expect_range(out, path + ".step_limit_ms", step_limit_ms, 10, 600000);
  config::expect_range(out, path + ".window_messages", window_messages, 1, 65536);
  config::expect_range(out, path + ".queue_messages_max", queue_messages_max, 16, 1 << 20);
  if (!metrics.empty() && metrics.rfind(':') == std::string::npos) out.push_back({path + ".metrics", "is '" + metrics + "', expected host:port"});
  if (curve.secret_key_file.empty() != curve.public_key_file.empty())
    out.push_back({path + ".curve", "names one of secret_key_file and public_key_file, expected both or none"});
  return out;
}

Result<std::optional<transport::CurveKeys>> keys_of(const CurveConfig& config) {
  using transport::CurveKeys;
  if (config.secret_key_file.empty()) return std::optional<CurveKeys>{};
  CurveKeys keys;
  PARLANDO_TRY(keys.secret_key, CurveKeys::read_key(config.secret_key_file));
  PARLANDO_TRY(keys.public_key, CurveKeys::read_key(config.public_key_file));
  if (!config.server_key_file.empty()) {
    PARLANDO_TRY(keys.server_key, CurveKeys::read_key(config.server_key_file));
  }
  for (const auto& file : config.allowed_key_files) {
    PARLANDO_TRY(auto key, CurveKeys::read_key(file));
    keys.allowed.push_back(std::move(key));
  }
  return std::optional(std::move(keys));
}

}  // namespace parlando::service
