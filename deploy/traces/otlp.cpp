#include "deploy/traces/otlp.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace parlando::traces {
using nlohmann::json;

namespace {

constexpr int kInternal = 1, kServer = 2;  // SpanKind
constexpr std::size_t kLineBytesMax = 64 << 10;

/// FNV-1a, for ids: the same words give the same id; 0 is none.
std::string span_id(const std::string& text) {
  std::uint64_t hash = 14695981039346656037ull;
  for (const unsigned char c : text) hash = (hash ^ c) * 1099511628211ull;
  return fmt::format("{:016x}", hash == 0 ? 1 : hash);
}

json text_attribute(const char* key, const std::string& value) {
  return {{"key", key}, {"value", {{"stringValue", value}}}};
}

/// 64-bit integers are text in OTLP's JSON.
std::string nanos(double ms) { return fmt::format("{}", static_cast<std::int64_t>(std::llround(ms)) * 1'000'000); }

json span(const std::string& trace, const std::string& id, const std::string& parent, const std::string& name, int kind,
          double start_ms, double end_ms) {
  json out{{"traceId", trace},
           {"spanId", id},
           {"name", name},
           {"kind", kind},
           {"startTimeUnixNano", nanos(start_ms)},
           {"endTimeUnixNano", nanos(end_ms)},
           {"attributes", json::array()},
           {"status", json::object()}};
  if (!parent.empty()) out["parentSpanId"] = parent;
  return out;
}

}  // namespace

Result<std::vector<json>> spans_of(std::string_view line) {
  if (line.size() > kLineBytesMax)
    return fail(Errc::bad_json, "a turn has {} bytes, at most {} are read", line.size(), kLineBytesMax);
  const auto turn = json::parse(line, nullptr, false);
  try {
    const auto session = turn.at("session").get<std::string>();
    const auto number = turn.at("turn").get<std::int64_t>();
    const auto& stages = turn.at("stages");
    const auto& trace = turn.at("trace");
    const auto id = trace.at("id").get<std::string>();
    const bool is_id =
        id.size() == 16 && std::all_of(id.begin(), id.end(), [](unsigned char c) { return std::isxdigit(c); });
    if (!is_id) return fail(Errc::bad_json, "a turn's trace is '{}', expected 16 hexadecimal digits", id);
    // A trace of 64 bits is the lower half of one of 128. All zero is no id; the session stands in for it.
    const auto trace_id =
        id == "0000000000000000" ? span_id(session) + span_id(session + "+") : "0000000000000000" + id;
    const double end = turn.at("time").get<double>() * 1000;
    const double total = stages.value("total_ms", trace.at("total_ms").get<double>());
    const double start = end - std::max(0.0, total);
    const auto root = span_id(fmt::format("{}/{}", session, number));
    std::vector<json> out{span(trace_id, root, {}, "turn", kServer, start, end)};
    out[0]["attributes"] = {
        text_attribute("session.id", session),
        {{"key", "parlando.turn"}, {"value", {{"intValue", std::to_string(number)}}}},
        {{"key", "parlando.degraded"}, {"value", {{"boolValue", turn.at("degraded").get<bool>()}}}}};
    double at = start;
    for (const auto& part : trace.at("parts")) {
      const auto name = part.at("name").get<std::string>();
      const double length = std::max(0.0, part.at("ms").get<double>());
      out.push_back(span(trace_id, span_id(fmt::format("{}/{}/{}", session, number, name)), root, name, kInternal, at,
                         at + length));
      at += length;
    }
    return out;
  } catch (const json::exception& error) {
    return fail(Errc::bad_json, "a line is no turn: {}", error.what());
  }
}

json request_of(const std::vector<json>& spans) {
  return {{"resourceSpans",
           json::array({{{"resource", {{"attributes", json::array({text_attribute("service.name", "parlando")})}}},
                         {"scopeSpans", json::array({{{"scope", {{"name", "parlando"}}}, {"spans", spans}}})}}})}};
}

void Backlog::take(const std::string& source, std::string_view lines) {
  auto& before = known_[source];
  std::set<std::string> now;
  while (!lines.empty()) {
    const auto end = lines.find('\n');
    const std::string line(lines.substr(0, end));
    lines.remove_prefix(end == std::string_view::npos ? lines.size() : end + 1);
    if (line.empty() || !now.insert(line).second || before.contains(line)) continue;
    auto spans = spans_of(line);
    if (!spans) {
      ++malformed_;
      continue;
    }
    if (waiting_.size() == kTurnsMax) {
      waiting_.pop_front();
      ++dropped_;
    }
    waiting_.push_back(*std::move(spans));
  }
  before = std::move(now);
}

void Backlog::keep_only(const std::set<std::string>& sources) {
  std::erase_if(known_, [&](const auto& entry) { return !sources.contains(entry.first); });
}

std::vector<json> Backlog::next(std::size_t turns_max) const {
  std::vector<json> out;
  for (std::size_t i = 0; i < std::min(turns_max, waiting_.size()); ++i)
    out.insert(out.end(), waiting_[i].begin(), waiting_[i].end());
  return out;
}

void Backlog::sent(std::size_t turns) {
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(std::min(turns, waiting_.size())));
}

}  // namespace parlando::traces
