#include "services/gateway/settings.hpp"

#include <cmath>
#include <map>

#include "common/base/nesting.hpp"
#include "services/gateway/json_text.hpp"

namespace parlando::gateway {
using nlohmann::json;
using protocol::JsonText;

namespace {

constexpr std::size_t kSettingShownMax = 40, kToolsMax = 128, kToolsBytesMax = 48u << 10, kToolNameMax = 64;
constexpr std::size_t kStopsMax = 4, kStopBytesMax = 200;
constexpr int kParametersDepthMax = 24;

std::string shown_setting(const json& value) { return dump(value).substr(0, kSettingShownMax); }

/// One field: where it goes and how it is read. `to` is the object of changes.
class Reader {
 public:
  Reader(std::string_view where, json& to) : where_(where), to_(to) {}

  Result<void> text(const std::string& key, const json& value, const char* name, std::size_t bytes_max) {
    if (!value.is_string() || value.get_ref<const std::string&>().size() > bytes_max)
      return wrong(key, value, fmt::format("a text of at most {} bytes", bytes_max));
    to_[name] = value;
    return {};
  }
  Result<void> boolean(const std::string& key, const json& value, const char* name) {
    if (!value.is_boolean()) return wrong(key, value, "true or false");
    to_[name] = value;
    return {};
  }
  /// @param scale  the field counts in these; 1: whole numbers only. Null: as configured
  Result<void> number(const std::string& key, const json& value, const char* name, double low, double high,
                      double scale, json otherwise = -1) {
    const bool fits = scale == 1 ? value.is_number_integer() : value.is_number();
    const auto read = fits ? value.get<double>() : 0;
    if (value.is_null())
      to_[name] = std::move(otherwise);
    else if (!fits || !(read >= low && read <= high))
      return wrong(key, value, fmt::format("{} from {} to {}", scale == 1 ? "a whole number" : "a number", low, high));
    else
      to_[name] = std::llround(read * scale);
    return {};
  }
  Result<void> name(const std::string& key, const json& value, const char* field,
                    std::span<const std::string_view> names) {
    for (const auto known : names)
      if (value == known) {
        to_[field] = value;
        return {};
      }
    return wrong(key, value, fmt::format("{}", fmt::join(names, ", ")));
  }
  Result<void> stop(const json& value) {
    const bool is_list = value.is_null() || (value.is_array() && value.size() <= kStopsMax);
    bool good = is_list;
    for (const auto& text : is_list ? value : json())
      good &= text.is_string() && !text.get_ref<const std::string&>().empty() &&
              text.get_ref<const std::string&>().size() <= kStopBytesMax;
    if (!good) return wrong("stop", value, fmt::format("at most {} texts of 1 to {} bytes", kStopsMax, kStopBytesMax));
    to_["stop"] = value;
    return {};
  }
  Result<void> tools(const json& value) {
    if (value.is_null()) {
      to_["tools"] = nullptr;
      return {};
    }
    if (!value.is_array() || value.size() > kToolsMax)
      return wrong("tools", value, fmt::format("a list of at most {} tools, or null", kToolsMax));
    json tools = json::array();
    for (const auto& tool : value) {
      PARLANDO_TRY(auto read, this->tool(tool));
      tools.push_back(std::move(read));
    }
    const auto text = dump(tools);
    if (text.size() > kToolsBytesMax)
      return fail(Errc::invalid_argument, "{}: tools have {} bytes, expected at most {}", where_, text.size(),
                  kToolsBytesMax);
    if (nested_deeper_than(text, kParametersDepthMax))
      return fail(Errc::invalid_argument, "{}: tools nest deeper than {}", where_, kParametersDepthMax);
    to_["tools"] = std::move(tools);
    return {};
  }
  Result<void> wrong(const std::string& key, const json& value, const std::string& expected) const {
    return fail(Errc::invalid_argument, "{}: {} is {}, expected {}", where_, key, shown_setting(value), expected);
  }

 private:
  Result<json> tool(const json& tool) {
    const auto name = tool.is_object() && tool.contains("name") && tool["name"].is_string()
                          ? tool["name"].get<std::string>()
                          : std::string();
    const auto is_part = [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == '-'; };
    if (name.empty() || name.size() > kToolNameMax || !std::all_of(name.begin(), name.end(), is_part))
      return fail(Errc::invalid_argument, "{}: tools has {}, expected a name of 1 to {} letters, digits, _ and -",
                  where_, shown_setting(tool), kToolNameMax);
    json out{{"name", name}};
    if (tool.contains("description")) {
      if (!tool["description"].is_string())
        return fail(Errc::invalid_argument, "{}: description of tool '{}' is {}, expected a text", where_, name,
                    shown_setting(tool["description"]));
      out["description"] = tool["description"];
    }
    if (tool.contains("parameters") && !tool["parameters"].is_null()) {
      if (!tool["parameters"].is_object())
        return fail(Errc::invalid_argument, "{}: parameters of tool '{}' is {}, expected an object", where_, name,
                    shown_setting(tool["parameters"]));
      out["parameters"] = tool["parameters"];
    }
    return out;
  }

