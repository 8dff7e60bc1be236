#pragma once
/// JSON values as text. For sources only: it brings the JSON library.
#include <nlohmann/json.hpp>
#include <string>

namespace parlando::gateway {

/// Bytes that are no UTF-8 become U+FFFD.
inline std::string dump(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace parlando::gateway
