#pragma once
/// Reading and writing message bodies. A field that is missing or of another type reads as `otherwise`: nothing throws.
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace parlando::protocol {

struct Message;

/// The body as JSON; an empty body is an empty object. Only after `decode`.
nlohmann::json body_of(const Message& message);
/// One line of JSON; bytes that are not UTF-8 become U+FFFD.
std::string dump(const nlohmann::json& body);

std::string text_in(const nlohmann::json& body, const char* key, std::string otherwise = {});
std::int64_t integer_in(const nlohmann::json& body, const char* key, std::int64_t otherwise = 0);
bool flag_in(const nlohmann::json& body, const char* key, bool otherwise = false);

}  // namespace parlando::protocol
