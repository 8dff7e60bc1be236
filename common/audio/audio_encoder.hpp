#pragma once
/// Sound as it is made, encoded for files and streams: what `push` gives may leave at once. WAV of unknown length, raw
/// PCM, FLAC, Ogg Opus and MP3, the last three by libsndfile where it has them.
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/base/result.hpp"

namespace parlando::audio {

enum class Encoding { wav, pcm, flac, opus, mp3 };
/// "wav", "pcm" (also "pcm16"), "flac", "opus", "mp3"; empty for others.
std::optional<Encoding> encoding_of(std::string_view name);
/// "audio/wav", …
std::string_view media_type(Encoding encoding);

/// Mono. Not thread-safe.
class Encoder {
 public:
  /// @param rate  Hz; Opus takes 8, 12, 16, 24 and 48 kHz
  /// @error Errc::unsupported when the library here does not write this format or rate
  static Result<std::unique_ptr<Encoder>> make(Encoding encoding, int rate);
  virtual ~Encoder() = default;
  /// @return bytes that may leave, often none for compressed formats
  virtual std::string push(std::span<const std::int16_t> pcm) = 0;
  /// The rest. Nothing is pushed afterwards.
  virtual std::string finish() = 0;
};

/// Puts the true sizes into a whole file that `Encoding::wav` has made.
void set_wav_sizes(std::string& file);

}  // namespace parlando::audio
