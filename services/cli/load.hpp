#pragma once
/// `parlando load`: people who speak with a server of the realtime API, ours or another's, as many as wanted at a time:
/// how long they wait, what goes wrong.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

struct LoadOptions {
  std::string url;    ///< ws, wss, http or https; without a path: /v1/realtime
  std::string key;    ///< sent as `Authorization: Bearer`; empty: none
  std::string model;  ///< of the query; empty: none is named
  std::string voice, instructions, detector = "server_vad";
  int sessions = 1;
  double seconds = 60;                     ///< of speaking; answers under way are waited for behind it
  std::vector<std::filesystem::path> say;  ///< recordings; a folder stands for its WAVs
  std::filesystem::path html;              ///< picture of the run; empty: none
};

/// One thread, all sockets. On a terminal it tells how far it is; SIGINT ends it with what there is.
/// @return url, sessions {wanted, opened, lost}, seconds, turns, turn_latency_ms, end_told_ms, opening_ms (each {p50,
/// p95, p99, n}), audio_seconds, underruns, cut_off, errors {reason: count}, own_lateness_ms, own_cores, and `all`: a
/// turn each {session, at_s, latency_ms, failure?, underruns}
/// @error when no session can be opened at all, with the server's reason
Result<nlohmann::json> run_load(const LoadOptions& options);

/// The figures as a table.
std::string load_table(const nlohmann::json& figures);
/// The same with pictures: a page that needs nothing else.
std::string load_page(const nlohmann::json& figures);

}  // namespace parlando::cli
