/// What conversations tell, as events of the realtime API.
#include <algorithm>

#include "common/telemetry/log.hpp"
#include "services/gateway/realtime.hpp"
#include "services/gateway/realtime_fields.hpp"

namespace parlando::gateway {

namespace {

using nlohmann::json;

constexpr std::uint16_t kTryLater = 1013;
constexpr std::size_t kCallsMax = 128;
// A voice that begins so much before the client's commit belongs to what was committed.
constexpr std::int64_t kBeforeCommit = kInputRate / 10;
// The codes that the model hears and speaks: five in 120 ms.
constexpr std::int64_t kCodesPerGroup = 5, kGroupMs = 120;

std::int64_t number_of(const json& object, const char* name, std::int64_t otherwise = 0) {
  const auto& value = field(object, name);
  return value.is_number_integer() ? value.get<std::int64_t>() : otherwise;
}

std::uint32_t turn_of(const json& event) {
  const auto turn = number_of(event, "turn");
  return turn < 0 || turn > std::numeric_limits<std::uint32_t>::max() ? 0 : static_cast<std::uint32_t>(turn);
}

std::int64_t ms_of(std::int64_t samples) { return samples * 1000 / kInputRate; }
std::int64_t codes_of(std::int64_t ms) { return ms * kCodesPerGroup / kGroupMs; }

}  // namespace

void Realtime::talk_event(int talk, std::string_view event) {
  const auto body = json::parse(event, nullptr, false);
  if (!body.is_object()) return;
  const auto type = text_of(body, "type");
  talk == 0 ? on_main_event(type, body) : on_side_event(talk, type, body);
}

void Realtime::on_main_event(const std::string& type, const json& event) {
  if (type == "text") return on_text(event);
  if (type == "speech_started") return on_speech_started(number_of(event, "sample"));
  if (type == "speech_ended") return on_speech_ended(number_of(event, "sample"));
  if (type == "turn") return on_turn(event);
  if (type == "noted") return on_noted(event);
  if (type == "waiting") return on_waiting(turn_of(event));
  if (type == "interrupted") return on_interrupted(event);
  if (type == "cancelled") return on_cancelled(turn_of(event));
  if (type == "error") return on_error(event);
  // opened, hold, release: nothing that a realtime client is told.
}

void Realtime::talk_closed(int talk, std::uint16_t code, const std::string& reason) {
  if (talk == 0) {
    if (active_) finish_active({"failed", {}, "server_error", "session_ended"});
    if (!ending_) ending_ = Ending{code, reason};
    return;
  }
  const auto side = sides_.find(talk);
  if (side == sides_.end()) return;
  side->second.response->finish({"failed", {}, "server_error", "unavailable"});
  sides_.erase(side);
}

// ------------------------------------------------------------------------------------------------ what the user says

void Realtime::on_speech_started(std::int64_t sample) {
  if (!settings_.has_detection() || hearing_ || sample + kBeforeCommit < committed_) return;
  hearing_ = Utterance{events_.next_id("item"), sample};
  events_.send("input_audio_buffer.speech_started", {{"item_id", hearing_->item}, {"audio_start_ms", ms_of(sample)}});
}

void Realtime::on_speech_ended(std::int64_t sample) {
  if (!settings_.has_detection() && !hearing_) return;
  if (!hearing_) {
    if (sample <= committed_) return;  // the client has committed it itself
    on_speech_started(std::max(buffered_, committed_));
    if (!hearing_) return;
  }
  auto utterance = *std::exchange(hearing_, std::nullopt);
  utterance.end = std::max(sample, utterance.begin);
  buffered_ = std::clamp(sample, buffered_, position_);
  events_.send("input_audio_buffer.speech_stopped",
               {{"item_id", utterance.item}, {"audio_end_ms", ms_of(utterance.end)}});
  add_utterance(utterance);
  if (utterances_.size() >= kUtterancesMax) {
    fail_transcript(utterances_.front(), "overloaded", "too many utterances wait for their transcript");
    utterances_.pop_front();
  }
  utterances_.push_back(std::move(utterance));
}

/// It is an item of the conversation from here on.
void Realtime::add_utterance(Utterance utterance) {
  const auto before = previous_item(items_.last());
  events_.send("input_audio_buffer.committed", {{"previous_item_id", before}, {"item_id", utterance.item}});
  RealtimeItem item;
  item.id = utterance.item;
  item.role = "user";
  item.content = {{"input_audio", ""}};
  const json told{{"previous_item_id", before}, {"item", item.json()}};
  items_.add(std::move(item));
  events_.send("conversation.item.added", told);
  events_.send("conversation.item.done", told);
}

/// The next utterance that is understood, in the order in which they were spoken.
void Realtime::on_transcript(std::uint32_t turn, const std::string& text) {
  const auto is_it = [turn](const Utterance& u) { return u.turn == turn || u.turn == 0; };
  const auto found = std::find_if(utterances_.begin(), utterances_.end(), is_it);
  if (found == utterances_.end()) return;
  found->turn = turn;
  found->transcript += text;
  if (found->discarded) {
    // With answers the conversation is about to make one; without, `noted` follows and is forgotten.
    if (settings_.answers()) {
      if (dropped_.size() >= kDroppedMax) dropped_.pop_front();
      dropped_.push_back(turn);
      tell(0, {{"type", "cancel"}, {"turn", turn}});
      utterances_.erase(found);
    }
    return;
  }
  if (auto* item = items_.find(found->item)) {
    item->turn = turn;
    item->content = {{"input_audio", found->transcript}};
  }
  if (settings_.wants_transcripts())
    events_.send("conversation.item.input_audio_transcription.delta",
                 {{"item_id", found->item}, {"content_index", 0}, {"delta", text}});
  if (settings_.answers()) response_of(turn);
}

/// All of what the turn has understood is told. @param transcript  of it, when there were no parts
void Realtime::understood(std::uint32_t turn, const std::string& transcript) {
  while (turn != 0) {
    const auto found =
        std::find_if(utterances_.begin(), utterances_.end(), [turn](const Utterance& u) { return u.turn == turn; });
    if (found == utterances_.end()) return;
    auto utterance = std::move(*found);
    utterances_.erase(found);
    if (utterance.transcript.empty() && !transcript.empty()) utterance.transcript = transcript;
    if (!utterance.discarded) complete_transcript(utterance);
  }
}

void Realtime::complete_transcript(const Utterance& utterance) {
  if (auto* item = items_.find(utterance.item); item != nullptr && !item->content.empty())
    item->content[0].text = utterance.transcript;
  if (!settings_.wants_transcripts()) return;
  events_.send(
      "conversation.item.input_audio_transcription.completed",
      {{"item_id", utterance.item},
       {"content_index", 0},
       {"transcript", utterance.transcript},
       {"usage",
        {{"type", "duration"}, {"seconds", static_cast<double>(utterance.end - utterance.begin) / kInputRate}}}});
}

void Realtime::fail_transcript(const Utterance& utterance, const std::string& code, const std::string& message) {
  if (utterance.discarded || !settings_.wants_transcripts()) return;
  events_.send("conversation.item.input_audio_transcription.failed",
               {{"item_id", utterance.item},
                {"content_index", 0},
                {"error", {{"type", "server_error"}, {"code", code}, {"message", message}}}});
}

void Realtime::on_noted(const json& event) {
  if (utterances_.empty()) return;
  const auto id = text_of(event, "id"), text = text_of(event, "text");
  auto utterance = std::move(utterances_.front());
  utterances_.pop_front();
  if (utterance.discarded) {
    tell(0, {{"type", "forget"}, {"item", id}});
    return turn_over(utterance.turn);
  }
  if (auto* item = items_.find(utterance.item)) {
    item->turn = 0;  // it has led to none
    item->told_as = id;
  } else {
    tell(0, {{"type", "forget"}, {"item", id}});  // the client has deleted it meanwhile
  }
  if (utterance.transcript.empty() && settings_.wants_transcripts() && !text.empty())
    events_.send("conversation.item.input_audio_transcription.delta",
                 {{"item_id", utterance.item}, {"content_index", 0}, {"delta", text}});
  utterance.transcript = text;
  complete_transcript(utterance);
  turn_over(utterance.turn);
}

// ------------------------------------------------------------------------------------------------ what is answered

/// Is this of a turn that the client has cancelled? One whose number was not known then is the next one to be told of.
bool Realtime::drops(std::uint32_t turn) {
  if (std::find(dropped_.begin(), dropped_.end(), turn) != dropped_.end()) return true;
  const auto unknown = std::find(dropped_.begin(), dropped_.end(), 0u);
  if (unknown == dropped_.end() || turn == 0) return false;
  *unknown = turn;
  return true;
}

/// The response that a turn's answer belongs to; a new one when nobody has asked for it. Null: it was cancelled, or has
/// ended.
RealtimeResponse* Realtime::response_of(std::uint32_t turn) {
  if (turn == 0 || drops(turn)) return nullptr;
  if (active_ && active_->turn() == 0) active_->bind(turn);
  if (active_ && active_->turn() == turn) return active_.get();
  if (waiting_turn_ == turn) return nullptr;
  if (active_) finish_active({"cancelled", "turn_detected"});  // its end was never told
  auto options = response_options(conversation_, settings_.responses(), {});
  options.turn = turn;
  if (sound_turn_ == turn) options.first_sample = turn_samples_;
  active_ = std::make_unique<RealtimeResponse>(std::move(options), events_, items_);
  return active_.get();
}

void Realtime::finish_active(const ResponseEnd& end) {
  const auto response = std::move(active_);
  response->finish(end);
}

void Realtime::on_text(const json& event) {
  const auto turn = turn_of(event);
  const auto kind = text_of(event, "kind"), text = text_of(event, "text");
  open_turn_ = turn;
  if (drops(turn)) return;
  if (kind == "transcript") return on_transcript(turn, text);
  auto* response = response_of(turn);
  if (response == nullptr) return;
  understood(turn, {});
  if (kind == "text") response->text(text);
  if (kind == "tool_call") on_call(*response, text, true);
}

/// @param pending  its output is waited for
void Realtime::on_call(RealtimeResponse& response, const std::string& text, bool pending) {
  const auto call = json::parse(text, nullptr, false);
  if (!call.is_object() || call.contains("result")) return;  // the engine has executed it
  const auto id = events_.next_id("call");
  const auto& arguments = field(call, "arguments");
  response.call(id, text_of(call, "name"),
                arguments.is_string() ? arguments.get<std::string>()
                : arguments.is_null() ? "{}"
                                      : dump(arguments));
  if (!pending) return;
  calls_turn_ = response.turn();
  if (calls_.size() < kCallsMax) calls_.push_back({id, text_of(call, "id")});
}

/// The client's part: the response is over, the turn goes on when the client asks for the next one.
void Realtime::on_waiting(std::uint32_t turn) {
  if (!active_ || active_->turn() != turn || drops(turn)) return;
  waiting_turn_ = calls_turn_ = turn;
  finish_active({});
}

void Realtime::talk_sound(int talk, std::uint32_t turn, std::string_view pcm) {
  if (talk != 0) {
    const auto side = sides_.find(talk);
    if (side != sides_.end()) side->second.response->sound(pcm);
    return;
  }
  open_turn_ = turn;
  if (drops(turn)) return;
  auto* response = response_of(turn);
  if (std::exchange(sound_turn_, turn) != turn) turn_samples_ = 0;
  turn_samples_ += static_cast<std::int64_t>(pcm.size() / kSampleBytes);
  if (response != nullptr) {
    understood(turn, {});
    response->sound(pcm);
  } else if (waiting_turn_ == turn && late_sound_.size() + pcm.size() <= kLateSoundMax) {
    late_sound_ += pcm;  // heard with what follows the tools
  }
}

ResponseEnd Realtime::end_of(const json& event) {
  ResponseEnd out;
  if (text_of(event, "finish") == "length") {
    out.status = "incomplete";
    out.reason = "max_output_tokens";
  }
  return out;
}

/// Tokens as far as the conversation counts them; those of sound are its codes.
json usage_of(const json& event, std::int64_t heard_ms, std::int64_t spoken_samples) {
  const auto& counted = field(event, "usage");
  if (!counted.is_object()) return {};
  const auto input = number_of(counted, "prompt_tokens"), output = number_of(counted, "output_tokens");
  const auto cached = number_of(counted, "cached_tokens");
  const auto heard = std::min(codes_of(heard_ms), input), spoken = codes_of(spoken_samples * 1000 / kSpeechRate);
  return {{"total_tokens", input + output + spoken},
          {"input_tokens", input},
          {"output_tokens", output + spoken},
          {"input_token_details",
           {{"text_tokens", input - heard}, {"audio_tokens", heard}, {"cached_tokens", std::min(cached, input)}}},
          {"output_token_details", {{"text_tokens", output}, {"audio_tokens", spoken}}}};
}

void Realtime::on_turn(const json& event) {
  const auto turn = turn_of(event);
  if (const auto dropped = std::find(dropped_.begin(), dropped_.end(), turn); dropped != dropped_.end()) {
    dropped_.erase(dropped);
    understood(turn, text_of(event, "user"));
    return turn_over(turn);
  }
  std::int64_t heard_ms = 0;
  for (const auto& utterance : utterances_)
    if (utterance.turn == turn) heard_ms += ms_of(utterance.end - utterance.begin);
  understood(turn, text_of(event, "user"));
  if (active_ && (active_->turn() == turn || (active_->turn() == 0 && !asked_))) {
    auto end = end_of(event);
    end.usage = usage_of(event, heard_ms, active_->samples());
    finish_active(end);
  }
  turn_over(turn);
}

/// Nothing of it follows. Outputs that nobody waits for any more are still worth knowing.
void Realtime::turn_over(std::uint32_t turn) {
  if (calls_turn_ == turn) {
    for (const auto& call : std::exchange(calls_, {}))
      if (call.output) tell_output(call);
    calls_turn_ = waiting_turn_ = 0;
    late_sound_.clear();
  }
  if (sound_turn_ == turn) sound_turn_ = 0;
  if (open_turn_ == turn) open_turn_ = 0;
  if (!asked_ || open_turn_ != 0 || !dropped_.empty()) return;
  // The user may have been quicker: the answer that is made already is the one that was asked for.
  const auto respond = *std::exchange(asked_, std::nullopt);
  if (active_ && active_->turn() == 0) tell(0, respond);
}

void Realtime::on_interrupted(const json& event) {
  const auto turn = turn_of(event);
  if (drops(turn) || !active_ || active_->turn() != turn) return;
  if (open_turn_ == turn && dropped_.size() < kDroppedMax) dropped_.push_back(turn);  // until it is over
  const auto message = active_->message_id();
  finish_active({"cancelled", "turn_detected"});
  if (auto* item = items_.find(message); item != nullptr && !item->content.empty())
    item->content[0].text = text_of(event, "heard");
}

void Realtime::on_cancelled(std::uint32_t turn) {
  auto dropped = std::find(dropped_.begin(), dropped_.end(), turn);
  if (dropped == dropped_.end()) dropped = std::find(dropped_.begin(), dropped_.end(), 0u);
  if (dropped != dropped_.end()) {
    dropped_.erase(dropped);
    return turn_over(turn);
  }
  // Not asked for: the user went on before it was understood. Nobody will ever say what it was.
  const auto is_it = [turn](const Utterance& u) { return u.turn == turn; };
  if (!utterances_.empty() && utterances_.front().turn == 0 &&
      std::none_of(utterances_.begin(), utterances_.end(), is_it))
    utterances_.front().turn = turn;
  if (active_ && active_->turn() == turn) finish_active({"cancelled", "turn_detected"});
  understood(turn, {});
  turn_over(turn);
}

void Realtime::on_error(const json& event) {
  const auto turn = turn_of(event);
  const auto code = text_of(event, "code"), message = text_of(event, "message");
  const auto& ended = field(event, "session_ended");
  if (ended == true) {
    if (active_) finish_active({"failed", {}, "server_error", code});
    events_.send(RealtimeError{code, message, {}, "server_error"}, {});
    ending_ = Ending{kTryLater, "the conversation has ended: " + code};
    return;
  }
  const auto utterance = std::find_if(utterances_.begin(), utterances_.end(),
                                      [turn](const Utterance& u) { return u.turn == turn || u.turn == 0; });
  if (code == "no_speech") {
    if (utterance == utterances_.end()) {
      // Asked to answer what was not understood.
      const bool of_response = active_ && turn != 0 && (active_->turn() == turn || active_->turn() == 0) && !asked_;
      if (of_response) finish_active({"failed", {}, "server_error", code});
      return turn_over(turn);
    }
    const auto silent = std::move(*utterance);
    utterances_.erase(utterance);
    if (!silent.discarded) complete_transcript(silent);
    return turn_over(turn);
  }
  // Of what the client has cancelled; what was never a turn is refused without a number.
  if (const auto dropped = std::find(dropped_.begin(), dropped_.end(), turn);
      dropped != dropped_.end() && (turn != 0 || code == "invalid_argument")) {
    dropped_.erase(dropped);
    return turn_over(turn);
  }
  telemetry::log(telemetry::Level::warning, "gateway tells a realtime client of an error code={} turn={}: {}", code,
                 turn, message);
  const bool of_response = active_ && !asked_ && (turn == 0 || active_->turn() == 0 || active_->turn() == turn);
  const bool of_utterance = utterance != utterances_.end() && (turn != 0 || !of_response);
  if (of_utterance) {
    fail_transcript(*utterance, code, message);
    utterances_.erase(utterance);
  }
  if (of_response)
    finish_active({"failed", {}, "server_error", code});
  else if (!of_utterance && code == "deadline_exceeded" && turn == 0)
    events_.send(RealtimeError{"session_expired", message}, {});
  else if (!of_utterance)
    events_.send(RealtimeError{code, message, {}, "server_error"}, {});
  if (turn != 0) turn_over(turn);
}

// ------------------------------------------------------------------------------------------------ out of band

void Realtime::on_side_event(int talk, const std::string& type, const json& event) {
  const auto found = sides_.find(talk);
  if (found == sides_.end()) return;
  auto& response = *found->second.response;
  if (type == "text") {
    const auto kind = text_of(event, "kind");
    if (kind == "text") response.text(text_of(event, "text"));
    if (kind == "tool_call") on_call(response, text_of(event, "text"), false);
    return;
  }
  ResponseEnd end;
  if (type == "error") {
    end = {"failed", {}, "server_error", text_of(event, "code")};
    telemetry::log(telemetry::Level::warning, "gateway has a response out of band fail code={}: {}",
                   text_of(event, "code"), text_of(event, "message"));
  } else if (type == "turn") {
    end = end_of(event);
  } else if (type != "waiting") {
    return;
  }
  if (type == "turn") end.usage = usage_of(event, 0, response.samples());
  response.finish(end);
  // What it has said belongs to the conversation, if it was made for it.
  if (found->second.remembered)
    if (auto* item = items_.find(response.message_id())) {
      item->told_as = item->id;
      tell(0, dialogue_item(*item));
    }
  sides_.erase(found);
  to_talks_.push_back({talk, ToTalk::Kind::end});
}

}  // namespace parlando::gateway
