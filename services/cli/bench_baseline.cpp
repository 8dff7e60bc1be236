#include "services/cli/bench_baseline.hpp"

#include <fmt/format.h>

#include "common/base/mapped_file.hpp"

namespace parlando::cli {
using nlohmann::json;

namespace {
bool figure(const std::string& name) { return name != "spread" && name != "machine" && name != "threads"; }

void collect(const json& now, const json& before, const std::string& name, std::vector<Change>& out) {
  if (now.is_object() && before.is_object()) {
    for (const auto& [key, value] : now.items())
      if (before.contains(key) && (!name.empty() || figure(key)))
        collect(value, before.at(key), name.empty() ? key : name + "." + key, out);
  } else if (now.is_number() && before.is_number()) {
    Change change{name, before.get<double>(), now.get<double>()};
    change.low = change.high = change.now;
    out.push_back(std::move(change));
  }
}
}  // namespace

std::vector<Change> changes(const json& now, const json& before) {
  std::vector<Change> out;
  collect(now, before, "", out);
  const auto spread = now.is_object() ? now.value("spread", json::object()) : json::object();
  for (auto& change : out)
    if (const auto of = spread.find(change.name); of != spread.end() && of->is_object())
      change.low = of->value("low", change.now), change.high = of->value("high", change.now);
  return out;
}

std::string change_table(const json& now, const json& before) {
  std::string out;
  for (const auto* key : {"instruction_set", "threads"})
    if (now.value(key, json()) != before.value(key, json()))
      out += fmt::format("  {} was {}, is {}\n", key, before.value(key, json()).dump(), now.value(key, json()).dump());
  const auto processor = [](const json& j) { return j.value("machine", json::object()).value("processor", json()); };
  if (processor(now) != processor(before))
    out += fmt::format("  another processor: it was {}\n", processor(before).dump());
  for (const auto& c : changes(now, before))
    out += fmt::format("  {:<42} {:>10.3f} -> {:>10.3f}  {:+6.1f} % ({:.3f}…{:.3f})\n", c.name, c.before, c.now,
                       100 * c.growth(), c.low, c.high);
  return out;
}

Result<json> read_baseline(const std::filesystem::path& file) {
  PARLANDO_TRY(const auto text, read_file(file, 1u << 20));
  auto out = json::parse(text, nullptr, false);
  if (!out.is_object())
    return fail(Errc::bad_format, "'{}' is no JSON object, expected what `parlando bench` wrote", file.string());
  return out;
}

Result<std::optional<json>> baseline_of(const std::filesystem::path& file, const std::filesystem::path& output) {
  if (file.empty()) return std::optional<json>();
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (!fs::exists(file, ignored)) {
    if (!output.empty() && fs::weakly_canonical(file, ignored) == fs::weakly_canonical(output, ignored))
      return std::optional<json>();
    return fail(Errc::not_found, "there is no baseline '{}', expected figures of an earlier run (-o {} makes them)",
                file.string(), file.string());
  }
  PARLANDO_TRY(auto found, read_baseline(file));
  return std::optional<json>(std::move(found));
}

}  // namespace parlando::cli
