#pragma once
/// `parlando bench mesh`: what the links between services cost and whether they hold: round trips beside bare ZeroMQ,
/// the idle engine, sound of many sessions, latency under load, many turns, a client that floods. Engines are started
/// as `parlando serve`, as users do.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

struct MeshBenchOptions {
  std::filesystem::path model_path;
  std::filesystem::path source;   ///< the repository, to name the commit; empty or none: unknown
  int sessions = 200;             ///< that listen
  double seconds = 10;            ///< of each run under load
  int runs = 5;                   ///< at least 5
  std::int64_t turns = 200;       ///< of the long conversation
  std::vector<std::string> only;  ///< of kMeshParts; empty: all
};

inline constexpr const char* kMeshParts[] = {"round_trip", "idle", "frames", "answering", "flood", "turns"};

/// Prints a table. @return machine, commit, instruction set, `figures` (name -> median, low, high, target, met) and
/// `missed`, the names of figures beyond their target. @error what kept it from measuring
Result<nlohmann::json> bench_mesh(const MeshBenchOptions& options);

}  // namespace parlando::cli
