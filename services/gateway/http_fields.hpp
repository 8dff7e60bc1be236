#pragma once
/// The JSON body of a request, read field by field. The first field that is wrong is kept with its path; unknown fields
/// are nobody's business, and null is as good as absent. For sources only: it brings the JSON library.
#include <cmath>
#include <optional>

#include "services/gateway/http_error.hpp"
#include "services/gateway/json_text.hpp"

namespace parlando::gateway {

class Fields {
 public:
  using json = nlohmann::json;
  /// @param path  of `object` in the request; empty for the whole
  /// @param problem  receives the first one
  Fields(const json& object, std::string path, std::optional<ApiError>& problem)
      : object_(object), path_(std::move(path)), problem_(problem) {
    if (!object.is_object()) wrong("", object, "an object");
  }

  std::string name(const std::string& key) const {
    return path_.empty() ? key : key.empty() ? path_ : path_ + "." + key;
  }
  bool has(const std::string& key) const { return find(key) != nullptr; }

  std::optional<std::string> text(const std::string& key, std::size_t bytes_max = 60000) {
    const auto* value = find(key);
    if (value == nullptr) return {};
    if (!value->is_string()) return wrong(key, *value, "a string"), std::nullopt;
    auto out = value->get<std::string>();
    if (out.size() <= bytes_max) return out;
    return refuse(key, fmt::format("has {} bytes, expected at most {}", out.size(), bytes_max)), std::nullopt;
  }
  std::optional<std::string> one_of(const std::string& key, std::initializer_list<std::string_view> known) {
    auto out = text(key);
    if (!out || std::find(known.begin(), known.end(), *out) != known.end()) return out;
    return wrong(key, *out, fmt::format("one of {}", fmt::join(known, ", "))), std::nullopt;
  }
  std::optional<double> number(const std::string& key, double low, double high) {
    const auto* value = find(key);
    if (value == nullptr) return {};
    if (value->is_number() && value->get<double>() >= low && value->get<double>() <= high) return value->get<double>();
    return wrong(key, *value, fmt::format("a number from {} to {}", low, high)), std::nullopt;
  }
  std::optional<std::int64_t> integer(const std::string& key, std::int64_t low, std::int64_t high) {
    const auto* value = find(key);
    if (value == nullptr) return {};
    const bool whole = value->is_number_integer() &&
                       !(value->is_number_unsigned() && value->get<std::uint64_t>() > std::uint64_t(INT64_MAX));
    if (whole && value->get<std::int64_t>() >= low && value->get<std::int64_t>() <= high)
      return value->get<std::int64_t>();
    return wrong(key, *value, fmt::format("a whole number from {} to {}", low, high)), std::nullopt;
  }
  std::optional<bool> boolean(const std::string& key) {
    const auto* value = find(key);
    if (value == nullptr) return {};
    if (value->is_boolean()) return value->get<bool>();
    return wrong(key, *value, "true or false"), std::nullopt;
  }
  const json* array(const std::string& key, std::size_t count_max) {
    const auto* value = find(key);
    if (value == nullptr) return nullptr;
    if (!value->is_array()) return wrong(key, *value, "an array"), nullptr;
    if (value->size() <= count_max) return value;
    return refuse(key, fmt::format("has {} entries, expected at most {}", value->size(), count_max)), nullptr;
  }
  const json* object(const std::string& key) {
    const auto* value = find(key);
    if (value == nullptr || value->is_object()) return value;
    return wrong(key, *value, "an object"), nullptr;
  }
  const json* any(const std::string& key) const { return find(key); }

  void missing(const std::string& key) {
    if (!problem_) problem_ = ApiError{400, fmt::format("'{}' is missing", name(key)), name(key), "missing_field"};
  }
  void wrong(const std::string& key, const json& value, std::string_view expected) {
    refuse(key, fmt::format("is {}, expected {}", dump(value).substr(0, 60), expected));
  }
  /// @param why  what is said behind the field's name
  void refuse(const std::string& key, std::string_view why, std::string code = "invalid_value") {
    const auto path = name(key);
    if (problem_) return;
    problem_ =
        ApiError{400, fmt::format("{}{}{} {}", path.empty() ? "the body" : "'", path, path.empty() ? "" : "'", why),
                 path, std::move(code)};
  }

 private:
  const json* find(const std::string& key) const {
    if (!object_.is_object()) return nullptr;
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  const json& object_;
  std::string path_;
  std::optional<ApiError>& problem_;
};

}  // namespace parlando::gateway
