#define BOOST_TEST_MODULE vad
#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "common/base/pcm.hpp"
#include "services/vad/vad_core.hpp"

namespace parlando::vad {
namespace {

const std::filesystem::path kRoot = PARLANDO_SOURCE_DIR;

std::vector<std::pair<int, std::int64_t>> run(const std::vector<float>& probabilities, TurnConfig config = {}) {
  TurnDetector detector(config);
  std::vector<std::pair<int, std::int64_t>> out;
  for (std::size_t n = 0; n < probabilities.size(); ++n)
    if (const auto e = detector.push(probabilities[n], static_cast<std::int64_t>(n) * 512)) out.emplace_back(static_cast<int>(e->kind), e->sample);
  return out;
}

std::vector<float> pattern(std::initializer_list<std::pair<int, float>> runs) {
  std::vector<float> out;
  for (const auto& [count, p] : runs) out.insert(out.end(), static_cast<std::size_t>(count), p);
  return out;
}

protocol::Message message(protocol::MessageType type, std::vector<std::byte> payload = {}) {
  protocol::Message m;
  m.head.type = type, m.head.session = {1, 2}, m.head.stream = 5;
  m.payload = std::move(payload);
  return m;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_turn_starts_at_its_first_frame_and_ends_behind_its_last) {
  const auto events = run(pattern({{10, 0.1f}, {20, 0.9f}, {40, 0.1f}}));
  BOOST_REQUIRE(events.size() == 2u);
  BOOST_TEST(events[0].second == 10 * 512);
  BOOST_TEST(events[1].second == 30 * 512);
}

BOOST_AUTO_TEST_CASE(a_click_is_no_turn_and_a_short_pause_no_end) {
  BOOST_TEST(run(pattern({{10, 0.1f}, {1, 0.9f}, {30, 0.1f}})).empty());
  BOOST_TEST(run(pattern({{10, 0.9f}, {10, 0.1f}, {10, 0.9f}})).size() == 1u);
  BOOST_TEST(run(pattern({{10, 0.9f}, {40, 0.4f}})).size() == 1u);  // above the lower threshold speech goes on
}

BOOST_AUTO_TEST_CASE(any_packets_of_a_recording_give_the_same_events) {
  const auto weights = SileroWeights::load(kRoot / "models/silero-vad/silero_vad.safetensors");
  BOOST_REQUIRE(weights.has_value());
  auto wave = audio::read_audio(kRoot / "models/nano/questions/capital_of_france.wav")->wave;
  wave.insert(wave.begin(), 8000, 0.0f);
  wave.resize(wave.size() + 24000, 0.0f);
  const auto bytes = to_pcm16(wave);
  std::vector<std::string> first;
  for (const std::size_t packet : {640u, 1024u, 202u, 9000u}) {
    VadCore core({}, *weights);
    core.on_message("c", message(protocol::MessageType::open), {});
    for (std::size_t at = 0; at < bytes.size(); at += packet)
      core.on_message("c",
                      message(protocol::MessageType::audio, {bytes.begin() + static_cast<std::ptrdiff_t>(at),
                                                             bytes.begin() + static_cast<std::ptrdiff_t>(std::min(bytes.size(), at + packet))}),
                      {});
    std::vector<std::string> seen;
    for (const auto& o : core.take()) seen.push_back(fmt::format("{} {}", static_cast<int>(o.message.head.type), o.message.body));
    if (first.empty()) first = seen;
    BOOST_TEST(seen.size() == 2u);
    BOOST_TEST(seen == first, boost::test_tools::per_element());
  }
}

BOOST_AUTO_TEST_CASE(wrong_messages_get_an_error_and_change_nothing) {
  const auto weights = SileroWeights::load(kRoot / "models/silero-vad/silero_vad.safetensors");
  VadCore core({.sessions_max = 1}, *weights);
  auto code = [&] {
    const auto out = core.take();
    return out.empty() ? std::string("none") : protocol::body_of(out.front().message).value("code", "?");
  };
  core.on_message("c", message(protocol::MessageType::audio), {});
  BOOST_TEST(code() == "not_found");
  core.on_message("c", message(protocol::MessageType::open), {});
  core.on_message("d", message(protocol::MessageType::open), {});
  BOOST_TEST(code() == "overloaded");
  core.on_message("c", message(protocol::MessageType::flush), {});
  BOOST_TEST(code() == "no_speech");
  core.on_message("c", message(protocol::MessageType::tokens), {});
  BOOST_TEST(code() == "unsupported");
  core.on_peer({"c", "controller", 1, true}, false, {});
  BOOST_TEST(core.load() == 0);
}

}  // namespace parlando::vad
