#pragma once
/// Sound as realtime clients send and hear it, and as a conversation does. Plain classes; positions on both sides
/// are exact.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/audio/g711.hpp"
#include "common/audio/rate_converter.hpp"
#include "common/base/units.hpp"

namespace parlando::gateway {

enum class SoundFormat : std::uint8_t { pcm, mu_law, a_law };  ///< 24 kHz s16le; 8 kHz G.711

constexpr int rate_of(SoundFormat format) { return format == SoundFormat::pcm ? 24000 : 8000; }
constexpr std::size_t sample_bytes_of(SoundFormat format) { return format == SoundFormat::pcm ? 2 : 1; }
std::string_view name_of(SoundFormat format);  ///< "audio/pcm" …
std::optional<SoundFormat> sound_format_of(std::string_view name);

/// From a client: bytes of its format in any pieces, s16le at 16 kHz out.
class SoundIn {
 public:
  explicit SoundIn(SoundFormat format);
  std::string push(std::span<const std::byte> bytes);
  /// What was held back (1.5 to 4.3 ms); what comes next follows without a gap.
  std::string finish();
  SoundFormat format() const { return format_; }

 private:
  SoundFormat format_;
  audio::RateConverter rate_;
  std::optional<std::byte> half_;  ///< of a sample that was cut in two
};

/// To a client: s16le at 22.05 kHz in, whole samples of its format out.
class SoundOut {
 public:
  explicit SoundOut(SoundFormat format);
  std::vector<std::byte> push(std::string_view pcm);
  std::vector<std::byte> finish();
  SoundFormat format() const { return format_; }

 private:
  std::vector<std::byte> encode(std::span<const std::int16_t> samples) const;
  SoundFormat format_;
  audio::RateConverter rate_;
};

}  // namespace parlando::gateway
