#pragma once
/// What the controller counts, under which names. Handles count nothing until `add` was called, so sessions need no
/// host.
#include <array>

#include "common/telemetry/metrics.hpp"
#include "services/controller/errors.hpp"
#include "services/controller/fleet.hpp"
#include "services/controller/trace.hpp"

namespace parlando::controller {

/// What has ended an utterance.
enum class Detector : std::size_t { silence, semantic, semantic_again, client, limit };
inline constexpr std::array<std::string_view, 5> kDetectorNames{"silence", "semantic", "semantic_again", "client",
                                                                "limit"};

/// What has become of a summary of the past.
enum class SummaryEnd : std::size_t { made, given_up, failed, empty, too_long };
inline constexpr std::array<std::string_view, 5> kSummaryEnds{"made", "given_up", "failed", "empty", "too_long"};

/// Turns that `/turns` of the metrics port tells of.
inline constexpr std::size_t kLatestTurns = 256;

struct Tally {
  using Counter = telemetry::Metrics::Counter;
  Counter turns, adoptions, stale, degraded, lost, resumed, resume_refused;
  Counter trials, trials_committed, trials_refused, holds, interruptions;
  Counter notes, tool_calls, tool_timeouts, unjudged, items_stored;
  std::array<Counter, kDetectorNames.size()> decisions;
  std::array<Counter, kSummaryEnds.size()> summaries;
  int trials_open = 0;  ///< now, of all sessions
  std::array<Counter, kErrcCount> turn_errors;
  std::array<Counter, kRoles> replays;
  telemetry::Metrics::Histogram first_audio, trial_lead;
  std::array<telemetry::Metrics::Histogram, kTraceParts.size()> parts;
  telemetry::Metrics::Lines latest_turns;
  telemetry::Metrics::Gauge sessions, detached, commits_waiting;

  void observe_part(std::string_view name, double seconds) const {
    for (std::size_t part = 0; part < kTraceParts.size(); ++part)
      if (kTraceParts[part] == name) parts[part].observe(seconds);
  }

  void add(telemetry::Metrics& metrics) {
    const std::string name = "parlando_controller_";
    turns = metrics.counter(name + "turns_total", "Turns reported to clients as done");
    adoptions = metrics.counter(name + "adoptions_total", "Sessions taken over with a turn under way");
    stale = metrics.counter(name + "stale_total", "Sessions given up because another owner has them");
    degraded = metrics.counter(name + "degraded_total", "Turns reported before they were durable");
    lost = metrics.counter(name + "commits_lost_total", "Turns reported as degraded that could not be stored");
    resumed = metrics.counter(name + "resumed_total", "Sessions that their client resumed behind the end of a gateway");
    resume_refused = metrics.counter(name + "resume_refused_total",
                                     "Attempts to resume a session that does not wait here, or with another token");
    for (int code = 1; code < kErrcCount; ++code)
      turn_errors[static_cast<std::size_t>(code)] =
          metrics.counter(name + "turn_errors_total", "Turns that ended with an error", "code",
                          std::string(to_string(static_cast<Errc>(code))));
    for (std::size_t role = 0; role < kRoles; ++role)
      replays[role] =
          metrics.counter(name + "replays_total", "Times a session's work was begun again on another stream", "role",
                          std::string(kRoleNames[role]));
    first_audio = metrics.histogram(name + "first_audio_seconds",
                                    "From the estimated end of speech to the first sound of the answer");
    for (std::size_t part = 0; part < kTraceParts.size(); ++part)
      parts[part] = metrics.histogram(name + "turn_part_seconds", "Parts of the time to the first sound (trace.hpp)",
                                      "part", std::string(kTraceParts[part]));
    latest_turns = metrics.lines("turns", kLatestTurns);
    trials = metrics.counter(name + "trials_total", "Answers begun in a pause of speech, before its end was decided");
    trials_committed = metrics.counter(name + "trials_committed_total", "Of these, those that became the answer");
    trials_refused = metrics.counter(name + "trials_refused_total", "Pauses in which none was begun: trials_max");
    trial_lead = metrics.histogram(name + "trial_lead_seconds", "From the begin of a committed trial to its decision");
    holds = metrics.counter(name + "holds_total", "Times that a voice made an answer stand still");
    interruptions = metrics.counter(name + "interruptions_total", "Answers that the user's voice ended");
    for (std::size_t by = 0; by < kDetectorNames.size(); ++by)
      decisions[by] = metrics.counter(name + "decisions_total", "Utterances whose end was decided, by what", "by",
                                      std::string(kDetectorNames[by]));
    notes = metrics.counter(name + "notes_total", "Utterances that were understood and not answered");
    tool_calls = metrics.counter(name + "tool_calls_total", "Calls that the model has made");
    tool_timeouts = metrics.counter(name + "tool_timeouts_total", "Of these, those that nobody answered in time");
    unjudged = metrics.counter(name + "unjudged_sessions_total",
                               "Sessions with a semantic detector whose tokenizer cannot judge an utterance");
    items_stored = metrics.counter(name + "items_stored_total", "Records of items alone, which no turn has taken up");
    for (std::size_t how = 0; how < kSummaryEnds.size(); ++how)
      summaries[how] = metrics.counter(name + "summaries_total", "Summaries of old turns that were begun, by their end",
                                       "end", std::string(kSummaryEnds[how]));
    sessions = metrics.gauge(name + "sessions", "Open sessions");
    detached = metrics.gauge(name + "detached", "Of these, those that wait for their client to resume them");
    commits_waiting = metrics.gauge(name + "commits_waiting", "Turns that wait to be durable");
  }
};

}  // namespace parlando::controller
