#define BOOST_TEST_MODULE voice_heard
#include "services/cli/voice_heard.hpp"

#include <boost/test/unit_test.hpp>
#include <span>
#include <vector>

#include "common/base/pcm.hpp"
#include "services/cli/dialogues.hpp"
#include "services/vad/turn_detector.hpp"

namespace parlando::cli {
namespace {

const std::string kSource = PARLANDO_SOURCE_DIR;

auto weights() {
  static const auto loaded = *vad::SileroWeights::load(kSource + "/models/silero-vad/silero_vad.safetensors");
  return loaded;
}

/// Samples from the begin of `pcm` until a vad tells of speech that has heard so many zeros before; -1: never.
std::int64_t told_behind(std::size_t zeros, const std::string& pcm) {
  std::vector<float> wave(zeros, 0.0f);
  for (const float x : from_pcm16(std::as_bytes(std::span(pcm)))) wave.push_back(x);
  vad::Silero net(weights());
  vad::TurnDetector detector{vad::TurnConfig{}};
  for (std::size_t at = 0; at + vad::kFrameSamples <= wave.size(); at += vad::kFrameSamples) {
    const auto frame = std::span<const float>(wave).subspan(at).first<vad::kFrameSamples>();
    const auto event = detector.push(net(frame), static_cast<std::int64_t>(at));
    if (event && event->kind == vad::TurnEvent::Kind::started)
      return static_cast<std::int64_t>(at + vad::kFrameSamples) - static_cast<std::int64_t>(zeros);
  }
  return -1;
}

BOOST_AUTO_TEST_CASE(a_voice_is_heard_soon_behind_its_begin_and_a_cough_is_not) {
  const auto all = *read_dialogues(kSource + "/models/nano/dialogues");
  int unheard = 0;
  for (const auto& said : all) {
    const auto heard = voice_heard_at(said.pcm, weights());
    if (heard < 0 && !said.takes_turn) {
      ++unheard;
      continue;
    }
    const auto behind = heard - said.begin_sample;
    BOOST_TEST((behind > 0 && behind < 8000), behind << " samples behind the first word");
  }
  BOOST_TEST(unheard == 4);  // the coughs
}

BOOST_AUTO_TEST_CASE(wherever_its_frames_begin_a_vad_tells_within_a_frame_behind_it) {
  const auto said = read_dialogues(kSource + "/models/nano/dialogues")->front();
  const auto heard = voice_heard_at(said.pcm, weights());
  for (const std::size_t phase : {0U, 50U, 111U, 200U, 301U, 400U, 511U}) {
    const auto behind = told_behind(32 * vad::kFrameSamples + phase, said.pcm) - heard;
    // It tries every fourth of a frame.
    BOOST_TEST((behind > -128 && behind <= std::int64_t{2 * vad::kFrameSamples}),
               "frames at " << phase << ": " << behind);
  }
}

BOOST_AUTO_TEST_CASE(silence_and_what_is_too_short_are_no_voice) {
  BOOST_TEST(voice_heard_at({}, weights()) == -1);
  BOOST_TEST(voice_heard_at(std::string(2 * 48000, '\0'), weights()) == -1);
  const auto said = read_dialogues(kSource + "/models/nano/dialogues")->front();
  const auto heard = static_cast<std::size_t>(voice_heard_at(said.pcm, weights()));
  BOOST_TEST(voice_heard_at(said.pcm.substr(0, 2 * (heard - 513)), weights()) == -1);
}

}  // namespace
}  // namespace parlando::cli
