#pragma once
/// One person at a server of the realtime API (`/v1/realtime`, GA names): recordings are said aloud in real time, and
/// when their answers are heard is noted. A plain class: events in, messages out, the time is told.
#include <chrono>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "services/cli/ws_load.hpp"

namespace parlando::cli {

struct RealtimePlan {
  static constexpr int kRate = 24000;
  std::vector<Utterance> utterances;    ///< at 24 kHz, one after the other, from the start again at the end
  std::string detector = "server_vad";  ///< or semantic_vad
  std::string voice, instructions;      ///< empty: the server's
  std::chrono::seconds answer_max{20};  ///< then the question counts as not answered
};

/// A question and its answer; milliseconds, not a number: it did not happen.
struct RealtimeTurn {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  std::chrono::steady_clock::time_point asked;  ///< the true end of speech
  double first_audio = kNone;                   ///< behind it
  double end_told = kNone;                      ///< `input_audio_buffer.speech_stopped` behind it
  double audio_seconds = 0;
  int underruns = 0;     ///< of a loudspeaker that begins 200 ms behind the first byte
  bool cut_off = false;  ///< it was taken for over while it was said
  std::string failure;   ///< why there is no answer; empty: there is one
};

class RealtimeSpeaker {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::chrono::milliseconds kFrame{20};

  /// @param first  the utterance to begin with   @param now  its socket stands
  RealtimeSpeaker(const RealtimePlan& plan, std::size_t first, Time now);
  /// @return what is to be sent at once
  std::vector<std::string> on_event(std::string_view text, Time now);
  /// To be called every 20 ms. @return what is to be sent
  std::vector<std::string> on_frame(Time now);
  /// Nothing new is said from now on.
  void finish() { finishes_ = true; }
  /// Nothing is under way, or all is lost.
  bool is_idle() const;
  /// The session is agreed on.
  bool stands() const { return state_ == State::talking; }
  /// Why no session could be agreed on.
  const std::optional<std::string>& failure() const { return failure_; }

  std::vector<RealtimeTurn> take() { return std::exchange(turns_, {}); }
  /// Of `error` events, by their message.
  const std::map<std::string, std::int64_t>& errors() const { return errors_; }

 private:
  enum class State { created, updated, talking };
  std::string session_update() const;
  std::string append(std::string_view pcm) const;
  std::string_view next_noise();
  void end_speech(Time now, std::int64_t behind_samples);
  void hear(std::size_t bytes, Time now);
  void end_response(const nlohmann::json& response, Time now);
  void end_turn(Time now, std::string failure);
  const Utterance& said() const { return plan_.utterances[utterance_ % plan_.utterances.size()]; }

  const RealtimePlan& plan_;
  State state_ = State::created;
  Time since_;
  std::optional<std::string> failure_;
  bool finishes_ = false;
  std::size_t utterance_, said_bytes_ = 0;
  bool speaking_ = false;
  bool ended_ = false;                ///< the last word of the one that is being said has been; its rest is quiet
  bool cut_off_ = false;              ///< of the one that is being said
  std::optional<RealtimeTurn> open_;  ///< its speech has ended
  int responses_ = 0;                 ///< under way
  Time speak_at_, first_audio_;
  double heard_seconds_ = 0, play_lag_ = 0;
  std::string noise_;
  std::size_t noise_at_ = 0;
  std::vector<RealtimeTurn> turns_;
  std::map<std::string, std::int64_t> errors_;
};

}  // namespace parlando::cli
