#pragma once
/// Tools that the engine runs itself. `demo`: time, date and timers are real, the weather is a fixed example; `none`:
/// every call is answered with an error that the model may speak about.
#include <ctime>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "common/base/result.hpp"
#include "services/controller/turn.hpp"

namespace parlando::controller {

/// The result of a call, or `{error}` for an unknown tool. @param now  the wall clock's
nlohmann::json run_demo_tool(const std::string& name, const nlohmann::json& arguments, std::time_t now);

/// A call as a language model's service tells it: {name, arguments, left?, past?}. @error Errc::bad_json
Result<ToolCall> read_tool_call(const std::string& text);
/// @param tools  which are configured: demo or none
nlohmann::json run_tool(const std::string& tools, const ToolCall& call, std::time_t now);

}  // namespace parlando::controller
