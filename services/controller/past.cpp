#include "services/controller/past.hpp"
#include "services/controller/json_text.hpp"

#include <algorithm>
#include <string>

namespace parlando::controller {
using nlohmann::json;

namespace {

const json& elements_in(const json& object, const char* key) {
  static const auto kNone = json::array();
  const auto found = object.find(key);
  return found != object.end() && found->is_array() ? *found : kNone;
}

std::int64_t whole_in(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<std::int64_t>() : 0;
}

Past* turn_of(std::deque<Past>& history, const json& change) {
  const auto found =
      std::find_if(history.begin(), history.end(), [&](const Past& p) { return p.turn == whole_in(change, "turn"); });
  return found == history.end() ? nullptr : &*found;
}

std::int64_t text_bytes(const json& record) {
  auto bytes = text_in(record, "user").size() + text_in(record, "assistant").size();
  for (const auto& item : elements_in(record, "before")) bytes += text_in(item, "text").size();
  for (const auto& call : elements_in(record, "tool_calls")) bytes += call.dump().size();
  return static_cast<std::int64_t>(bytes);
}

/// A turn in which the model had nothing to say: an utterance that was noted, or items on their own.
bool has_answer(const json& record) { return !record.contains("noted") && !record.contains("items_only"); }

}  // namespace

namespace {

bool has_item(const Past& past, const std::string& id) {
  const auto& before = elements_in(past.record, "before");
  const auto noted = past.record.find("noted");
  return (noted != past.record.end() && text_in(*noted, "id") == id) ||
         std::any_of(before.begin(), before.end(), [&](const json& item) { return text_in(item, "id") == id; });
}

}  // namespace

std::optional<Summary> summary_of(const std::deque<Past>& history) {
  if (history.empty()) return std::nullopt;
  const auto found = history.back().record.find("summary");
  if (found == history.back().record.end() || !found->is_object()) return std::nullopt;
  Summary out{whole_in(*found, "until"), text_in(*found, "text")};
  if (out.until < 1 || out.text.empty()) return std::nullopt;
  return out;
}

void write_summary(json& record, const Summary& summary) {
  record["summary"] = {{"until", summary.until}, {"text", summary.text}};
}

bool is_about(const json& change, std::int64_t until, const std::deque<Past>& history) {
  if (!change.is_object()) return false;
  const auto id = text_in(change, "item");
  if (id.empty()) return whole_in(change, "turn") <= until;
  // Of an item that stands in no turn behind the summary nobody knows where it stood.
  return std::none_of(history.begin(), history.end(), [&](const Past& p) { return p.turn > until && has_item(p, id); });
}

namespace {

/// Of those that carry a summary, none does any more if the change is about it.
void drop_summaries(std::deque<Past>& history, const json& change) {
  for (auto& past : history) {
    const auto found = past.record.find("summary");
    if (found != past.record.end() && is_about(change, whole_in(*found, "until"), history)) past.record.erase(found);
  }
}

std::int64_t text_bytes(const std::optional<Summary>& summary) {
  return summary ? static_cast<std::int64_t>(summary->text.size()) : 0;
}

/// The first turn that is told if nothing has to go.
std::int64_t first_kept(const std::deque<Past>& history, const std::optional<Summary>& summary) {
  const auto named = std::max<std::int64_t>(1, whole_in(history.back().record, "history_from"));
  return summary ? std::max(named, summary->until + 1) : named;
}

}  // namespace

std::optional<Summary> to_summarise(const std::deque<Past>& history, std::int64_t turns_max, std::int64_t bytes_max) {
  constexpr std::int64_t kFull = 90, kLeft = 60;  // percent
  if (history.empty()) return std::nullopt;
  const auto summary = summary_of(history);
  const auto done = summary ? summary->until : 0;
  const auto first = first_told(history, bytes_max);
  std::int64_t turns = 0, bytes = text_bytes(summary);
  for (const auto& past : history) {
    if (past.turn < first) continue;
    ++turns;
    bytes += text_bytes(past.record);
  }
  const bool full = turns * 100 >= turns_max * kFull || bytes * 100 >= bytes_max * kFull;
  Summary out{first - 1, {}};
  for (const auto& past : history) {
    if (!full || past.turn >= history.back().turn) break;
    if (past.turn < first) continue;
    if (turns * 100 <= turns_max * kLeft && bytes * 100 <= bytes_max * kLeft) break;
    out.until = past.turn;
    --turns;
    bytes -= text_bytes(past.record);
  }
  std::deque<Past> going;
  for (const auto& past : history) {
    if (past.turn <= done || past.turn > out.until) continue;
    going.push_back(past);
    going.back().record.erase("summary");
  }
  if (going.empty()) return std::nullopt;
  if (summary) out.text = summary->text + "\n";
  for (const auto& message : messages_of(going, 1)) {
    const auto content = text_in(message, "content");
    if (!content.empty()) out.text += text_in(message, "role") + ": " + content + "\n";
  }
  return out;
}

void apply_cut(std::deque<Past>& history, const json& cut) {
  if (!cut.is_object() || !cut.contains("heard")) return;
  drop_summaries(history, cut);
  auto* past = turn_of(history, cut);
  if (past == nullptr) return;
  // Claims only shorten: what is forgotten stays so.
  auto heard = text_in(cut, "heard");
  if (heard.size() < text_in(past->record, "assistant").size()) past->record["assistant"] = std::move(heard);
}

void apply_forget(std::deque<Past>& history, const json& forgot) {
  if (!forgot.is_object()) return;
  drop_summaries(history, forgot);
  if (const auto id = text_in(forgot, "item"); !id.empty()) {
    for (auto& past : history) {
      if (past.record.contains("before") && past.record["before"].is_array())
        std::erase_if(past.record["before"].get_ref<json::array_t&>(),
                      [&](const json& item) { return text_in(item, "id") == id; });
      if (past.record.contains("noted") && text_in(past.record["noted"], "id") == id) past.record["user"] = "";
    }
    return;
  }
  auto* past = turn_of(history, forgot);
  if (past == nullptr) return;
  const auto part = text_in(forgot, "part");
  if (part != "assistant") past->record["user"] = "";
  if (part == "user") return;
  past->record["assistant"] = "";
  past->record["tool_calls"] = json::array();
  if (part == "all") past->record["items_only"] = true;
}

void apply_corrections(std::deque<Past>& history) {
  if (history.empty()) return;
  auto& latest = history.back().record;
  const auto record = latest;
  latest.erase("summary");
  if (const auto cut = record.find("cut"); cut != record.end()) {
    if (cut->is_array())
      for (const auto& one : *cut) apply_cut(history, one);
    else
      apply_cut(history, *cut);
  }
  for (const auto& one : elements_in(record, "forgot")) apply_forget(history, one);
  if (const auto own = record.find("summary"); own != record.end()) latest["summary"] = *own;
}

std::int64_t first_told(const std::deque<Past>& history, std::int64_t bytes_max) {
  if (history.empty()) return 1;
  const auto summary = summary_of(history);
  const auto first = first_kept(history, summary);
  std::int64_t bytes = text_bytes(summary);
  for (const auto& past : history) bytes += past.turn >= first ? text_bytes(past.record) : 0;
  if (bytes <= bytes_max) return first;
  for (const auto& past : history) {
    if (past.turn < first) continue;
    if (bytes <= bytes_max / 5 * 4) return past.turn;
    bytes -= text_bytes(past.record);
  }
  return history.back().turn + 1;
}

void append_items(json& messages, const json& before) {
  if (!before.is_array()) return;
  for (const auto& item : before) {
    const auto role = text_in(item, "role");
    json message{{"role", role}, {"content", text_in(item, "text")}};
    if (item.contains("calls")) message[role == "tool" ? "call" : "calls"] = item["calls"];
    messages.push_back(std::move(message));
  }
}

json messages_of(const std::deque<Past>& history, std::int64_t first) {
  auto out = json::array();
  if (const auto summary = summary_of(history))
    out.push_back({{"role", "system"}, {"content", "What was said before, in short:\n" + summary->text}});
  for (const auto& [turn, record] : history) {
    if (turn < first) continue;
    append_items(out, elements_in(record, "before"));
    const auto user = text_in(record, "user"), assistant = text_in(record, "assistant");
    // What answers items, or is given, has no words of a user in front of it.
    const bool said =
        !user.empty() || (has_answer(record) && !record.contains("responds") && !record.contains("given"));
    if (said) out.push_back({{"role", "user"}, {"content", user}});
    if (!has_answer(record)) continue;
    json message{{"role", "assistant"}, {"content", assistant}};
    if (const auto& calls = elements_in(record, "tool_calls"); !calls.empty()) message["calls"] = calls;
    out.push_back(std::move(message));
  }
  return out;
}

std::vector<std::size_t> call_ends_of(const Past* past) {
  std::vector<std::size_t> out;
  if (past == nullptr) return out;
  for (const auto& end : elements_in(past->record, "call_ends"))
    if (end.is_number_unsigned()) out.push_back(end.get<std::size_t>());
  return out;
}

}  // namespace parlando::controller
