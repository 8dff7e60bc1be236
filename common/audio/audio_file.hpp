#pragma once
/// Audio files of users: WAV, FLAC, OGG, MP3 where libsndfile reads it; any rate and any number of channels.
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::audio {

struct Recording {
  int rate = 0;             ///< Hz
  std::vector<float> wave;  ///< mono (mean over channels), [-1, 1]
  double seconds() const { return rate > 0 ? static_cast<double>(wave.size()) / rate : 0.0; }
};

/// @error Errc::not_found, Errc::bad_format (not audio, empty, longer than `seconds_max`), naming the file and what was
/// seen.
Result<Recording> read_audio(const std::filesystem::path& path, double seconds_max = 30 * 60);
/// The same from memory.
Result<Recording> read_audio(std::span<const std::byte> bytes, const std::string& name, double seconds_max = 30 * 60);

/// The same piece by piece, for recordings that are worked on while they are decoded.
class Reader {
 public:
  /// @error Errc::bad_format (not audio, empty, longer than `seconds_max`), naming the file and what was seen
  static Result<Reader> open(std::string bytes, const std::string& name, double seconds_max = 30 * 60);
  Reader(Reader&&) noexcept;
  Reader& operator=(Reader&&) noexcept;
  ~Reader();
  int rate() const;
  /// As the file says; where it does not (streams), what was read so far.
  double seconds() const;
  /// More followed than `seconds_max`: a file that did not say how long it is.
  bool is_too_long() const;
  /// @return at most `count` samples, mono; none: the end
  std::vector<float> read(std::size_t count);

 private:
  struct State;
  explicit Reader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// 16-bit PCM WAV; values are clipped to [-1, 1].
Result<void> write_wav(const std::filesystem::path& path, std::span<const float> wave, int rate);
std::string encode_wav(std::span<const float> wave, int rate);

}  // namespace parlando::audio
