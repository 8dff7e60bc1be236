/// The part of `ws_load` that speaks aloud: when an utterance is said, what is heard of its answer, and when.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "services/cli/ws_client.hpp"

namespace parlando::cli {
using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kIntoAnswer{300};   // before it is spoken over
constexpr milliseconds kLoudspeaker{200};  // its buffer
constexpr double kSilentSecondsMax = 20;   // behind speech: then something is wrong
constexpr double kRestSecondsMax = 5;      // behind one that was cut off: its rest may be answered or not

}  // namespace

/// The frame of this moment: of what is being said, or of the quiet room.
void WsLoad::talk(Client& client, Clock::time_point now) {
  figures_.late.push_back(ms_between(client.next_frame, now));
  ++figures_.frames;
  if (!client.speaking && may_speak(client, now)) {
    const auto& next = client.plan.utterances[client.utterance % client.plan.utterances.size()];
    client.speaking = true;
    client.said_bytes = 0;
    client.speak_at = {};
    client.murmurs = !next.takes_turn;
    client.cut_off = false;
    if (next.takes_turn) client.speech_end = {};
    // A frame leaves when its last sample has been said.
    const auto time_of = [&](std::int64_t sample) {
      return now + std::chrono::microseconds((sample - static_cast<std::int64_t>(kFrameSamples)) * 1000 / 16);
    };
    if (client.over_answer) client.voice_at = time_of(next.begin_sample);
    client.detected_at =
        client.over_answer && next.heard_sample >= 0 ? time_of(next.heard_sample) : Clock::time_point{};
  }
  const auto& said = client.plan.utterances[client.utterance % client.plan.utterances.size()];
  if (!client.speaking) {
    const bool lost = client.speech_end != Clock::time_point{} && !client.answered &&
                      ms_between(client.speech_end, now) > 1e3 * kSilentSecondsMax;
    if (lost) lose(client, "a question was not answered");
    const auto& frame = noise_[static_cast<std::size_t>(figures_.frames) % noise_.size()];
    return send(client, frame);
  }
  auto pcm = said.pcm.substr(client.said_bytes, 2 * kFrameSamples);
  client.said_bytes += pcm.size();
  pcm.resize(2 * kFrameSamples);
  queue(client, pcm, true);
  const auto end = static_cast<std::int64_t>(client.said_bytes / 2);
  if (said.takes_turn && client.speech_end == Clock::time_point{} && end >= said.end_sample) {
    // The frame leaves when its last sample has been said.
    client.speech_end = now - std::chrono::microseconds((end - said.end_sample) * 1000 / 16);
    client.answered = false;
    client.figure = {};
    client.figure.utterance = client.utterance % client.plan.utterances.size();
    client.figure.interrupted = std::exchange(client.over_answer, false);
    client.figure.cut_off = std::exchange(client.cut_off, false);
    client.open_figure = client.awaits_end = true;
    client.heard_seconds = client.play_lag = 0;
    figures_.pauses += said.pauses;
  }
  if (client.said_bytes < said.pcm.size()) return;
  client.speaking = false;
  client.quiet = std::max(client.quiet, now);
  if (!said.takes_turn) {
    client.over_answer = false;
    ++figures_.murmurs;
  }
  ++client.utterance;
}

/// Time for the next one: an answer is spoken over, or nothing is under way and the last answer has been heard.
bool WsLoad::may_speak(Client& client, Clock::time_point now) {
  if (client.speak_at != Clock::time_point{}) return now >= client.speak_at;
  if (client.awaits_end && client.figure.cut_off && ms_between(client.speech_end, now) > 1e3 * kRestSecondsMax) {
    client.awaits_end = false;
    client.speech_end = {};
    close_figure(client);
  }
  if (client.awaits_end || client.turns_under_way > 0 || client.held_at != Clock::time_point{}) return false;
  if (now < client.quiet + kLoudspeaker + kBeforeSpeech) return false;
  // An answer without sound is not spoken over.
  for (std::size_t n = 0; n < client.plan.utterances.size(); ++n) {
    if (client.plan.utterances[client.utterance % client.plan.utterances.size()].into_answer.count() < 0) return true;
    ++client.utterance;
  }
  return false;
}

