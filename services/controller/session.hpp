#pragma once
/// One conversation: what its client says becomes turns, and turns become requests to the services. Its ear is always
/// open: in a pause the answer is thought through and held back (trial.cpp), and what is said over an answer may end it
/// (barge_in.cpp). A plain class without a clock; the core tells it what arrives and drops it
/// when it `is_over`.
///
/// What is said beside turns waits for the next one (inputs.cpp); a semantic detector judges pauses (pauses.cpp); calls
/// of the model are executed here, elsewhere or by the client (tool_calls.cpp).
///
/// A turn goes listening → hearing → thinking → closing (`turn.hpp`) and ends in one place each way: `finish_turn`
/// (reported), `fail_turn` (an error), `on_cancel`. What a service must know is said by one function per role
/// (`say_to_…`), at the first start and at every later one; the answers say where they belong (positions, groups,
/// bytes, pieces), so a repetition changes nothing.
#include <array>
#include <deque>
#include <set>

#include "services/controller/ledger.hpp"
#include "services/controller/summary.hpp"
#include "services/controller/tally.hpp"
#include "services/controller/tool_server.hpp"
#include "services/controller/turn.hpp"

namespace parlando::controller {

/// What all sessions share.
struct Surroundings {
  const ControllerConfig& config;
  const Personas& personas;
  ToolServer* tools;  ///< executes calls; null: `config.tools` does
  Fleet& fleet;
  Outlet& outlet;
  Tally& tally;
};

/// Whose the session is: the stream that everything for the client goes to.
struct ClientStream {
  std::string gateway;
  StreamId stream;
  std::uint64_t link = 0;  ///< the one it was opened on (`Envelope::link`): nothing goes out on a later one
  auto operator<=>(const ClientStream&) const = default;
};

class Session {
 public:
  /// @param ledger  new, or of the session's former life with turns that wait
  Session(SessionId id, ClientStream client, protocol::Open open, Ledger ledger, Surroundings around);
  void start(Time now);
  void set_trace(std::uint64_t trace);

  /// From the client: whatever it says (docs/protocol.md). Before the session is granted it waits, bounded.
  void on_input(protocol::Message message, Time now);
  /// From a service; of streams that are not current it is ignored.
  void on_answer(const std::string& peer, protocol::Message message, Time now);
  void on_peer(Role role, const std::string& instance, transport::PeerState state, Time now);
  /// A message of ours could not be sent.
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now);
  /// Something was thrown while the session was at work: its turn ends with Errc::internal.
  void on_exception(const std::string& what, Time now);
  void on_tick(Time now);
  /// A call that a tool server has executed.
  void on_tool_answer(const ToolServer::Answer& answer, Time now);
  /// Does the session go on elsewhere, perhaps at the same chats, which keep what they have computed then?
  enum class Then { is_over, goes_on };
  /// The client closes, or its gateway is gone: a complete turn is still stored (`ledger`), an incomplete one is
  /// dropped.
  void leave(Then then = Then::is_over);
  /// Another stream has the session now, or nobody: says so on this one.
  void yield(Epoch to, Then then = Then::goes_on);

  // resume.cpp: the client is lost and may come back through another gateway.
  /// It knows a token, and the session stands.
  bool can_detach() const { return opened_ && !over_ && open_.stored && !open_.token_digest.empty(); }
  /// The turn under way goes on; what the client would be told of it is told when it is back. @pre can_detach
  void detach(Time now);
  bool is_detached() const { return detached_; }
  /// Is this the token of the session? Takes the same time whatever is asked.
  bool is_resumed_by(const protocol::Attach& attach) const;
  /// The client is back and says what it has: it gets the rest. @pre is_detached
  void attach(ClientStream client, const protocol::Attach& attach, Time now);
  const std::string& token_digest() const { return open_.token_digest; }

  const ClientStream& client() const { return client_; }
  Epoch epoch() const { return ledger_.epoch(); }
  bool is_over() const { return over_; }
  /// Something is under way that time matters to.
  bool is_busy() const;
  Ledger& ledger() { return ledger_; }
  const Turn& turn() const { return turn_; }

