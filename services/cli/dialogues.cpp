#include "services/cli/dialogues.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "common/audio/audio_file.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/mapped_file.hpp"
#include "common/base/units.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int kRoomLevel = 3;  // of 32768, as the frames between two utterances
constexpr double kRecordingSecondsMax = 30;
constexpr std::size_t kTextBytesMax = 4u << 20;
constexpr double kLoud = 0.02;  // of the loudest sample: what is softer behind the last word is no speech

Result<std::int64_t> number(const json& from, const char* key, std::int64_t least, std::int64_t most,
                            const std::string& where) {
  if (!from.contains(key) || !from[key].is_number_integer())
    return fail(Errc::bad_json, "{} has no whole number '{}'", where, key);
  const auto value = from[key].get<std::int64_t>();
  if (value < least || value > most)
    return fail(Errc::bad_json, "{}: {} is {}, expected {} to {}", where, key, value, least, most);
  return value;
}

Result<Utterance> sound_of(const fs::path& folder, const json& label, const std::string& where) {
  if (!label.contains("file") || !label["file"].is_string()) return fail(Errc::bad_json, "{} names no 'file'", where);
  const auto name = label["file"].get<std::string>();
  if (fs::path(name).filename() != name) return fail(Errc::bad_json, "{}: '{}' is no file name", where, name);
  PARLANDO_TRY(const auto recording, audio::read_audio(folder / name, kRecordingSecondsMax));
  if (recording.rate != kInputRate)
    return fail(Errc::bad_format, "'{}' has {} Hz, expected {}", name, recording.rate, kInputRate);
  const auto size = static_cast<std::int64_t>(recording.wave.size());
  Utterance out;
  PARLANDO_TRY(out.begin_sample, number(label, "begin_sample", 0, size, where));
  PARLANDO_TRY(out.end_sample, number(label, "end_sample", out.begin_sample + 1, size, where));
  auto last = out.begin_sample;
  for (const auto& pause : label.value("pauses", json::array())) {
    PARLANDO_TRY(const auto begin, number(pause, "begin_sample", last, out.end_sample, where));
    PARLANDO_TRY(last, number(pause, "end_sample", begin + 1, out.end_sample, where));
    if (pause.value("is_end", false)) continue;
    ++out.pauses;
    out.silences.emplace_back(begin, last);
  }
  out.pcm = in_a_room(recording.wave);
  out.text = label.value("text", std::string());
  if (out.text.empty()) out.text = label.value("kind", std::string());
  return out;
}

}  // namespace

Result<Utterance> read_recording(const fs::path& file, int rate) {
  PARLANDO_TRY(const auto recording, audio::read_audio(file, kRecordingSecondsMax));
  const auto wave = audio::resample(recording.wave, recording.rate, rate);
  const auto window = static_cast<std::size_t>(rate / 100);
  float peak = 0;
  for (const float x : wave) peak = std::max(peak, std::abs(x));
  Utterance out;
  out.pcm = in_a_room(wave);
  for (std::size_t at = 0; at + window <= wave.size(); at += window) {
    double energy = 0;
    for (std::size_t i = 0; i < window; ++i) energy += wave[at + i] * wave[at + i];
    if (std::sqrt(energy / static_cast<double>(window)) <= kLoud * peak) continue;
    if (out.end_sample == 0) out.begin_sample = static_cast<std::int64_t>(at);
    out.end_sample = static_cast<std::int64_t>(at + window);
  }
  if (out.end_sample == 0) return fail(Errc::bad_format, "nothing is to be heard in '{}'", file.string());
  return out;
}

Result<std::vector<Utterance>> read_recordings(const fs::path& folder, int rate) {
  std::vector<fs::path> files;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code))
    if (entry.path().extension() == ".wav") files.push_back(entry.path());
  if (files.empty()) return fail(Errc::not_found, "'{}' holds no recording to be said", folder.string());
  std::sort(files.begin(), files.end());
  std::vector<Utterance> out;
  for (const auto& file : files) {
    PARLANDO_TRY(auto said, read_recording(file, rate));
    out.push_back(std::move(said));
  }
  return out;
}

