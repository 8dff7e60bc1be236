#pragma once
/// What the gateway knows of one client and of its conversation. Values only; `sessions.hpp` works on them.
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "services/gateway/client_message.hpp"
#include "services/gateway/input_log.hpp"
#include "services/gateway/open_turn.hpp"
#include "services/gateway/playout.hpp"
#include "services/gateway/resume_token.hpp"
#include "services/gateway/upload_limit.hpp"

namespace parlando::gateway {

using ClientId = std::uint64_t;

/// Where a conversation stands.
enum class Place {
  waiting,  ///< for a controller that can take it
  opening,  ///< Open is on its way or being worked on
  open,     ///< the controller owns it
};

/// A conversation, from `open` or `resume` to the end of its socket or to the error that ends it.
struct Session {
  Session(SessionId session, OpenOptions wanted, InputLimits inputs, PlayoutLimits sound, std::uint64_t first_input = 1)
      : id(session), options(std::move(wanted)), log(inputs, first_input, options) {
    if (options.lead) playout.emplace(*options.lead, sound);
  }

  SessionId id;
  OpenOptions options;  ///< the settings as the client has left them
  std::uint64_t seed = 0;
  ResumeToken token;  ///< the client's; its text goes once it was told
  Place place = Place::waiting;

  // The owner: who may speak to the client.
  std::string controller;
  StreamId stream;
  Epoch epoch;  ///< the highest that an owner has said; what the next one is told to expect
  protocol::Envelope
      opened_head;           ///< of Opened: inputs answer it, so that they never go out on a later link of that peer
  bool told_opened = false;  ///< the client was: from here on the conversation moves rather than fails

  // Finding another owner.
  Time give_up = Time::max();      ///< waiting: the client is told then that nobody is there
  Time not_before{};               ///< waiting: nobody is asked earlier
  Time answer_by{};                ///< opening: the next replica is asked then
  Time ask_again = Time::max();    ///< waiting: those in `asked` are asked anew then
  std::set<std::string> asked;     ///< replicas that have refused this attempt
  protocol::ErrorMessage refusal;  ///< what the last of them said
  bool stale_once = false;         ///< this attempt was told the true epoch already
  int losses = 0;                  ///< owners in a row that gave it up without having died
  Time lost_at{};                  ///< the last of these

  // What was told, its owner has still to store; a checkpoint says that it has.
  bool unstored = false;
  Time unstored_since{};

  // From the client.
  InputLog log;
  std::int64_t position_samples = 0;  ///< of all audio so far
  std::uint64_t trace = 0;            ///< of the turn that the next input belongs to
  int requests = 0;                   ///< Say, Flush, Respond and Utter since the last turn ended

  // To the client.
  OpenTurn turn;
  TurnId turn_resumed;               ///< the one under way at `resume`: its inputs were said to another gateway
  TurnId turn_done;                  ///< the last one that is over and durable
  std::int64_t speech_started = -1;  ///< samples
  std::int64_t speech_ended = -1;
  std::int64_t noted = -1;          ///< end of the last utterance that was
  std::optional<Playout> playout;   ///< of a client with a lead; of others all leaves at once
  Time sound_due = Time::max();     ///< as it says; Sessions keeps them in order
  TurnId spoken;                    ///< without a playout: the last turn that is over
  std::int64_t spoken_samples = 0;  ///< that were sent of it
  TurnId unanswered;                ///< the link had no room for what was Played of it
  Time answer_again = Time::max();  ///< then

  // The link had no room: of the inputs from `refused_first` to before `refused_end` this many came back.
  std::uint64_t refused_first = 0, refused_end = 0, refused = 0;
  Time resend_at = Time::max();

  bool has_owner() const { return place != Place::waiting; }
  /// Something was asked and is not answered yet, or the answer is not heard yet.
  bool is_busy() const { return turn.is_open() || requests > 0 || (playout && !playout->is_empty()); }
  /// Of a client that names none: the one under way, else the one that is heard.
  TurnId turn_to_cancel() const { return turn.is_open() || !playout ? turn.id() : playout->playing(); }
  bool is_stuck() const { return resend_at != Time::max(); }
  void told_degraded(bool degraded, Time now) {
    if (degraded && !unstored) unstored_since = now;
    unstored = degraded;
  }
};

/// A client that wants its session back: controllers are asked, in rounds, whether one keeps it for this token.
struct Attempt {
  struct Answer {
    std::string controller;
    protocol::Message message;
  };
  ResumeOptions wanted;
  ResumeToken next;  ///< that the client gets
  StreamId stream;   ///< of this round, at all of them
  std::uint64_t trace = 0;
  std::set<std::string> asked;    ///< Attach was sent, and nothing since
  std::set<std::string> awaited;  ///< of these, those that are not suspect: the round ends with their answers
  std::vector<Answer> found;      ///< Attached: more than one when an owner does not know yet that it was replaced
  std::vector<Answer> behind;     ///< what they said since; bounded by the credit of a stream
  Time answer_by{};               ///< the round ends then
  Time ask_again = Time::max();   ///< between two rounds
  milliseconds pause{};           ///< before the next round
  Time give_up{};
  bool is_kept = false;  ///< a controller has it, at a gateway that is silent, as it has said in this round
};

/// Why a client is not read.
enum class Pause : unsigned {
  rate = 1,  ///< it sends faster than its limit
  link = 2,  ///< its controller's link has no room
  log = 4,   ///< as much is kept for a controller as may be
};

struct ClientTraits {
  bool of_file = false;    ///< what it says is a recording, which is read as fast as it is understood
  std::string owner = {};  ///< whose voices it may use besides everybody's (`voice_id.hpp`)
};

/// A socket, with at most one conversation.
struct Client {
  Client(ClientId number, UploadLimits limits, Time now) : id(number), since(now), upload(limits, now) {}
  ClientId id;
  Time since;
  UploadLimit upload;
  unsigned paused = 0;         ///< of Pause
  int strikes = 0;             ///< malformed messages
  bool told_not_open = false;  ///< once is enough for a stream of audio
  bool closing = false;        ///< it hears and says nothing more
  ClientTraits traits;
  std::unique_ptr<Session> session;
  std::unique_ptr<Attempt> attempt;  ///< then there is no session

  bool is_paused(Pause why) const { return (paused & static_cast<unsigned>(why)) != 0; }
};

}  // namespace parlando::gateway