  std::string_view where_;
  json& to_;
};

using Read = Result<void> (*)(Reader&, const std::string&, const json&);

const std::map<std::string, Read, std::less<>>& detection_fields() {
  using R = Reader&;
  using K = const std::string&;
  using V = const json&;
  static const std::map<std::string, Read, std::less<>> kFields{
      {"type", [](R r, K k, V v) { return r.name(k, v, "detection", protocol::names_of<protocol::Detection>()); }},
      {"eagerness", [](R r, K k, V v) { return r.name(k, v, "eagerness", protocol::names_of<protocol::Eagerness>()); }},
      {"threshold", [](R r, K k, V v) { return r.number(k, v, "threshold_permille", 0, 1, 1000); }},
      {"prefix_ms", [](R r, K k, V v) { return r.number(k, v, "prefix_ms", 0, 5000, 1); }},
      {"silence_ms", [](R r, K k, V v) { return r.number(k, v, "silence_ms", 32, 10000, 1); }},
      {"answers", [](R r, K k, V v) { return r.boolean(k, v, "answers"); }},
      {"interrupts", [](R r, K k, V v) { return r.boolean(k, v, "interrupts"); }},
  };
  return kFields;
}

Result<void> read_detection(Reader& r, const std::string& key, const json& value) {
  if (!value.is_object()) return r.wrong(key, value, "an object");
  for (const auto& [name, v] : value.items()) {
    const auto found = detection_fields().find(name);
    if (found == detection_fields().end())
      return r.wrong(key, value, "the fields type, threshold, prefix_ms, silence_ms, eagerness, answers, interrupts");
    PARLANDO_DO(found->second(r, "detection." + name, v));
  }
  return {};
}

const std::map<std::string, Read, std::less<>>& fields() {
  using R = Reader&;
  using K = const std::string&;
  using V = const json&;
  static constexpr std::string_view kModes[] = {"stable", "exact"};
  static const std::map<std::string, Read, std::less<>> kFields{
      {"system", [](R r, K k, V v) { return r.text(k, v, "system", 32768); }},
      {"speaker", [](R r, K k, V v) { return r.text(k, v, "speaker", 200); }},
      {"speak", [](R r, K k, V v) { return r.boolean(k, v, "speak"); }},
      {"detection", read_detection},
      {"tools", [](R r, K, V v) { return r.tools(v); }},
      {"tool_choice", [](R r, K k, V v) { return r.text(k, v, "tool_choice", 100); }},
      {"temperature", [](R r, K k, V v) { return r.number(k, v, "temperature_milli", 0, 100, 1000); }},
      {"top_p", [](R r, K k, V v) { return r.number(k, v, "top_p_milli", 0.001, 1, 1000); }},
      {"top_k", [](R r, K k, V v) { return r.number(k, v, "top_k", 1, 1000000, 1); }},
      {"max_tokens", [](R r, K k, V v) { return r.number(k, v, "tokens_max", 1, 1000000, 1); }},
      {"stop", [](R r, K, V v) { return r.stop(v); }},
      {"style", [](R r, K k, V v) { return r.text(k, v, "style", 100); }},
      {"speed", [](R r, K k, V v) { return r.number(k, v, "speed_milli", 0.25, 4, 1000, 1000); }},
      {"volume", [](R r, K k, V v) { return r.number(k, v, "volume_milli", 0.1, 10, 1000, 1000); }},
      {"tokenizer", [](R r, K k, V v) { return r.name(k, v, "tokenizer_mode", kModes); }},
  };
  return kFields;
}

}  // namespace

bool is_setting(std::string_view key) { return fields().contains(key); }

Result<JsonText> read_settings(const json& message, std::string_view where) {
  json changes = json::object();
  Reader reader(where, changes);
  for (const auto& [key, value] : message.items())
    if (const auto found = fields().find(key); found != fields().end()) PARLANDO_DO(found->second(reader, key, value));
  return JsonText{dump(changes)};
}

}  // namespace parlando::gateway
