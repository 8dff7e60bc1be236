#pragma once
/// What every service's configuration has: where it listens, whom it calls, keys, limits.
#include "common/config/fields.hpp"
#include "common/transport/zmq/sockets.hpp"

namespace parlando::service {

/// Who we are, whom we believe, and whom we admit on `tcp`. Either keys or `plain_tcp`: there is no tcp without a word.
struct CurveConfig {
  std::string secret_key_file;                          ///< our own pair: 40 characters in Z85 each
  std::string public_key_file;                          ///< both or none
  std::string keys_file;                                ///< callers we admit: lines `<key> <role> [instance]`
  std::map<std::string, std::string> server_key_files;  ///< role we call -> file with the role's public key
  bool plain_tcp = false;                               ///< tcp without encryption and without authentication
  bool has_keys() const { return !secret_key_file.empty() && !public_key_file.empty(); }
  template <class V>
  void fields(V&& v) {
    v("secret_key_file", secret_key_file);
    v("public_key_file", public_key_file);
    v("keys_file", keys_file);
    v("server_key_files", server_key_files);
    v("plain_tcp", plain_tcp);
  }
};

struct WireConfig {
  std::string name;  ///< of this instance, as keys may be bound to it; empty: the role
  std::string bind;  ///< inproc://, ipc:// or tcp:// endpoint
  std::map<std::string, std::vector<std::string>> connect;  ///< role -> endpoints of its replicas, or where they stand
  std::string metrics;                                      ///< host:port of /metrics, /healthz, /readyz; empty: none
  CurveConfig curve;                                        ///< for tcp
  int heartbeat_ms = 100;
  int misses_max = 3;         ///< silent heartbeats that make a peer suspect
  int resume_ms = 30000;      ///< a suspect peer is given up after this
  int step_limit_ms = 2000;   ///< a unit of work that takes longer makes callers turn to another replica
  int watchdog_ms = 2000;     ///< a thread that stands still for longer ends the process; work: at least step_limit_ms
  int window_messages = 256;  ///< a sender's messages on a stream ahead of the last one handled
  int queue_messages_max = 4096;  ///< between link and worker
  template <class V>
  void fields(V&& v) {
    v("name", name);
    v("bind", bind);
    v("connect", connect);
    v("metrics", metrics);
    v("curve", curve);
    v("heartbeat_ms", heartbeat_ms);
    v("misses_max", misses_max);
    v("resume_ms", resume_ms);
    v("step_limit_ms", step_limit_ms);
    v("watchdog_ms", watchdog_ms);
    v("window_messages", window_messages);
    v("queue_messages_max", queue_messages_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

/// What the sockets are opened with; keys are read. @error of the key file that cannot be used
Result<transport::SocketOptions> socket_options(const WireConfig& wire, Time now);

}  // namespace parlando::service
