#include "services/gateway/realtime_settings.hpp"

#include <algorithm>
#include <set>

#include "common/base/nesting.hpp"
#include "services/gateway/realtime_events.hpp"
#include "services/gateway/realtime_fields.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr std::size_t kInstructionsMax = 32768, kNameMax = 64, kVoiceMax = 200, kTextMax = 1000, kDescriptionMax = 8192;
constexpr std::size_t kToolsMax = 128, kToolsBytesMax = 48u << 10;
constexpr int kParametersDepthMax = 20;
constexpr std::int64_t kTokensMax = 1000000;

/// Voices of other servers that clients name unless told otherwise: they mean the voice that the engine is configured
/// with.
const std::set<std::string, std::less<>> kAliasVoices{"alloy", "ash",  "ballad",  "coral", "echo",  "fable", "onyx",
                                                      "nova",  "sage", "shimmer", "verse", "marin", "cedar"};

tl::unexpected<RealtimeError> wrong_type(const std::string& param, std::string_view expected, const json& value) {
  return refuse("invalid_type", param, "Invalid type for '{}': expected {}, but got {} instead.", param, expected,
                value.type_name());
}

RealtimeResult<void> read_text(const json& value, const std::string& param, std::size_t most, std::string& to) {
  if (value.is_null()) return {};
  if (!value.is_string()) return wrong_type(param, "a string", value);
  const auto& text = value.get_ref<const std::string&>();
  if (text.size() > most)
    return refuse("string_above_max_length", param, "Invalid '{}': it has {} bytes, expected at most {}.", param,
                  text.size(), most);
  to = text;
  return {};
}

RealtimeResult<void> read_bool(const json& value, const std::string& param, bool& to) {
  if (value.is_null()) return {};
  if (!value.is_boolean()) return wrong_type(param, "a boolean", value);
  to = value.get<bool>();
  return {};
}

template <class T>
RealtimeResult<void> read_number(const json& value, const std::string& param, double low, double high, T& to) {
  if (value.is_null()) return {};
  if (!value.is_number()) return wrong_type(param, "a number", value);
  const auto number = value.get<double>();
  if (!(number >= low && number <= high))
    return refuse("invalid_value", param, "Invalid '{}': {} is not from {} to {}.", param, number, low, high);
  to = static_cast<T>(number);
  return {};
}

RealtimeResult<void> read_choice(const json& value, const std::string& param,
                                 std::initializer_list<std::string_view> choices, std::string& to) {
  std::string read = to;
  if (auto done = read_text(value, param, kTextMax, read); !done) return done;
  if (!value.is_null() && std::find(choices.begin(), choices.end(), read) == choices.end())
    return refuse("invalid_value", param, "Invalid value: '{}'. Supported values are: '{}'.", read.substr(0, 40),
                  fmt::join(choices, "', '"));
  to = read;
  return {};
}

RealtimeResult<void> read_format(const json& value, const std::string& param, SoundFormat& to) {
  if (value.is_null()) return {};
  if (!value.is_object()) return wrong_type(param, "an object", value);
  const auto& type = field(value, "type");
  if (!type.is_null()) {
    const auto format = type.is_string() ? sound_format_of(type.get_ref<const std::string&>()) : std::nullopt;
    if (!format)
      return refuse(
          "invalid_value", param + ".type",
          "Invalid value: {}. Supported values are: 'audio/pcm', 'audio/pcmu', 'audio/pcma' and 'audio/opus'.",
          dump(type).substr(0, 40));
    to = *format;
  }
  const auto& rate = field(value, "rate");
  if (!rate.is_null() && to != SoundFormat::opus && rate != rate_of(to))
    return refuse("invalid_value", param + ".rate", "Invalid value: {}. The rate of {} is {}.",
                  dump(rate).substr(0, 40), name_of(to), rate_of(to));
  return {};
}

RealtimeResult<void> read_modalities(const json& value, const std::string& param, bool& audio) {
  if (value.is_null()) return {};
  if (!value.is_array() || value.empty()) return wrong_type(param, "an array of 'text' or 'audio'", value);
  bool found = false;
  for (const auto& one : value) {
    if (one != "text" && one != "audio")
      return refuse("invalid_value", param, "Invalid value: {}. Supported values are: 'text' and 'audio'.",
                    dump(one).substr(0, 40));
    found |= one == "audio";
  }
  audio = found;
  return {};
}

bool is_tool_name(std::string_view name) {
  const auto is_part = [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == '-'; };
  return !name.empty() && name.size() <= kNameMax && std::all_of(name.begin(), name.end(), is_part);
}

