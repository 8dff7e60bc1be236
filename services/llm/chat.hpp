#pragma once
/// One conversation's turn on an engine: prompt kept in step with what is known, the user's codes prefilled as they come, the model's output
/// cut into transcript, text and tool calls. A plain class; the owner turns the engine and hands in its events.
#include <memory>

#include "services/llm/model/engine.hpp"
#include "services/llm/model/prompts.hpp"

namespace parlando::llm {

struct ChatEvent {
  enum class Kind { transcript, text, tool_call, done } kind;
  std::string text;  ///< transcript; piece of the reply; call as JSON {name, arguments}; whole reply
};

class Chat {
 public:
  struct Options {
    Sampling sampling;
    std::int64_t tokens_max = 2048;
    int tool_rounds_max = 3;
  };
  /// Opens a sequence. `messages`: system prompt and history. @error Errc::overloaded at the engine's limit
  static Result<std::unique_ptr<Chat>> open(std::shared_ptr<LmEngine> engine, std::shared_ptr<const TextTokenizer> text, std::string name,
                                            std::vector<Message> messages, Options options);
  ~Chat() { engine_->release(name_); }
  Chat(const Chat&) = delete;
  Chat& operator=(const Chat&) = delete;

  /// The user's codes from a group on; what was there is replaced. Prefills; the cache keeps what is equal.
  Result<void> hear(std::int64_t first_group, std::span<const std::int32_t> codes);
  Result<void> say(std::string text);
  /// The user's turn is over: generates the reply. @error Errc::no_speech when nothing was said
  Result<void> reply();
  /// Answers a tool call and goes on. @error Errc::invalid_argument when no call is open
  Result<void> tool_result(const std::string& result);
  void cancel() { engine_->cancel(name_); }
  /// What an event of this sequence means. @error when generation failed
  Result<std::vector<ChatEvent>> on(const TokenEvent& event);
  const std::string& name() const { return name_; }

 private:
  Chat(std::shared_ptr<LmEngine> engine, std::shared_ptr<const TextTokenizer> text, std::string name, Options options);
  Result<std::int64_t> sync(std::span<const std::int32_t> wanted);
  Result<void> generate();

  std::shared_ptr<LmEngine> engine_;
  std::shared_ptr<const TextTokenizer> tokenizer_;
  std::string name_;
  Options options_;
  std::vector<Message> messages_;
  std::vector<std::int32_t> codes_, ids_;
  std::optional<StreamDecoder> decoder_;
  std::string pending_, reply_, call_;
  bool spoken_ = false, transcribed_ = true, calling_ = false, said_ = false, waiting_for_tool_ = false;
  int round_ = 0;
};

}  // namespace parlando::llm
