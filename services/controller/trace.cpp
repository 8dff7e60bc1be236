#include "services/controller/trace.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace parlando::controller {
using nlohmann::json;

namespace {
constexpr std::array<std::string_view, 5> kNames{"decision", "tokenizer", "transcript", "first_text", "first_audio"};
constexpr double kTenth = 10;

double rounded(double ms) { return std::round(ms * kTenth) / kTenth; }
}  // namespace

json trace_of(std::uint64_t trace, const json& stages) {
  const auto mark = [&](std::string_view name) -> std::optional<double> {
    const auto found = stages.find(std::string(name) + "_ms");
    if (found == stages.end() || !found->is_number()) return {};
    return std::max(0.0, found->get<double>());
  };
  const auto end = mark("first_audio") ? mark("first_audio") : mark("text");
  json out{{"id", fmt::format("{:016x}", trace)}, {"total_ms", 0.0}, {"parts", json::array()}};
  if (!end) return out;
  std::vector<std::pair<double, std::string_view>> marks;
  for (const auto name : kNames)
    if (const auto at = mark(name); at && *at <= *end) marks.emplace_back(*at, name);
  if (!mark("first_audio")) marks.emplace_back(*end, "text");
  std::stable_sort(marks.begin(), marks.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  double before = 0;
  for (const auto& [at, name] : marks) {
    out["parts"].push_back({{"name", std::string(name)}, {"ms", rounded(rounded(at) - before)}});
    before = rounded(at);
  }
  out["total_ms"] = rounded(*end);
  return out;
}

}  // namespace parlando::controller