 private:
  // What waits for the grant.
  void opened(Time now);
  void refuse_open(const Error& error);
  void stop_stale(Epoch known);
  void take_input(protocol::Message message, Time now);

  // adopt.cpp: what a former owner has done, told and decided.
  void adopt(Time now);
  void finish_next_stored(Time now);
  void finish_stored(const Past& past, Time now);
  void go_by_decision(Time now);
  bool is_decided(std::uint64_t input) const { return decided_ && decided_->answers_input == input; }
  bool answers_lost_input() const;
  std::optional<protocol::TurnFacts> take_decision(std::uint64_t input);
  void give_up_decision(Time now);
  void tell_decided();
  /// Inputs up to the last that a former owner was told.
  bool is_said_again() const { return input_ <= open_.last_input; }
  /// What waited behind a note that a former owner had stored and not told: a `cancel` that is said again, too, says
  /// that it was dropped.
  bool may_be_dropped() const { return retold_note_.value != 0 && input_ < open_.last_input; }

  // What the client says.
  void on_audio(protocol::Audio audio, Time now);
  void on_flush(const protocol::Flush& flush, Time now);
  void on_say(const protocol::Say& say, Time now);
  void on_cancel(const protocol::Cancel& cancel, Time now);
  void overhear(protocol::Audio audio, Time now);
  bool may_begin(std::uint64_t input, Time now);
  void begin_turn(std::uint64_t input, Time now);
  void begin_answer(std::uint64_t input, Time now);
  void seal(Time now);
  void end_speech(std::int64_t sample, std::int64_t sound_end, Time now);
  std::int64_t sound_end_at(std::int64_t sample) const;
  void begin_thinking(std::int64_t sample, Time now);
  void decide_end(std::int64_t sample, Time now);
  void trim_memory(SoundLog& sound, Time now);
  std::uint64_t past_input() const;
  std::uint64_t input_before(const SoundLog& sound) const;
  void listen(Time now);

  // inputs.cpp: what is said beside turns, and turns that are no utterance.
  /// An input that has come while a turn was under way that it does not belong to.
  struct Later {
    std::uint64_t input = 0;
    protocol::Message message;
  };
  static constexpr std::size_t kLaterMax = 16;
  /// What one message names: with items and corrections (512 each) below the 128 KiB of a body.
  static constexpr std::size_t kTurnInputsMax = 1024;
  void skip_stored(protocol::Message message, Time now);
  void take(std::uint64_t input, protocol::Message message, Time now);
  void on_configure(protocol::Settings settings, Time now);
  void on_item(const protocol::Item& item, std::uint64_t input);
  void on_respond(const protocol::Respond& respond, std::uint64_t input, Time now);
  void on_utter(const protocol::Utter& utter, std::uint64_t input, Time now);
  void on_truncate(const protocol::Truncate& truncate, Time now);
  void on_forget(const protocol::Forget& forget);
  void correct(std::uint64_t input, nlohmann::json change);
  bool must_wait(protocol::MessageType type, Time now) const;
  bool waits(std::uint64_t input, protocol::Message& message, Time now);
  void take_later(Time now);
  void set_sound_aside();
  void store_items(Time now);
  void keep_summary(Time now);
  void settle_items(Time now);
  bool items_are_lost() const { return storing_ && !ledger_.has(storing_->turn); }
  std::uint64_t needed_input() const;

  // pauses.cpp: where a semantic detector ends an utterance.
  void add_pause(std::int64_t sample, bool lasts);
  void ask_about_pauses();
  void judge_pause(const protocol::Tokens& tokens, Time now);
  void settle_pauses(Time now);
  void finish_hearing(std::int64_t sample, Detector by, Time now);
  void hear_again(Time now);
  void hear_rest(Time now);

  // tool_calls.cpp
  void on_tool_call(protocol::Text text, Time now);
  void begin_call(ToolCall& call, Time now);
  void on_tool_output(const protocol::ToolOutput& output, std::uint64_t input, Time now);
  void answer_call(ToolCall& call, nlohmann::json result, Time now);
  void go_on_with_calls(Time now);
  void expire_calls(Time now);
  bool may_call(const std::string& id) const;
  void forget_call(const ToolCall& call);
  void forget_calls();
  void keep_output(const std::string& call, const std::string& output, std::uint64_t input);

