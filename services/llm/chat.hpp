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
};

class Chat {
 public:
  struct Options {
    Sampling sampling;
    std::int64_t tokens_max = 2048;
    int tool_rounds_max = 3;
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
  /// The user's turn is over: generates the reply. @return the events of ids that are known already
  /// @error Errc::no_speech when nothing was said, Errc::invalid_argument when the reply has begun
  Result<std::vector<ChatEvent>> reply();
  /// Answers a tool call and goes on. @return as `reply`. @error Errc::invalid_argument when no call is open
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

  std::shared_ptr<LmEngine> engine_;
  std::shared_ptr<const TextTokenizer> tokenizer_;
  std::string name_;
  Options options_;
  std::vector<Message> messages_;
  std::vector<std::int32_t> codes_, ids_;
  std::deque<std::int32_t> known_;        ///< ids to be told again before anything is generated
  std::vector<std::int32_t> untold_;      ///< ids that no event has carried yet
  std::optional<StreamDecoder> decoder_;  ///< of the round under way; none: the reply has not begun
  std::string pending_, call_;
  std::string reply_;  ///< told so far in this turn, over all rounds
  bool spoken_ = false, transcribed_ = true, calling_ = false, said_ = false, waiting_for_tool_ = false;
  int round_ = 0;
};

}  // namespace parlando::llm
