#include "common/audio/opus.hpp"

#include <opus/opus.h>

namespace parlando::audio {
namespace {
constexpr int kLongestMs = 120;  // of a packet
constexpr int kComplexity = 5;   // of 10: 20 ms of speech cost 0.2 ms, and nobody hears the rest
}  // namespace

void OpusReader::Free::operator()(OpusDecoder* decoder) const { opus_decoder_destroy(decoder); }
void OpusWriter::Free::operator()(OpusEncoder* encoder) const { opus_encoder_destroy(encoder); }

Result<OpusReader> OpusReader::make(int rate) {
  int error = OPUS_OK;
  OpusReader out;
  out.rate_ = rate;
  out.decoder_.reset(opus_decoder_create(rate, 1, &error));
  if (error != OPUS_OK) return fail(Errc::unsupported, "Opus at {} Hz: {}", rate, opus_strerror(error));
  return out;
}

Result<std::vector<std::int16_t>> OpusReader::push(std::span<const std::byte> packet) {
  if (packet.empty() || packet.size() > kOpusPacketBytesMax)
    return fail(Errc::bad_format, "an Opus packet of {} bytes, expected 1 to {}", packet.size(), kOpusPacketBytesMax);
  std::vector<std::int16_t> out(static_cast<std::size_t>(rate_) * kLongestMs / 1000);
  const auto count = opus_decode(decoder_.get(), reinterpret_cast<const unsigned char*>(packet.data()),
                                 static_cast<opus_int32>(packet.size()), out.data(), static_cast<int>(out.size()), 0);
  if (count < 0) return fail(Errc::bad_format, "{} bytes are no Opus packet: {}", packet.size(), opus_strerror(count));
  out.resize(static_cast<std::size_t>(count));
  return out;
}

Result<OpusWriter> OpusWriter::make(int rate, int bits_per_second) {
  int error = OPUS_OK;
  OpusWriter out;
  out.frame_samples_ = static_cast<std::size_t>(rate) * kFrameMs / 1000;
  out.encoder_.reset(opus_encoder_create(rate, 1, OPUS_APPLICATION_VOIP, &error));
  if (error != OPUS_OK) return fail(Errc::unsupported, "Opus at {} Hz: {}", rate, opus_strerror(error));
  opus_encoder_ctl(out.encoder_.get(), OPUS_SET_BITRATE(bits_per_second));
  opus_encoder_ctl(out.encoder_.get(), OPUS_SET_COMPLEXITY(kComplexity));
  return out;
}

std::vector<std::byte> OpusWriter::encode(const std::int16_t* frame) {
  std::vector<std::byte> out(kOpusPacketBytesMax);
  const auto bytes = opus_encode(encoder_.get(), frame, static_cast<int>(frame_samples_),
                                 reinterpret_cast<unsigned char*>(out.data()), static_cast<opus_int32>(out.size()));
  out.resize(static_cast<std::size_t>(bytes < 0 ? 0 : bytes));  // a frame of whole samples never fails
  return out;
}

std::vector<std::vector<std::byte>> OpusWriter::push(std::span<const std::int16_t> samples) {
  waiting_.insert(waiting_.end(), samples.begin(), samples.end());
  std::vector<std::vector<std::byte>> out;
  std::size_t at = 0;
  for (; at + frame_samples_ <= waiting_.size(); at += frame_samples_) out.push_back(encode(waiting_.data() + at));
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(at));
  return out;
}

std::vector<std::vector<std::byte>> OpusWriter::finish() {
  if (waiting_.empty()) return {};
  waiting_.resize(frame_samples_);
  return push({});
}

}  // namespace parlando::audio
