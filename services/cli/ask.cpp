#include "services/cli/ask.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>

#include "common/audio/resampler.hpp"
#include "common/base/units.hpp"
#include "services/cli/client.hpp"

namespace parlando::cli {
using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr double kSecondsMin = 0.1;
constexpr std::ptrdiff_t kSilence = kInputRate;  // of it at either end is enough
constexpr std::size_t kBlock = kInputRate / 10;  // sent at once
constexpr std::size_t kFrame = kInputRate / 50;  // live: 20 ms
constexpr milliseconds kFrameTime{20};
constexpr milliseconds kQuietMax{900'000};  // that an engine says nothing: large models on a processor
constexpr milliseconds kSendMax{60'000};

using Clock = std::chrono::steady_clock;
double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Says a recording in real time, then silence, until it is told to stop.
class Speaker {
 public:
  Speaker(sdk::Conversation& to, const std::vector<std::int16_t>& pcm) : thread_([this, &to, &pcm] { run(to, pcm); }) {}
  ~Speaker() {
    stop_ = true;
    thread_.join();
  }

 private:
  void run(sdk::Conversation& to, const std::vector<std::int16_t>& pcm) {
    const std::vector<std::int16_t> silence(kFrame);
    auto due = Clock::now();
    for (std::size_t at = 0; !stop_; at += kFrame) {
      const auto left = pcm.size() - std::min(pcm.size(), at);
      const std::span<const std::int16_t> frame =
          left >= kFrame ? std::span(pcm).subspan(at, kFrame) : std::span(silence);
      // When the conversation has ended, whoever listens to it is told why.
      if (const auto sent = guarded([&] { to.send_audio(frame, kSendMax); }); !sent) return;
      due += kFrameTime;
      std::this_thread::sleep_until(due);
    }
  }
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

Result<void> say(sdk::Conversation& to, const Question& question) {
  return guarded([&] {
    if (question.utter) return to.utter(*question.utter);
    if (question.text) return to.say(*question.text);
    for (std::size_t at = 0; at < question.pcm.size(); at += kBlock)
      to.send_audio(std::span(question.pcm).subspan(at, std::min(kBlock, question.pcm.size() - at)), kSendMax);
    to.flush();
  });
}

}  // namespace

Result<Question> question_of(const audio::Recording& recording) {
  if (recording.seconds() < kSecondsMin)
    return fail(Errc::no_speech, "the recording has {:.3f} s, at least {} s are needed", recording.seconds(),
                kSecondsMin);
  const auto wave = audio::resample(recording.wave, recording.rate, kInputRate);
  Question out;
  out.pcm.resize(wave.size());
  std::transform(wave.begin(), wave.end(), out.pcm.begin(), [](float x) {
    return static_cast<std::int16_t>(std::clamp(std::lround(x * 32768.0f), -32768l, 32767l));
  });
  auto& pcm = out.pcm;
  const auto sounds = [](std::int16_t x) { return x != 0; };
  const auto first = std::find_if(pcm.begin(), pcm.end(), sounds) - pcm.begin();
  const auto last = std::find_if(pcm.rbegin(), pcm.rend(), sounds).base() - pcm.begin();
  const auto size = static_cast<std::ptrdiff_t>(pcm.size());
  const auto from = first == size ? 0 : std::max<std::ptrdiff_t>(0, first - kSilence);
  pcm.erase(pcm.begin() + std::min(size, last + kSilence), pcm.end());
  pcm.erase(pcm.begin(), pcm.begin() + from);
  return out;
}

Result<Answer> ask(sdk::Conversation& conversation, const Question& question,
                   const std::function<void(const std::string&)>& on_text) {
  Answer out;
  const auto start = Clock::now();
  std::optional<Speaker> speaker;
  if (question.live)
    speaker.emplace(conversation, question.pcm);
  else
    PARLANDO_DO(say(conversation, question));
  while (out.total < 0) {
    PARLANDO_TRY(const auto told, guarded([&] { return conversation.next(kQuietMax); }));
    if (!told) return fail(Errc::cancelled, "the conversation has ended");
    if (const auto* sound = std::get_if<sdk::Sound>(&*told)) {
      if (out.wave.empty()) out.first_audio = ms_since(start);
      out.rate = sound->rate;
      out.wave.insert(out.wave.end(), sound->samples.begin(), sound->samples.end());
      continue;
    }
    const auto& event = std::get<sdk::Event>(*told);
    if (event.type == "error") return tl::unexpected(Error{errc_of(event.text("code")), event.text("message")});
    if (event.type == "cancelled") return fail(Errc::cancelled, "the turn was cancelled");
    if (event.type == "speech_ended") out.end_found = ms_since(start);
    if (event.type == "text" && event.text("kind") == "text" && on_text) on_text(event.text("text"));
    if (event.type != "turn") continue;
    out.record = json::parse(event.json, nullptr, false);
    if (!out.record.is_object()) return fail(Errc::bad_json, "the engine's turn is no JSON object");
    out.total = ms_since(start);
  }
  return out;
}

json stages_of(const Answer& answer) {
  const auto told = answer.record.value("stages", json::object());
  const auto mark = [&](const char* name) { return told.value(name, 0.0); };
  // The engine counts from the end of speech, which of a recording that is sent at once lies behind its beginning by
  // its own clock; what follows the decision has taken as long by ours.
  const double shift = answer.end_found < 0 ? 0 : answer.end_found - mark("decision_ms");
  json out = json::object();
  if (answer.end_found >= 0) {
    out["vad_ms"] = answer.end_found;
    out["tokenizer_ms"] = shift + mark("tokenizer_ms");
  }
  for (const auto* name : {"first_text_ms", "text_ms"})
    if (told.contains(name)) out[name] = shift + mark(name);
  if (answer.first_audio >= 0) out["first_audio_ms"] = answer.first_audio;
  out["total_ms"] = answer.total;
  return out;
}

}  // namespace parlando::cli
