#pragma once
/// One line per event, to standard error: a sentence, subject first, then keys.
#include <fmt/format.h>

#include <string_view>

namespace parlando::telemetry {

enum class Level { trace, debug, info, warning, error };
void write_log(Level level, std::string_view line);
/// Lines below the level are dropped; default warning. `PARLANDO_LOG=info` changes it.
bool log_enabled(Level level);

template <class... Args>
void log(Level level, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(level)) write_log(level, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace parlando::telemetry
