#pragma once
/// `parlando pauses --dialogues`: where a semantic detector ends labelled dialogues, and how far behind the true end of
/// speech. Without a clock: positions of sound, as the controller with its defaults finds them, whatever the machine.
#include <nlohmann/json_fwd.hpp>

#include "services/cli/pauses.hpp"
#include "services/controller/config.hpp"

namespace parlando::cli {

/// Where an utterance ends and how much sound it takes to say so.
struct FoundEnd {
  std::int64_t sample = 0, decided_sample = 0;
  enum class By { judged, judged_again, silence } by = By::silence;
};
/// As services/controller/pauses.cpp decides at eagerness `auto`, of pauses that were heard `semantic_tail_ms`,
/// `judge_ms` and `judge_again_ms` behind; in the last one silence goes on for ever. @pre pauses is not empty
FoundEnd end_of(const std::vector<HeardPause>& pauses, const controller::ControllerConfig& config);

/// Milliseconds of voice in a murmur, as services/controller/barge_in.cpp counts them.
double voiced_ms(const std::vector<HeardPause>& pauses);

/// {utterances, pauses, cut_off_share, late_share, decision_ms {p50, p95}, at_once_share, again_share,
/// trials_dropped_per_turn, trial_share, murmurs, murmurs_took_share, all}: of the dialogues of a folder, said `rounds`
/// times with other pauses. A trial is counted where its hint is likely enough; late is more than 1.5 s.
/// @error of reading, or Errc::unsupported when the model cannot judge
Result<nlohmann::json> ends_of_dialogues(const std::filesystem::path& folder, int rounds, const PausesOptions& options);

/// Prints them, as one JSON object or a line each without `all`.
Result<void> print_ends(const std::filesystem::path& folder, int rounds, const PausesOptions& options, bool as_json);

}  // namespace parlando::cli
