#pragma once
/// The mouth of a session whose client plays sound as it comes: answers wait here and leave no further ahead of the
/// client's loudspeaker than its lead, so that an answer can stand still, go on or be dropped at any sample. A plain
/// class: no sockets, no clock; 22.05 kHz throughout.
///
/// The loudspeaker is a clock: it begins with the first sample that was sent, plays one after the other, stands still
/// while it is held, and waits when it has run dry. Nothing of an answer is sent before the one before it was heard to
/// its end, so that a client may drop all that it has when one is interrupted.
///
/// What a session is told goes through here, too. Texts wait for no sound of their own turn, and the end of a turn is
/// told behind the last of its sound; nothing of a turn is told before the end of the one before it.
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/base/clock.hpp"
#include "common/base/units.hpp"
#include "common/protocol/messages.hpp"

namespace parlando::gateway {

/// How much is held. An answer beyond `early` leaves before its time, as long as the socket takes it: nothing of it is
/// lost. A client that takes nothing reaches `most`, and that is its end.
struct PlayoutLimits {
  std::int64_t early_samples = 60 * kSpeechRate;
  std::int64_t most_samples = 120 * kSpeechRate;
};

class Playout {
 public:
  /// What leaves, in order: an event (JSON), sound (s16le), or that all of a turn's sound was heard.
  struct Out {
    enum class Kind { event, sound, over };
    Kind kind;
    TurnId turn;
    std::string data;
    std::int64_t samples = 0;  ///< over: of the turn
  };
  struct Heard {
    std::int64_t samples = 0;
    bool over = true;  ///< nothing of the turn is, or will be, played any more
  };

  explicit Playout(milliseconds lead, PlayoutLimits limits = {});

  // ---- what is told of a turn; `take` says what of it leaves
  /// A turn is under way; it is so with its first event, too. One before it that was not ended is.
  void begin(TurnId turn);
  /// It went on elsewhere: of its sound the client has this much, and has heard it.
  void resume(TurnId turn, std::int64_t samples);
  void event(TurnId turn, std::string event);
  void sound(TurnId turn, std::span<const std::byte> pcm);
  /// All of it has been told; `event` says so to the client.
  void end(TurnId turn, std::string event);
  /// It came to no answer. What of it waits to be told or played is; nobody asks whether it was heard.
  void end_unanswered(TurnId turn);
  /// Cancelled or failed (0: all): nothing more of it is played, and it may begin anew under its number.
  void drop(TurnId turn, Time now);
  /// The user has taken the word: nothing more of it, or of one before it, is played.
  void interrupt(TurnId turn, Time now);

  // ---- standing still
  /// @return false when nothing of that turn is to be played, or it stands still already
  bool hold(TurnId turn, Time now);
  bool release(TurnId turn, Time now);
  std::optional<TurnId> held() const { return held_turn_; }

  // ---- the client's side
  /// @param unsent  samples that its socket has not sent yet: they are not heard, and never are more there than the
  /// lead
  std::vector<Out> take(Time now, std::int64_t unsent);
  /// The socket gave the last messages with sound back. @return how many samples these were
  std::int64_t take_back(std::size_t messages, Time now);
  /// When `take` has something if nothing happens before; Time::max(): never.
  Time due() const;
  Heard heard(TurnId turn, Time now) const;
  /// The turn whose sound is, or will be, played next; 0: none.
  TurnId playing() const { return answers_.empty() ? TurnId() : answers_.front().turn; }
  bool is_empty() const { return answers_.empty(); }
  /// The session ends: the events that nobody was told.
  std::vector<std::string> give_up();

  milliseconds lead() const { return lead_time_; }
  std::int64_t held_samples() const { return held_samples_; }
  bool is_overrun() const { return held_samples_ > limits_.most_samples; }
  /// Counted since the last time: turns that ran dry before their last sample; what left before its time.
  std::uint64_t take_underruns() { return std::exchange(underruns_, 0); }
  std::int64_t take_early_samples() { return std::exchange(early_samples_, 0); }

 private:
  struct Answer {
    TurnId turn;
    std::deque<std::string> unsent;   ///< slices
    std::vector<std::string> events;  ///< that wait for the end of the turn before
    std::string last_event;           ///< behind all sound
    std::int64_t first = 0;           ///< what the client had when it began here
    std::int64_t sent = 0;            ///< of the turn, in all
    std::int64_t heard = 0;           ///< at `since_`
    bool begun = false;               ///< and not run dry while it stood still
    bool complete = false;            ///< nothing of it follows
    bool silent = false;              ///< it was dropped, and who did so knows
  };
  void silence(Answer& answer, Time now);
  void thaw(Time now);
  std::int64_t position(Time now) const;
  Time time_of(std::int64_t position) const;
  void tell(std::vector<Out>& out);
  void play(Time now, std::int64_t& unsent, std::vector<Out>& out);
  void send_slice(Answer& answer, std::vector<Out>& out);
  bool finish(Time now, std::vector<Out>& out);

  milliseconds lead_time_;
  PlayoutLimits limits_;
  std::int64_t lead_, slice_;       ///< samples
  std::deque<Answer> answers_;      ///< the front one plays
  Time since_{};                    ///< the front one's `heard` is of then
  std::deque<std::string> recent_;  ///< slices sent last, a lead of them: some may come back
  std::int64_t recent_samples_ = 0, held_samples_ = 0;
  std::optional<TurnId> held_turn_;
  Time look_again_ = Time::max();  ///< the socket was full
  TurnId over_;                    ///< the last one that is
  std::int64_t over_samples_ = 0;
  std::uint64_t underruns_ = 0;
  std::int64_t early_samples_ = 0;
};

}  // namespace parlando::gateway