RealtimeResult<json> read_tool(const json& tool, const std::string& param) {
  if (!tool.is_object()) return wrong_type(param, "an object", tool);
  if (field(tool, "type") != "function")
    return refuse("invalid_value", param + ".type", "Invalid value: {}. Supported values are: 'function'.",
                  dump(field(tool, "type")).substr(0, 40));
  std::string name, description;
  if (auto done = read_text(field(tool, "name"), param + ".name", kNameMax, name); !done)
    return tl::unexpected(done.error());
  if (!is_tool_name(name))
    return refuse("invalid_value", param + ".name", "Invalid '{}.name': expected 1 to {} letters, digits, _ and -.",
                  param, kNameMax);
  json out{{"type", "function"}, {"name", name}};
  if (auto done = read_text(field(tool, "description"), param + ".description", kDescriptionMax, description); !done)
    return tl::unexpected(done.error());
  if (field(tool, "description").is_string()) out["description"] = description;
  const auto& parameters = field(tool, "parameters");
  if (!parameters.is_null() && !parameters.is_object())
    return wrong_type(param + ".parameters", "an object", parameters);
  if (!parameters.is_null()) out["parameters"] = parameters;
  return out;
}

RealtimeResult<void> read_tools(const json& value, const std::string& param, json& to) {
  if (!value.is_array()) return wrong_type(param, "an array", value);
  if (value.size() > kToolsMax)
    return refuse("array_above_max_length", param, "Invalid '{}': {} tools, expected at most {}.", param, value.size(),
                  kToolsMax);
  json tools = json::array();
  for (std::size_t i = 0; i < value.size(); ++i) {
    auto tool = read_tool(value[i], fmt::format("{}[{}]", param, i));
    if (!tool) return tl::unexpected(tool.error());
    tools.push_back(*std::move(tool));
  }
  const auto text = dump(tools);
  if (text.size() > kToolsBytesMax || nested_deeper_than(text, kParametersDepthMax))
    return refuse("invalid_value", param, "Invalid '{}': {} bytes, expected at most {}, nested at most {} deep.", param,
                  text.size(), kToolsBytesMax, kParametersDepthMax);
  to = std::move(tools);
  return {};
}

RealtimeResult<void> read_tool_choice(const json& value, const std::string& param, json& to) {
  if (value.is_object() && field(value, "type") == "function" && field(value, "name").is_string() &&
      is_tool_name(field(value, "name").get_ref<const std::string&>())) {
    to = {{"type", "function"}, {"name", field(value, "name")}};
    return {};
  }
  if (value != "auto" && value != "none" && value != "required")
    return refuse("invalid_value", param,
                  "Invalid value: {}. Supported values are: 'none', 'auto', 'required', and {{type: function, name}}.",
                  dump(value).substr(0, 40));
  to = value;
  return {};
}

RealtimeResult<void> read_tokens(const json& value, const std::string& param, json& to) {
  const bool whole = value.is_number_integer() && value >= 1 && value <= kTokensMax;
  if (!whole && value != "inf")
    return refuse("invalid_value", param, "Invalid value: {}. Expected a whole number from 1 to {}, or 'inf'.",
                  dump(value).substr(0, 40), kTokensMax);
  to = value;
  return {};
}

/// A voice is a name, or {id}.
RealtimeResult<void> read_voice(const json& value, const std::string& param, std::string& to) {
  return read_text(value.is_object() ? field(value, "id") : value, param, kVoiceMax, to);
}

}  // namespace

#define REALTIME_DO(expression) \
  if (auto done = (expression); !done) return tl::unexpected(done.error())

RealtimeResult<void> ResponseSettings::merge(const json& changes, const std::string& where) {
  REALTIME_DO(read_modalities(field(changes, "output_modalities"), where + ".output_modalities", audio));
  REALTIME_DO(read_text(field(changes, "instructions"), where + ".instructions", kInstructionsMax, instructions));
  if (const auto& value = field(changes, "tools"); !value.is_null())
    REALTIME_DO(read_tools(value, where + ".tools", tools));
  if (const auto& value = field(changes, "tool_choice"); !value.is_null())
    REALTIME_DO(read_tool_choice(value, where + ".tool_choice", tool_choice));
  if (const auto& value = field(changes, "max_output_tokens"); !value.is_null())
    REALTIME_DO(read_tokens(value, where + ".max_output_tokens", max_output_tokens));
  const auto& sound = field(changes, "audio");
  if (sound.is_null()) return {};
  if (!sound.is_object()) return wrong_type(where + ".audio", "an object", sound);
  const auto& output = field(sound, "output");
  if (output.is_null()) return {};
  const auto param = where + ".audio.output";
  if (!output.is_object()) return wrong_type(param, "an object", output);
  REALTIME_DO(read_format(field(output, "format"), param + ".format", format));
  REALTIME_DO(read_voice(field(output, "voice"), param + ".voice", voice));
  return read_number(field(output, "speed"), param + ".speed", 0.25, 1.5, speed);
}

