#include "services/controller/past.hpp"
#include "services/controller/json_text.hpp"

#include <algorithm>
#include <string>

namespace parlando::controller {
using nlohmann::json;

namespace {

const json& list_in(const json& object, const char* key) {
  static const auto kNone = json::array();
  const auto found = object.find(key);
  return found != object.end() && found->is_array() ? *found : kNone;
}

std::int64_t number_in(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<std::int64_t>() : 0;
}

Past* turn_of(std::deque<Past>& history, const json& change) {
  const auto found =
      std::find_if(history.begin(), history.end(), [&](const Past& p) { return p.turn == number_in(change, "turn"); });
  return found == history.end() ? nullptr : &*found;
}

std::int64_t bytes_of(const json& record) {
  auto bytes = text_in(record, "user").size() + text_in(record, "assistant").size();
  for (const auto& item : list_in(record, "before")) bytes += text_in(item, "text").size();
  for (const auto& call : list_in(record, "tool_calls")) bytes += call.dump().size();
  return static_cast<std::int64_t>(bytes);
}

/// A turn in which the model had nothing to say: an utterance that was noted, or items on their own.
bool has_answer(const json& record) { return !record.contains("noted") && !record.contains("items_only"); }

}  // namespace

void apply_cut(std::deque<Past>& history, const json& cut) {
  if (!cut.is_object() || !cut.contains("heard")) return;
  if (auto* past = turn_of(history, cut)) past->record["assistant"] = text_in(cut, "heard");
}

void apply_forget(std::deque<Past>& history, const json& forgot) {
  if (!forgot.is_object()) return;
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
  const auto record = history.back().record;
  if (const auto cut = record.find("cut"); cut != record.end()) {
    if (cut->is_array())
      for (const auto& one : *cut) apply_cut(history, one);
    else
      apply_cut(history, *cut);
  }
  for (const auto& one : list_in(record, "forgot")) apply_forget(history, one);
}

std::int64_t first_told(const std::deque<Past>& history, std::int64_t bytes_max) {
  if (history.empty()) return 1;
  const auto first = std::max<std::int64_t>(1, number_in(history.back().record, "history_from"));
  std::int64_t bytes = 0;
  for (const auto& past : history) bytes += past.turn >= first ? bytes_of(past.record) : 0;
  if (bytes <= bytes_max) return first;
  for (const auto& past : history) {
    if (past.turn < first) continue;
    if (bytes <= bytes_max / 5 * 4) return past.turn;
    bytes -= bytes_of(past.record);
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
  for (const auto& [turn, record] : history) {
    if (turn < first) continue;
    append_items(out, list_in(record, "before"));
    const auto user = text_in(record, "user"), assistant = text_in(record, "assistant");
    // What answers items, or is given, has no words of a user in front of it.
    const bool said =
        !user.empty() || (has_answer(record) && !record.contains("responds") && !record.contains("given"));
    if (said) out.push_back({{"role", "user"}, {"content", user}});
    if (!has_answer(record)) continue;
    json message{{"role", "assistant"}, {"content", assistant}};
    if (const auto& calls = list_in(record, "tool_calls"); !calls.empty()) message["calls"] = calls;
    out.push_back(std::move(message));
  }
  return out;
}

}  // namespace parlando::controller
