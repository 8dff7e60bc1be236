#pragma once
/// JSON as text, and texts within JSON.
#include <nlohmann/json.hpp>
#include <string>

namespace parlando::controller {

/// Bytes that are not UTF-8 become U+FFFD.
inline std::string text_of(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// A field that is a text; else "".
inline std::string text_in(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

}  // namespace parlando::controller
