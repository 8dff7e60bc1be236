#pragma once
/// What every service's configuration has: where it listens, whom it calls, keys, limits.
#include "common/config/fields.hpp"
#include "common/transport/zmq_transport.hpp"

namespace parlando::service {

struct CurveConfig {
  std::string secret_key_file, public_key_file, server_key_file;
  std::vector<std::string> allowed_key_files;
  template <class V>
  void fields(V&& v) {
    v("secret_key_file", secret_key_file), v("public_key_file", public_key_file), v("server_key_file", server_key_file),
        v("allowed_key_files", allowed_key_files);
  }
};

struct WireConfig {
  std::string bind;                                         ///< inproc://, ipc:// or tcp:// endpoint
  std::map<std::string, std::vector<std::string>> connect;  ///< role -> endpoints of its replicas
  std::string metrics;                                      ///< host:port of /metrics, /healthz, /readyz; empty: none
  CurveConfig curve;                                        ///< tcp only; empty files: no encryption
  int heartbeat_ms = 100, misses_max = 3;
  int step_limit_ms = 2000;  ///< a unit of work that takes longer makes callers turn to another replica
  int window_messages = 256, queue_messages_max = 4096;
  template <class V>
  void fields(V&& v) {
    v("bind", bind), v("connect", connect), v("metrics", metrics), v("curve", curve), v("heartbeat_ms", heartbeat_ms), v("misses_max", misses_max),
        v("step_limit_ms", step_limit_ms), v("window_messages", window_messages), v("queue_messages_max", queue_messages_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

/// Keys named by the configuration; nothing when none are named.
Result<std::optional<transport::CurveKeys>> keys_of(const CurveConfig& config);

}  // namespace parlando::service