  // What services answer; `on_answer` reads each and calls one of these.
  void on_vad(const protocol::SpeechStarted& started, Time now);
  void on_vad(const protocol::SpeechEnded& ended, Time now);
  void on_vad(const protocol::SpeechPaused& paused, Time now);
  void on_vad(const protocol::SpeechResumed& resumed, Time now);
  void begin_hearing(std::int64_t sample, Time now, std::uint64_t begin_input = 0);
  void on_tokens(protocol::Tokens tokens, Time now);
  void on_text(protocol::Text text, Time now);
  void on_transcript(protocol::Text text, Time now);
  void on_reply(protocol::Text text, Time now);
  void on_text_done(const std::string& figures, Time now);
  void on_speech(protocol::Speech speech, Time now);
  void on_service_error(Role role, const protocol::ErrorMessage& error, Time now);

  // What services are told.
  void want(Role role, Time now);
  void say(Role role);
  void say_to_vad();
  void say_to_tokenizer();
  void say_to_chat();
  void forget_at_chats();
  void say_to_tts();
  void ask_for_answer();
  Time chat_deadline() const;
  void speak(std::vector<TextChunk> pieces, Time now);
  protocol::Speak speak_of(std::size_t piece) const;
  void ask_for_pieces();

  // trial.cpp: an answer that is thought through in a pause of speech, and held back until the end is decided.
  /// While there is one, `turn_` and the calls of chat and tts are as if speech had ended at `sample`; the turn that
  /// listens on, and its chat, stand here. Nothing of the trial reaches client, store or tools before it is committed.
  struct Trial {
    Turn turn;
    Call chat;
    std::int64_t sample = 0;
    Time begun;
    std::vector<protocol::Message> effects;  ///< what the client is told at the commit
    std::size_t effect_bytes = 0;
    std::vector<protocol::Text> tool_calls;  ///< are made at the commit
  };
  void try_trial(Time now);
  bool is_worth_a_trial();
  void commit_trial(Time now);
  void drop_trial();
  void hold_back(protocol::Message message);
  /// The turn that the user's sound belongs to.
  Turn& heard_turn() { return trial_ ? trial_->turn : turn_; }

  // barge_in.cpp: the user's voice over an answer.
  struct Voice {
    TurnId over;             ///< the turn that it is over
    std::int64_t begin = 0;  ///< sample
    Time since;
    std::int64_t speaks_from = -1;  ///< where it spoke up last; -1: it pauses
    std::int64_t counted_to = -1;   ///< up to here its sound is in
    std::int64_t voiced = 0;        ///< samples of voice, without its pauses
    std::optional<std::int64_t> end;
    Time held_at;
    std::int64_t heard_samples = -1;  ///< of the turn's sound when it was held; -1: nobody has said
    bool holds = false;               ///< the sound stands still
    bool flushed = false;             ///< the client says that it is all, and waits for an answer
    bool wins = false;                ///< it was long enough, or flushed
    bool taken = false;               ///< the user has the word: it is the next turn
    bool waits = false;               ///< for the end of the answer, which it does not disturb
    std::int64_t voiced_to(std::int64_t sample) const;
  };
  void raise_voice(std::int64_t sample, Time now);
  void resume_voice(std::int64_t sample, Time now);
  void lower_voice(std::int64_t sample, bool ended, Time now);
  void hold_voice(Time now);
  void release_voice();
  void drop_voice();
  void end_voice_here(Time now);
  void flush_voice(const protocol::Flush& flush, Time now);
  void forget_flush();
  void judge_voice(Time now);
  void settle_voice(Time now);
  Turn stored_turn(TurnId id) const;
  /// Of a turn that is over; none when it is not known.
  const Past* stored(TurnId id) const;
  void interrupt(Time now);
  void end_answer(std::int64_t samples, const std::string& heard, Time now);
  void take_voice(Time now);
  void lose_vad(Time now);
  void drop_sound_of(TurnId turn, Time now);
  /// No answer is made or plays, as far as is known.
  bool is_quiet() const { return !is_answering() && playing_.value == 0; }
  void cut_turn(TurnId turn, std::int64_t samples, const std::string& heard, bool remembered);
  void add_playing(TurnId turn);
  void on_played(const protocol::Played& played, Time now);
  void cut_done_turn(TurnId turn, std::int64_t heard_samples);
  void cut_where_heard(TurnId turn, const protocol::Played& heard, Time now);
  /// An answer is under way that is no trial.
  bool is_answering() const {
    return !trial_ && (turn_.stage == Turn::Stage::thinking || turn_.stage == Turn::Stage::closing);
  }

