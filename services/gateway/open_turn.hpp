#pragma once
/// How far a client has got in the turn under way: what it has been shown and has been sent to hear. Repetitions of a
/// controller that took the turn over are recognised by their positions, and that controller is told with its Open
/// where to go on. A plain class.
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/protocol/messages.hpp"

namespace parlando::gateway {

class OpenTurn {
 public:
  TurnId id() const { return id_; }
  bool is_open() const { return id_.value != 0; }
  /// A message of this turn: it is under way now.
  void begin(TurnId id);
  /// Sound of it, sent to the client or held for it.
  std::int64_t samples() const { return turn_samples_; }
  /// The user has taken the word: what is said of its sound from here on is not for the client.
  void interrupt() { interrupted_ = true; }
  bool is_interrupted() const { return interrupted_; }
  /// Done, cancelled or failed.
  void end() { *this = OpenTurn(); }

  // Each is told of a message of the turn and answers what of it is new to the client; the views point into the
  // message.
  bool speech_started() { return !std::exchange(started_, true); }
  bool speech_ended() { return !std::exchange(ended_, true); }
  /// Nothing when the client has all of it.
  std::optional<std::string_view> text(const protocol::Text& message);
  /// Empty when the client has all of it.
  std::span<const std::byte> speech(const protocol::Speech& message);

  /// Writes the turn into an Open for the controller that goes on with it.
  void describe(protocol::Conversation& open) const;
  /// The same the other way: the turn goes on here, from where its controller says that the client is.
  void resume(protocol::Conversation state);

 private:
  void count_tool_call(const protocol::Text& message);
  TurnId id_;
  bool started_ = false, ended_ = false, interrupted_ = false;
  std::int64_t transcript_bytes_ = 0, reply_bytes_ = 0;
  std::vector<std::string> tool_results_, call_ids_;  ///< JSON, one a call
  protocol::Bytes ids_;
  std::int64_t pieces_ = 0, piece_samples_ = 0, turn_samples_ = 0;
  std::vector<std::int64_t> lengths_;  ///< of the pieces in front of `pieces_`, in samples; -1: not known
};

}  // namespace parlando::gateway
