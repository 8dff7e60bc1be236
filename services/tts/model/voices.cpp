#include "services/tts/model/voices.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "common/base/mapped_file.hpp"
#include "common/base/voice_id.hpp"

namespace parlando::tts {

Result<std::shared_ptr<Voices>> Voices::load(const std::filesystem::path& directory,
                                             std::shared_ptr<const CamPlus> speaker, Tokenise tokenise) {
  auto out = std::make_shared<Voices>();
  out->directory_ = directory, out->speaker_ = std::move(speaker), out->tokenise_ = std::move(tokenise);
  const auto file = directory / "speakers_info.json";
  if (!std::filesystem::exists(file)) return out;
  PARLANDO_TRY(const auto text, read_file(file, 4u << 20));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) return fail(Errc::bad_json, "'{}' is not a JSON object of name: transcript", file.string());
  for (const auto& [name, transcript] : json.items()) {
    const auto& text_of = transcript.is_object() && transcript.contains("text") ? transcript["text"] : transcript;
    if (!text_of.is_string() || name.find('/') != std::string::npos)
      return fail(Errc::bad_json, "'{}': voice '{}' has no transcript", file.string(), name);
    out->texts_[name] = text_of.get<std::string>();
    if (transcript.is_object() && transcript.contains("cloned") && transcript["cloned"] == true)
      out->cloned_.insert(name);
  }
  return out;
}

std::vector<std::string> Voices::names() const {
  std::vector<std::string> out;
  for (const auto& [name, text] : texts_) out.push_back(name);
  return out;
}

Result<std::shared_ptr<const Voice>> Voices::get(const std::string& name) {
  const std::lock_guard lock(mutex_);
  if (const auto found = cache_.find(name); found != cache_.end()) return found->second;
  const auto text = texts_.find(name);
  if (text == texts_.end()) {
    std::string list;
    for (const auto& [known, unused] : texts_)
      if (!is_voice_id(known)) list += (list.empty() ? "" : ", ") + known;  // others' are nobody's business
    return fail(Errc::not_found, "there is no voice '{}'; the voices are: {}", name, list.empty() ? "none" : list);
  }
  PARLANDO_TRY(const auto from, recording(name));
  PARLANDO_TRY(auto voice, clone(name, text->second, from.wave, from.rate));
  cache_[name] = voice;
  return voice;
}

void Voices::set_own(const std::filesystem::path& folder, std::size_t cached_max) {
  own_folder_ = folder;
  own_max_ = cached_max;
}

Result<std::vector<std::string>> Voices::find_own(const std::string& name,
                                                  const std::function<bool(const std::string&)>& is_awaited) {
  constexpr std::size_t kDescriptionBytesMax = 64 << 10;
  const std::lock_guard lock(mutex_);
  std::vector<std::string> gone;
  const auto forget = [&](const std::string id) {  // a copy: it may stand in `own_`
    std::erase(own_, id);
    texts_.erase(id);
    cache_.erase(id);
    gone.push_back(id);
  };
  const auto file = own_folder_ / name / "voice.json";
  if (own_folder_.empty() || !std::filesystem::exists(file)) {
    forget(name);
    return fail(Errc::not_found, "there is no voice '{}'", name);
  }
  std::erase(own_, name);
  own_.push_back(name);
  if (!texts_.contains(name)) {
    PARLANDO_TRY(const auto text, read_file(file, kDescriptionBytesMax));
    const auto json = nlohmann::json::parse(text, nullptr, false);
    if (!json.is_object() || !json.contains("transcript") || !json["transcript"].is_string())
      return fail(Errc::bad_json, "'{}' has no transcript", file.string());
    texts_[name] = json["transcript"].get<std::string>();
  }
  while (own_.size() > own_max_) {
    const auto oldest = std::find_if(own_.begin(), own_.end(), [&](const auto& id) { return !is_awaited(id); });
    if (oldest == own_.end()) break;
    forget(*oldest);
  }
  return gone;
}

const std::string& Voices::entry(const TtsMode& mode) const {
  return texts_.contains(mode.styled_key) ? mode.styled_key : mode.speaker_key;
}

std::string Voices::default_name() const {
  if (texts_.contains("Tingting")) return "Tingting";
  const auto known = std::find_if(texts_.begin(), texts_.end(), [](const auto& v) { return !is_voice_id(v.first); });
  return known == texts_.end() ? "" : known->first;  // never one that a user has made for itself
}

Result<Voices::Recording> Voices::recording(const std::string& name) const {
  const auto path = is_voice_id(name) ? own_folder_ / name / "recording.wav" : directory_ / (name + "_prompt.wav");
  PARLANDO_TRY(auto file, audio::read_audio(path));
  return Recording{std::move(file.wave), file.rate};
}

Result<void> Voices::check(const std::string& name, std::span<const float> wave, int rate) {
  const double seconds = static_cast<double>(wave.size()) / rate;
  if (seconds < 0.3)
    return fail(Errc::invalid_argument, "the recording of voice '{}' has {:.2f} s, at least 0.3 s are needed", name,
                seconds);
  if (seconds > 30)
    return fail(Errc::invalid_argument, "the recording of voice '{}' has {:.1f} s, at most 30 s are used", name,
                seconds);
  if (std::none_of(wave.begin(), wave.end(), [](float x) { return std::fabs(x) > 1e-3f; }))
    return fail(Errc::no_speech, "the recording of voice '{}' is silent", name);
  return {};
}

Result<std::shared_ptr<const Voice>> Voices::clone(const std::string& name, const std::string& text,
                                                   std::span<const float> wave, int rate) const {
  PARLANDO_DO(check(name, wave, rate));
  if (!speaker_) return fail(Errc::unsupported, "this model has no speaker encoder (campplus.safetensors)");
  auto voice = std::make_shared<Voice>();
  voice->name = name, voice->text = text;
  PARLANDO_TRY(voice->prompt, make_prompt(wave, rate, *speaker_));
  PARLANDO_TRY(voice->prompt.codes, tokenise_(wave, rate));
  return voice;
}

}  // namespace parlando::tts
