#pragma once
/// Names of voices that users have made from recordings: `voice_` and 32 hexadecimal digits. A gateway keeps them as
/// folders of that name with `recording.wav` and `voice.json` {transcript, …}; tts services read them there.
#include <string_view>

namespace parlando {

inline constexpr std::string_view kVoicePrefix = "voice_";
inline constexpr std::size_t kVoiceDigits = 32;

/// Of this form? Names of the engine's own voices are not, and no path is.
inline bool is_voice_id(std::string_view name) {
  return name.size() == kVoicePrefix.size() + kVoiceDigits && name.starts_with(kVoicePrefix) &&
         name.find_first_not_of("0123456789abcdef", kVoicePrefix.size()) == std::string_view::npos;
}

}  // namespace parlando
