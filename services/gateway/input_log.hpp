#pragma once
/// What a client has sent and its controller may still ask for again: numbered without gaps, kept until a
/// Checkpoint lets it go. A controller that takes the session over gets all of it behind its Open. An input that is let
/// go in the middle keeps its number as an Audio without payload, because both ends count: audio that no turn needs,
/// and what a message of the controller says to be settled (it is answered, and must not be answered again). Inputs
/// that were not handed out yet are never let go. What controllers have decided is kept with them. A plain class.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <variant>

#include "common/base/units.hpp"
#include "common/protocol/messages.hpp"

namespace parlando::gateway {

using Input =
    std::variant<protocol::Audio, protocol::Flush, protocol::Say, protocol::Cancel, protocol::Configure, protocol::Item,
                 protocol::Respond, protocol::ToolOutput, protocol::Utter, protocol::Truncate, protocol::Forget>;

struct InputLimits {
  std::int64_t audio_samples_max = 30 * kInputRate;  ///< 960 kB
  std::size_t inputs_max = 8192;
  std::size_t text_bytes_max = 512u << 10;  ///< of everything that is written
};

class InputLog {
 public:
  struct Entry {
    Input input;
    std::uint64_t trace = 0;
  };

  /// @param first  number of the first input to come
  /// @param settings  that the conversation has before it
  explicit InputLog(InputLimits limits = {}, std::uint64_t first = 1, protocol::Settings settings = {})
      : limits_(limits),
        first_(first),
        handed_(first - 1),
        said_(first - 1),
        audio_from_(first),
        settings_(std::move(settings)),
        turn_told_(first == 1 ? 0 : -1) {}

  /// Takes an input; older ones that were handed out go when a limit is reached. @return its number
  std::uint64_t add(Input input, std::uint64_t trace);

  // ---- handing out
  /// The next one to hand out; nullptr when there is none.
  const Entry* next() const;
  std::uint64_t next_number() const { return handed_ + 1; }
  /// The input that `next` gave is on its way.
  void handed_out();
  /// Hands out again from this number on.
  void go_back_to(std::uint64_t number);
  /// Hands out again everything that is kept, to another owner: all is kept until that one says otherwise.
  void go_back() {
    go_back_to(first_);
    keep_until_ = 0;
  }
  /// What this one held cannot be sent: only its number stays.
  void blank(std::uint64_t number);

  // ---- letting go
  /// Inputs up to `input` go; audio behind `keep_until` too, now and as it comes (0: is kept), but for the last
  /// `recent_samples` of it: an utterance has begun before anybody noticed.
  void checkpoint(std::uint64_t input, std::uint64_t keep_until, std::int64_t recent_samples = 0);
  /// @param settled  JSON array of inputs that are answered, as the controller says; other numbers are ignored
  /// @param sound_from  the sound before it belongs to turns that are over; -1: as before
  void settle(const protocol::JsonText& settled, std::int64_t sound_from);

  // ---- what controllers have decided
  void decide(const protocol::TurnFacts& facts) { decided_ = facts; }
  /// The end of this turn was told. @param stored  it is in the store, as far as is known
  void turn_over(TurnId turn, bool stored);
  /// Of a session that was resumed: so many turns were told. What comes of the next one is still to be told.
  void resumed(std::int64_t turns) { turn_told_ = turns; }
  /// An owner knows of so many turns: what was told beyond them is lost. Those of a stored session that is opened again
  /// were told to its client before.
  void opened(std::int64_t turns) { turn_told_ = turn_told_ < 0 ? turns : std::min(turn_told_, turns); }
  /// Writes what the next owner must know of the inputs that follow.
  void describe(protocol::Open& open) const;

  /// As much waits to be handed out as is kept: the client should be read no further.
  bool is_full() const;
  std::uint64_t first() const { return first_; }  ///< number of the first one kept, or of the next to come
  /// As they stand in front of that one: what was configured since is among those that are kept.
  const protocol::Settings& settings() const { return settings_; }
  std::uint64_t last() const { return first_ + entries_.size() - 1; }
  std::size_t size() const { return entries_.size(); }
  std::int64_t audio_samples() const { return samples_; }
  /// Let go by a limit: a controller that takes over will not hear it.
  std::int64_t dropped_samples() const { return dropped_samples_; }

 private:
  struct Size {
    std::int64_t samples = 0;
    std::size_t text_bytes = 0;
  };
  static Size size_of(const Input& input);
  bool handed_has(std::uint64_t number) const { return number <= handed_; }
  Entry& at(std::uint64_t number) { return entries_[number - first_]; }
  void pop_front();
  void trim();
  void count_behind(std::uint64_t number, std::int64_t samples);
  void drop_behind();

  InputLimits limits_;
  std::deque<Entry> entries_;
  std::uint64_t first_;           ///< number of entries_.front()
  std::uint64_t handed_;          ///< number of the last one handed out
  std::uint64_t said_;            ///< number of the last one that any owner was handed
  std::uint64_t keep_until_ = 0;  ///< audio behind it is not kept, but for
  std::int64_t recent_samples_ = 0;
  std::int64_t behind_samples_ = 0;  ///< of handed-out audio behind it that is kept
  std::uint64_t behind_from_ = 0;    ///< no input behind it and before this has audio
  std::uint64_t audio_from_;         ///< no input before it has audio
  std::int64_t samples_ = 0, waiting_samples_ = 0, dropped_samples_ = 0;
  std::size_t text_bytes_ = 0, waiting_text_bytes_ = 0;
  protocol::Settings settings_;
  std::int64_t sound_from_ = 0;
  std::int64_t turn_told_;       ///< -1: of a session that was resumed nobody knows
  protocol::TurnFacts decided_;  ///< of the turn under way; cleared by its end
};

}  // namespace parlando::gateway
