#pragma once
/// Tags at the head of a text that choose style, voice entry and vocoder variant. Source: tts.py of the official code,
/// docs/lm.md §6.
#include <string>
#include <string_view>

namespace parlando {

/// The leading tag of a text — `（RAP）…`, `(高兴1)…` — stripped of its parentheses; empty when there is none.
std::string leading_tag(std::string_view text);

enum class Vocoder { common, music };
struct TtsMode {
  Vocoder vocoder = Vocoder::common;
  std::string speaker_key;  ///< registry entry; empty when cloning
  std::string styled_key;   ///< entry that is preferred where the registry has it: the speaker in the style of the tag;
                            ///< else empty
  std::string system_prompt;  ///< which text: with_speaker, without_speaker, rap, vocal
};
/// What a text selects. Cloning uses the caller's recording and never a name.
TtsMode tts_mode(std::string_view text, std::string_view speaker, bool clone);

}  // namespace parlando
