#include "common/base/speech_tags.hpp"

#include <algorithm>

namespace parlando {

namespace {
constexpr std::string_view kOpenWide = "\xef\xbc\x88", kCloseWide = "\xef\xbc\x89";  // （ ）
constexpr std::string_view kHumming = "哼唱";

std::string_view strip_parentheses(std::string_view s) {
  while (true) {
    if (s.starts_with(kOpenWide) || s.starts_with(kCloseWide))
      s.remove_prefix(3);
    else if (s.starts_with('(') || s.starts_with(')'))
      s.remove_prefix(1);
    else
      break;
  }
  while (true) {
    if (s.ends_with(kOpenWide) || s.ends_with(kCloseWide))
      s.remove_suffix(3);
    else if (s.ends_with('(') || s.ends_with(')'))
      s.remove_suffix(1);
    else
      break;
  }
  return s;
}
}  // namespace

std::string leading_tag(std::string_view text) {
  std::size_t start = 0;
  if (text.starts_with(kOpenWide))
    start = 3;
  else if (text.starts_with('('))
    start = 1;
  else
    return {};
  // The run without ASCII parentheses is greedy; it may end at ')' or give back up to its last '）'.
  const auto run_end = std::min(text.size(), text.find_first_of("()", start));
  if (run_end < text.size() && text[run_end] == ')') return std::string(strip_parentheses(text.substr(0, run_end + 1)));
  const auto close = text.substr(start, run_end - start).rfind(kCloseWide);
  if (close == std::string_view::npos) return {};
  return std::string(strip_parentheses(text.substr(0, start + close + kCloseWide.size())));
}

TtsMode tts_mode(std::string_view text, std::string_view speaker, bool clone) {
  TtsMode mode;
  const auto tag = leading_tag(text);
  const bool music = tag == "RAP" || tag == kHumming;
  mode.vocoder = music ? Vocoder::music : Vocoder::common;
  if (!clone) mode.speaker_key = music ? std::string(speaker) + tag : std::string(speaker);
  if (!clone && !music && !tag.empty()) mode.styled_key = std::string(speaker) + tag;
  if (music)
    mode.system_prompt = text.find(kHumming) != std::string_view::npos ? "vocal" : "rap";
  else
    mode.system_prompt = clone ? "without_speaker" : "with_speaker";
  return mode;
}

}  // namespace parlando