/// The engine takes what was said for over.
void WsLoad::hear_end(Client& client) {
  const auto now = Clock::now();
  client.quiet = std::max(client.quiet, now);
  ++client.turns_under_way;
  const auto& said = client.plan.utterances[client.utterance % client.plan.utterances.size()];
  if (client.speaking && said.takes_turn && client.speech_end == Clock::time_point{}) {
    if (client.said_bytes / 2 <= static_cast<std::size_t>(said.begin_sample)) return;  // that of a murmur before
    ++figures_.cut_off;
    client.cut_off = true;
    return;
  }
  if (!std::exchange(client.awaits_end, false)) return;
  client.figure.end_told = ms_between(client.speech_end, now);
}

void WsLoad::hear(Client& client, std::size_t bytes) {
  const auto now = Clock::now();
  if (client.held_at != Clock::time_point{} && client.detected_at != Clock::time_point{})
    figures_.silenced.back() = ms_between(client.detected_at, now);
  if (client.speech_end == Clock::time_point{}) return;  // of the answer before
  if (!std::exchange(client.answered, true)) {
    client.first_audio = now;
    client.figure.first_audio = ms_between(client.speech_end, now);
    const auto next = client.utterance + (client.speaking ? 1 : 0);
    const auto into_answer = client.plan.utterances[next % client.plan.utterances.size()].into_answer;
    const bool interrupts = client.plan.interrupts_every > 0 && client.spoken_turns % client.plan.interrupts_every == 0;
    if (interrupts || into_answer.count() >= 0) {
      client.speak_at = now + (interrupts ? kIntoAnswer : into_answer);
      client.over_answer = true;
    }
  }
  const double late = ms_between(client.first_audio + kLoudspeaker, now) / 1e3 - client.heard_seconds - client.play_lag;
  if (late > 0 && client.held_at == Clock::time_point{}) {
    ++client.figure.underruns;
    client.play_lag += late;
  }
  client.heard_seconds += static_cast<double>(bytes) / 2 / client.rate;
  client.last_audio = now;
}

void WsLoad::end_turn(Client& client, const std::string& text) {
  client.turns_under_way = std::max(0, client.turns_under_way - 1);
  // The rest of the sound is in the loudspeaker.
  const auto heard = std::chrono::duration<double>(client.heard_seconds + client.play_lag);
  client.quiet =
      std::max({client.quiet, Clock::now(), client.first_audio + std::chrono::duration_cast<Clock::duration>(heard)});
  if (!client.open_figure) return;  // of the first part of one that was cut off, or of a murmur
  const auto body = json::parse(text);
  const auto stage = [&](const char* name) {
    return body.contains("stages") ? body["stages"].value(name, std::nan("")) : std::nan("");
  };
  auto& figure = client.figure;
  figure.decision = stage("decision_ms");
  figure.engine_audio = stage("first_audio_ms");
  figure.trial = stage("trial_ms");
  figure.calls_tool = !body.value("tool_calls", json::array()).empty();
  figure.interrupted = figure.interrupted || body.value("interrupted", false);
  if (const auto trace = body.value("trace", json::object()); trace.contains("parts"))
    for (const auto& part : trace["parts"]) figure.parts.emplace_back(part.value("name", ""), part.value("ms", 0.0));
  close_figure(client);
}

void WsLoad::close_figure(Client& client) {
  if (!std::exchange(client.open_figure, false)) return;
  figures_.spoken.push_back(client.figure);
  ++turns_;
  ++figures_.turns;
  ++client.spoken_turns;
}

}  // namespace parlando::cli
