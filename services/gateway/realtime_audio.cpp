#include "services/gateway/realtime_audio.hpp"

#include <array>
#include <cstring>
#include <utility>

#include "common/base/pcm.hpp"

namespace parlando::gateway {
namespace {

constexpr std::array<std::string_view, 3> kNames{"audio/pcm", "audio/pcmu", "audio/pcma"};

audio::G711 law_of(SoundFormat format) {
  return format == SoundFormat::mu_law ? audio::G711::mu_law : audio::G711::a_law;
}

std::string text_of(std::span<const std::int16_t> samples) {
  const auto bytes = std::as_bytes(samples);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

std::string_view name_of(SoundFormat format) { return kNames[static_cast<std::size_t>(format)]; }

std::optional<SoundFormat> sound_format_of(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == name) return static_cast<SoundFormat>(i);
  return {};
}

SoundIn::SoundIn(SoundFormat format) : format_(format), rate_(rate_of(format), kInputRate) {}

std::string SoundIn::push(std::span<const std::byte> bytes) {
  if (format_ != SoundFormat::pcm) return text_of(rate_.push(audio::g711_decode(law_of(format_), bytes)));
  std::vector<std::byte> whole;
  if (half_) {
    whole.push_back(*std::exchange(half_, std::nullopt));
    whole.insert(whole.end(), bytes.begin(), bytes.end());
    bytes = whole;
  }
  if (bytes.size() % kSampleBytes != 0) half_ = bytes.back();
  return text_of(rate_.push(from_bytes<std::int16_t>(bytes)));
}

std::string SoundIn::finish() {
  half_.reset();
  return text_of(rate_.finish());
}

SoundOut::SoundOut(SoundFormat format) : format_(format), rate_(kSpeechRate, rate_of(format)) {}

std::vector<std::byte> SoundOut::encode(std::span<const std::int16_t> samples) const {
  return format_ == SoundFormat::pcm ? to_bytes(samples) : audio::g711_encode(law_of(format_), samples);
}

std::vector<std::byte> SoundOut::push(std::string_view pcm) {
  return encode(rate_.push(from_bytes<std::int16_t>(std::as_bytes(std::span(pcm)))));
}

std::vector<std::byte> SoundOut::finish() { return encode(rate_.finish()); }

}  // namespace parlando::gateway
