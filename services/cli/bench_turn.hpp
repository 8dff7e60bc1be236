#pragma once
/// `parlando bench turn`: how long people wait for an answer. The bundled questions are said aloud in real time to an
/// engine as users run it, over its WebSocket; what is timed is what a client sees: from the true end of speech (found
/// in the recording) to the first byte of sound.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>

#include "common/base/result.hpp"

namespace parlando::cli {

struct TurnBenchOptions {
  std::filesystem::path model_path;
  std::filesystem::path source;  ///< the repository, to name the commit
  std::int64_t turns = 200;      ///< by one speaker; by four at a time and with interruptions: a quarter each
  int lead_ms = 400;
};

/// Prints a table. @return machine and figures, each {p50, p95, p99, n} in milliseconds: silence.…, four.…,
/// committed.…, barge_in_ms, voice_to_hold_ms; speculation, underruns, `missed`. @error what kept it from measuring
Result<nlohmann::json> bench_turn(const TurnBenchOptions& options);

}  // namespace parlando::cli
