/// What `parlando load` has found, as a table and as a page with pictures.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "services/cli/load.hpp"

namespace parlando::cli {
using nlohmann::json;

namespace {

std::string row(const std::string& name, const json& of) {
  if (of.value("n", 0) == 0) return fmt::format("{:<34} none\n", name);
  return fmt::format("{:<34} {:>9.1f} {:>9.1f} {:>9.1f} {:>7}\n", name, of["p50"].get<double>(),
                     of["p95"].get<double>(), of["p99"].get<double>(), of["n"].get<std::int64_t>());
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

/// A round number that is not less: 1, 2 or 5 times a power of ten.
double round_up(double value) {
  const double power = std::pow(10.0, std::floor(std::log10(std::max(value, 1e-9))));
  for (const double step : {1.0, 2.0, 5.0, 10.0})
    if (value <= step * power) return step * power;
  return 10 * power;
}

constexpr double kWidth = 860, kHeight = 300, kLeft = 64, kBottom = 36, kTop = 14, kRight = 14;

/// A frame with axes; what is drawn in it goes between this and `</svg>`.
struct Plot {
  double x_most, y_most;
  std::string svg;
  double x(double value) const { return kLeft + value / x_most * (kWidth - kLeft - kRight); }
  double y(double value) const { return kHeight - kBottom - value / y_most * (kHeight - kBottom - kTop); }
  Plot(double x_max, double y_max, const std::string& x_name, const std::string& y_name)
      : x_most(std::max(x_max, 1e-9)), y_most(std::max(y_max, 1e-9)) {
    svg = fmt::format(R"(<svg viewBox="0 0 {} {}" role="img" aria-label="{} by {}">)", kWidth, kHeight, y_name, x_name);
    for (int n = 0; n <= 5; ++n) {
      const double at_y = y_most * n / 5, at_x = x_most * n / 5;
      svg += fmt::format(R"(<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>)", kLeft,
                         kWidth - kRight, y(at_y), y(at_y));
      svg +=
          fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="end">{:.4g}</text>)", kLeft - 6, y(at_y) + 4, at_y);
      svg += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{:.4g}</text>)", x(at_x),
                         kHeight - kBottom + 16, at_x);
    }
    svg += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>)", (kLeft + kWidth) / 2,
                       kHeight - 4, x_name);
  }
};

std::vector<double> latencies(const json& figures) {
  std::vector<double> out;
  for (const auto& turn : figures["all"])
    if (turn["latency_ms"].is_number()) out.push_back(turn["latency_ms"].get<double>());
  std::sort(out.begin(), out.end());
  return out;
}

/// Every turn where it was asked: how long it waited; those that failed at the upper edge.
std::string turns_plot(const json& figures, double most) {
  double seconds = 1;
  for (const auto& turn : figures["all"]) seconds = std::max(seconds, turn["at_s"].get<double>());
  Plot plot(round_up(seconds), most, "seconds since the beginning", "milliseconds");
  for (const auto& turn : figures["all"]) {
    const auto x = plot.x(turn["at_s"].get<double>());
    const auto title = fmt::format("session {}, {:.1f} s", turn["session"].get<int>(), turn["at_s"].get<double>());
    if (turn.contains("failure")) {
      plot.svg +=
          fmt::format(R"(<text class="bad" x="{:.1f}" y="{:.1f}" text-anchor="middle">×<title>{}: {}</title></text>)",
                      x, kTop + 10, title, escaped(turn["failure"].get<std::string>()));
    } else if (turn["latency_ms"].is_number()) {
      const auto ms = turn["latency_ms"].get<double>();
      plot.svg +=
          fmt::format(R"(<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}: {:.0f} ms</title></circle>)",
                      turn["underruns"].get<std::int64_t>() > 0 ? "dry" : "good", x, plot.y(ms), title, ms);
    }
  }
  return plot.svg + "</svg>";
}

/// The share of turns that waited no longer.
std::string share_plot(const std::vector<double>& sorted, double most) {
  Plot plot(most, 100, "milliseconds from the end of speech to the first sound", "% of turns");
  std::string points;
  for (std::size_t n = 0; n < sorted.size(); ++n)
    points += fmt::format("{:.1f},{:.1f} ", plot.x(sorted[n]),
                          plot.y(100.0 * static_cast<double>(n + 1) / static_cast<double>(sorted.size())));
  return plot.svg + fmt::format(R"(<polyline class="line" points="{}"/></svg>)", points);
}

}  // namespace

std::string load_table(const json& figures) {
  const auto& sessions = figures["sessions"];
  auto out = fmt::format("{}, {}: {} of {} sessions, {} lost, {:.0f} s\n", figures["url"].get<std::string>(),
                         figures["detector"].get<std::string>(), sessions["opened"].get<std::int64_t>(),
                         sessions["wanted"].get<std::int64_t>(), sessions["lost"].get<std::int64_t>(),
                         figures["seconds"].get<double>());
  out += fmt::format("{:<34} {:>9} {:>9} {:>9} {:>7}\n", "milliseconds", "p50", "p95", "p99", "n");
  out += row("end of speech to first sound", figures["turn_latency_ms"]);
  out += row("end of speech to speech_stopped", figures["end_told_ms"]);
  out += row("opening a session", figures["opening_ms"]);
  out += row("our own frames, too late by", figures["own_lateness_ms"]);
  out += fmt::format(
      "{} turns, {:.1f} s of sound, {} underruns, {} taken for over in mid-sentence; we took {:.2f} cores\n",
      figures["turns"].get<std::int64_t>(), figures["audio_seconds"].get<double>(),
      figures["underruns"].get<std::int64_t>(), figures["cut_off"].get<std::int64_t>(),
      figures["own_cores"].get<double>());
  if (figures["errors"].empty()) out += "no errors\n";
  for (const auto& [words, count] : figures["errors"].items())
    out += fmt::format("{:>6} × {}\n", count.get<std::int64_t>(), words);
  return out;
}

std::string load_page(const json& figures) {
  const auto sorted = latencies(figures);
  const double most = round_up(sorted.empty() ? 1000 : sorted.back());
  return fmt::format(R"(<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>parlando load: {0}</title>
<style>
:root {{
  color-scheme: light dark;
  --ink: #1d2430; --ground: #fff; --soft: #d7dce4; --good: #2563c9; --bad: #c62f2f; --dry: #c77700;
}}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e4e8ef; --ground: #14181f; --soft: #343c48; --good: #6ba0ff; --bad: #ff7a70; --dry: #ffb454; }}
}}
body {{
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 900px; margin: 2rem auto; padding: 0 1rem;
}}
svg {{ width: 100%; font-size: 12px; }}
svg text {{ fill: var(--ink); }}
svg .bad {{ fill: var(--bad); font-size: 16px; }}
.grid {{ stroke: var(--soft); }}
.good {{ fill: var(--good); }}
.dry {{ fill: var(--dry); }}
.line {{ fill: none; stroke: var(--good); stroke-width: 2; }}
pre {{ overflow-x: auto; }}
</style>
<h1>{0}</h1>
<pre>{1}</pre>
<h2>Turns</h2>
<p>A point is a turn: from the end of speech to the first sound of its answer.
Orange: the loudspeaker ran dry; ×: no answer.</p>
{2}
<h2>Share of turns that waited no longer</h2>
{3}
</html>
)",
                     escaped(figures["url"].get<std::string>()), escaped(load_table(figures)),
                     turns_plot(figures, most), share_plot(sorted, most));
}

}  // namespace parlando::cli