std::string in_a_room(std::span<const float> wave) {
  std::string out;
  std::mt19937 random(2);
  std::uniform_int_distribution<int> room(-kRoomLevel, kRoomLevel);
  for (const float x : wave) {
    const auto sample = static_cast<int>(std::lround(x * 32767.0f)) + room(random);
    const auto bits = static_cast<std::uint16_t>(static_cast<std::int16_t>(std::clamp(sample, -32768, 32767)));
    out.push_back(static_cast<char>(bits & 0xff));
    out.push_back(static_cast<char>(bits >> 8));
  }
  return out;
}

std::vector<Utterance> redrawn(std::vector<Utterance> dialogues, unsigned seed) {
  std::mt19937 random(seed);
  // Not a distribution of the library: the same everywhere.
  const auto between = [&](int low, int high, int step) {
    return low + step * static_cast<int>(random() % static_cast<unsigned>((high - low) / step + 1));
  };
  for (const bool takes_turn : {false, true}) {
    std::vector<std::size_t> over;
    for (std::size_t n = 0; n < dialogues.size(); ++n)
      if (dialogues[n].into_answer.count() >= 0 && dialogues[n].takes_turn == takes_turn) over.push_back(n);
    for (auto left = over.size(); left > 1; --left)
      std::swap(dialogues[over[left - 1]], dialogues[over[random() % left]]);
  }
  for (auto& said : dialogues) {
    if (said.into_answer.count() >= 0) said.into_answer = std::chrono::milliseconds(between(300, 700, 50));
    for (std::size_t n = 0; n < said.silences.size(); ++n) {
      const auto [begin, end] = said.silences[n];
      const auto samples = std::int64_t{kInputRate} * between(300, 900, 20) / 1000;
      const auto silence =
          said.pcm.substr(static_cast<std::size_t>(2 * begin), static_cast<std::size_t>(2 * (end - begin)));
      std::string drawn;
      while (drawn.size() < static_cast<std::size_t>(2 * samples)) drawn += silence;
      drawn.resize(static_cast<std::size_t>(2 * samples));
      said.pcm.replace(static_cast<std::size_t>(2 * begin), silence.size(), drawn);
      const auto longer = samples - (end - begin);
      said.end_sample += longer;
      said.silences[n].second += longer;
      for (auto later = n + 1; later < said.silences.size(); ++later) {
        said.silences[later].first += longer;
        said.silences[later].second += longer;
      }
    }
  }
  return dialogues;
}

Result<std::vector<Utterance>> read_dialogues(const fs::path& folder) try {
  const auto file = folder / "dialogues.json";
  PARLANDO_TRY(const auto text, read_file(file, kTextBytesMax));
  const auto all = json::parse(text, nullptr, false);
  if (!all.is_object() || !all.contains("snippets") || !all["snippets"].is_array() || all["snippets"].empty())
    return fail(Errc::bad_json, "'{}' holds no list of 'snippets'", file.string());
  std::vector<Utterance> out;
  for (std::size_t n = 0; n < all["snippets"].size(); ++n) {
    const auto& snippet = all["snippets"][n];
    const auto where = fmt::format("'{}', snippet {}", file.string(), n + 1);
    PARLANDO_TRY(auto said, sound_of(folder, snippet, where));
    out.push_back(std::move(said));
    if (!snippet.contains("over")) continue;
    const auto& label = snippet["over"];
    PARLANDO_TRY(auto over, sound_of(folder, label, where + ", over"));
    PARLANDO_TRY(const auto after, number(label, "after_ms", 0, 60'000, where + ", over"));
    over.into_answer = std::chrono::milliseconds(after);
    if (!label.contains("takes_turn") || !label["takes_turn"].is_boolean())
      return fail(Errc::bad_json, "{}, over: does not say whether it 'takes_turn'", where);
    over.takes_turn = label["takes_turn"].get<bool>();
    out.push_back(std::move(over));
  }
  return out;
} catch (const json::exception& e) {
  return fail(Errc::bad_json, "'{}/dialogues.json': {}", folder.string(), e.what());
}

}  // namespace parlando::cli
