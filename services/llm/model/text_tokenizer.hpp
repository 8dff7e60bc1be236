#pragma once
/// Text <-> ids with a SentencePiece unigram model and the added-token rule of the official pipeline. Source:
/// docs/lm.md §4.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::llm {

/// Control tokens of the Step-Audio vocabulary; a model's own numbers where its vocabulary has the pieces, else the
/// official ones.
struct SpecialTokens {
  std::int32_t eot = 3, bot = 4, call_start = 5, call_end = 6;
};

class TextTokenizer {
 public:
  /// @param directory  holds tokenizer.model and, optionally, tokenizer_config.json (`add_bos_token`, `chat_template`)
  static Result<std::shared_ptr<const TextTokenizer>> load(const std::filesystem::path& directory);
  /// @error Errc::bad_format / Errc::unsupported naming what the SentencePiece file holds
  static Result<std::shared_ptr<const TextTokenizer>> parse(std::span<const std::byte> model, const std::string& name);

  enum class Specials { parse, text };  ///< `text` spells control tokens out: for untrusted input

  /// Ids without BOS. The text counts as a whole: a `▁` is put in front only at its offset 0.
  std::vector<std::int32_t> encode(std::string_view text, Specials specials = Specials::parse) const;
  /// One section between added tokens. `first` = stands at offset 0 of the whole text.
  void encode_section(std::string_view text, bool first, std::vector<std::int32_t>& out) const;
  /// The added token at the start of `text`, if any (longest match).
  struct Added {
    std::int32_t id;
    std::size_t bytes;
  };
  std::optional<Added> added_at(std::string_view text) const;

  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const;

  std::int32_t size() const { return static_cast<std::int32_t>(pieces_.size()); }
  std::int32_t bos() const { return 1; }
  const SpecialTokens& specials() const { return specials_; }
  std::int32_t audio_base() const { return audio_base_; }
  std::int32_t audio_count() const { return audio_count_; }
  std::optional<std::int32_t> id_of(std::string_view piece) const;
  const std::string& piece(std::int32_t id) const { return pieces_[static_cast<std::size_t>(id)].text; }
  bool is_byte(std::int32_t id) const { return pieces_[static_cast<std::size_t>(id)].type == Type::byte; }
  bool is_special(std::int32_t id) const {
    const auto t = pieces_[static_cast<std::size_t>(id)].type;
    return t == Type::control || t == Type::unknown;
  }
  bool is_added(std::int32_t id) const {
    return is_special(id) || pieces_[static_cast<std::size_t>(id)].type == Type::user_defined;
  }
  /// As tokenizer_config.json says; true when the key is absent, as in the reference library.
  bool adds_bos() const { return adds_bos_; }
  bool has_server_template() const { return server_template_; }

 private:
  enum class Type : int { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  struct Piece {
    std::string text;
    float score;
    Type type;
  };
  struct Node {
    std::vector<std::pair<char, std::int32_t>> next;
    std::int32_t id = -1;
  };
  void insert(std::vector<Node>& trie, std::string_view text, std::int32_t id);

  std::vector<Piece> pieces_;
  std::vector<Node> words_, added_;
  std::unordered_map<std::string, std::int32_t> ids_;
  std::int32_t bytes_[256];
  std::int32_t audio_base_ = -1, audio_count_ = 0;
  SpecialTokens specials_;
  float unknown_score_ = 0;
  bool adds_bos_ = true, server_template_ = false;
};

/// Decodes a growing id stream: bytes are kept back until they form a whole character; the leading space of the message
/// is dropped once.
class StreamDecoder {
 public:
  explicit StreamDecoder(std::shared_ptr<const TextTokenizer> tokenizer, bool skip_special = true)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}
  /// Text that became final with this id, valid UTF-8, possibly empty.
  std::string push(std::int32_t id);
  /// What is left; incomplete bytes become one U+FFFD.
  std::string finish();

 private:
  std::string emit(std::string text);
  std::shared_ptr<const TextTokenizer> tokenizer_;
  bool skip_special_, started_ = false;
  std::string bytes_;
};

/// Length in bytes of the UTF-8 character at the front of `text`: 1…4, or 0 when it is not valid.
std::size_t utf8_length(std::string_view text);

}  // namespace parlando::llm
