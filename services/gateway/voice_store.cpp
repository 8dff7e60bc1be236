#include "services/gateway/voice_store.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "common/audio/audio_file.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/mapped_file.hpp"
#include "common/base/random_id.hpp"
#include "services/gateway/json_text.hpp"
#include "services/gateway/voice_id.hpp"

namespace parlando::gateway {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int kRate = 24000;  // Hz, of what is kept
constexpr std::size_t kDescriptionBytesMax = 64 << 10;
constexpr std::string_view kGone = ".gone";   // behind the name of a voice that is being deleted
constexpr std::chrono::minutes kUnderWay{1};  // a hidden folder that is older belongs to nobody
constexpr float kSilence = 1e-3f;             // as the tts service judges recordings

std::string new_id(const std::string& owner) {
  constexpr int kRandomBytes = (kVoiceDigits - kOwnerDigits) / 2;
  return std::string(kVoicePrefix) + owner_tag(owner) + random_hex(kRandomBytes);
}

/// On the disk when it returns, not in a cache: a voice that was confirmed is there after a loss of power.
Result<void> write_file(const fs::path& path, std::string_view bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return fail(Errc::io, "'{}' cannot be written: {}", path.string(), std::strerror(errno));
  bool good = true;
  while (good && !bytes.empty()) {
    const auto written = ::write(fd, bytes.data(), bytes.size());
    good = written > 0;
    if (good) bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  good = good && ::fsync(fd) == 0;
  const int why = errno;
  ::close(fd);
  if (!good) return fail(Errc::io, "'{}' cannot be written: {}", path.string(), std::strerror(why));
  return {};
}

/// Names are on the disk, too. What cannot be synchronised (some file systems) is as durable as its system makes it.
void sync_folder(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

Result<std::vector<float>> read_recording(const std::string& bytes) {
  PARLANDO_TRY(auto recording,
               audio::read_audio(std::as_bytes(std::span(bytes)), "recording", VoiceStore::kSecondsMax));
  if (!audio::can_resample(recording.rate, kRate))
    return fail(Errc::unsupported,
                "the recording has {} samples a second, expected a usual rate as 16000, 44100 or 48000",
                recording.rate);
  if (recording.seconds() < VoiceStore::kSecondsMin)
    return fail(Errc::invalid_argument, "the recording has {:.2f} s, expected {} to {} s", recording.seconds(),
                VoiceStore::kSecondsMin, VoiceStore::kSecondsMax);
  if (std::none_of(recording.wave.begin(), recording.wave.end(), [](float x) { return std::fabs(x) > kSilence; }))
    return fail(Errc::no_speech, "the recording is silent");
  if (recording.rate == kRate) return std::move(recording.wave);
  audio::StreamResampler resampler(recording.rate, kRate);
  auto wave = resampler.push(recording.wave);
  const auto rest = resampler.finish();
  wave.insert(wave.end(), rest.begin(), rest.end());
  return wave;
}

/// Of a voice that is not one yet, or no more.
bool is_hidden_voice(std::string_view name) {
  if (!name.starts_with('.')) return false;
  name.remove_prefix(1);
  if (name.ends_with(kGone)) name.remove_suffix(kGone.size());
  return is_voice_id(name);
}

}  // namespace

void VoiceStore::sweep() const {
  std::error_code ignored;
  std::vector<fs::path> old;
  const auto now = fs::file_time_type::clock::now();
  for (auto at = fs::directory_iterator(folder_, ignored); at != fs::directory_iterator(); at.increment(ignored)) {
    if (!is_hidden_voice(at->path().filename().string())) continue;
    const auto written = fs::last_write_time(at->path(), ignored);
    if (!ignored && now - written > kUnderWay) old.push_back(at->path());
  }
  for (const auto& folder : old) fs::remove_all(folder, ignored);
}

Result<StoredVoice> VoiceStore::read(const fs::path& folder) const {
  PARLANDO_TRY(const auto text, read_file(folder / "voice.json", kDescriptionBytesMax));
  const auto kept = json::parse(text, nullptr, false);
  const auto is = [&](const char* key, bool (json::*type)() const noexcept) {
    return !kept.contains(key) || (kept[key].*type)();
  };
  if (!kept.is_object() || !is("name", &json::is_string) || !is("owner", &json::is_string) ||
      !is("created_at", &json::is_number_integer))
    return fail(Errc::bad_json, "'{}' is no description of a voice", folder.string());
  return StoredVoice{folder.filename().string(), kept.value("name", ""), kept.value("owner", ""),
                     kept.value("created_at", std::int64_t{0})};
}

Result<StoredVoice> VoiceStore::add(const NewVoice& voice, const std::string& owner, std::int64_t now) const try {
  PARLANDO_TRY(const auto wave, read_recording(voice.recording));
  fs::create_directories(folder_);
  PARLANDO_TRY(const auto own, list(owner));
  if (static_cast<int>(own.size()) >= per_owner_max_)
    return fail(Errc::overloaded, "{} voices are kept already, at most {} may be: delete one first", own.size(),
                per_owner_max_);
  const auto all = static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  if (all >= kVoicesMax) return fail(Errc::overloaded, "{} voices are kept in all, at most {} may be", all, kVoicesMax);
  StoredVoice out{new_id(owner), voice.name, owner, now};
  const auto hidden = folder_ / ("." + out.id);  // not a voice yet
  fs::create_directory(hidden);
  const auto write = [&]() -> Result<void> {
    PARLANDO_DO(write_file(hidden / "recording.wav", audio::encode_wav(wave, kRate)));
    return write_file(hidden / "voice.json", dump({{"name", voice.name},
                                                   {"owner", owner},
                                                   {"created_at", now},
                                                   {"transcript", voice.transcript},
                                                   {"consent", voice.consent}}));
  };
  if (const auto written = write(); !written) {
    std::error_code ignored;
    fs::remove_all(hidden, ignored);
    return tl::unexpected(written.error());
  }
  sync_folder(hidden);
  fs::rename(hidden, folder_ / out.id);
  sync_folder(folder_);
  return out;
} catch (const fs::filesystem_error& e) {
  return fail(Errc::io, "the voice cannot be kept: {}", e.what());
}

Result<std::vector<StoredVoice>> VoiceStore::list(const std::string& owner) const try {
  std::vector<StoredVoice> out;
  if (!fs::is_directory(folder_)) return out;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const auto id = entry.path().filename().string();
    if (!is_voice_id(id) || id.substr(kVoicePrefix.size(), kOwnerDigits) != owner_tag(owner)) continue;
    // One that is being deleted by another gateway is no voice any more.
    if (auto voice = read(entry.path()); voice && voice->owner == owner) out.push_back(*std::move(voice));
  }
  std::sort(out.begin(), out.end(),
            [](const auto& a, const auto& b) { return a.created != b.created ? a.created > b.created : a.id < b.id; });
  return out;
} catch (const fs::filesystem_error& e) {
  return fail(Errc::io, "the voices cannot be listed: {}", e.what());
}

Result<StoredVoice> VoiceStore::find(const std::string& id, const std::string& owner) const {
  if (is_voice_id(id))
    if (auto voice = read(folder_ / id); voice && voice->owner == owner) return voice;
  return fail(Errc::not_found, "there is no voice '{}'", id.substr(0, 60));
}

Result<void> VoiceStore::remove(const std::string& id, const std::string& owner) const try {
  PARLANDO_TRY(const auto voice, find(id, owner));
  const auto hidden = folder_ / fmt::format(".{}{}", voice.id, kGone);
  fs::rename(folder_ / voice.id, hidden);
  sync_folder(folder_);
  fs::remove_all(hidden);
  return {};
} catch (const fs::filesystem_error& e) {
  return fail(Errc::io, "the voice '{}' cannot be deleted: {}", id.substr(0, 60), e.what());
}

}  // namespace parlando::gateway
