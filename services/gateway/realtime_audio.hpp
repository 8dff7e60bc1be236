#pragma once
/// Sound as realtime clients send and hear it, and as a conversation does. Plain classes; positions on both sides
/// are exact.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/audio/g711.hpp"
#include "common/audio/opus.hpp"
#include "common/audio/rate_converter.hpp"
#include "common/base/result.hpp"
#include "common/base/units.hpp"

namespace parlando::gateway {

/// 24 kHz s16le; 8 kHz G.711; Opus, a packet at a time (an extension).
enum class SoundFormat : std::uint8_t { pcm, mu_law, a_law, opus };

constexpr bool is_law(SoundFormat format) { return format == SoundFormat::mu_law || format == SoundFormat::a_law; }
constexpr int rate_of(SoundFormat format) { return is_law(format) ? 8000 : 24000; }
std::string_view name_of(SoundFormat format);  ///< "audio/pcm" …
std::optional<SoundFormat> sound_format_of(std::string_view name);

/// From a client: bytes of its format in any pieces, s16le at 16 kHz out.
class SoundIn {
 public:
  explicit SoundIn(SoundFormat format);
  /// @error Errc::bad_format: no packet of Opus
  Result<std::string> push(std::span<const std::byte> bytes);
  /// What was held back (1.5 to 4.3 ms); what comes next follows without a gap.
  std::string finish();
  SoundFormat format() const { return format_; }
  /// Samples at 16 kHz that have come and are not out yet.
  std::int64_t held_samples() const { return came_ * kInputRate / rate_of(format_) - given_; }

 private:
  std::string give(std::vector<std::int16_t> samples);
  SoundFormat format_;
  audio::RateConverter rate_;
  std::optional<audio::OpusReader> opus_;
  std::int64_t came_ = 0, given_ = 0;  ///< samples, at either rate
  std::optional<std::byte> half_;      ///< of a sample that was cut in two
};

/// To a client: s16le at 22.05 kHz in, whole samples of its format out.
class SoundOut {
 public:
  /// What an event carries.
  struct Piece {
    std::vector<std::byte> bytes;
    std::chrono::microseconds length;
  };
  static constexpr std::size_t kPieceBytesMax = 32000;  ///< events stay far below the 1 MiB that clients take

  explicit SoundOut(SoundFormat format);
  std::vector<Piece> push(std::string_view pcm);
  std::vector<Piece> finish();
  SoundFormat format() const { return format_; }

 private:
  std::vector<Piece> encode(std::span<const std::int16_t> samples) const;
  static std::vector<Piece> pieces(std::vector<std::vector<std::byte>> packets);
  SoundFormat format_;
  audio::RateConverter rate_;
  std::optional<audio::OpusWriter> opus_;
};

}  // namespace parlando::gateway