RealtimeResult<void> ResponseSettings::check_tool_choice(const std::string& where) const {
  if (!tool_choice.is_object()) return {};
  const auto is_it = [&](const json& tool) { return tool["name"] == tool_choice["name"]; };
  if (std::any_of(tools.begin(), tools.end(), is_it)) return {};
  return refuse("invalid_value", where + ".tool_choice", "Invalid value: '{}'. There is no such tool among the tools.",
                tool_choice["name"].get_ref<const std::string&>());
}

json ResponseSettings::format_json() const {
  json out{{"type", name_of(format)}};
  if (format == SoundFormat::pcm) out["rate"] = rate_of(format);
  return out;
}

json ResponseSettings::dialogue() const {
  json out{{"system", instructions}, {"speak", audio}, {"speed", speed}};
  out["speaker"] = kAliasVoices.contains(voice) ? "" : voice;
  json own = json::array();
  for (auto tool : tools) {
    tool.erase("type");
    own.push_back(std::move(tool));
  }
  out["tools"] = std::move(own);
  out["tool_choice"] = tool_choice.is_object() ? tool_choice["name"] : tool_choice;
  out["max_tokens"] = max_output_tokens.is_number() ? max_output_tokens : json();
  return out;
}

RealtimeSettings::RealtimeSettings(std::string id, std::string model, bool transcription, std::int64_t expires_at)
    : id_(std::move(id)), model_(std::move(model)), transcription_(transcription), expires_at_(expires_at) {
  responses_.voice = "alloy";
  if (transcription_) transcription_model_ = {{"model", "parlando"}};
}

RealtimeResult<void> RealtimeSettings::update(const json& session) {
  if (!session.is_object())
    return refuse("missing_required_parameter", "session", "Missing required parameter: 'session'.");
  const auto& type = field(session, "type");
  const auto* expected = transcription_ ? "transcription" : "realtime";
  if (type.is_null())
    return refuse("missing_required_parameter", "session.type", "Missing required parameter: 'session.type'.");
  if (type != expected)
    return refuse("invalid_value", "session.type", "Invalid value: {}. Supported values here are: '{}'.",
                  dump(type).substr(0, 40), expected);
  auto next = *this;
  REALTIME_DO(read_text(field(session, "model"), "session.model", kTextMax, next.model_));
  if (!transcription_) REALTIME_DO(next.responses_.merge(session, "session"));
  // Null is "none" here, where a response's null is "as the session".
  if (session.contains("tools") && session["tools"].is_null()) next.responses_.tools = json::array();
  if (session.contains("instructions") && session["instructions"].is_null()) next.responses_.instructions.clear();
  REALTIME_DO(next.responses_.check_tool_choice("session"));
  const auto& sound = field(session, "audio");
  if (!sound.is_null() && !sound.is_object()) return wrong_type("session.audio", "an object", sound);
  if (sound.is_object() && !field(sound, "input").is_null()) REALTIME_DO(next.merge_input(sound["input"]));
  *this = std::move(next);
  return {};
}

RealtimeResult<void> RealtimeSettings::merge_input(const json& input) {
  if (!input.is_object()) return wrong_type("session.audio.input", "an object", input);
  REALTIME_DO(read_format(field(input, "format"), "session.audio.input.format", input_));
  if (input.contains("transcription")) REALTIME_DO(merge_transcription(input["transcription"]));
  if (input.contains("turn_detection")) REALTIME_DO(merge_detection(input["turn_detection"]));
  return {};
}

RealtimeResult<void> RealtimeSettings::merge_transcription(const json& value) {
  const std::string param = "session.audio.input.transcription";
  if (value.is_null()) {
    // A session that exists to transcribe goes on doing so.
    if (!transcription_) transcription_model_ = nullptr;
    return {};
  }
  if (!value.is_object()) return wrong_type(param, "an object", value);
  auto next = transcription_model_.is_null() ? json{{"model", "parlando"}} : transcription_model_;
  for (const char* name : {"model", "language", "prompt"}) {
    std::string text;
    REALTIME_DO(read_text(field(value, name), param + "." + name, kTextMax, text));
    if (field(value, name).is_string()) next[name] = text;
  }
  transcription_model_ = std::move(next);
  return {};
}

