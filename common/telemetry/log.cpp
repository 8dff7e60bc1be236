#include "common/telemetry/log.hpp"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>

namespace parlando::telemetry {

namespace {

spdlog::level::level_enum native(Level level) {
  constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::trace, spdlog::level::debug, spdlog::level::info,
                                                   spdlog::level::warn, spdlog::level::err};
  return kLevels[static_cast<int>(level)];
}

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = spdlog::stderr_logger_mt("parlando");
    const char* wanted = std::getenv("PARLANDO_LOG");
    made->set_level(wanted != nullptr ? spdlog::level::from_str(wanted) : spdlog::level::warn);
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
    return made;
  }();
  return *instance;
}

}  // namespace

void write_log(Level level, std::string_view line) {
  logger().log(native(level), spdlog::string_view_t(line.data(), line.size()));
}
bool log_enabled(Level level) { return logger().should_log(native(level)); }

}  // namespace parlando::telemetry
