#pragma once
/// Fields of a JSON object that need not be there. For sources only: it brings the JSON library.
#include <nlohmann/json.hpp>
#include <string>

namespace parlando::gateway {

/// Null where the object has no such field, or `object` is none.
inline const nlohmann::json& field(const nlohmann::json& object, const char* name) {
  static const nlohmann::json kNone;
  if (!object.is_object()) return kNone;
  const auto found = object.find(name);
  return found == object.end() ? kNone : *found;
}

/// Empty where the field is no text.
inline std::string text_of(const nlohmann::json& object, const char* name) {
  const auto& value = field(object, name);
  return value.is_string() ? value.get<std::string>() : std::string();
}

}  // namespace parlando::gateway