  // resume.cpp
  /// What a client has of a turn.
  struct Had {
    std::int64_t transcript_bytes = 0, reply_bytes = 0, tool_calls = 0, samples = 0;
  };
  static Had told_of(const Turn& turn);
  static Had clamp(const protocol::Attach& claim, const Had& told);
  bool begin_stored(const protocol::Attach& claim, Time now);
  void say_attached(const Had& had, bool in_turn);
  void tell_rest(const Had& had, Time now);
  void tell_rest_of(protocol::TextKind kind, TextTrack& track, std::int64_t had_bytes);

  // How a turn ends.
  void complete_if_all_there(Time now);
  void finish_turn(bool degraded, Time now);
  void report(const Turn& turn, bool degraded, const nlohmann::json& trace);
  std::int64_t rest_from() const { return ear_.is_empty() ? heard_samples_ : ear_.first_sample(); }
  void fail_turn(const Error& error, Time now, milliseconds retry = milliseconds(0));
  void next_turn(Time now);
  void settle(Time now);
  void settle_turn(Time now);

  // What the client is told.
  template <protocol::WireMessage T>
  void tell(T body) {
    tell(client_head(), std::move(body));
  }
  /// What cannot be told from the turn's state is held for a client that is not there.
  template <protocol::WireMessage T>
  void tell(const protocol::Envelope& head, T body) {
    using protocol::MessageType;
    constexpr bool kHeld = T::kType == MessageType::speech_started || T::kType == MessageType::speech_ended ||
                           T::kType == MessageType::error || T::kType == MessageType::cancelled;
    if (trial_)
      hold_back(protocol::pack(std::move(body), head));
    else if (!detached_)
      around_.outlet.send(client_.gateway, head, std::move(body));
    else if (kHeld && held_.size() < kHeldMax)
      held_.push_back(protocol::pack(std::move(body), head));
  }
  /// It answers the client, and is no part of a trial.
  template <protocol::WireMessage T>
  void tell_at_once(TurnId turn, T body) {
    auto to = client_head();
    to.turn = turn;
    if (!detached_)
      around_.outlet.send(client_.gateway, to, std::move(body));
    else if (held_.size() < kHeldMax)
      held_.push_back(protocol::pack(std::move(body), to));
  }
  void refuse_input(const Error& error, milliseconds retry = milliseconds(0));
  /// The input that is being worked on is settled with the end of the turn under way. @return false: too many are, and
  /// this one is refused
  bool settle_with_turn();
  void tell_text(protocol::TextKind kind, TextTrack::News news, protocol::Bytes ids);
  void tell_ids(protocol::Bytes ids);
  void checkpoint(std::uint64_t input, std::uint64_t keep_until);
  protocol::Envelope head() const;
  protocol::Envelope client_head() const;
  Call& call(Role role) { return calls_[static_cast<std::size_t>(role) - 1]; }
  const Call& call(Role role) const { return calls_[static_cast<std::size_t>(role) - 1]; }
  template <protocol::WireMessage T>
  void send(Role role, T body) {
    call(role).send(head(), std::move(body), turn_.deadline);
  }
  template <class T, class F>
  void read_input(protocol::Message& message, F&& use) {
    auto body = protocol::read<T>(message);
    if (!body) return refuse_input(body.error());
    use(std::move(*body));
  }
  template <class T, class F>
  void read_answer(protocol::Message& message, F&& use, Time now);

