#include "services/vad/vad_core.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace parlando::vad {
using protocol::MessageType;
using service::CallerStream;

namespace {

constexpr std::size_t kSampleBytes = 2;
constexpr double kProbabilityMin = 0.01, kProbabilityMax = 0.99;
/// Positions stay below this, so that no sum of them overflows: 4.5 million years.
constexpr std::int64_t kPositionMax = std::numeric_limits<std::int64_t>::max() / 4;

/// What a stream asks for, in the place of the configuration. The hysteresis keeps its width.
TurnConfig with_options(TurnConfig config, const protocol::OpenVad& open) {
  if (open.threshold_permille >= 0) {
    const auto width = config.onset_probability - config.offset_probability;
    config.onset_probability = std::clamp(open.threshold_permille / 1000.0, kProbabilityMin, kProbabilityMax);
    config.offset_probability = std::max(kProbabilityMin, config.onset_probability - width);
  }
  if (open.silence_ms >= 0) config.silence_ms = open.silence_ms;
  return config;
}

}  // namespace

std::vector<config::Problem> VadConfig::problems(const std::string& path) const {
  auto out = turn.problems(path + ".turn");
  config::expect_range(out, path + ".sessions_max", sessions_max, 1, 1 << 20);
  return out;
}

Result<std::unique_ptr<service::Core>> VadCore::make(const VadConfig& config) {
  PARLANDO_TRY(auto weights, SileroWeights::load(config.weights));
  return std::unique_ptr<service::Core>(std::make_unique<VadCore>(config, std::move(weights)));
}

VadCore::VadCore(VadConfig config, std::shared_ptr<const SileroWeights> weights)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      streams_(static_cast<std::size_t>(config_.sessions_max)) {}

void VadCore::add_metrics(telemetry::Metrics& metrics) {
  frames_ = metrics.counter("parlando_vad_frames_total", "Frames of 32 ms judged");
  gaps_ = metrics.counter("parlando_vad_gaps_total", "Messages of audio that did not go on where the last one ended");
}

void VadCore::on_message(const std::string& peer, protocol::Message m, Time) {
  const auto head = m.head;
  const auto done = [&]() -> Result<void> {
    switch (head.type) {
      case MessageType::open_vad:
        return open(peer, m);
      case MessageType::audio:
        return hear(peer, m);
      case MessageType::flush:
        return flush(peer, m);
      case MessageType::close:
        if (const auto key = streams_.key_of(peer, head); streams_.erase(key)) ended_.add(key);
        return {};
      default:
        return fail(Errc::unsupported, "vad takes no message of type {}", to_string(head.type));
    }
  }();
  if (!done) answer_error(peer, head, done.error());
}

Result<void> VadCore::open(const std::string& peer, protocol::Message& m) {
  PARLANDO_TRY(const auto options, protocol::read<protocol::OpenVad>(m));
  const auto key = streams_.key_of(peer, m.head);
  const auto turn = with_options(config_.turn, options);
  if (const auto opened = streams_.open(key, Stream{Silero(weights_), TurnDetector(turn), {}}); !opened) {
    // The caller may have sent sound already; one refusal is enough.
    if (opened.error().code == Errc::overloaded) ended_.add(key);
    return tl::make_unexpected(opened.error());
  }
  return {};
}

Result<VadCore::Stream*> VadCore::stream_of(const CallerStream& key) {
  if (auto* found = streams_.find(key); found != nullptr) return found;
  if (ended_.contains(key)) return nullptr;
  return streams_.at(key);
}

Result<void> VadCore::hear(const std::string& peer, protocol::Message& m) {
  PARLANDO_TRY(auto* const found, stream_of(streams_.key_of(peer, m.head)));
  if (found == nullptr) return {};
  auto& s = *found;
  PARLANDO_TRY(const auto audio, protocol::read<protocol::Audio>(m));
  if (audio.payload.size() % kSampleBytes != 0)
    return fail(Errc::bad_frame, "audio of {} bytes, a sample has {}", audio.payload.size(), kSampleBytes);
  if (audio.first_sample > kPositionMax)
    return fail(Errc::invalid_argument, "audio starts at sample {}, expected at most {}", audio.first_sample,
                kPositionMax);
  if (s.base < 0) {
    s.base = audio.first_sample;
    s.position = audio.first_sample;
  }
  if (audio.first_sample != s.position) {
    gaps_.add();
    if (std::exchange(s.astray, true)) return {};
    return fail(Errc::position_mismatch, "audio starts at sample {}, the stream goes on at {}", audio.first_sample,
                s.position);
  }
  s.astray = false;
  const auto* from = audio.payload.data();
  for (auto left = audio.payload.size() / kSampleBytes; left > 0;) {
    const auto count = std::min(left, static_cast<std::size_t>(kFrameSamples - s.filled));
    for (std::size_t i = 0; i < count; ++i) {
      std::int16_t sample;
      std::memcpy(&sample, from + kSampleBytes * i, kSampleBytes);
      s.open[static_cast<std::size_t>(s.filled) + i] = static_cast<float>(sample) / 32768.0f;
    }
    from += kSampleBytes * count;
    left -= count;
    s.filled += static_cast<int>(count);
    s.position += static_cast<std::int64_t>(count);
    if (s.filled < kFrameSamples) break;
    s.filled = 0;
    frames_.add();
    if (const auto event = s.detector.push(s.net(s.open), s.position - kFrameSamples)) tell(peer, m.head, *event);
  }
  return {};
}

Result<void> VadCore::flush(const std::string& peer, protocol::Message& m) {
  PARLANDO_TRY(auto* const found, stream_of(streams_.key_of(peer, m.head)));
  if (found == nullptr) return {};
  auto& s = *found;
  PARLANDO_TRY(const auto flush, protocol::read<protocol::Flush>(m));
  if (flush.end_sample > s.position)
    return fail(Errc::position_mismatch, "the utterance ends at sample {}, the stream has come to {}", flush.end_sample,
                s.position);
  const auto event = flush.end_sample < 0 ? s.detector.flush() : s.detector.flush(flush.end_sample);
  if (!event) {
    const auto heard = s.base < 0 ? 0 : s.position - s.filled - s.base;
    return fail(Errc::no_speech, "no speech was found in {:.2f} s of audio", static_cast<double>(heard) / 16000);
  }
  tell(peer, m.head, *event);
  return {};
}

void VadCore::tell(const std::string& peer, const protocol::Envelope& to, const TurnEvent& event) {
  switch (event.kind) {
    case TurnEvent::Kind::started:
      return answer(peer, to, protocol::SpeechStarted{event.sample});
    case TurnEvent::Kind::paused:
      return answer(peer, to, protocol::SpeechPaused{event.sample});
    case TurnEvent::Kind::resumed:
      return answer(peer, to, protocol::SpeechResumed{event.sample});
    case TurnEvent::Kind::ended:
      return answer(peer, to, protocol::SpeechEnded{event.sample});
  }
}

void VadCore::on_peer(const transport::Peer& peer, transport::PeerState state, Time) {
  if (state == transport::PeerState::down) streams_.erase_peer(peer.instance);
}

void VadCore::Ended::add(const CallerStream& key) {
  if (keys_.size() < kKept) {
    keys_.push_back(key);
    return;
  }
  keys_[next_] = key;
  next_ = (next_ + 1) % kKept;
}

bool VadCore::Ended::contains(const CallerStream& key) const {
  return std::find(keys_.begin(), keys_.end(), key) != keys_.end();
}

}  // namespace parlando::vad
