#pragma once
/// `parlando bench turn`: how long people wait for an answer. Labelled dialogues (models/nano/dialogues) and the
/// bundled questions are said aloud in real time to an engine as users run it, over its WebSocket; what is timed is
/// what a client sees: from the true end of speech (labelled, or found in the recording) to the first byte of sound.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>

#include "common/base/result.hpp"

namespace parlando::cli {

/// Which ways of finding the end of speech are measured.
enum class Detector { silence, semantic, both };

struct TurnBenchOptions {
  std::filesystem::path model_path;
  std::filesystem::path source;  ///< the repository, to name the commit
  std::int64_t turns = 72;       ///< of the dialogues, for each detector; with interruptions: a quarter
  Detector detector = Detector::silence;
  int lead_ms = 400;
};

/// Prints a table. @return machine, commit and figures; milliseconds are {p50, p95, p99, n}.
///   silence, semantic   of each detector that was measured: end_of_speech_to_first_audio_ms and
///                       end_of_speech_to_decision_ms (of utterances that were neither cut off nor part of an
///                       interruption), detector, murmurs and murmurs_that_ended_an_answer
///   detector            of the semantic one: cut_off_share of the pauses inside an utterance that were taken for its
///                       end, late_share of the utterances whose end was decided after more than 1.5 s
///   committed, speculation, overhead_ms   with the semantic detector if it was measured; committed_share is that of
///                       the utterances that were neither cut off nor part of an interruption. overhead_ms: a question
///                       to the controller that no model has to do with, there and back over the client's socket
///   at_once             by number of speakers; live_sessions: the most at once of whom 95 % wait at most 1 s and no
///                       loudspeaker runs dry, of 2, 4, 8, 16
///   barge_in_ms, voice_to_hold_ms, interruptions, underruns, missed
/// What was not measured is absent. @error what kept it from measuring
Result<nlohmann::json> bench_turn(const TurnBenchOptions& options);

}  // namespace parlando::cli
