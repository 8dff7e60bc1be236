#include "services/cli/trace_view.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

namespace parlando::cli {
using nlohmann::json;

namespace {

constexpr int kColumnsMin = 10;
constexpr int kEighths = 8;
constexpr std::array<std::string_view, kEighths> kPart{"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
constexpr std::string_view kFull = "█";

/// What a part is, for somebody who has not built this.
std::string_view meaning(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> kMeanings[] = {
      {"decision", "silence until the end is decided"}, {"tokenizer", "speech tokens complete"},
      {"transcript", "what was said is understood"},    {"first_text", "first word of the answer"},
      {"first_audio", "first sound of the answer"},     {"text", "text of the answer complete"}};
  for (const auto& [known, words] : kMeanings)
    if (known == name) return words;
  return "";
}

/// A bar from `from` to `to`, in columns; it begins at a whole one.
std::string bar_of(double from, double to, int columns) {
  const auto begin = std::clamp(static_cast<int>(from), 0, columns - 1);
  const auto eighths = std::max(1, static_cast<int>(std::lround((to - begin) * kEighths)));
  std::string out(static_cast<std::size_t>(begin), ' ');
  int used = begin;
  for (int n = 0; n < eighths / kEighths && used < columns; ++n, ++used) out += kFull;
  if (eighths % kEighths > 0 && used < columns) {
    out += kPart[static_cast<std::size_t>(eighths % kEighths)];
    ++used;
  }
  return out + std::string(static_cast<std::size_t>(columns - used), ' ');
}

}  // namespace

std::string draw_trace(const json& trace, int columns) {
  columns = std::max(columns, kColumnsMin);
  if (!trace.is_object()) return {};
  const auto parts = trace.value("parts", json::array());
  const double total = trace.value("total_ms", 0.0);
  if (parts.empty()) return {};
  std::string out = fmt::format("trace {}, from the end of speech\n", trace.value("id", ""));
  double at = 0;
  for (const auto& part : parts) {
    const auto name = part.value("name", "");
    const double ms = part.value("ms", 0.0);
    const double scale = total > 0 ? columns / total : 0;
    out += fmt::format("  {:<12}{} {:8.1f} ms  {}\n", name, bar_of(at * scale, (at + ms) * scale, columns), ms,
                       meaning(name));
    at += ms;
  }
  out += fmt::format("  {:<12}{:>{}} {:8.1f} ms\n", "sum", "", columns, at);
  return out;
}

}  // namespace parlando::cli
