#include "services/gateway/http_voices.hpp"

#include <algorithm>
#include <array>

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr std::array<std::string_view, 13> kForeignVoices{"alloy", "ash",  "ballad",  "coral", "echo",  "fable", "onyx",
                                                          "nova",  "sage", "shimmer", "verse", "marin", "cedar"};

/// Tags of the speaking model (its training lists them), by the words that ask for them.
struct Style {
  std::string_view word, tag;
};
constexpr std::array<Style, 41> kStyles{{
    {"very happy", "高兴2"},  {"happily", "高兴1"},      {"happy", "高兴1"},      {"cheerful", "高兴1"},
    {"joyful", "高兴1"},      {"very angry", "生气2"},   {"angrily", "生气1"},    {"angry", "生气1"},
    {"sadly", "悲伤1"},       {"sad", "悲伤1"},          {"coquettish", "撒娇1"}, {"playful", "撒娇1"},
    {"very slowly", "慢速2"}, {"very slow", "慢速2"},    {"slowly", "慢速1"},     {"slow", "慢速1"},
    {"very fast", "快速2"},   {"very quickly", "快速2"}, {"quickly", "快速1"},    {"fast", "快速1"},
    {"sichuanese", "四川话"}, {"cantonese", "粤语"},     {"mandarin", "中文"},    {"chinese", "中文"},
    {"english", "英文"},      {"korean", "韩语"},        {"japanese", "日语"},    {"rap", "RAP"},
    {"humming", "哼唱"},      {"hum", "哼唱"},           {"singing", "哼唱"},     {"sing", "哼唱"},
    {"高兴", "高兴1"},        {"生气", "生气1"},         {"悲伤", "悲伤1"},       {"撒娇", "撒娇1"},
    {"慢速", "慢速1"},        {"快速", "快速1"},         {"四川话", "四川话"},    {"粤语", "粤语"},
    {"哼唱", "哼唱"},
}};
constexpr std::array<std::string_view, 19> kTags{"高兴1", "高兴2", "生气1", "生气2",  "悲伤1", "撒娇1",  "中文",
                                                 "英文",  "韩语",  "日语",  "四川话", "粤语",  "广东话", "RAP",
                                                 "哼唱",  "慢速1", "慢速2", "快速1",  "快速2"};

std::string lower(std::string_view text) {
  std::string out(text);
  for (auto& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 'a' - 'A');
  return out;
}

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/// Where `word` stands in `text`, not within a longer Latin word.
std::size_t find_word(const std::string& text, std::string_view word) {
  for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    const bool before = at > 0 && is_letter(text[at - 1]) && is_letter(word.front());
    const auto end = at + word.size();
    const bool behind = end < text.size() && is_letter(text[end]) && is_letter(word.back());
    if (!before && !behind) return at;
  }
  return std::string::npos;
}

/// Music is spoken by an entry of its own, which few voices have: a word in a sentence does not choose it.
bool is_music(std::string_view tag) { return tag == "RAP" || tag == "哼唱"; }

}  // namespace

std::optional<std::string> read_voice(Fields& fields, const std::string& key) {
  const auto* value = fields.any(key);
  if (value == nullptr) return fields.missing(key), std::nullopt;
  std::optional<std::string> name;
  if (value->is_object() && value->contains("id") && (*value)["id"].is_string())
    name = (*value)["id"].get<std::string>();
  else if (value->is_string())
    name = value->get<std::string>();
  if (!name || name->empty() || name->size() > 200)
    return fields.wrong(key, *value, "the name of a voice, or {id}"), std::nullopt;
  if (std::find(kForeignVoices.begin(), kForeignVoices.end(), lower(*name)) != kForeignVoices.end() ||
      *name == "default")
    return "";
  return name;
}

json chat_usage(const json& turn) {
  const auto usage = turn.value("usage", json::object());
  const auto count = [&](const char* name) { return usage.is_object() ? usage.value(name, std::int64_t{0}) : 0; };
  const auto asked = count("prompt_tokens"), answered = count("output_tokens");
  return {{"prompt_tokens", asked},
          {"completion_tokens", answered},
          {"total_tokens", asked + answered},
          {"prompt_tokens_details", {{"cached_tokens", count("cached_tokens")}, {"audio_tokens", 0}}},
          {"completion_tokens_details",
           {{"reasoning_tokens", 0},
            {"audio_tokens", 0},
            {"accepted_prediction_tokens", 0},
            {"rejected_prediction_tokens", 0}}}};
}

std::string style_of(std::string_view word) {
  if (std::find(kTags.begin(), kTags.end(), word) != kTags.end()) return std::string(word);
  const auto low = lower(word);
  for (const auto& style : kStyles)
    if (style.word == low) return std::string(style.tag);
  return {};
}

std::string style_in(std::string_view instructions) {
  const auto low = lower(instructions);
  std::string best;
  auto first = std::string::npos;
  for (const auto& style : kStyles)
    if (const auto at = find_word(low, style.word); at < first && !is_music(style.tag)) {
      first = at;
      best = style.tag;
    }
  return best;
}

}  // namespace parlando::gateway
