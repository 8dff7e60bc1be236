#define BOOST_TEST_MODULE ends
#include "services/cli/ends.hpp"

#include <ATen/Parallel.h>

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

namespace parlando::cli {
namespace {
namespace fs = std::filesystem;

const fs::path kModels = fs::path(PARLANDO_SOURCE_DIR) / "models";

/// A pause at a second of sound that is so likely the end when it is judged.
HeardPause pause(double judged, int silence_ms = -1, std::int64_t sample = 16000) {
  HeardPause out{0, sample};
  for (const double p : {0.0, judged}) out.heard.push_back({{}, p});
  if (silence_ms >= 0) out.resumed = sample + 16 * silence_ms;
  return out;
}

controller::ControllerConfig by_thresholds() {
  controller::ControllerConfig config;
  config.complete_permille_medium = 700;
  config.unfinished_permille = 50;
  return config;
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_first_pause_that_is_likely_enough_is_the_end) {
  const auto config = by_thresholds();
  const auto end = end_of({pause(0.69, 300), pause(0.7, 96, 32000), pause(0.9, -1, 48000)}, config);
  BOOST_TEST(end.sample == 32000);
  BOOST_TEST(end.decided_sample == 32000 + 16 * config.judge_ms);
  BOOST_TEST((end.by == FoundEnd::By::judged));
}

/// 1200 and 4000 ms that a vad is asked for are 1088 and 3904 ms behind what it hears as the end.
BOOST_AUTO_TEST_CASE(who_may_be_done_is_waited_for_shorter_than_who_is_not) {
  const auto config = by_thresholds();
  const auto waits_ms = [&](std::vector<HeardPause> pauses) {
    const auto end = end_of(pauses, config);
    return (end.decided_sample - end.sample) / 16;
  };
  BOOST_TEST(waits_ms({pause(0.3)}) == 1088);
  BOOST_TEST(waits_ms({pause(0.01)}) == 3904);
  // Silence that is shorter ends nothing.
  BOOST_TEST(end_of({pause(0.3, 1056), pause(0.8, -1, 40000)}, config).sample == 40000);
  BOOST_TEST(end_of({pause(0.3, 1088), pause(0.8, -1, 40000)}, config).sample == 16000);
  // Once somebody was not done for so long, the longest silence is waited for.
  BOOST_TEST(waits_ms({pause(0.01, 1200), pause(0.3, -1, 40000)}) == 3904);
}

/// Bounds of the engine's behaviour on its own dialogues, one case above what it was accepted with: a worse detector,
/// another wait or a vad that hears later is noticed here without a clock. What is cut off is one "sorry," in each
/// round. One end in nine waits for 1.2 s of silence, of which the vad hears 1088 ms behind what it takes for the end.
BOOST_AUTO_TEST_CASE(the_bundled_dialogues_end_when_they_should) {
  at::set_num_threads(1);
  PausesOptions options;
  options.model_path = kModels / "nano";
  options.vad_weights = kModels / "silero-vad/silero_vad.safetensors";
  const auto found = ends_of_dialogues(kModels / "nano/dialogues", 4, options);
  BOOST_REQUIRE_MESSAGE(found.has_value(), found.error().message);
  auto told = *found;
  told.erase("all");
  BOOST_TEST_MESSAGE(told.dump());
  BOOST_TEST(told["utterances"] == 4 * 40);
  BOOST_TEST(told["pauses"] == 4 * 14);
  BOOST_TEST(told["cut_off_share"].get<double>() <= 5.0 / 56);
  BOOST_TEST(told["late_share"].get<double>() <= 0.05);
  BOOST_TEST(told["decision_ms"]["p50"].get<double>() <= 260);
  BOOST_TEST(told["decision_ms"]["p95"].get<double>() <= 1260);
  BOOST_TEST(told["at_once_share"].get<double>() >= 0.85);
  BOOST_TEST(told["trials_dropped_per_turn"].get<double>() <= 0.2);
  BOOST_TEST(told["trial_share"].get<double>() >= 0.9);
  BOOST_TEST(told["murmurs_took_share"] == 0);
}

BOOST_AUTO_TEST_SUITE(errors)

BOOST_AUTO_TEST_CASE(a_folder_that_is_none_is_named) {
  PausesOptions options;
  options.model_path = kModels / "nano";
  options.vad_weights = kModels / "silero-vad/silero_vad.safetensors";
  const auto found = ends_of_dialogues("/nowhere", 1, options);
  BOOST_REQUIRE(!found.has_value());
  BOOST_TEST(found.error().message.find("/nowhere") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::cli
