#pragma once
/// `parlando bench turn`: how long people wait for an answer. Labelled dialogues (models/nano/dialogues) and the
/// bundled questions are said aloud in real time to an engine as users run it, over its WebSocket; what is timed is
/// what a client sees: from the true end of speech (labelled, or found in the recording) to the first byte of sound.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

/// Which ways of finding the end of speech are measured.
enum class Detector { silence, semantic, both };

/// Parts of the bench, in their order.
inline constexpr const char* kTurnParts[] = {"silence",   "semantic", "overhead", "interruptions",
                                             "synthesis", "at_once",  "live"};

struct TurnBenchOptions {
  std::filesystem::path model_path;
  std::filesystem::path source;  ///< the repository, to name the commit
  std::int64_t turns = 80;       ///< of the dialogues, for each detector; interruptions: half as many questions
  Detector detector = Detector::both;
  std::vector<std::string> only;  ///< of kTurnParts; empty: all of the chosen detectors
  std::filesystem::path output;   ///< the figures so far, written again and again; empty: nowhere
  int lead_ms = 400;
  std::vector<int> live_sessions{20, 50, 100, 150, 200, 240};
  double live_seconds = 25;  ///< of each
  std::string vad_weights;   ///< of what says when a voice could be heard
};

/// Prints a table and, on a terminal, its progress. SIGINT and SIGTERM end it with what has been measured (`cut:
/// true`).
/// @return machine, commit and figures; milliseconds are {p50, p95, p99, n}. What was not measured is absent and named
/// in `not_measured`; `missed` names what is beyond its target.
///   silence, semantic   of each detector: end_of_speech_to_first_audio_ms, end_of_speech_to_decision_ms and parts_ms
///                       (of utterances that were neither cut off nor part of an interruption), detector, murmurs and
///                       murmurs_that_ended_an_answer
///   detector            of the semantic one: cut_off_share of the pauses inside an utterance that were taken for its
///                       end, late_share of the utterances whose end was decided after more than 1.5 s
///   committed, speculation   with the silence detector if that was measured, which leaves an answer the time to be
///                       thought through; committed_share is that of the utterances that were neither cut off nor part
///                       of an interruption; committed.with_tool_ms and without_tool_ms are parts of
///                       committed.decision_to_first_audio_ms: a tool is called behind the decision
///   overhead_ms         a question to the controller that no model has to do with, there and back over the socket of a
///                       client that is listened to
///   synthesis_ms        from a text that is to be read out to the first byte of its sound
///   at_once             by number of speakers, all the time: 2, 4, 8, 16 as long as it goes well, 4 always
///   live_sessions, live by number of sessions (20 … 240), of which one in twenty speaks and is answered while the
///   others
///                       are listened to: the most with which nobody is lost, 95 % wait at most 1 s and no loudspeaker
///                       runs dry; memory a session,
///                       over what the engine had before the first of them
///   barge_in_ms         from the moment at which a vad can tell first of a voice over an answer (`voice_heard_at`) to
///                       the last sound of that answer at the client, at least to its `hold`
///   voice_to_hold_ms, interruptions, murmurs {n, took_share, took [text]}, underruns
/// @error what kept it from measuring
Result<nlohmann::json> bench_turn(const TurnBenchOptions& options);

}  // namespace parlando::cli
