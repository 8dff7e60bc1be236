#include "services/gateway/realtime_beta.hpp"

#include <array>
#include <utility>

#include "common/base/nesting.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr int kBetaDepthMax = 32;
using Names = std::pair<std::string_view, std::string_view>;
constexpr std::array<Names, 7> kEvents{{
    {"response.output_audio.delta", "response.audio.delta"},
    {"response.output_audio.done", "response.audio.done"},
    {"response.output_audio_transcript.delta", "response.audio_transcript.delta"},
    {"response.output_audio_transcript.done", "response.audio_transcript.done"},
    {"response.output_text.delta", "response.text.delta"},
    {"response.output_text.done", "response.text.done"},
    {"conversation.item.added", "conversation.item.created"},
}};
constexpr std::array<Names, 3> kFormats{
    {{"audio/pcm", "pcm16"}, {"audio/pcmu", "g711_ulaw"}, {"audio/pcma", "g711_alaw"}}};
constexpr std::string_view kSoundBegin = R"({"type":"response.output_audio.delta")";
constexpr std::string_view kBetaSoundBegin = R"({"type":"response.audio.delta")";

json take(json& from, const char* name) {
  const auto found = from.find(name);
  if (found == from.end()) return {};
  auto out = std::move(*found);
  from.erase(found);
  return out;
}

bool has(const json& object, const char* name) { return object.is_object() && object.contains(name); }

// ------------------------------------------------------------------------------------------------ from clients

json format_of(const json& name) {
  for (const auto& [ours, theirs] : kFormats)
    if (name == theirs) return {{"type", ours}};
  return {{"type", name}};  // is refused by its name
}

/// A session or a response: flat there, sound in an object of its own here.
void nest(json& given, bool is_session) {
  if (has(given, "modalities")) {
    // There "audio" came with "text"; here it is one of them.
    const auto wanted = take(given, "modalities");
    bool audio = false;
    for (const auto& one : wanted.is_array() ? wanted : json::array()) audio |= one == "audio";
    given["output_modalities"] = wanted.is_array() ? json::array({audio ? "audio" : "text"}) : wanted;
  }
  json input = json::object(), output = json::object();
  if (has(given, "input_audio_format")) input["format"] = format_of(take(given, "input_audio_format"));
  if (has(given, "input_audio_transcription")) input["transcription"] = take(given, "input_audio_transcription");
  if (has(given, "input_audio_noise_reduction")) input["noise_reduction"] = take(given, "input_audio_noise_reduction");
  if (has(given, "turn_detection")) input["turn_detection"] = take(given, "turn_detection");
  if (has(given, "output_audio_format")) output["format"] = format_of(take(given, "output_audio_format"));
  if (has(given, "voice")) output["voice"] = take(given, "voice");
  if (has(given, "speed")) output["speed"] = take(given, "speed");
  if (has(given, "max_response_output_tokens")) given["max_output_tokens"] = take(given, "max_response_output_tokens");
  if (!input.empty()) given["audio"]["input"] = std::move(input);
  if (!output.empty()) given["audio"]["output"] = std::move(output);
  if (is_session && !given.contains("type")) given["type"] = "realtime";
}

// ------------------------------------------------------------------------------------------------ to clients

void rename_parts(json& item) {
  if (!has(item, "content") || !item["content"].is_array()) return;
  for (auto& part : item["content"]) {
    if (part.value("type", "") == "output_text") part["type"] = "text";
    if (part.value("type", "") == "output_audio") part["type"] = "audio";
  }
}

json format_name(const json& format) {
  for (const auto& [ours, theirs] : kFormats)
    if (format.value("type", "") == ours) return theirs;
  return format.value("type", "");
}

json modalities_of(const json& ours) {
  return ours == json::array({"audio"}) ? json::array({"text", "audio"}) : json::array({"text"});
}

void flatten(json& told, bool is_session) {
  if (has(told, "output_modalities")) told["modalities"] = modalities_of(take(told, "output_modalities"));
  auto sound = take(told, "audio");
  if (has(sound, "input")) {
    auto& input = sound["input"];
    if (has(input, "format")) told["input_audio_format"] = format_name(input["format"]);
    told["turn_detection"] = take(input, "turn_detection");
    told["input_audio_transcription"] = take(input, "transcription");
  }
  if (has(sound, "output")) {
    auto& output = sound["output"];
    if (has(output, "format")) told["output_audio_format"] = format_name(output["format"]);
    for (const char* name : {"voice", "speed"})
      if (has(output, name)) told[name] = take(output, name);
  }
  if (!is_session) {
    for (auto& item : told["output"]) rename_parts(item);
    return;
  }
  told["max_response_output_tokens"] = take(told, "max_output_tokens");
  told["temperature"] = 0.8;  // was a field of every session; it has no effect
  told.erase("type");
}

}  // namespace

std::string from_beta(std::string_view text) {
  auto event = nested_deeper_than(text, kBetaDepthMax) ? json() : json::parse(text, nullptr, false);
  if (!event.is_object()) return std::string(text);
  const auto type = event.contains("type") && event["type"].is_string() ? event["type"].get<std::string>() : "";
  if (type == "session.update" && has(event, "session") && event["session"].is_object()) nest(event["session"], true);
  if (type == "response.create" && has(event, "response") && event["response"].is_object())
    nest(event["response"], false);
  return dump(event);
}

std::string to_beta(const RealtimeEvent& given) {
  // What most bytes are is not read.
  if (given.text.starts_with(kSoundBegin)) return std::string(kBetaSoundBegin) + given.text.substr(kSoundBegin.size());
  auto event = json::parse(given.text, nullptr, false);
  const auto type = event.value("type", "");
  if (type == "conversation.item.done") return {};
  for (const auto& [ours, theirs] : kEvents)
    if (type == ours) event["type"] = theirs;
  if (has(event, "session")) flatten(event["session"], true);
  if (has(event, "response")) flatten(event["response"], false);
  if (has(event, "item")) rename_parts(event["item"]);
  return dump(event);
}

}  // namespace parlando::gateway
