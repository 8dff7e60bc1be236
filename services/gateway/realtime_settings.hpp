#pragma once
/// The effective `session` of a realtime connection: how updates are merged into it, and what it means for the
/// conversation below. A plain value.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "services/gateway/realtime_audio.hpp"
#include "services/gateway/realtime_error.hpp"

namespace parlando::gateway {

/// What a response may have of its own, and a session has for all.
struct ResponseSettings {
  bool audio = true;  ///< else text
  std::string instructions, voice;
  SoundFormat format = SoundFormat::pcm;
  double speed = 1;
  nlohmann::json tools = nlohmann::json::array(), tool_choice = "auto", max_output_tokens = "inf";

  /// @param where  "session" or "response", for errors. Fields that are null or absent stay as they are.
  RealtimeResult<void> merge(const nlohmann::json& changes, const std::string& where);
  /// Is the tool that has to be called one of the tools?
  RealtimeResult<void> check_tool_choice(const std::string& where) const;
  /// Fields of `open`, `configure` and `respond`.
  nlohmann::json dialogue() const;
  nlohmann::json modalities() const { return nlohmann::json::array({audio ? "audio" : "text"}); }
  nlohmann::json format_json() const;
};

struct TurnDetection {
  enum class Type : std::uint8_t { none, server_vad, semantic_vad };
  Type type = Type::server_vad;
  double threshold = 0.5;
  int prefix_ms = 300, silence_ms = 500;
  std::string eagerness = "auto";
  bool create_response = true, interrupt_response = true;
};

class RealtimeSettings {
 public:
  RealtimeSettings(std::string id, std::string model, bool transcription, std::int64_t expires_at);

  /// `session` of a `session.update`: deep merge; null clears. Nothing changes when something is wrong.
  RealtimeResult<void> update(const nlohmann::json& session);
  /// As `session.created` and `session.updated` tell it, in full.
  nlohmann::json effective() const;
  /// Of `open` and `configure`.
  nlohmann::json dialogue() const;

  bool is_transcription() const { return transcription_; }
  bool wants_transcripts() const { return !transcription_model_.is_null(); }
  /// Utterances are answered without being asked.
  bool answers() const { return !transcription_ && has_detection() && detection_.create_response; }
  bool has_detection() const { return detection_.type != TurnDetection::Type::none; }
  const ResponseSettings& responses() const { return responses_; }
  SoundFormat input() const { return input_; }

 private:
  RealtimeResult<void> merge_input(const nlohmann::json& input);
  RealtimeResult<void> merge_detection(const nlohmann::json& value);
  RealtimeResult<void> merge_transcription(const nlohmann::json& value);
  nlohmann::json detection_json() const;

  std::string id_, model_;
  bool transcription_;
  std::int64_t expires_at_;
  ResponseSettings responses_;
  SoundFormat input_ = SoundFormat::pcm;
  TurnDetection detection_;
  nlohmann::json transcription_model_;  ///< {model, language?, prompt?}; null: nobody wants transcripts
};

}  // namespace parlando::gateway
