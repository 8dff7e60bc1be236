#include "services/gateway/realtime_audio.hpp"

#include <array>
#include <cstring>
#include <utility>

#include "common/base/pcm.hpp"

namespace parlando::gateway {
namespace {

constexpr std::array<std::string_view, 4> kNames{"audio/pcm", "audio/pcmu", "audio/pcma", "audio/opus"};
constexpr int kOpusBitsPerSecond = 32000;

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

SoundIn::SoundIn(SoundFormat format) : format_(format), rate_(rate_of(format), kInputRate) {
  if (format_ == SoundFormat::opus) opus_ = *audio::OpusReader::make(kInputRate);  // at a rate that it has
}

std::string SoundIn::give(std::vector<std::int16_t> samples) {
  given_ += static_cast<std::int64_t>(samples.size());
  return text_of(samples);
}

Result<std::string> SoundIn::push(std::span<const std::byte> bytes) {
  if (opus_) {
    PARLANDO_TRY(const auto samples, opus_->push(bytes));
    return text_of(samples);
  }
  if (is_law(format_)) {
    came_ += static_cast<std::int64_t>(bytes.size());
    return give(rate_.push(audio::g711_decode(law_of(format_), bytes)));
  }
  std::vector<std::byte> whole;
  if (half_) {
    whole.push_back(*std::exchange(half_, std::nullopt));
    whole.insert(whole.end(), bytes.begin(), bytes.end());
    bytes = whole;
  }
  if (bytes.size() % kSampleBytes != 0) half_ = bytes.back();
  came_ += static_cast<std::int64_t>(bytes.size() / kSampleBytes);
  return give(rate_.push(from_bytes<std::int16_t>(bytes)));
}

std::string SoundIn::finish() {
  half_.reset();
  auto out = give(rate_.finish());
  came_ = given_ = 0;
  return out;
}

SoundOut::SoundOut(SoundFormat format) : format_(format), rate_(kSpeechRate, rate_of(format)) {
  if (format_ == SoundFormat::opus) opus_ = *audio::OpusWriter::make(rate_of(format), kOpusBitsPerSecond);
}

std::vector<SoundOut::Piece> SoundOut::encode(std::span<const std::int16_t> samples) const {
  const auto bytes = is_law(format_) ? audio::g711_encode(law_of(format_), samples) : to_bytes(samples);
  const auto rate = static_cast<std::int64_t>(rate_of(format_) * (is_law(format_) ? 1 : kSampleBytes));
  std::vector<Piece> out;
  for (std::size_t at = 0; at < bytes.size(); at += kPieceBytesMax) {
    const auto part = std::span(bytes).subspan(at, std::min(kPieceBytesMax, bytes.size() - at));
    out.push_back({{part.begin(), part.end()},
                   std::chrono::microseconds(static_cast<std::int64_t>(part.size()) * 1'000'000 / rate)});
  }
  return out;
}

std::vector<SoundOut::Piece> SoundOut::pieces(std::vector<std::vector<std::byte>> packets) {
  std::vector<Piece> out;
  for (auto& packet : packets)
    out.push_back({std::move(packet), std::chrono::milliseconds(audio::OpusWriter::kFrameMs)});
  return out;
}

std::vector<SoundOut::Piece> SoundOut::push(std::string_view pcm) {
  const auto samples = rate_.push(from_bytes<std::int16_t>(std::as_bytes(std::span(pcm))));
  return opus_ ? pieces(opus_->push(samples)) : encode(samples);
}

std::vector<SoundOut::Piece> SoundOut::finish() {
  const auto samples = rate_.finish();
  if (!opus_) return encode(samples);
  auto out = pieces(opus_->push(samples));
  for (auto& last : pieces(opus_->finish())) out.push_back(std::move(last));
  return out;
}

}  // namespace parlando::gateway
