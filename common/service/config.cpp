#include "common/service/config.hpp"

#include "common/transport/directory.hpp"

namespace parlando::service {

namespace {

bool is_tcp(const std::string& source) { return source.starts_with("tcp:") || source.starts_with("dns:"); }

/// On tcp everybody on the network can listen and call: keys, or the plain words that none are wanted. What a `file:`
/// names is seen only when it is read; the transport holds it to the same rule.
void check_curve(const WireConfig& wire, const std::string& path, std::vector<config::Problem>& out) {
  const auto& curve = wire.curve;
  const auto at = path + ".curve";
  const auto add = [&](const std::string& where, const std::string& text) { out.push_back({where, text}); };
  if (curve.secret_key_file.empty() != curve.public_key_file.empty())
    add(at, "names one of secret_key_file and public_key_file, expected both or none");
  if (!curve.has_keys()) {
    if (!curve.keys_file.empty()) add(at + ".keys_file", "needs a pair of keys of our own");
    if (!curve.server_key_files.empty()) add(at + ".server_key_files", "needs a pair of keys of our own");
  } else if (curve.plain_tcp) {
    add(at + ".plain_tcp", "is true beside keys, expected one of them");
  }
  const auto check = [&](const std::string& where, const std::string& source) {
    if (is_tcp(source) && !curve.has_keys() && !curve.plain_tcp)
      add(where, "is '" + source + "' without keys, expected curve with keys or \"plain_tcp\": true");
  };
  check(path + ".bind", wire.bind);
  if (is_tcp(wire.bind) && curve.has_keys() && curve.keys_file.empty())
    add(at + ".keys_file", "is empty, expected the file with the keys of those who may call");
  for (const auto& [role, sources] : wire.connect) {
    for (const auto& source : sources) check(path + ".connect." + role, source);
    if (curve.has_keys() && std::any_of(sources.begin(), sources.end(), is_tcp) &&
        !curve.server_key_files.contains(role))
      add(at + ".server_key_files." + role, "is missing, expected the file with that role's public key");
  }
}

}  // namespace

std::vector<config::Problem> WireConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  if (name.size() > 60) out.push_back({path + ".name", fmt::format("has {} bytes, at most 60 are taken", name.size())});
  if (!bind.empty() && !bind.starts_with("inproc://") && !bind.starts_with("ipc://") && !bind.starts_with("tcp://"))
    out.push_back({path + ".bind", "is '" + bind + "', expected inproc://, ipc:// or tcp://"});
  for (const auto& [role, sources] : connect)
    for (const auto& source : sources)
      if (const auto good = transport::Directory::check(source); !good)
        out.push_back({path + ".connect." + role, good.error().message});
  check_curve(*this, path, out);
  config::expect_range(out, path + ".heartbeat_ms", heartbeat_ms, 10, 10000);
  config::expect_range(out, path + ".misses_max", misses_max, 1, 100);
  config::expect_range(out, path + ".resume_ms", resume_ms, 100, 600000);
  config::expect_range(out, path + ".step_limit_ms", step_limit_ms, 10, 600000);
  config::expect_range(out, path + ".watchdog_ms", watchdog_ms, 500, 600000);
  config::expect_range(out, path + ".window_messages", window_messages, 1, 65536);
  config::expect_range(out, path + ".queue_messages_max", queue_messages_max, 16, 1 << 20);
  if (!metrics.empty() && metrics.rfind(':') == std::string::npos)
    out.push_back({path + ".metrics", "is '" + metrics + "', expected host:port"});
  return out;
}

Result<transport::SocketOptions> socket_options(const WireConfig& wire, Time now) {
  transport::SocketOptions out;
  out.bind = wire.bind;
  out.connect = wire.connect;
  out.plain_tcp = wire.curve.plain_tcp;
  if (!wire.curve.has_keys()) return out;
  transport::SocketKeys keys;
  PARLANDO_TRY(keys.own.secret_key, transport::curve::read_key(wire.curve.secret_key_file));
  PARLANDO_TRY(keys.own.public_key, transport::curve::read_key(wire.curve.public_key_file));
  if (!keys.own.is_pair())
    return fail(Errc::bad_format, "'{}' does not hold the public key of the secret one in '{}'",
                wire.curve.public_key_file, wire.curve.secret_key_file);
  if (!wire.curve.keys_file.empty()) {
    PARLANDO_TRY(keys.callers, transport::curve::KeyTable::open(wire.curve.keys_file, now));
  }
  for (const auto& [role, file] : wire.curve.server_key_files) {
    PARLANDO_TRY(keys.server_keys[role], transport::curve::read_key(file));
  }
  out.keys = std::move(keys);
  return out;
}

}  // namespace parlando::service
