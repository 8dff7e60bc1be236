#include "services/controller/sound_log.hpp"

namespace parlando::controller {

std::optional<protocol::Audio> SoundLog::append(protocol::Audio audio, std::uint64_t input, Time now) {
  if (pcm_.empty()) {
    first_sample_ = audio.first_sample;
    inputs_.clear();
  }
  if (audio.first_sample > end_sample()) return std::nullopt;
  const auto count = static_cast<std::int64_t>(audio.payload.size() / kSampleBytes);
  const auto known = std::clamp<std::int64_t>(end_sample() - audio.first_sample, 0, count);
  audio.payload.erase(audio.payload.begin(), audio.payload.begin() + static_cast<std::ptrdiff_t>(known * 2));
  audio.first_sample += known;
  if (audio.payload.empty()) return audio;
  pcm_.insert(pcm_.end(), audio.payload.begin(), audio.payload.end());
  inputs_.push_back({input, end_sample(), now});
  return audio;
}

std::int64_t SoundLog::first_sample_since(Time then) const {
  auto sample = first_sample_;
  for (const auto& input : inputs_) {
    if (input.arrived >= then) return sample;
    sample = input.end_sample;
  }
  return end_sample();
}

std::uint64_t SoundLog::input_of(std::int64_t sample) const {
  for (const auto& input : inputs_)
    if (input.end_sample > sample) return input.number;
  return inputs_.empty() ? 0 : inputs_.back().number;
}

void SoundLog::drop_before(std::int64_t sample) {
  const auto dropped = std::clamp<std::int64_t>(sample - first_sample_, 0, samples());
  pcm_.erase(pcm_.begin(), pcm_.begin() + static_cast<std::ptrdiff_t>(dropped * 2));
  first_sample_ += dropped;
  while (!inputs_.empty() && inputs_.front().end_sample <= first_sample_) inputs_.pop_front();
}

SoundLog SoundLog::split_from(std::int64_t sample) {
  SoundLog rest = *this;
  rest.drop_before(sample);
  drop_from(sample);
  return rest;
}

void SoundLog::join(SoundLog rest) {
  if (pcm_.empty()) {
    *this = std::move(rest);
    return;
  }
  pcm_.insert(pcm_.end(), rest.pcm_.begin(), rest.pcm_.end());
  for (const auto& input : rest.inputs_)
    if (inputs_.empty() || input.number > inputs_.back().number)
      inputs_.push_back(input);
    else
      inputs_.back().end_sample = std::max(inputs_.back().end_sample, input.end_sample);
}

void SoundLog::drop_from(std::int64_t sample) {
  const auto kept = std::clamp<std::int64_t>(sample - first_sample_, 0, samples());
  pcm_.resize(static_cast<std::size_t>(kept) * kSampleBytes);
}

}  // namespace parlando::controller
