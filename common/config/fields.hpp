#pragma once
/// Strict reading of configuration structs: one field list per struct; unknown keys and wrong types are all
/// reported at once, with path, value and expectation.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::config {

struct Problem {
  std::string path, text;
};
std::string to_text(const std::vector<Problem>& problems);

/// Reads the keys of `object` into a struct that has `template <class V> void fields(V&& v)` calling `v("key",
/// member)`.
class Reader {
 public:
  Reader(const nlohmann::json& object, std::string path, std::vector<Problem>& problems)
      : object_(object), path_(std::move(path)), problems_(problems) {
    if (!object.is_object())
      problems_.push_back({path_, "is " + std::string(object.type_name()) + ", expected an object"});
  }
  template <class T>
  void operator()(const char* key, T& value) {
    known_.insert(key);
    if (!object_.is_object() || !object_.contains(key)) return;  // the default stands
    const auto& j = object_.at(key);
    const auto wrong = [&](const char* expected) {
      problems_.push_back({path_ + "." + key, "is " + j.dump().substr(0, 60) + ", expected " + expected});
    };
    if constexpr (std::is_same_v<T, bool>) {
      if (j.is_boolean())
        value = j.get<bool>();
      else
        wrong("true or false");
    } else if constexpr (std::is_integral_v<T>) {
      if (j.is_number_integer())
        value = j.get<T>();
      else
        wrong("a whole number");
    } else if constexpr (std::is_floating_point_v<T>) {
      if (j.is_number())
        value = j.get<T>();
      else
        wrong("a number");
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (j.is_string())
        value = j.get<std::string>();
      else if (j.is_structured())  // it may hold what nobody may read, an address with its password for one
        problems_.push_back({path_ + "." + key, "is an " + std::string(j.type_name()) + ", expected a text"});
      else
        wrong("a text");
    } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
      if (j.is_array() && std::all_of(j.begin(), j.end(), [](const auto& x) { return x.is_string(); }))
        value = j.get<T>();
      else
        wrong("a list of texts");
    } else if constexpr (std::is_same_v<T, std::map<std::string, std::vector<std::string>>>) {
      bool good = j.is_object();
      if (good)
        for (const auto& [name, list] : j.items())
          good = good && list.is_array() &&
                 std::all_of(list.begin(), list.end(), [](const auto& x) { return x.is_string(); });
      if (good)
        value = j.get<T>();
      else
        wrong("an object of lists of texts");
    } else if constexpr (std::is_same_v<T, std::map<std::string, std::string>>) {
      if (j.is_object() && std::all_of(j.begin(), j.end(), [](const auto& x) { return x.is_string(); }))
        value = j.get<T>();
      else
        wrong("an object of texts");
    } else {  // a nested struct
      Reader inner(j, path_ + "." + key, problems_);
      value.fields(inner);
      inner.finish();
    }
  }
  /// Reports keys that no field asked for.
  void finish() {
    if (!object_.is_object()) return;
    for (const auto& [key, value] : object_.items())
      if (!known_.contains(key)) problems_.push_back({path_ + "." + key, "is not a known key"});
  }

 private:
  const nlohmann::json& object_;
  std::string path_;
  std::vector<Problem>& problems_;
  std::set<std::string> known_;
};

/// Reports a number outside [low, high].
template <class T>
void expect_range(std::vector<Problem>& problems, const std::string& path, T value, T low, T high) {
  if (value < low || value > high)
    problems.push_back({path, fmt::format("is {}, expected {} to {}", value, low, high)});
}

/// A struct from an object; its `problems(path)` are added.
template <class T>
T read(const nlohmann::json& object, const std::string& path, std::vector<Problem>& problems) {
  T out;
  Reader reader(object, path, problems);
  out.fields(reader);
  reader.finish();
  for (auto& p : out.problems(path)) problems.push_back(std::move(p));
  return out;
}

/// A JSON file that is an object. @error Errc::not_found, Errc::bad_json
Result<nlohmann::json> load_file(const std::string& file);

}  // namespace parlando::config
