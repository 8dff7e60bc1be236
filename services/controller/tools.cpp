#include "services/controller/tools.hpp"

#include <nlohmann/json.hpp>

#include "common/base/nesting.hpp"

namespace parlando::controller {
using nlohmann::json;

namespace {
constexpr int kCallDepthMax = 16;  // it travels on inside of other messages, which have 32

std::string text_in(const json& object, const char* key, const char* otherwise) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : otherwise;
}
std::int64_t integer_in(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<std::int64_t>() : 0;
}
}  // namespace

json run_demo_tool(const std::string& name, const json& arguments, std::time_t now) {
  std::tm local{};
  localtime_r(&now, &local);
  static constexpr const char* kDays[] = {"sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"};
  static constexpr const char* kMonths[] = {"january", "february", "march",     "april",   "may",      "june",
                                            "july",    "august",   "september", "october", "november", "december"};
  if (name == "get_time") return {{"hour", (local.tm_hour + 11) % 12 + 1}, {"minute", local.tm_min}};
  if (name == "get_date")
    return {{"day", kDays[local.tm_wday]}, {"month", kMonths[local.tm_mon]}, {"date", local.tm_mday}};
  if (name == "set_timer")
    return {{"amount", integer_in(arguments, "amount")}, {"unit", text_in(arguments, "unit", "minute")}};
  if (name == "get_weather")
    return {{"city", text_in(arguments, "city", "")},
            {"day", text_in(arguments, "day", "today")},
            {"sky", "sunny"},
            {"degrees", 20}};
  return {{"error", "unknown tool " + name}};
}

Result<ToolCall> read_tool_call(const std::string& text) {
  if (nested_deeper_than(text, kCallDepthMax))
    return fail(Errc::bad_json, "the model's tool call nests deeper than {}", kCallDepthMax);
  const auto call = json::parse(text, nullptr, false);
  if (!call.is_object()) return fail(Errc::bad_json, "the model's tool call is no JSON object: {}", text.substr(0, 80));
  ToolCall out{text_in(call, "name", ""), call.value("arguments", json::object())};
  out.left = integer_in(call, "left");
  out.was_made = call.value("past", json()) == true;
  return out;
}

json run_tool(const std::string& tools, const ToolCall& call, std::time_t now) {
  if (tools != "demo") return {{"error", "no tools are configured"}};
  return run_demo_tool(call.name, call.arguments.is_object() ? call.arguments : json::object(), now);
}

}  // namespace parlando::controller
