#define BOOST_TEST_MODULE turn_figures
#include "services/cli/turn_figures.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <set>

namespace parlando::cli {
namespace {

using nlohmann::json;

TurnFigure turn(double first_audio, double end_told) {
  TurnFigure out;
  out.first_audio = first_audio;
  out.end_told = end_told;
  out.parts = {{"decision", end_told}, {"first_audio", first_audio - end_told}};
  return out;
}

}  // namespace

BOOST_AUTO_TEST_CASE(what_was_not_measured_is_absent_and_named) {
  const auto nothing = distribution({});
  BOOST_TEST((nothing == json{{"n", 0}}));
  BOOST_TEST((distribution({std::nan(""), 3.0}) == json{{"n", 1}, {"p50", 3.0}, {"p95", 3.0}, {"p99", 3.0}}));
  const auto verdict = judge_turns(json::object());
  BOOST_TEST(verdict.missed.empty());
  BOOST_TEST(verdict.not_measured.size() == turn_targets().size());
  BOOST_TEST(judge_turns({{"barge_in_ms", nothing}}).missed.empty());
}

BOOST_AUTO_TEST_CASE(targets_are_met_or_missed) {
  const json met{{"silence", {{"end_of_speech_to_first_audio_ms", {{"p50", 530.0}, {"n", 3}}}}},
                 {"live_sessions", 200},
                 {"underruns", 0},
                 {"speculation", {{"committed_share", 0.6}}}};
  BOOST_TEST(judge_turns(met).missed.empty());
  const json missed{{"silence", {{"end_of_speech_to_first_audio_ms", {{"p50", 530.1}, {"n", 3}}}}},
                    {"live_sessions", 199},
                    {"underruns", 1},
                    {"speculation", {{"committed_share", 0.59}}}};
  const auto verdict = judge_turns(missed);
  const std::set<std::string> names(verdict.missed.begin(), verdict.missed.end());
  BOOST_TEST((names == std::set<std::string>{"silence.end_of_speech_to_first_audio_ms.p50", "live_sessions",
                                             "underruns", "speculation.committed_share"}));
}

BOOST_AUTO_TEST_CASE(utterances_that_were_cut_off_or_interrupted_are_no_latency) {
  LoadFigures run;
  run.spoken = {turn(500, 480), turn(520, 490), turn(9000, 8000), turn(1, 1)};
  run.spoken[2].interrupted = true;
  run.spoken[3].cut_off = true;
  run.spoken[3].underruns = 5;
  run.spoken[0].underruns = 2;
  run.pauses = 4;
  run.cut_off = 1;
  const auto told = dialogue_figures(run);
  BOOST_TEST(told["end_of_speech_to_first_audio_ms"]["n"] == 2);
  BOOST_TEST(told["end_of_speech_to_first_audio_ms"]["p99"] == 520.0);
  BOOST_TEST(told["parts_ms"]["first_audio"]["p99"] == 30.0);
  BOOST_TEST(told["detector"]["cut_off_share"] == 0.25);
  BOOST_TEST(told["detector"]["late_share"] == 0.0);
  BOOST_TEST(underruns_of(run) == 2);
}

BOOST_AUTO_TEST_CASE(a_decision_after_more_than_a_second_and_a_half_is_late) {
  LoadFigures run;
  run.spoken = {turn(500, 480), turn(2000, 1501), turn(2000, 1500), turn(700, 600)};
  BOOST_TEST(dialogue_figures(run)["detector"]["late_share"] == 0.25);
  BOOST_TEST(!dialogue_figures(LoadFigures{})["detector"].contains("late_share"));
  BOOST_TEST(!dialogue_figures(LoadFigures{})["detector"].contains("cut_off_share"));
}

BOOST_AUTO_TEST_CASE(what_thinking_ahead_is_worth_counts_whole_turns) {
  LoadFigures run;
  run.spoken = {turn(500, 480), turn(520, 490), turn(600, 500), turn(1, 1)};
  run.spoken[3].cut_off = true;
  for (auto& t : run.spoken) t.decision = 480, t.engine_audio = 485;
  run.spoken[0].trial = 300, run.spoken[1].trial = 100, run.spoken[3].trial = 7;
  const auto told = speculation_figures(run, 3, 6);
  BOOST_TEST(told["committed"]["decision_to_first_audio_ms"]["n"] == 2);
  BOOST_TEST(told["committed"]["decision_to_first_audio_ms"]["p50"] == 5.0);
  BOOST_TEST(told["speculation"]["committed_share"].get<double>() == 2.0 / 3, boost::test_tools::tolerance(1e-9));
  BOOST_TEST(told["speculation"]["discarded_per_turn"] == 0.5);
  BOOST_TEST(!told["committed"].contains("with_tool_ms"));
  run.spoken[1].calls_tool = true;
  const auto apart = speculation_figures(run, 3, 6);
  BOOST_TEST(apart["committed"]["decision_to_first_audio_ms"]["n"] == 2);
  BOOST_TEST(apart["committed"]["with_tool_ms"]["n"] == 1);
  BOOST_TEST(apart["committed"]["without_tool_ms"]["n"] == 1);
  BOOST_TEST(apart["speculation"]["committed_share"] == told["speculation"]["committed_share"]);
  BOOST_TEST(!speculation_figures(run, 0, 0)["speculation"].contains("discarded_per_turn"));
}

}  // namespace parlando::cli
