#include "services/controller/tools.hpp"

#include <ctime>
#include <nlohmann/json.hpp>

#include "common/protocol/body.hpp"

namespace parlando::controller {
using nlohmann::json;
using protocol::integer_in, protocol::text_in;

json run_demo_tool(const std::string& name, const json& arguments) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  static constexpr const char* kDays[] = {"sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"};
  static constexpr const char* kMonths[] = {"january", "february", "march",     "april",   "may",      "june",
                                            "july",    "august",   "september", "october", "november", "december"};
  if (name == "get_time") return {{"hour", (local.tm_hour + 11) % 12 + 1}, {"minute", local.tm_min}};
  if (name == "get_date") return {{"day", kDays[local.tm_wday]}, {"month", kMonths[local.tm_mon]}, {"date", local.tm_mday}};
  if (name == "set_timer") return {{"amount", integer_in(arguments, "amount")}, {"unit", text_in(arguments, "unit", "minute")}};
  if (name == "get_weather") return {{"city", text_in(arguments, "city")}, {"day", text_in(arguments, "day", "today")}, {"sky", "sunny"}, {"degrees", 20}};
  return {{"error", "unknown tool " + name}};
}

}  // namespace parlando::controller
