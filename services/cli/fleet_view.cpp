#include "services/cli/fleet_view.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

namespace parlando::cli {
using nlohmann::json;

namespace {

// In the order in which a turn meets them; metrics have underscores.
constexpr std::array kRoleNames{"gateway", "controller", "vad", "tokenizer", "llm_chat", "llm_tts", "tts", "context"};
constexpr double kMebibyte = 1 << 20;

/// Its role is in front of its gauges. @return empty for a page of something else
std::string role_of(const std::map<std::string, double>& page) {
  for (const auto* role : kRoleNames)
    if (page.contains(fmt::format("parlando_{}_ready", role))) return role;
  return {};
}

std::size_t place_of(const std::string& role) {
  const auto* const at = std::find_if(kRoleNames.begin(), kRoleNames.end(), [&](auto* r) { return role == r; });
  return static_cast<std::size_t>(at - kRoleNames.begin());
}

std::optional<double> value_of(const std::map<std::string, double>& page, const std::string& name) {
  const auto found = page.find(name);
  return found == page.end() ? std::nullopt : std::optional(found->second);
}

/// All samples of a name, whatever their labels.
double sum_of(const std::map<std::string, double>& page, const std::string& name) {
  double sum = 0;
  for (auto at = page.lower_bound(name); at != page.end() && at->first.starts_with(name); ++at)
    if (at->first.size() == name.size() || at->first[name.size()] == '{') sum += at->second;
  return sum;
}

double grown(double now, double before) { return now >= before ? now - before : now; }

std::string shown(const json& row, const char* key, const char* form) {
  return row.contains(key) ? fmt::format(fmt::runtime(form), row[key].get<double>()) : "–";
}

/// Characters of UTF-8.
std::size_t width(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

std::string fit(const std::string& line, int columns) {
  std::string out;
  int used = 0;
  for (const char c : line) {
    if ((static_cast<unsigned char>(c) & 0xc0) != 0x80 && used++ == columns) break;
    out += c;
  }
  return out;
}

std::string right(const std::string& text, std::size_t wanted) {
  const auto has = width(text);
  return (has < wanted ? std::string(wanted - has, ' ') : std::string()) + text;
}

std::string left(const std::string& text, std::size_t wanted) {
  const auto has = width(text);
  return text + (has < wanted ? std::string(wanted - has, ' ') : std::string());
}

}  // namespace

std::map<std::string, double> parse_metrics(std::string_view text) {
  std::map<std::string, double> out;
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    const auto line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    // The value is behind the labels, in which there may be spaces.
    const auto labels = line.rfind('}');
    const auto cut = line.find(' ', labels == std::string_view::npos ? 0 : labels);
    if (line.empty() || line[0] == '#' || cut == std::string_view::npos) continue;
    const std::string number(line.substr(cut + 1));
    char* rest = nullptr;
    const double value = std::strtod(number.c_str(), &rest);
    if (rest != number.c_str() && std::isfinite(value)) out[std::string(line.substr(0, cut))] = value;
  }
  return out;
}

void FleetView::take(const std::string& name, std::string_view text, double now) {
  auto& it = instances_[name];
  auto page = parse_metrics(text);
  if (it.away.empty() && !it.now.empty()) {
    it.before = std::move(it.now);
    it.at_before = it.at;
  } else {
    it.before.clear();
  }
  it.away.clear();
  it.now = std::move(page);
  it.at = now;
}

void FleetView::lost(const std::string& name, const std::string& why) {
  auto& it = instances_[name];
  it = {};
  it.away = why;
}

std::optional<FleetView::Quantiles> FleetView::quantiles(const std::vector<const Instance*>& of,
                                                         const std::string& name) {
  const auto start = name + "_bucket{le=\"";
  std::map<double, double> since, ever;  // upper bound → observations not above it
  for (const auto* instance : of) {
    const bool anew = sum_of(instance->now, name + "_count") < sum_of(instance->before, name + "_count");
    for (auto at = instance->now.lower_bound(start); at != instance->now.end() && at->first.starts_with(start); ++at) {
      const auto bound = std::strtod(at->first.c_str() + start.size(), nullptr);  // +Inf, too
      const auto before = anew ? std::nullopt : value_of(instance->before, at->first);
      ever[bound] += at->second;
      since[bound] += at->second - before.value_or(instance->before.empty() ? at->second : 0);
    }
  }
  const auto& counts = !since.empty() && since.rbegin()->second > 0 ? since : ever;
  if (counts.empty() || counts.rbegin()->second <= 0) return std::nullopt;
  const double all = counts.rbegin()->second;
  const auto at_share = [&](double share) {
    double low = 0, under = 0;
    for (const auto& [bound, count] : counts) {
      if (count >= share * all) {
        // Above the last bound nothing is known but that it is more.
        if (std::isinf(bound)) return low;
        return count > under ? low + (bound - low) * (share * all - under) / (count - under) : bound;
      }
      low = bound;
      under = count;
    }
    return low;
  };
  return Quantiles{at_share(0.5), at_share(0.95), at_share(0.99), all};
}

json FleetView::row(const std::string& name, const Instance& it) const {
  json out{{"name", name}};
  if (!it.away.empty()) {
    out["state"] = "away";
    out["why"] = it.away;
    return out;
  }
  const auto role = role_of(it.now);
  if (role.empty()) {
    out["state"] = "unknown";
    out["why"] = "its metrics are not those of a service of parlando";
    return out;
  }
  out["role"] = role;
  const auto own = [&, start = "parlando_" + role + "_"](const std::string& key) {
    return value_of(it.now, start + key);
  };
  const bool ready = own("ready").value_or(0) > 0, draining = own("draining").value_or(0) > 0;
  out["state"] = draining ? "draining" : ready ? "ready" : "not ready";
  for (const auto& [key, gauge] : {std::pair{"streams", "streams"},
                                   {"load", "load"},
                                   {"slots", "slots"},
                                   {"queue", "queue_messages"},
                                   {"sessions", "sessions"}})
    if (const auto value = own(gauge)) out[key] = *value;
  const auto seconds = it.at - it.at_before;
  if (!it.before.empty() && seconds > 0) {
    const auto rate = [&](const std::string& metric) {
      return grown(sum_of(it.now, metric), sum_of(it.before, metric)) / seconds;
    };
    out["messages_per_s"] = rate(fmt::format("parlando_{}_messages_received_total", role));
    if (it.now.contains("process_cpu_seconds_total")) out["cpu_percent"] = 100 * rate("process_cpu_seconds_total");
  }
  if (const auto memory = value_of(it.now, "process_resident_memory_bytes")) out["memory_mib"] = *memory / kMebibyte;
  for (const auto* what : {"step", "handle"})
    if (const auto found = quantiles({&it}, fmt::format("parlando_{}_{}_seconds", role, what))) {
      out["work_p99_ms"] = 1000 * found->p99;
      break;
    }
  double faults = 0;
  for (const auto* key : {"failures_total", "expired_total", "link_resets_total", "peers_down_total",
                          "messages_refused_total", "turn_errors_total"})
    faults += sum_of(it.now, fmt::format("parlando_{}_{}", role, key));
  out["faults"] = faults;
  return out;
}

json FleetView::to_json() const {
  json out{{"services", json::array()}};
  double sessions = 0, turns = 0, turns_rate = 0, errors_rate = 0;
  bool has_rate = false;
  std::vector<const Instance*> controllers;
  for (const auto& [name, instance] : instances_) {
    out["services"].push_back(row(name, instance));
    const auto role = instance.away.empty() ? role_of(instance.now) : std::string();
    if (role == "gateway") sessions += value_of(instance.now, "parlando_gateway_sessions").value_or(0);
    if (role != "controller") continue;
    controllers.push_back(&instance);
    const auto all = [&](const char* key) {
      return std::pair{sum_of(instance.now, key), sum_of(instance.before, key)};
    };
    const auto [now, before] = all("parlando_controller_turns_total");
    const auto [wrong, wrong_before] = all("parlando_controller_turn_errors_total");
    turns += now;
    if (const auto seconds = instance.at - instance.at_before; !instance.before.empty() && seconds > 0) {
      has_rate = true;
      turns_rate += grown(now, before) / seconds;
      errors_rate += grown(wrong, wrong_before) / seconds;
    }
  }
  std::stable_sort(out["services"].begin(), out["services"].end(), [](const json& a, const json& b) {
    return place_of(a.value("role", "")) < place_of(b.value("role", ""));
  });
  out["sessions"] = sessions;
  out["turns"] = turns;
  if (has_rate) {
    out["turns_per_s"] = turns_rate;
    out["errors_per_s"] = errors_rate;
  }
  if (const auto found = quantiles(controllers, "parlando_controller_first_audio_seconds"))
    out["first_audio_ms"] = {{"p50", 1000 * found->p50}, {"p95", 1000 * found->p95}, {"n", found->count}};
  return out;
}

std::string FleetView::draw(int columns) const {
  const auto all = to_json();
  auto head = fmt::format("{:.0f} sessions · {:.0f} turns", all["sessions"].get<double>(), all["turns"].get<double>());
  if (all.contains("turns_per_s"))
    head += fmt::format(" · {:.1f} turns/s · {:.1f} errors/s", all["turns_per_s"].get<double>(),
                        all["errors_per_s"].get<double>());
  if (all.contains("first_audio_ms"))
    head += fmt::format(" · first audio p50 {:.0f}, p95 {:.0f} ms", all["first_audio_ms"]["p50"].get<double>(),
                        all["first_audio_ms"]["p95"].get<double>());
  std::size_t longest = 8;
  for (const auto& row : all["services"]) longest = std::max(longest, width(row["name"].get<std::string>()));
  std::string out = fit(head, columns) + "\n\n";
  out += fit(left("service", longest) +
                 "  state        load    slots  streams  queue   msg/s  p99 ms   cpu %     MiB  faults",
             columns) +
         "\n";
  for (const auto& row : all["services"]) {
    auto line = left(row["name"], longest) + "  " + left(row["state"], 9);
    if (row.contains("why")) {
      line += "  " + row["why"].get<std::string>();
    } else {
      line += right(shown(row, "load", "{:.0f}"), 8) + right(shown(row, "slots", "{:.0f}"), 9) +
              right(shown(row, "streams", "{:.0f}"), 9) + right(shown(row, "queue", "{:.0f}"), 7) +
              right(shown(row, "messages_per_s", "{:.0f}"), 8) + right(shown(row, "work_p99_ms", "{:.1f}"), 8) +
              right(shown(row, "cpu_percent", "{:.0f}"), 8) + right(shown(row, "memory_mib", "{:.0f}"), 8) +
              right(shown(row, "faults", "{:.0f}"), 8);
    }
    out += fit(line, columns) + "\n";
  }
  return out;
}

}  // namespace parlando::cli
