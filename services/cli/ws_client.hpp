#pragma once
/// What `ws_load` knows of one client; shared by its two sources.
#include "common/base/clock.hpp"
#include "services/cli/ws_load.hpp"
#include "services/cli/ws_socket.hpp"

namespace parlando::cli {

inline constexpr std::size_t kFrameSamples = 320;               // 20 ms
inline constexpr std::chrono::milliseconds kBeforeSpeech{700};  // behind an answer that has been heard

/// One client and what is under way with it.
struct WsLoad::Client {
  // Of one who speaks.
  std::size_t utterance = 0, said_bytes = 0;
  bool speaking = false, answered = false;
  Clock::time_point speak_at{}, speech_end{}, first_audio{}, last_audio{}, held_at{}, voice_at{}, detected_at{};
  double heard_seconds = 0, play_lag = 0;
  int spoken_turns = 0, rate = 22050;
  TurnFigure figure;
  bool open_figure = false;   ///< of the utterance said last: no turn has ended since
  bool awaits_end = false;    ///< it was said, and `speech_ended` has not come
  int turns_under_way = 0;    ///< whose speech has ended
  Clock::time_point quiet{};  ///< since then nothing happens any more
  bool over_answer = false;   ///< what is said now is said over an answer
  bool murmurs = false;       ///< … and shall not take the turn
  bool cut_off = false;       ///< what is said now was taken for over
  ClientPlan plan;
  std::unique_ptr<WsSocket> socket;
  bool opened = false, lost = false, writing = false;
  bool again = false;  ///< wants another session
  std::size_t flood_at = 0;
  Clock::time_point next_frame{}, next_ask{}, asked_at{};
  std::uint32_t asks = 0;
  bool asking = false;
  std::size_t text = 0;            ///< of `texts` or `utters`
  Clock::time_point uttered_at{};  ///< and nothing heard of it yet
  int turns = 0;
};

}  // namespace parlando::cli
