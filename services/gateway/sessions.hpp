#pragma once
/// The conversations of this gateway. What clients say and what controllers answer goes in, what is to be done about it
/// comes out. No sockets, no HTTP: `gateway_core.hpp` gives it those, simulations a seeded network.
///
/// A session has one owner: a controller, a stream of it, an epoch. Nobody else reaches the client. What the client
/// says is kept until the owner lets it go (`input_log.hpp`), and how far the client has got is known
/// (`open_turn.hpp`), so that another controller can take the session over at any moment: when its owner is silent or
/// gone, when it drains and nothing is under way, when it says that it is not the owner any more. README.md tells the
/// rules.
#include <array>
#include <functional>
#include <map>
#include <optional>
#include <unordered_map>
#include <variant>
#include <vector>

#include "common/base/random_id.hpp"
#include "common/service/replicas.hpp"
#include "services/gateway/session.hpp"
#include "services/gateway/session_token.hpp"

namespace parlando::gateway {

struct SessionsConfig {
  std::chrono::seconds session_max{1800};  ///< of a socket
  std::chrono::seconds session_grace{60};  ///< then, for a turn that is under way
  std::chrono::seconds drain_max{15};      ///< for turns under way
  milliseconds start_wait{2000};           ///< after our start controllers may still be on their way
  milliseconds open_wait{1000};            ///< then, or when one is suspect, an `open` waits this long for one
  milliseconds open_answer{5000};          ///< a controller that has not answered Open is not asked further
  milliseconds handover_wait{30000};       ///< a session waits this long for a controller that takes it over
  milliseconds store_wait{60000};          ///< a draining controller is left later when it has turns to store
  milliseconds ask_again{1000};            ///< of replicas that have refused it
  milliseconds resend{100};                ///< inputs that the link had no room for
  milliseconds full_told{1500};            ///< a controller that is full has said so by then
  milliseconds resume_wait{5000};          ///< so long a `resume` asks: the end of the former gateway is noticed late
  milliseconds resume_answer{1000};        ///< a controller that has not answered Attach is not waited for
  milliseconds resume_settle{400};         ///< nor behind the first that keeps it, who may be stale
  milliseconds resume_again{50};           ///< when nobody keeps it, all are asked again, then after twice that …
  milliseconds resume_again_max{500};      ///< … up to this
  milliseconds resume_again_kept{250};     ///< when one has it, at a gateway that is silent and mostly dead
  SessionTokens tokens;                    ///< of sessions; without a key clients are given none
  InputLimits inputs;
  UploadLimits upload;
  /// Of a recording, what may be ahead of the controller's checkpoint without counting against `upload`.
  std::int64_t file_ahead_samples = 10 * kInputRate;
  PlayoutLimits playout;
};

/// What is to be done with a client's socket, in order.
struct ToClient {
  enum class Kind { event, sound, close, pause, resume };
  Kind kind;
  ClientId client;
  std::string data;        ///< event: JSON; sound: s16le; close: the reason
  std::uint16_t code = 0;  ///< close: of RFC 6455
  TurnId turn{};           ///< sound: of this one
};

/// What sockets have not sent of what they were given. Simulations have none: what is given is sent.
struct UnsentSound {
  std::function<std::size_t(ClientId)> bytes;
  /// Drops messages with sound of a turn. @return how many: always the last ones
  std::function<std::size_t(ClientId, TurnId)> drop;
};

/// A message to a controller, in order. `head.sequence` is the number of an input; the link gives it its own.
struct ToController {
  std::string peer;
  protocol::Envelope head;
  std::variant<protocol::Open, protocol::Attach, protocol::Audio, protocol::Flush, protocol::Say, protocol::Cancel,
               protocol::Configure, protocol::Item, protocol::Respond, protocol::ToolOutput, protocol::Utter,
               protocol::Truncate, protocol::Forget, protocol::Played, protocol::Erase, protocol::Close>
      body;
};

/// Why a session was handed over.
enum class Reason { suspect, down, draining, stale, broken };
inline constexpr std::array<std::string_view, 5> kReasonNames{"suspect", "down", "draining", "stale", "broken"};

struct SessionsCounters {
  std::uint64_t audio_frames = 0, refused = 0, stale = 0, repeats = 0, paused = 0, failed = 0, malformed = 0;
  std::uint64_t resumed = 0, not_resumed = 0;
  std::uint64_t underruns = 0;  ///< answers that ran dry before their last sample, at clients with a lead
  std::uint64_t holds = 0, interruptions = 0;
  std::int64_t held_samples = 0;           ///< now
  std::int64_t early_samples = 0;          ///< sent before their time, because too much was held
  std::int64_t sent_samples = 0;           ///< of speech, to clients
  std::int64_t dropped_input_samples = 0;  ///< let go before the controller did; of sessions that have ended
  std::array<std::uint64_t, kReasonNames.size()> handovers{};
};

class Sessions {
 public:
  using Random = std::function<std::uint64_t()>;
  explicit Sessions(SessionsConfig config = {}, Random random = random_u64)
      : config_(config), random_(std::move(random)) {}
  void set_sockets(UnsentSound sockets) { sockets_ = std::move(sockets); }