  SessionId id_;
  ClientStream client_;
  protocol::Open open_;
  Surroundings around_;
  Ledger ledger_;
  std::set<std::string> chats_;         ///< replicas of llm-chat that were told of the session, summaries included
  std::array<Call, kRoles - 1> calls_;  ///< vad, tokenizer, chat, tts; the ledger has that to the store
  LeadPtr lead_;                        ///< of turns to come
  Turn turn_;
  std::optional<Trial> trial_;
  std::uint32_t trials_ = 0;  ///< of the session
  SoundLog ear_;              ///< what is said behind the turn under way
  std::optional<Voice> voice_;
  Summaries summaries_;
  Items items_;                     ///< for the next turns' records
  Time items_since_ = Time::max();  ///< something of them waits; when nothing takes it up it is stored on its own
  bool items_due_ = false;          ///< at once: a turn that would have taken them up came to nothing
  /// A record of items alone on its way to the store.
  struct Storing {
    std::int64_t turn = 0;
    std::uint64_t input = 0;  ///< the first one that it holds
    std::vector<WaitingItem> items;
    std::vector<Correction> corrections;
  };
  std::optional<Storing> storing_;
  std::deque<Later> later_;  ///< taken in order when the turn under way is over; at most kLaterMax
  /// Outputs of calls that the model has not made yet: behind a hand-over it makes them again. Items at the turn's end.
  std::map<std::string, std::pair<std::uint64_t, std::string>> early_outputs_;
  bool went_on_ = false;              ///< the vad has told of speech behind an utterance whose end was still judged
  bool judged_ = true;                ///< tokenizers say whether an utterance is complete, as far as is known
  protocol::OpenVad told_vad_;        ///< what the vad was asked for
  Time told_vad_at_{};                ///< when the sound came that it was told first
  std::int64_t vad_paused_ = -1;      ///< the latest pause that it has told, since it hears this turn
  std::uint64_t stored_items_ = 0;    ///< items up to this input are stored; of inputs that are only said again
  std::int64_t flushed_sample_ = -1;  ///< what was said over the answer ends here, says the client; -1: it has not
  std::uint64_t flushed_input_ = 0;   ///< with this input
  TurnId playing_;                    ///< the client's loudspeaker is at its sound; 0: it is silent, or nobody knows
  TurnId playing_last_;               ///< and will come to that of turns up to this
  protocol::Played heard_;            ///< the gateway's last word on what its client has heard, until a cancel
  bool has_held_ = false;             ///< and until then the gateway may know of sound that a former owner had made
  bool opened_ = false, over_ = false;
  std::deque<protocol::Message> early_;  ///< inputs that wait for the grant; taken in order when it comes
  std::size_t early_bytes_ = 0;
  std::uint64_t input_ = 0;                     ///< number of the last one that has come
  std::uint64_t taken_ = 0;                     ///< of the one that is being worked on; 0: it has none
  std::uint64_t configured_ = 0;                ///< of the last one that has changed how the conversation is led
  std::set<std::uint64_t> settled_;             ///< inputs that are said again and were answered in a stored turn
  std::deque<Past> untold_;                     ///< stored turns whose end the client was not told
  TurnId retold_note_;                          ///< the last of these, if it is a note
  std::optional<protocol::TurnFacts> decided_;  ///< what the turn is that a former owner has begun; until it is that
  std::int64_t sound_from_ = 0;                 ///< sound before it is of turns that are over
  protocol::Checkpoint told_checkpoint_;        ///< or what else the gateway was told of turns that are not stored
  Time checkpoint_at_{};
  std::int64_t heard_samples_ = 0;  ///< position behind the last sound that arrived
  Time heard_at_{};                 ///< when that was
  std::uint64_t stored_input_ = 0;  ///< of a record of a former build: up to here inputs led to it
  std::uint64_t trace_ = 0;
  Time listen_again_at_{};  ///< after a vad could not be had

  /// Besides what waits (kLaterMax) no inputs come without a client: these and one turn's events are fewer.
  static constexpr std::size_t kHeldMax = 48;
  bool detached_ = false;
  TurnId had_turn_;                      ///< detached: the turn that was under way then
  Had had_;                              ///< and what had been told of it: nobody has more
  std::vector<protocol::Message> held_;  ///< detached: what is told when the client is back
  std::optional<Turn> last_;             ///< the turn before, as it was reported; without its sound and codes
};

}  // namespace parlando::controller
