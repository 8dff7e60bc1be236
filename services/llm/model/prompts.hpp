#pragma once
/// Prompts of the official pipelines as id sequences. Source: docs/lm.md §5 and §6.
#include <nlohmann/json_fwd.hpp>
#include <variant>

#include "services/llm/model/text_tokenizer.hpp"

namespace parlando::llm {

enum class PromptStyle { offline, server };

/// A message of a dialogue: text, audio as interleaved codes, or nothing (the marker and role alone).
struct Message {
  std::string role;  ///< "user", "assistant", "system", "tool", …
  std::variant<std::monostate, std::string, std::vector<std::int32_t>> content;
  bool own = true;  ///< of a system prompt: the model's, which may hold control tokens; else a client has written it
};

/// System prompts of the TTS model; official texts unless the model directory has a prompts.json.
struct TtsPrompts {
  std::string with_speaker, without_speaker, rap, vocal;  ///< `with_speaker` holds `{}` for the name
  static const TtsPrompts& official();
};

class PromptBuilder {
 public:
  /// @param safe  text of users and tools cannot form control tokens (for untrusted input); false = parity with the
  /// official code
  PromptBuilder(std::shared_ptr<const TextTokenizer> tokenizer, bool safe)
      : tokenizer_(std::move(tokenizer)), safe_(safe) {}

  /// Offline style; ends where the assistant speaks. `add_bos` as the tokenizer's configuration says by default.
  std::vector<std::int32_t> chat_offline(std::span<const Message> messages) const;
  /// The server's template; no automatic BOS.
  std::vector<std::int32_t> chat_server(std::span<const Message> messages, bool add_generation_prompt) const;
  /// The text of the offline prompt, audio as `<audio_N>` strings; for logs and tests.
  std::string chat_offline_text(std::span<const Message> messages) const;

  struct Tts {
    std::string system, prompt_text, text;
    std::vector<std::int32_t> prompt_codes;  ///< 0…5119; the caller checks them
    std::optional<std::string> speaker =
        {};  ///< stands for the first `{}` of `system`; a name forms no control tokens when the builder is safe
  };
  /// @param inner_bos  a BOS in front of every encoded part; the tokenizer's `adds_bos()` decides by default
  /// @param voice_ids  is set to how many ids come before those of `text`: they are the same for every text
  std::vector<std::int32_t> tts(const Tts& request, std::optional<bool> inner_bos = {},
                                std::size_t* voice_ids = nullptr) const;

  /// Messages as JSON: content is a string, {type:text,text}, {type:audio, codes}, or null; another dict is dropped, as
  /// officially.
  /// @error Errc::invalid_argument "unsupported content type" for lists and numbers, Errc::token_out_of_range naming a
  /// code outside 0…5119
  static Result<std::vector<Message>> messages_of(const nlohmann::json& messages);

 private:
  class Writer;
  std::shared_ptr<const TextTokenizer> tokenizer_;
  bool safe_;
};

}  // namespace parlando::llm
