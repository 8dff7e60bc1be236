#include "services/gateway/http_sound.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace parlando::gateway {
namespace {

constexpr float kFullScale = 32768.0f;

std::vector<std::int16_t> to_pcm(const std::vector<float>& wave) {
  std::vector<std::int16_t> out(wave.size());
  std::transform(wave.begin(), wave.end(), out.begin(), [](float x) {
    return static_cast<std::int16_t>(std::clamp(std::lrint(x * kFullScale), -32768L, 32767L));
  });
  return out;
}

std::string bytes_of(const std::vector<std::int16_t>& pcm) {
  return {reinterpret_cast<const char*>(pcm.data()), pcm.size() * kSampleBytes};
}

}  // namespace

SoundSource::SoundSource(audio::Reader reader, const std::string& name, double seconds_max, milliseconds tail)
    : reader_(std::move(reader)),
      name_(name),
      seconds_max_(seconds_max),
      resampler_(reader_.rate(), kInputRate),
      tail_samples_(static_cast<std::size_t>(input_samples(tail))) {}

Result<std::unique_ptr<SoundSource>> SoundSource::open(std::string file, const std::string& name, double seconds_max,
                                                       milliseconds tail) {
  PARLANDO_TRY(auto reader, audio::Reader::open(std::move(file), name, seconds_max));
  if (!audio::can_resample(reader.rate(), kInputRate))
    return fail(Errc::unsupported, "'{}' has {} samples a second, expected a usual rate as 8000, 44100 or 48000", name,
                reader.rate());
  return std::unique_ptr<SoundSource>(new SoundSource(std::move(reader), name, seconds_max, tail));
}

Result<std::string> SoundSource::next() {
  std::vector<float> out;
  while (out.empty() && !ended_) {
    const auto wave = reader_.read(static_cast<std::size_t>(reader_.rate()));
    if (reader_.is_too_long()) return fail(Errc::bad_format, "'{}' lasts longer than {} s", name_, seconds_max_);
    ended_ = wave.empty();
    out = ended_ ? resampler_.finish() : resampler_.push(wave);
  }
  if (ended_) {
    // The rest of the file is short; what does not fit into this second follows.
    const auto room = static_cast<std::size_t>(kInputRate) - std::min<std::size_t>(out.size(), kInputRate);
    const auto count = std::min(room, tail_samples_);
    tail_samples_ -= count;
    out.resize(out.size() + count);
  }
  return bytes_of(to_pcm(out));
}

SpeechSound::SpeechSound(std::unique_ptr<audio::Encoder> encoder)
    : resampler_(kSpeechRate, kApiRate), encoder_(std::move(encoder)) {}

Result<SpeechSound> SpeechSound::make(audio::Encoding encoding) {
  PARLANDO_TRY(auto encoder, audio::Encoder::make(encoding, kApiRate));
  return SpeechSound(std::move(encoder));
}

std::string SpeechSound::encode(const std::vector<float>& wave) { return encoder_->push(to_pcm(wave)); }

std::string SpeechSound::push(std::string_view pcm) {
  std::vector<float> wave(pcm.size() / kSampleBytes);
  for (std::size_t i = 0; i < wave.size(); ++i) {
    std::int16_t sample;
    std::memcpy(&sample, pcm.data() + kSampleBytes * i, kSampleBytes);
    wave[i] = static_cast<float>(sample) / kFullScale;
  }
  return encode(resampler_.push(wave));
}

std::string SpeechSound::finish() {
  auto out = encode(resampler_.finish());
  return out += encoder_->finish();
}

}  // namespace parlando::gateway
