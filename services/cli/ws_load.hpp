#pragma once
/// Many WebSocket clients of a gateway on one thread, for measurements: epoll over sockets that never block, every
/// frame of sound at a time of its own. What it costs itself is counted apart. One thread at a time.
#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

/// Something to be said aloud: s16le at 16 kHz, where its first word begins and its last one ends.
struct Utterance {
  std::string pcm;
  std::int64_t begin_sample = 0, end_sample = 0;
  int pauses = 0;                                                    ///< in its middle: none of them is an end
  std::vector<std::pair<std::int64_t, std::int64_t>> silences = {};  ///< where they begin and end
  /// Said over the answer to the one before, so long behind its first sound; left out when there is none. Negative:
  /// said when the answer before has been heard.
  std::chrono::milliseconds into_answer{-1};
  std::int64_t heard_sample = -1;  ///< where a vad can tell first that somebody speaks (`voice_heard_at`); -1: unknown
  bool takes_turn = true;          ///< or it is a murmur, a cough: nobody shall answer it
  std::string text = {};           ///< what is said, where that is known
};

/// What one client does once its session is open.
struct ClientPlan {
  bool sound = false;                      ///< a frame of noise that is no speech, every 20 ms
  std::chrono::milliseconds ask_every{0};  ///< asks for the acknowledgement of what it has sent, and times it; 0: never
  bool flood = false;                      ///< frames as fast as the socket takes them
  bool speak = false;                      ///< answers are spoken
  std::vector<std::string> utters;         ///< texts that are read out, one when the last has been
  std::vector<std::string> texts;  ///< typed turns, one when the last is answered; from the start again at the end
  /// Said aloud in real time, in noise that is no speech; the next one when the answer has been heard.
  std::vector<Utterance> utterances;
  bool semantic = false;      ///< how the end of speech is found: by what is said, or by silence alone
  int lead_ms = 0;            ///< of sound in front of the loudspeaker; 0: as fast as it comes
  int interrupts_every = 0;   ///< every so many answers are spoken over; 0: none
  int turns_per_session = 0;  ///< then the socket is closed and another opened; 0: never
};

/// One spoken turn as its client saw it; milliseconds. Those that did not happen are not a number.
struct TurnFigure {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  double first_audio = kNone;   ///< from the true end of speech to the first byte of sound
  double decision = kNone;      ///< from the estimated end of speech, as the engine says it
  double engine_audio = kNone;  ///< the same, to the first sound
  double trial = kNone;         ///< since when the answer had been thought through at the decision
  bool calls_tool = false;
  double end_told = kNone;                            ///< from the true end of speech to `speech_ended`
  std::size_t utterance = 0;                          ///< which of the plan's
  bool interrupted = false;                           ///< it was, or it interrupted the one before
  bool cut_off = false;                               ///< it was taken for over in one of its pauses
  int underruns = 0;                                  ///< of a loudspeaker that begins 200 ms behind the first byte
  std::vector<std::pair<std::string, double>> parts;  ///< of its trace, as the engine tells it
};

/// What happened since figures were taken last.
struct LoadFigures {
  std::int64_t frames = 0;  ///< of real time, sent
  std::int64_t flood_bytes = 0;
  std::int64_t turns = 0;
  std::int64_t audio_bytes = 0;     ///< received
  std::vector<double> round_trips;  ///< ms, from asking to the acknowledgement
  std::vector<double> synthesis;    ///< ms, from a text that is to be read out to the first byte of its sound
  std::vector<TurnFigure> spoken;
  /// ms from the detection of a voice over an answer to the last sound before that goes on or ends, at least to `hold`.
  std::vector<double> silenced;
  std::vector<double> held;  ///< ms from the begin of a voice over an answer to `hold`
  std::int64_t interruptions = 0;
  std::int64_t pauses = 0, cut_off = 0;        ///< inside utterances; those that were taken for an end
  std::int64_t murmurs = 0, murmurs_took = 0;  ///< over an answer; those that ended it
  std::vector<std::string> took;               ///< what these said
  std::vector<double> late;                    ///< ms, that frames left after their time: how loaded this machine is
  double cpu_seconds = 0;                      ///< of this thread
  double seconds = 0;
};

class WsLoad {
 public:
  explicit WsLoad(int port);
  ~WsLoad();
  WsLoad(const WsLoad&) = delete;
  WsLoad& operator=(const WsLoad&) = delete;

  /// Connects and opens that many sessions; all stand when it returns. @error Errc::unavailable naming what was
  /// answered
  Result<void> add(int count, const ClientPlan& plan);
  void run(double seconds);
  /// Until so many turns were answered in all. @error Errc::deadline_exceeded
  /// @param goes_on  asked every now and then; false: Errc::cancelled
  Result<void> run_turns(std::int64_t turns, double seconds_max, const std::function<bool()>& goes_on = {});
  /// Asks no more, sends no more sound, and waits for what was asked. @return how many acknowledgements never came
  std::int64_t settle(double seconds_max);
  LoadFigures take();
  /// What `take` would give, without the times.
  const LoadFigures& so_far() const { return figures_; }

  /// Sessions whose socket was closed or that got an error, and the first reason.
  std::int64_t lost() const { return lost_; }
  const std::string& first_reason() const { return first_reason_; }

 private:
  struct Client;
  using Clock = std::chrono::steady_clock;
  Result<void> open(Client& client);
  void say_goodbye(Client& client);
  void open_again(Client& client);
  void start(Client& client, Clock::time_point at);
  void pass(Clock::time_point until);
  void act(Client& client, Clock::time_point now);
  void queue(Client& client, std::string_view message, bool binary);
  void send(Client& client, std::string_view frame);
  void writable(Client& client);
  void readable(Client& client);
  void event(Client& client, std::string_view text);
  void say_next(Client& client);
  void talk(Client& client, Clock::time_point now);
  void hear(Client& client, std::size_t bytes);
  void hear_end(Client& client);
  void end_turn(Client& client, const std::string& text);
  void close_figure(Client& client);
  bool may_speak(Client& client, Clock::time_point now);
  void watch(Client& client, bool write);
  void lose(Client& client, const std::string& why);
  void schedule(Client& client, Clock::time_point at);

  struct Due {
    Clock::time_point at;
    Client* client;
    bool operator>(const Due& other) const { return at > other.at; }
  };

  int port_;
  int epoll_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<Due> due_;            ///< a heap, the earliest on top
  std::vector<std::string> noise_;  ///< finished frames
  std::string flood_;               ///< many of them
  bool quiet_ = false;
  std::int64_t lost_ = 0, opened_ = 0, turns_ = 0;
  std::string first_reason_;
  LoadFigures figures_;
  Clock::time_point since_;
  double cpu_since_ = 0;
};

}  // namespace parlando::cli
