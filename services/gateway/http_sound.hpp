#pragma once
/// Sound between the formats of the HTTP API and those of sessions.
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/audio/audio_encoder.hpp"
#include "common/audio/audio_file.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/clock.hpp"
#include "common/base/units.hpp"

namespace parlando::gateway {

inline constexpr int kApiRate = 24000;  ///< Hz, of all sound that the API gives

/// A file that a client has sent, decoded a second at a time: an hour of sound must not hold up other sessions.
class SoundSource {
 public:
  /// @param tail  of silence that follows
  /// @error Errc::bad_format, naming what was seen
  static Result<std::unique_ptr<SoundSource>> open(std::string file, const std::string& name, double seconds_max,
                                                   milliseconds tail = {});
  double seconds() const { return reader_.seconds(); }
  /// s16le at kInputRate, a second or less; empty: the end
  /// @error Errc::bad_format: it lasts longer than it may, and had not said so
  Result<std::string> next();

 private:
  SoundSource(audio::Reader reader, const std::string& name, double seconds_max, milliseconds tail);
  audio::Reader reader_;
  std::string name_;
  double seconds_max_;
  audio::StreamResampler resampler_;
  std::size_t tail_samples_;
  bool ended_ = false;
};

/// Speech of a session on its way to a client.
class SpeechSound {
 public:
  /// @error Errc::unsupported
  static Result<SpeechSound> make(audio::Encoding encoding);
  /// @param pcm  s16le at kSpeechRate. @return bytes of the format, at kApiRate
  std::string push(std::string_view pcm);
  std::string finish();

 private:
  explicit SpeechSound(std::unique_ptr<audio::Encoder> encoder);
  std::string encode(const std::vector<float>& wave);
  audio::StreamResampler resampler_;
  std::unique_ptr<audio::Encoder> encoder_;
};

}  // namespace parlando::gateway
