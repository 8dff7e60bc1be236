#pragma once
/// Settings of a conversation that change in part.
#include "common/protocol/messages.hpp"

namespace parlando::protocol {

/// Changes what `changes` names, an object with fields of Settings; null changes nothing.
/// @error Errc::bad_json, Errc::invalid_argument naming the field; nothing has changed then
inline Result<void> apply(const JsonText& changes, Settings& to) {
  if (changes.text == "null") return {};
  auto changed = to;
  JsonReader reader(changes.text);
  changed.fields(reader);
  PARLANDO_DO(reader.done(MessageType::configure));
  to = std::move(changed);
  return {};
}

}  // namespace parlando::protocol
