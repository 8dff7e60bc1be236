#pragma once
/// What the model is told of the past: the stored turns with what was corrected since, as the messages of a chat. Pure
/// functions of records, so that every controller tells the same.
#include <deque>
#include <nlohmann/json.hpp>

namespace parlando::controller {

struct Past {
  std::int64_t turn = 0;
  nlohmann::json record;
};

/// Applies the corrections of the latest record to those in front of it and to itself.
void apply_corrections(std::deque<Past>& history);
/// Of a turn's answer only this was heard.
void apply_cut(std::deque<Past>& history, const nlohmann::json& cut);
/// {item}, or {turn, part}: the model is not told of it any more.
void apply_forget(std::deque<Past>& history, const nlohmann::json& forgot);

/// The first turn that the model is told of: the one that the latest record names, unless the texts from there on have
/// more than `bytes_max`. Then the oldest go until four fifths of that are left, so that a prompt grows at its end for
/// many turns before its beginning changes.
std::int64_t first_told(const std::deque<Past>& history, std::int64_t bytes_max);

/// Messages {role, content, calls?, call?} of the turns from `first` on; `calls` of an answer: {id, name, arguments,
/// result} of what the tools said in between, of an item without `result`; `call`: which one a tool's message answers.
nlohmann::json messages_of(const std::deque<Past>& history, std::int64_t first);
/// Messages of items, in front of what a turn says.
void append_items(nlohmann::json& messages, const nlohmann::json& before);

}  // namespace parlando::controller
