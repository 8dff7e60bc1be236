#include "services/cli/voice_heard.hpp"

#include <span>
#include <vector>

#include "common/base/pcm.hpp"
#include "services/vad/turn_detector.hpp"

namespace parlando::cli {

namespace {

constexpr std::size_t kBefore = 32 * vad::kFrameSamples;  // of the quiet room: a second
constexpr std::size_t kPhases = 4;

}  // namespace

std::int64_t voice_heard_at(const std::string& pcm, const std::shared_ptr<const vad::SileroWeights>& weights) {
  const auto said = from_pcm16(std::as_bytes(std::span(pcm)));
  std::int64_t earliest = -1;
  for (std::size_t phase = 0; phase < kPhases; ++phase) {
    const auto before = kBefore + phase * vad::kFrameSamples / kPhases;
    std::vector<float> wave(before, 0.0f);
    wave.insert(wave.end(), said.begin(), said.end());
    vad::Silero net(weights);
    vad::TurnDetector detector{vad::TurnConfig{}};
    for (std::size_t at = 0; at + vad::kFrameSamples <= wave.size(); at += vad::kFrameSamples) {
      const auto frame = std::span(wave).subspan(at).first<vad::kFrameSamples>();
      const auto event = detector.push(net(frame), static_cast<std::int64_t>(at));
      if (!event || event->kind != vad::TurnEvent::Kind::started) continue;
      const auto heard = static_cast<std::int64_t>(at + vad::kFrameSamples) - static_cast<std::int64_t>(before);
      if (heard >= 0 && (earliest < 0 || heard < earliest)) earliest = heard;
      break;
    }
  }
  return earliest;
}

}  // namespace parlando::cli
