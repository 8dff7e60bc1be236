#pragma once
/// One conversation's turn on an engine: prompt kept in step with what is known, the user's codes prefilled as they
/// come, the model's output cut into transcript, text and tool calls. A plain class; the owner turns the engine and
/// hands in its events.
#include <deque>
#include <memory>

#include "services/llm/model/engine.hpp"
#include "services/llm/model/prompts.hpp"

namespace parlando::llm {

struct ChatEvent {
  enum class Kind { transcript, text, tool_call, done } kind;
  /// Transcript; piece of the reply; call as JSON {name, arguments}; the whole reply, of all rounds.
  std::string text;
  std::int64_t at = 0;                 ///< bytes of text, or calls, of this turn before this one
  std::vector<std::int32_t> ids = {};  ///< generated since the event before: what was told never runs ahead of them
  bool fallback = false;               ///< this text is the configuration's (`fallback_replies`), not the model's
  int left = 0;                        ///< of a call: how many of the same round follow
  bool past = false;                   ///< of a call: ids are known that come behind it, so that it was answered once
};

/// How a reply has ended and what it took.
struct ChatUsage {
  Finish finish = Finish::none;    ///< stop or length
  std::int64_t prompt_tokens = 0;  ///< of the first round
  /// Of these, those that were there when the reply was asked for: of this turn's codes, or of what is kept.
  std::int64_t cached_tokens = 0;
  std::int64_t output_tokens = 0;  ///< of all rounds
};

class Chat {
 public:
  struct Options {
    Sampling sampling;
    std::int64_t tokens_max = 2048;
    int tool_rounds_max = 3;
    std::vector<std::string> stop = {};     ///< texts that end a reply; they are not told, whatever tokens they come in
    bool calls_tools = true;                ///< else a call is none
    bool operator_system = false;           ///< the system prompt in front is configuration: shared with everybody
    std::optional<SessionId> session = {};  ///< whose turns share their history; none: nobody
  };
  /// Opens a sequence. `messages`: system prompt and history. @error Errc::overloaded at the engine's limit
  static Result<std::unique_ptr<Chat>> open(std::shared_ptr<LmEngine> engine, std::shared_ptr<const TextTokenizer> text,
                                            std::string name, std::vector<Message> messages, Options options);
  /// A copy as this one is now, under another name: it shares what is computed and goes on by itself, whatever becomes
  /// of the other. @error Errc::invalid_argument when the reply has begun, Errc::overloaded at the engine's limit
  Result<std::unique_ptr<Chat>> fork(std::string name) const;
  ~Chat() { engine_->release(name_); }
  Chat(const Chat&) = delete;
  Chat& operator=(const Chat&) = delete;

  /// The user's codes from a group on; what was there is replaced. Prefills; the cache keeps what is equal.
  /// @error Errc::position_mismatch, Errc::token_out_of_range; Errc::invalid_argument when the reply has begun
  Result<void> hear(std::int64_t first_group, std::span<const std::int32_t> codes);
  /// @error Errc::invalid_argument when the text is empty or the reply has begun
  Result<void> say(std::string text);
  /// Ids that another replica has generated in this turn: `reply` tells their events again, without ids, and goes on
  /// behind them.
  /// @error Errc::token_out_of_range; Errc::invalid_argument when the reply has begun
  Result<void> go_on(std::vector<std::int32_t> ids);
  /// What is wanted: an answer to what was said, what was said alone, or an answer to the history as it stands.
  enum class Wanted { answer, transcript, as_it_stands };
  /// The user's turn is over: generates the reply. @param priority  of its generation, all rounds of it @return the
  /// events of ids that are known already
  /// @error Errc::no_speech when nothing was said, Errc::invalid_argument when the reply has begun, Errc::unsupported
  /// for a transcript of a model that gives none
  Result<std::vector<ChatEvent>> reply(Wanted wanted = Wanted::answer, Priority priority = Priority::reply);
  /// Of the reply so far; `finish` with its end.
  const ChatUsage& usage() const { return usage_; }
  /// Answers the next open call of the round; with the last one the model goes on. @return as `reply`.
  /// @error Errc::invalid_argument when no call is open
  Result<std::vector<ChatEvent>> tool_result(const std::string& result);
  /// What an event of this sequence means. @error the event's own, when generation failed; the chat is over then
  Result<std::vector<ChatEvent>> on(const TokenEvent& event);
  const std::string& name() const { return name_; }

 private:
  Chat(std::shared_ptr<LmEngine> engine, std::shared_ptr<const TextTokenizer> text, std::string name, Options options);
  Result<void> expect_no_reply() const;
  Result<std::int64_t> sync(std::span<const std::int32_t> wanted);
  Result<std::vector<ChatEvent>> generate();
  Result<std::vector<ChatEvent>> interpret(const TokenEvent& event);
  std::string take_told(bool done);
  std::vector<std::string> read_calls() const;

  std::shared_ptr<LmEngine> engine_;
  std::shared_ptr<const TextTokenizer> tokenizer_;
  std::string name_;
  Options options_;
  std::vector<Message> messages_;
  std::vector<std::int32_t> codes_, ids_;
  std::deque<std::int32_t> known_;        ///< ids to be told again before anything is generated
  std::vector<std::int32_t> untold_;      ///< ids that no event has carried yet
  std::optional<StreamDecoder> decoder_;  ///< of the round under way; none: the reply has not begun
  std::string pending_;
  std::vector<std::string> calls_;  ///< of the round, as the model wrote them
  std::string reply_;               ///< told so far in this turn, over all rounds
  ChatUsage usage_;
  bool spoken_ = false, transcribed_ = true, calling_ = false, said_ = false;
  bool only_transcript_ = false;
  Priority priority_ = Priority::reply;
  bool stopped_ = false;  ///< by one of the texts that end a reply, or because no more is wanted
  bool over_ = false;
  std::size_t open_calls_ = 0;  ///< that wait for their result
  std::int64_t calls_told_ = 0;
  int round_ = 0;
};

}  // namespace parlando::llm