  // ---- from clients; each is opened once and closed once
  void client_opened(ClientId client, Time now, ClientTraits traits = {});
  void client_text(ClientId client, std::string_view text, Time now);
  /// s16le at 16 kHz, whole samples, at most 32 KiB
  void client_audio(ClientId client, std::string_view pcm, Time now);
  void client_closed(ClientId client, Time now);
  /// Its socket broke: instead of `client_closed`. The controller keeps the session for a while.
  void client_lost(ClientId client, Time now);

  // ---- from controllers and their links
  void on_message(const std::string& peer, protocol::Message message, Time now);
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time now);
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now);

  void on_tick(Time now);
  /// When `play` has sound to send if nothing happens before; Time::max(): never. Between two ticks, too.
  Time sound_due() const { return sound_due_.empty() ? Time::max() : sound_due_.begin()->first; }
  void play(Time now);
  /// No new sessions; those with nothing under way end at once, the others when their turn ends or the time for it is
  /// over.
  /// @return true when no client is left
  bool drain(Time now);

  // ---- what is to be done
  std::vector<ToClient> take_for_clients() { return std::exchange(to_clients_, {}); }
  std::vector<ToController> take_for_controllers() { return std::exchange(to_controllers_, {}); }

  std::size_t clients() const { return clients_.size(); }
  std::size_t sessions() const { return by_session_.size(); }
  bool any_controller() const { return replicas_.any_live(); }
  /// Why a session that is opened now would find no place; those that are on their way to a controller, and `reserved`
  /// more, have theirs already. Nothing: it would, as far as controllers have said.
  std::optional<protocol::ErrorMessage> why_full(std::size_t reserved, Time now);
  SessionsCounters counters() const;

 private:
  // sessions.cpp: what clients say
  void note_start(Time now);
  Client* find(ClientId id);
  Client* find(SessionId id);
  void say(Client& client, std::string event);
  void complain(Client& client, const Error& error, Time now);
  void complain_not_open(Client& client, bool once);
  void open(Client& client, OpenOptions options, Time now);
  void cancel(Client& client, protocol::Cancel cancel, Time now);
  void input(Client& client, Input input);
  void configure(Client& client, const SettingsChange& change, Time now);
  void respond(Client& client, const protocol::Respond& asked, Time now);
  static Result<void> check_voice(const Client& client, const std::string& speaker);
  void close(Client& client, std::uint16_t code, std::string reason);
  void end_session(Client& client, bool detached = false);
  void forget(ClientId client, bool detached);
  void pause(Client& client, Pause why, bool on);
  void review_pause(Client& client, Time now);
  bool review_age(Client& client, Time now);

  // owner_messages.cpp: what controllers say
  void on_opened(Client& client, protocol::Message& message, Time now);
  void on_error(Client& client, protocol::Message& message, Time now);
  void on_turn_error(Client& client, TurnId turn, const protocol::ErrorMessage& error, Time now);
  void on_owner(Client& client, protocol::Message& message, Time now);
  void on_speech_started(Client& client, protocol::Message& message);
  void on_speech_ended(Client& client, protocol::Message& message);
  void on_text(Client& client, protocol::Message& message, Time now);
  void on_speech(Client& client, protocol::Message& message, Time now);
  void on_turn_done(Client& client, protocol::Message& message, Time now);
  void on_cancelled(Client& client, protocol::Message& message, Time now);
  void on_waiting(Client& client, protocol::Message& message, Time now);
  void on_noted(Client& client, protocol::Message& message, Time now);
  bool enter_turn(Session& session, TurnId turn);
  void turn_over(Session& session);
  bool is_repeat(bool repeat);
  template <class T>
  std::optional<T> read(protocol::Message& message);

  // loudspeaker.cpp: what is heard, and when
  void hold(Client& client, TurnId turn, Time now);
  void release(Client& client, TurnId turn, Time now);
  void interrupt(Client& client, const protocol::Interrupted& interrupted, Time now);
  void play(Client& client, Time now);
  void tell_in_turn(Client& client, TurnId turn, std::string event, Time now);
  void send_sound(Client& client, TurnId turn, std::string pcm);
  std::size_t drop_unsent(Client& client, TurnId turn);
  void take_back(Client& client, Time now);
  void drop_sound(Client& client, TurnId turn, Time now);
  void give_up_sound(Client& client);
  protocol::Played played(const Session& session, TurnId turn, Time now) const;
  void tell_playing(Session& session, Time now);
  void tell_played(Session& session, const protocol::Played& played);
  void set_due(Client& client);

  // resume.cpp: a session comes from another gateway
  void resume(Client& client, ResumeOptions options, Time now);
  void ask_all(Client& client, Time now);
  bool is_of_attempt(const protocol::Envelope& head) const;
  void on_attempt(const std::string& peer, protocol::Message message, Time now);
  void answered(Client& client, const std::string& peer, Time now);
  void decide(Client& client, Time now);
  bool take(Client& client, Attempt& attempt, Attempt::Answer answer, Time now);
  void end_round(Attempt& attempt, const std::string& winner);
  void end_attempt(Client& client);
  void review_attempt(Client& client, Time now);
  void drop_from_attempt(Client& client, const std::string& peer, Time now);
  void close_at(const Attempt& attempt, const std::string& peer, protocol::Close how);

  // erase.cpp: what was said in a session is deleted
  struct Erasure {
    ClientId client = 0;  ///< who waits for the answer, if it is still there
    SessionId session;
    std::string controller;       ///< that is to do it
    std::set<std::string> asked;  ///< it, and those before it that came to nothing
    Time give_up{};
    bool was_here = false;  ///< a client of ours had it: that the store knows nothing of it is no error
    bool was_own = false;   ///< the one that waits for the answer
  };
  void erase(Client& client, EraseOptions wish, Time now);
  void ask_to_erase(Erasure erasure, const std::string& first);
  void on_erasure(const std::string& peer, protocol::Message message);
  void close_erasure(const Erasure& erasure, StreamId stream);
  void erasure_over(const Erasure& erasure, std::int64_t turns);
  void erasure_failed(const Erasure& erasure, const protocol::ErrorMessage& why);
  void move_erasures(const std::string& peer);
  void review_erasures(Time now);

  // placement.cpp: who has a session
  void place(Client& client, Time now);
  void nobody_takes_it(Client& client, Time now);
  protocol::ErrorMessage nobody() const;
  bool may_still_come(Time now) const;
  void ask(Client& client, const std::string& controller, Time now);
  protocol::Open describe(const Session& session) const;
  void leave(Session& session, protocol::Close how);
  void leave_for_another(Session& session);
  void move(Client& client, Reason reason, Time now);
  void lost_by_owner(Client& client, Reason reason, Time now);
  void fail(Client& client, const protocol::ErrorMessage& why);
  void ask_another(Client& client, protocol::ErrorMessage why, Time now);
  void on_open_refused(Client& client, Epoch true_epoch, const protocol::ErrorMessage& why, Time now);
  void review(Client& client, Time now);
  void review_owner(Client& client, Time now);
  protocol::Envelope head_of(const Session& session) const;
  template <class T>
  void send(const Session& session, const protocol::Envelope& head, T body);
  void pump(Session& session);
  void on_input_refused(Client& client, std::uint64_t number, const Error& error, Time now);
  void resend(Client& client, Time now);

  SessionsConfig config_;
  Random random_;
  service::Replicas replicas_;
  /// What a controller has room for: as it said last, with what came from here and went since. It speaks again when it
  /// is full and when it is so no more.
  struct Places {
    std::int64_t free = 0;
    bool is_known = true;  ///< else others have taken and left some: that it is not full is all that is known
    Time moved{};          ///< a session came or went
  };
  std::map<std::string, Places> places_;
  std::set<std::string> linked_, suspects_;  ///< controllers
  std::optional<Time> started_;
  std::optional<Time> draining_since_;
  std::map<ClientId, Client> clients_;
  std::unordered_map<SessionId, ClientId> by_session_;
  std::unordered_map<std::uint32_t, ClientId> attempts_;  ///< by stream
  std::unordered_map<std::uint32_t, Erasure> erasures_;   ///< by stream; until its answer, or its time is over
  std::uint32_t streams_ = 0;  ///< numbers used so far; never twice: a session may come back to this gateway
  std::vector<ToClient> to_clients_;
  std::vector<ToController> to_controllers_;
  UnsentSound sockets_;
  std::set<std::pair<Time, ClientId>> sound_due_;
  SessionsCounters counters_;
};

}  // namespace parlando::gateway
