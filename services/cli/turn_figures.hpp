#pragma once
/// What a run of spoken turns has shown, as `bench turn` tells it. Pure functions of what the clients saw.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "services/cli/ws_load.hpp"

namespace parlando::cli {

/// Who waits longer for the decision thinks that nobody listens.
inline constexpr double kLateMs = 1500;

/// {p50, p95, p99, n}; of no values {n: 0} alone. What is not a number does not count.
nlohmann::json distribution(std::vector<double> values);

/// Of the utterances that were neither cut off nor part of an interruption.
std::vector<double> whole_turns(const std::vector<TurnFigure>& turns, double TurnFigure::*what);

/// Labelled dialogues in front of one detector: end_of_speech_to_first_audio_ms, end_of_speech_to_decision_ms, parts_ms
/// (of the engine's trace, by name), detector {cut_off_share, late_share, pauses, utterances}, murmurs,
/// murmurs_that_ended_an_answer; `all`: a turn each {utterance, first_audio_ms, decision_ms, trial_ms, calls_tool,
/// underruns, cut_off, interrupted}, null: it did not happen.
nlohmann::json dialogue_figures(const LoadFigures& run);

/// Thinking ahead: {committed: {decision_to_first_audio_ms, of these with_tool_ms and without_tool_ms}, speculation:
/// {committed_share, discarded_per_turn, saved_ms}}; a share of nothing is absent. A tool is not called before the
/// decision, so what is said behind one cannot be thought ahead: these answers stand apart. @param discarded  trials
/// that came to nothing in `turns` turns
nlohmann::json speculation_figures(const LoadFigures& run, double discarded, double turns);

/// Of the turns that ran to their end.
std::int64_t underruns_of(const LoadFigures& run);

/// A figure's target.
struct TurnTarget {
  const char* path;  ///< as a JSON pointer
  double most = 0;   ///< or `least`
  double least = -1;
};
/// All that this bench can see.
const std::vector<TurnTarget>& turn_targets();
/// Names of figures beyond their target, and of those that were not measured.
struct Verdict {
  std::vector<std::string> missed, not_measured;
};
Verdict judge_turns(const nlohmann::json& figures);

}  // namespace parlando::cli