RealtimeResult<void> RealtimeSettings::merge_detection(const json& value) {
  const std::string param = "session.audio.input.turn_detection";
  if (value.is_null()) {
    detection_ = {};
    detection_.type = TurnDetection::Type::none;
    return {};
  }
  if (!value.is_object()) return wrong_type(param, "an object or null", value);
  auto next = detection_;
  if (const auto& type = field(value, "type"); !type.is_null() || next.type == TurnDetection::Type::none) {
    std::string name = "server_vad";
    REALTIME_DO(read_choice(type, param + ".type", {"server_vad", "semantic_vad"}, name));
    const auto wanted = name == "server_vad" ? TurnDetection::Type::server_vad : TurnDetection::Type::semantic_vad;
    if (wanted != next.type) next = {};
    next.type = wanted;
  }
  REALTIME_DO(read_number(field(value, "threshold"), param + ".threshold", 0, 1, next.threshold));
  REALTIME_DO(read_number(field(value, "prefix_padding_ms"), param + ".prefix_padding_ms", 0, 5000, next.prefix_ms));
  REALTIME_DO(
      read_number(field(value, "silence_duration_ms"), param + ".silence_duration_ms", 0, 10000, next.silence_ms));
  REALTIME_DO(
      read_choice(field(value, "eagerness"), param + ".eagerness", {"low", "medium", "high", "auto"}, next.eagerness));
  REALTIME_DO(read_bool(field(value, "create_response"), param + ".create_response", next.create_response));
  REALTIME_DO(read_bool(field(value, "interrupt_response"), param + ".interrupt_response", next.interrupt_response));
  detection_ = next;
  return {};
}

#undef REALTIME_DO

json RealtimeSettings::detection_json() const {
  if (!has_detection()) return {};
  json out;
  if (detection_.type == TurnDetection::Type::server_vad)
    out = {{"type", "server_vad"},
           {"threshold", detection_.threshold},
           {"prefix_padding_ms", detection_.prefix_ms},
           {"silence_duration_ms", detection_.silence_ms}};
  else
    out = {{"type", "semantic_vad"}};
  if (transcription_) return out;
  if (detection_.type == TurnDetection::Type::semantic_vad) out["eagerness"] = detection_.eagerness;
  out["create_response"] = detection_.create_response;
  out["interrupt_response"] = detection_.interrupt_response;
  return out;
}

json RealtimeSettings::effective() const {
  ResponseSettings input_format;
  input_format.format = input_;
  json input{{"format", input_format.format_json()}, {"turn_detection", detection_json()}};
  if (wants_transcripts()) input["transcription"] = transcription_model_;
  if (transcription_)
    return {{"type", "transcription"},
            {"object", "realtime.transcription_session"},
            {"id", id_},
            {"expires_at", expires_at_},
            {"audio", {{"input", std::move(input)}}}};
  return {
      {"type", "realtime"},
      {"object", "realtime.session"},
      {"id", id_},
      {"expires_at", expires_at_},
      {"model", model_},
      {"output_modalities", responses_.modalities()},
      {"instructions", responses_.instructions},
      {"tools", responses_.tools},
      {"tool_choice", responses_.tool_choice},
      {"max_output_tokens", responses_.max_output_tokens},
      {"audio",
       {{"input", std::move(input)},
        {"output", {{"format", responses_.format_json()}, {"voice", responses_.voice}, {"speed", responses_.speed}}}}}};
}

json RealtimeSettings::dialogue() const {
  auto out = responses_.dialogue();
  // Null: as the engine is configured.
  json detection{{"answers", answers()},
                 {"interrupts", detection_.interrupt_response},
                 {"threshold", nullptr},
                 {"prefix_ms", nullptr},
                 {"silence_ms", nullptr}};
  switch (detection_.type) {
    case TurnDetection::Type::none:
      detection["type"] = "none";
      break;
    case TurnDetection::Type::server_vad:
      detection["type"] = "silence";
      detection["threshold"] = detection_.threshold;
      detection["prefix_ms"] = detection_.prefix_ms;
      detection["silence_ms"] = std::max(32, detection_.silence_ms);
      break;
    case TurnDetection::Type::semantic_vad:
      detection["type"] = "semantic";
      detection["eagerness"] = detection_.eagerness;
      break;
  }
  out["detection"] = std::move(detection);
  return out;
}

}  // namespace parlando::gateway
