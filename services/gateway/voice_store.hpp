#pragma once
/// Voices that users have made, as files: a folder each, with `recording.wav` and `voice.json`. All gateways and all
/// tts services of an engine see the same folder, so that a voice is everybody's at once and outlives a restart. One
/// thread at a time; other processes may write the same folder, and a voice comes and goes as a whole.
#include <filesystem>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::gateway {

struct StoredVoice {
  std::string id, name, owner;
  std::int64_t created = 0;  ///< Unix time
};

struct NewVoice {
  std::string name;        ///< 1 to 100 bytes
  std::string transcript;  ///< of the recording, 1 to 2000 bytes
  std::string consent;     ///< the speaker's, or a note of it: kept with the voice
  std::string recording;   ///< a file: WAV, FLAC, Ogg or MP3, 1 to 30 s
};

class VoiceStore {
 public:
  static constexpr std::size_t kNameBytesMax = 100, kTranscriptBytesMax = 2000, kConsentBytesMax = 2000;
  static constexpr double kSecondsMin = 1, kSecondsMax = 30;
  static constexpr std::size_t kVoicesMax = 10000;  ///< of all owners

  /// @param folder  made when it is missing; empty: no voices are kept. @param per_owner_max  voices of one key
  VoiceStore(std::string folder, int per_owner_max) : folder_(std::move(folder)), per_owner_max_(per_owner_max) {}
  bool is_kept() const { return !folder_.empty(); }
  /// Deletes what a crash has left of voices that were being made or deleted. Before anything else is asked for.
  void sweep() const;

  /// @error Errc::bad_format, Errc::invalid_argument, Errc::no_speech: the recording; Errc::overloaded: as many as may
  /// be; Errc::io
  Result<StoredVoice> add(const NewVoice& voice, const std::string& owner, std::int64_t now_seconds) const;
  /// Those of an owner, the newest first. @error Errc::io
  Result<std::vector<StoredVoice>> list(const std::string& owner) const;
  /// @error Errc::not_found: there is none, or it is another owner's
  Result<StoredVoice> find(const std::string& id, const std::string& owner) const;
  /// @error as `find`, and Errc::io
  Result<void> remove(const std::string& id, const std::string& owner) const;

 private:
  Result<StoredVoice> read(const std::filesystem::path& folder) const;
  std::filesystem::path folder_;
  int per_owner_max_;
};

}  // namespace parlando::gateway
