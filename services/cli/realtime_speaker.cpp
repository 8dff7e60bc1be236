#include "services/cli/realtime_speaker.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>

#include "common/base/base64.hpp"
#include "common/base/clock.hpp"
#include "services/cli/dialogues.hpp"

namespace parlando::cli {
using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr std::size_t kMicrophoneBytes = 2 * RealtimePlan::kRate / 50;
constexpr std::size_t kNoiseBytes = 64 * kMicrophoneBytes;
constexpr milliseconds kBeforeQuestion{700};  // behind an answer that has been heard
constexpr milliseconds kAhead{200};           // its buffer
constexpr milliseconds kAgreeMax{10'000};     // until the session stands
constexpr milliseconds kRest{3'000};          // behind an utterance that was cut off: its rest may be answered or not
constexpr std::size_t kErrorsMax = 50;        // kinds of them
constexpr std::size_t kWordsMax = 200;

std::string text_of(const json& from, const char* key) {
  const auto found = from.find(key);
  return found != from.end() && found->is_string() ? found->get<std::string>() : std::string();
}

/// What an `error` or a failed response says, shortly.
std::string words_of(const json& error) {
  if (!error.is_object()) return "no reason is told";
  const auto code = text_of(error, "code").empty() ? text_of(error, "type") : text_of(error, "code");
  const auto message = text_of(error, "message");
  const auto out = code + (code.empty() || message.empty() ? "" : ": ") + message;
  return out.empty() ? "no reason is told" : out.substr(0, kWordsMax);
}

}  // namespace

RealtimeSpeaker::RealtimeSpeaker(const RealtimePlan& plan, std::size_t first, Time now)
    : plan_(plan), since_(now), utterance_(first), speak_at_(now) {
  noise_ = in_a_room(std::vector<float>(kNoiseBytes / 2));
}

std::string RealtimeSpeaker::session_update() const {
  const json format{{"type", "audio/pcm"}, {"rate", RealtimePlan::kRate}};
  json session{{"type", "realtime"},
               {"output_modalities", {"audio"}},
               {"audio",
                {{"input", {{"format", format}, {"turn_detection", {{"type", plan_.detector}}}}},
                 {"output", {{"format", format}}}}}};
  if (!plan_.voice.empty()) session["audio"]["output"]["voice"] = plan_.voice;
  if (!plan_.instructions.empty()) session["instructions"] = plan_.instructions;
  return json{{"type", "session.update"}, {"session", session}}.dump();
}

std::string RealtimeSpeaker::append(std::string_view pcm) const {
  std::string out = R"({"type":"input_audio_buffer.append","audio":")";
  append_base64(out, std::as_bytes(std::span(pcm)));
  return out + "\"}";
}

std::string_view RealtimeSpeaker::next_noise() {
  noise_at_ = (noise_at_ + kMicrophoneBytes) % kNoiseBytes;
  return std::string_view(noise_).substr(noise_at_, kMicrophoneBytes);
}

bool RealtimeSpeaker::is_idle() const { return failure_ || (!speaking_ && !open_ && responses_ == 0); }

// ------------------------------------------------------------------------------------------------ what is told

std::vector<std::string> RealtimeSpeaker::on_event(std::string_view text, Time now) {
  const auto event = json::parse(text, nullptr, false);
  if (!event.is_object()) {
    ++errors_["an event is no JSON object"];
    return {};
  }
  const auto type = text_of(event, "type");
  if (type == "session.created" && state_ == State::created) {
    state_ = State::updated;
    return {session_update()};
  }
  if (type == "session.updated" && state_ == State::updated) {
    state_ = State::talking;
    speak_at_ = now + kBeforeQuestion;
  } else if (type == "error") {
    const auto words = words_of(event.value("error", json()));
    if (errors_.size() < kErrorsMax || errors_.contains(words)) ++errors_[words];
    if (state_ != State::talking && !failure_) failure_ = words;
  } else if (type == "input_audio_buffer.speech_stopped") {
    if (speaking_ && !ended_)
      cut_off_ = cut_off_ || static_cast<std::int64_t>(said_bytes_ / 2) > said().begin_sample;
    else if (open_ && std::isnan(open_->end_told))
      open_->end_told = ms_between(open_->asked, now);
  } else if (type == "response.created") {
    ++responses_;
  } else if (type == "response.output_audio.delta" || type == "response.audio.delta") {
    const auto found = event.find("delta");
    if (found != event.end() && found->is_string()) hear(found->get_ref<const std::string&>().size() * 3 / 4, now);
  } else if (type == "response.done") {
    end_response(event.value("response", json::object()), now);
  }
  return {};
}

void RealtimeSpeaker::hear(std::size_t bytes, Time now) {
  if (!open_ || open_->cut_off) return;  // of the answer before, or to a part of the question
  if (std::isnan(open_->first_audio)) {
    open_->first_audio = ms_between(open_->asked, now);
    first_audio_ = now;
    heard_seconds_ = play_lag_ = 0;
  }
  const double late = ms_between(first_audio_ + kAhead, now) / 1e3 - heard_seconds_ - play_lag_;
  if (late > 0) {
    ++open_->underruns;
    play_lag_ += late;
  }
  const auto seconds = static_cast<double>(bytes) / 2 / RealtimePlan::kRate;
  heard_seconds_ += seconds;
  open_->audio_seconds += seconds;
}

void RealtimeSpeaker::end_response(const json& response, Time now) {
  responses_ = std::max(0, responses_ - 1);
  if (!open_ || responses_ > 0) return;
  const auto status = response.is_object() ? text_of(response, "status") : std::string();
  if (status == "failed") {
    const auto details = response.value("status_details", json::object());
    return end_turn(now, words_of(details.is_object() ? details.value("error", json()) : json()));
  }
  if (!std::isnan(open_->first_audio) || open_->cut_off) return end_turn(now, {});
  // What was cancelled is the answer to something that was said before its end; the question's own may follow.
  if (status == "cancelled") return;
  end_turn(now, "an answer without sound");
}

void RealtimeSpeaker::end_turn(Time now, std::string failure) {
  open_->failure = std::move(failure);
  // The rest of the sound is in the loudspeaker.
  const auto heard = std::chrono::duration<double>(heard_seconds_ + play_lag_);
  const bool sounds = !std::isnan(open_->first_audio);
  const auto quiet = sounds ? first_audio_ + kAhead + std::chrono::duration_cast<Time::duration>(heard) : now;
  speak_at_ = std::max(now, quiet) + kBeforeQuestion;
  turns_.push_back(*std::exchange(open_, {}));
}

// ------------------------------------------------------------------------------------------------ what is said

std::vector<std::string> RealtimeSpeaker::on_frame(Time now) {
  if (failure_) return {};
  if (state_ != State::talking) {
    if (now - since_ > kAgreeMax)
      failure_ = state_ == State::created ? "session.created has not come" : "session.updated has not come";
    return {};
  }
  if (open_ && open_->cut_off && responses_ == 0 && now - open_->asked > kRest) end_turn(now, {});
  if (open_ && now - open_->asked > plan_.answer_max) {
    responses_ = 0;
    end_turn(now, open_->first_audio > 0 ? "response.done has not come" : "no answer has come");
  }
  if (!speaking_ && !open_ && !finishes_ && responses_ == 0 && now >= speak_at_) {
    speaking_ = true;
    ended_ = cut_off_ = false;
    said_bytes_ = 0;
  }
  if (!speaking_) return {append(next_noise())};
  std::string pcm = said().pcm.substr(said_bytes_, kMicrophoneBytes);
  said_bytes_ += pcm.size();
  pcm.append(next_noise().substr(pcm.size()));
  if (const auto end = static_cast<std::int64_t>(said_bytes_ / 2); !ended_ && end >= said().end_sample)
    end_speech(now, end - said().end_sample);
  if (said_bytes_ >= said().pcm.size()) {
    speaking_ = false;
    ++utterance_;
  }
  return {append(pcm)};
}

/// The frame leaves when its last sample has been said.
void RealtimeSpeaker::end_speech(Time now, std::int64_t behind_samples) {
  ended_ = true;
  open_.emplace();
  open_->asked = now - std::chrono::microseconds(behind_samples * 1'000'000 / RealtimePlan::kRate);
  open_->cut_off = cut_off_;
}

}  // namespace parlando::cli
