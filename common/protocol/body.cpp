#include "common/protocol/body.hpp"

#include <nlohmann/json.hpp>

#include "common/protocol/codec.hpp"

namespace parlando::protocol {
using nlohmann::json;

namespace {
const json* field(const json& body, const char* key) {
  if (!body.is_object()) return nullptr;
  const auto found = body.find(key);
  return found == body.end() ? nullptr : &*found;
}
}  // namespace

json body_of(const Message& message) { return message.body.empty() ? json::object() : json::parse(message.body, nullptr, false); }
std::string dump(const json& body) { return body.dump(-1, ' ', false, json::error_handler_t::replace); }

std::string text_in(const json& body, const char* key, std::string otherwise) {
  const auto* f = field(body, key);
  return f != nullptr && f->is_string() ? f->get<std::string>() : std::move(otherwise);
}
std::int64_t integer_in(const json& body, const char* key, std::int64_t otherwise) {
  const auto* f = field(body, key);
  return f != nullptr && f->is_number_integer() ? f->get<std::int64_t>() : otherwise;
}
bool flag_in(const json& body, const char* key, bool otherwise) {
  const auto* f = field(body, key);
  return f != nullptr && f->is_boolean() ? f->get<bool>() : otherwise;
}

}  // namespace parlando::protocol
