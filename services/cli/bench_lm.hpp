#pragma once
/// `parlando bench lm`: the language model at the shape of a checkpoint (random weights) against the read bandwidth of
/// this machine and against libtorch, two ranks against one, and the nano model as it is served.
#include <nlohmann/json_fwd.hpp>

#include "common/base/result.hpp"
#include "services/cli/bench.hpp"

namespace parlando::cli {

/// What can be measured alone. `decode`: steps of one row in bf16, int8, int4; `rows`: many rows; `attention` of a step
/// at 4096; `prefill` of 512 and of 8192 tokens; `torch`: the same products in libtorch; `speakers`: prompts beside
/// eight who speak; `fork`; `ranks`; `load`: a packed file; `sampling`; `nano`;
/// `threads`: nano with one thread and with two.
constexpr const char* kLmParts[] = {"decode", "rows",  "attention", "prefill",  "torch", "speakers",
                                    "fork",   "ranks", "load",      "sampling", "nano",  "threads"};

/// Speeds are the fastest of the runs, since neighbours on a machine only slow a run down; `spread` has low, median and
/// high of each. Bandwidth is measured between the runs that it is compared with.
Result<nlohmann::json> bench_lm(const BenchOptions& options);

}  // namespace parlando::cli
