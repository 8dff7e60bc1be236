#pragma once
/// Voices of a folder (`speakers_info.json`: name → transcript, or → {text, cloned}, + `<name>_prompt.wav`) and those
/// that users have made (`common/base/voice_id.hpp`); a voice's prompt is computed once and cached, of users' voices
/// that of the last ones.
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>

#include "common/base/speech_tags.hpp"
#include "services/tts/model/speech_decoder.hpp"

namespace parlando::tts {

struct Voice {
  std::string name, text;  ///< transcript of the recording (with its tag for music voices)
  VoicePrompt prompt;
};

/// Wave and rate -> codes; asks the speech tokenizer, with trimming and energy normalisation.
using Tokenise = std::function<Result<std::vector<std::int32_t>>(std::span<const float> wave, int rate)>;

class Voices {
 public:
  /// @param directory  holds speakers_info.json; may be missing (no built-in voices)
  static Result<std::shared_ptr<Voices>> load(const std::filesystem::path& directory,
                                              std::shared_ptr<const CamPlus> speaker, Tokenise tokenise);
  /// Where users' voices are kept; empty: nowhere. @param cached_max  of them, prompts that are kept
  void set_own(const std::filesystem::path& folder, std::size_t cached_max);
  /// Makes a user's voice one of those that `get` knows; the one that was not asked for the longest goes when there are
  /// too many. @param is_awaited  somebody waits for it: it does not go, however many there are
  /// @return the names that have gone. @error Errc::not_found: there is none (any more); Errc::bad_json
  Result<std::vector<std::string>> find_own(const std::string& name,
                                            const std::function<bool(const std::string&)>& is_awaited);
  /// @error Errc::not_found listing the voices
  Result<std::shared_ptr<const Voice>> get(const std::string& name);
  /// Name of the entry that a text selects. A voice may have been recorded in the style of a tag (`Clara高兴1` beside
  /// `Clara`), as the official registry keeps `TingtingRAP` beside `Tingting`: that entry is taken where it exists.
  const std::string& entry(const TtsMode& mode) const;
  /// A voice from a recording. @error Errc::invalid_argument when it is too short, silent or longer than 30 s
  Result<std::shared_ptr<const Voice>> clone(const std::string& name, const std::string& text,
                                             std::span<const float> wave, int rate) const;
  std::vector<std::string> names() const;
  /// The model was not trained on this voice: it is told of the recording, not of the name.
  bool is_cloned(const std::string& name) const { return cloned_.contains(name); }
  /// The official demo's voice where it exists, else the first; empty when there is none.
  std::string default_name() const;
  struct Recording {
    std::vector<float> wave;
    int rate;
  };
  /// Whether a voice can be made from a recording. @error Errc::invalid_argument when it is too short or longer than 30
  /// s, Errc::no_speech when it is silent
  static Result<void> check(const std::string& name, std::span<const float> wave, int rate);
  /// The file a built-in voice was made from. @error Errc::not_found, Errc::bad_format
  Result<Recording> recording(const std::string& name) const;

 private:
  std::filesystem::path directory_;
  std::shared_ptr<const CamPlus> speaker_;
  Tokenise tokenise_;
  std::map<std::string, std::string> texts_;
  std::set<std::string> cloned_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const Voice>> cache_;
  std::filesystem::path own_folder_;
  std::size_t own_max_ = 0;
  std::deque<std::string> own_;  ///< the last one that was asked for stands last
};

}  // namespace parlando::tts
