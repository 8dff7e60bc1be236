#pragma once
/// What the model is told of the past: the stored turns with what was corrected since, as the messages of a chat. Pure
/// functions of records, so that every controller tells the same.
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace parlando::controller {

struct Past {
  std::int64_t turn = 0;
  nlohmann::json record;
};

/// Applies the corrections of the latest record to those in front of it and to itself; its summary knows of them.
void apply_corrections(std::deque<Past>& history);
/// Of a turn's answer only this was heard.
void apply_cut(std::deque<Past>& history, const nlohmann::json& cut);
/// {item}, or {turn, part}: the model is not told of it any more.
void apply_forget(std::deque<Past>& history, const nlohmann::json& forgot);

/// What stands for all turns up to one, in the record of a later turn.
struct Summary {
  std::int64_t until = 0;
  std::string text;
};
/// The one that the latest record has.
std::optional<Summary> summary_of(const std::deque<Past>& history);
void write_summary(nlohmann::json& record, const Summary& summary);
/// A cut or a forget of something that is in a summary of the turns up to this one, or may be: it counts no more.
bool is_about(const nlohmann::json& change, std::int64_t until, const std::deque<Past>& history);
/// The turns that go next, before they have to go: when what the model is told has come to nine tenths of its limits,
/// the oldest until three fifths are left; the latest stays. Those that have gone without a summary, and are still
/// known, as well. @return up to which turn, and what was said in them, behind the summary so far; nothing is due
std::optional<Summary> to_summarise(const std::deque<Past>& history, std::int64_t turns_max, std::int64_t bytes_max);

/// The first turn that the model is told of: the one that the latest record names, or the one behind its summary,
/// unless the texts from there on, with the summary, have more than `bytes_max`. Then the oldest go until four fifths
/// of that are left, so that a prompt grows at its end for many turns before its beginning changes.
std::int64_t first_told(const std::deque<Past>& history, std::int64_t bytes_max);

/// Messages {role, content, calls?, call?} of the summary, as the system's, and the turns from `first` on; `calls` of
/// an answer: {id, name, arguments, result} of what the tools said in between, of an item without `result`; `call`:
/// which one a tool's message answers.
nlohmann::json messages_of(const std::deque<Past>& history, std::int64_t first);
/// Where calls have ended pieces of a turn's answer. @param past  none: nowhere
std::vector<std::size_t> call_ends_of(const Past* past);
/// Messages of items, in front of what a turn says.
void append_items(nlohmann::json& messages, const nlohmann::json& before);

}  // namespace parlando::controller
