#pragma once
/// Demonstration tools of the engine: time, date and timers are real, the weather is a fixed example.
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace parlando::controller {

/// The result of a call, or `{error}` for an unknown tool.
nlohmann::json run_demo_tool(const std::string& name, const nlohmann::json& arguments);

}  // namespace parlando::controller
