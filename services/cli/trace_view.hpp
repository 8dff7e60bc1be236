#pragma once
/// The parts of a turn's time as a picture for a terminal.
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace parlando::cli {

/// A line a part, each where it lies in time, and the sum.
/// @param trace  of a turn: `{id, total_ms, parts: [{name, ms}]}`   @param columns  of the bars, 10 at least
/// @return empty when the turn has no parts
std::string draw_trace(const nlohmann::json& trace, int columns = 44);

}  // namespace parlando::cli
