#include "services/llm/model/text_tokenizer.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/base/mapped_file.hpp"
#include "common/checkpoint/protobuf.hpp"

namespace parlando::llm {

namespace {
constexpr std::string_view kSpace = "\xe2\x96\x81";        // ▁
constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD
constexpr std::size_t kPiecesMax = 1u << 21;
}  // namespace

std::size_t utf8_length(std::string_view text) {
  if (text.empty()) return 0;
  const auto b = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  auto tail = [&](std::size_t n) {
    if (text.size() < n) return false;
    for (std::size_t i = 1; i < n; ++i)
      if ((b(i) & 0xc0) != 0x80) return false;
    return true;
  };
  if (b(0) < 0x80) return 1;
  if (b(0) >= 0xc2 && b(0) <= 0xdf) return tail(2) ? 2 : 0;
  if (b(0) >= 0xe0 && b(0) <= 0xef) {
    if (!tail(3)) return 0;
    const unsigned code = (b(0) & 15u) << 12 | (b(1) & 63u) << 6 | (b(2) & 63u);
    return code >= 0x800 && (code < 0xd800 || code > 0xdfff) ? 3 : 0;
  }
  if (b(0) >= 0xf0 && b(0) <= 0xf4) {
    if (!tail(4)) return 0;
    const unsigned code = (b(0) & 7u) << 18 | (b(1) & 63u) << 12 | (b(2) & 63u) << 6 | (b(3) & 63u);
    return code >= 0x10000 && code <= 0x10ffff ? 4 : 0;
  }
  return 0;
}

void TextTokenizer::insert(std::vector<Node>& trie, std::string_view text, std::int32_t id) {
  if (trie.empty()) trie.emplace_back();
  std::int32_t node = 0;
  for (const char c : text) {
    auto& next = trie[node].next;
    auto at = std::lower_bound(next.begin(), next.end(), c, [](const auto& a, char b) { return a.first < b; });
    if (at == next.end() || at->first != c) {
      const auto made = static_cast<std::int32_t>(trie.size());
      next.insert(at, {c, made});
      trie.emplace_back();
      node = made;
    } else {
      node = at->second;
    }
  }
  if (trie[node].id < 0) trie[node].id = id;
}

namespace {
template <class Node>
std::int32_t step(const std::vector<Node>& trie, std::int32_t node, char c) {
  const auto& next = trie[static_cast<std::size_t>(node)].next;
  const auto at = std::lower_bound(next.begin(), next.end(), c, [](const auto& a, char b) { return a.first < b; });
  return at == next.end() || at->first != c ? -1 : at->second;
}
}  // namespace

Result<std::shared_ptr<const TextTokenizer>> TextTokenizer::parse(std::span<const std::byte> model,
                                                                  const std::string& name) {
  auto out = std::make_shared<TextTokenizer>();
  std::fill(std::begin(out->bytes_), std::end(out->bytes_), -1);
  checkpoint::ProtobufReader reader(model);
  std::uint64_t model_type = 1;
  bool dummy_prefix = true, remove_spaces = true, escape = true, charsmap = false, byte_fallback = false,
       malformed = false;
  while (const auto field = reader.next()) {
    if (field->wire != 2) continue;
    checkpoint::ProtobufReader part(field->bytes);
    if (field->number == 1) {
      Piece piece{"", 0.0f, Type::normal};
      while (const auto f = part.next()) {
        if (f->number == 1 && f->wire == 2)
          piece.text = std::string(f->text());
        else if (f->number == 2 && f->wire == 5)
          piece.score = f->as_float();
        else if (f->number == 3 && f->wire == 0) {
          if (f->value < 1 || f->value > 6)
            return fail(Errc::bad_format, "'{}': piece {} has type {}", name, out->pieces_.size(), f->value);
          piece.type = static_cast<Type>(f->value);
        }
      }
      if (out->pieces_.size() >= kPiecesMax)
        return fail(Errc::bad_format, "'{}' has more than {} pieces", name, kPiecesMax);
      if (piece.text.empty() || piece.text.size() > 512)
        return fail(Errc::bad_format, "'{}': piece {} has {} bytes", name, out->pieces_.size(), piece.text.size());
      out->pieces_.push_back(std::move(piece));
    } else if (field->number == 2) {
      while (const auto f = part.next()) {
        if (f->number == 3) model_type = f->value;
        if (f->number == 35) byte_fallback = f->value != 0;
      }
    } else if (field->number == 3) {
      while (const auto f = part.next()) {
        if (f->number == 2 && f->wire == 2)
          charsmap = !f->bytes.empty();
        else if (f->number == 3)
          dummy_prefix = f->value != 0;
        else if (f->number == 4)
          remove_spaces = f->value != 0;
        else if (f->number == 5)
          escape = f->value != 0;
      }
    }
    malformed = malformed || !part.ok();
  }
  if (!reader.ok() || malformed || out->pieces_.empty())
    return fail(Errc::bad_format, "'{}' is not a SentencePiece model", name);
  if (model_type != 1)
    return fail(Errc::unsupported, "'{}' has SentencePiece model type {}, only unigram (1) is supported", name,
                model_type);
  if (charsmap || remove_spaces || !escape || !dummy_prefix || !byte_fallback)
    return fail(
        Errc::unsupported,
        "'{}': normaliser differs from the official one (identity, add_dummy_prefix, keep spaces, byte fallback)",
        name);
  float lowest = std::numeric_limits<float>::max();
  for (std::size_t i = 0; i < out->pieces_.size(); ++i) {
    const auto& piece = out->pieces_[i];
    const auto id = static_cast<std::int32_t>(i);
    out->ids_.emplace(piece.text, id);
    if (piece.type == Type::normal) {
      lowest = std::min(lowest, piece.score);
      out->insert(out->words_, piece.text, id);
    } else if (piece.type == Type::byte) {
      unsigned value = 0;
      if (piece.text.size() != 6 || std::sscanf(piece.text.c_str(), "<0x%2X>", &value) != 1)
        return fail(Errc::bad_format, "'{}': byte piece '{}'", name, piece.text);
      out->bytes_[value] = id;
    } else if (piece.type != Type::unused) {
      out->insert(out->added_, piece.text, id);
    }
  }
  for (int b = 0; b < 256; ++b)
    if (out->bytes_[b] < 0) return fail(Errc::bad_format, "'{}' lacks the byte piece <0x{:02X}>", name, b);
  if (out->words_.empty()) return fail(Errc::bad_format, "'{}' holds no text pieces", name);
  out->unknown_score_ = lowest - 10.0f;
  auto& known = out->specials_;
  for (const auto& [piece, id] : {std::pair{"<|EOT|>", &known.eot},
                                  {"<|BOT|>", &known.bot},
                                  {"<|CALL_START|>", &known.call_start},
                                  {"<|CALL_END|>", &known.call_end}})
    *id = out->id_of(piece).value_or(*id);
  if (const auto first = out->id_of("<audio_0>")) {
    out->audio_base_ = *first;
    while (*first + out->audio_count_ < out->size() &&
           out->pieces_[*first + out->audio_count_].text == fmt::format("<audio_{}>", out->audio_count_))
      ++out->audio_count_;
  }
  return out;
}

Result<std::shared_ptr<const TextTokenizer>> TextTokenizer::load(const std::filesystem::path& directory) {
  PARLANDO_TRY(const auto file, MappedFile::open(directory / "tokenizer.model"));
  PARLANDO_TRY(auto parsed, parse(file.bytes(), (directory / "tokenizer.model").string()));
  auto out = std::const_pointer_cast<TextTokenizer>(parsed);
  if (std::filesystem::exists(directory / "tokenizer_config.json")) {
    PARLANDO_TRY(const auto text, read_file(directory / "tokenizer_config.json", 4u << 20));
    const auto config = nlohmann::json::parse(text, nullptr, false);
    if (!config.is_object())
      return fail(Errc::bad_json, "'{}/tokenizer_config.json' is not a JSON object", directory.string());
    if (config.contains("add_bos_token") && config["add_bos_token"].is_boolean())
      out->adds_bos_ = config["add_bos_token"].get<bool>();
    out->server_template_ = config.contains("chat_template") && config["chat_template"].is_string() &&
                            config["chat_template"].get<std::string>().find("<|BOT|> ") != std::string::npos;
  }
  return out;
}

std::optional<std::int32_t> TextTokenizer::id_of(std::string_view piece) const {
  const auto found = ids_.find(std::string(piece));
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<TextTokenizer::Added> TextTokenizer::added_at(std::string_view text) const {
  std::optional<Added> best;
  if (added_.empty()) return best;
  std::int32_t node = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    node = step(added_, node, text[i]);
    if (node < 0) break;
    if (added_[static_cast<std::size_t>(node)].id >= 0) best = Added{added_[static_cast<std::size_t>(node)].id, i + 1};
  }
  return best;
}

void TextTokenizer::encode_section(std::string_view raw, bool first, std::vector<std::int32_t>& out) const {
  if (raw.empty()) return;
  std::string text;
  text.reserve(raw.size() + 8);
  for (const char c : raw) {
    if (c == ' ')
      text += kSpace;
    else
      text += c;
  }
  if (first && !text.starts_with(kSpace)) text.insert(0, kSpace);
  // Viterbi: the best score of every prefix, the piece that ends there and where that piece starts.
  const std::size_t n = text.size();
  struct Best {
    float score = -std::numeric_limits<float>::infinity();
    std::size_t start = 0;
    std::int32_t id = -2;
  };
  std::vector<Best> best(n + 1);
  best[0].score = 0;
  for (std::size_t i = 0; i < n;) {
    const std::size_t length = std::max<std::size_t>(1, utf8_length(std::string_view(text).substr(i)));
    if (best[i].id == -2 && i != 0) {
      i += length;
      continue;
    }  // not reachable
    bool single = false;
    std::int32_t node = 0;
    for (std::size_t j = i; j < n; ++j) {
      node = step(words_, node, text[j]);
      if (node < 0) break;
      const auto id = words_[static_cast<std::size_t>(node)].id;
      if (id < 0) continue;
      const float score = best[i].score + pieces_[static_cast<std::size_t>(id)].score;
      if (best[j + 1].id == -2 || score > best[j + 1].score) best[j + 1] = {score, i, id};
      single = single || j + 1 - i == length;
    }
    if (!single) {
      const float score = best[i].score + unknown_score_;
      auto& to = best[std::min(n, i + length)];
      if (to.id == -2 || score > to.score) to = {score, i, -1};
    }
    i += length;
  }
  std::vector<std::int32_t> reversed;
  for (std::size_t at = n; at > 0; at = best[at].start) {
    if (best[at].id >= 0) {
      reversed.push_back(best[at].id);
    } else {
      for (std::size_t b = at; b > best[at].start; --b)
        reversed.push_back(bytes_[static_cast<unsigned char>(text[b - 1])]);
    }
  }
  out.insert(out.end(), reversed.rbegin(), reversed.rend());
}

std::vector<std::int32_t> TextTokenizer::encode(std::string_view text, Specials specials) const {
  std::vector<std::int32_t> out;
  std::size_t start = 0;
  if (specials == Specials::parse)
    for (std::size_t i = 0; i < text.size();) {
      if (const auto added = added_at(text.substr(i))) {
        encode_section(text.substr(start, i - start), start == 0, out);
        out.push_back(added->id);
        i += added->bytes;
        start = i;
      } else {
        ++i;
      }
    }
  encode_section(text.substr(start), start == 0, out);
  return out;
}

std::string TextTokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string out, bytes;
  auto flush = [&] {
    bool valid = true;
    for (std::size_t i = 0; i < bytes.size() && valid;) {
      const auto n = utf8_length(std::string_view(bytes).substr(i));
      valid = n > 0;
      i += n;
    }
    if (valid)
      out += bytes;
    else
      for (std::size_t i = 0; i < bytes.size(); ++i) out += kReplacement;
    bytes.clear();
  };
  for (const auto id : ids) {
    if (id < 0 || id >= size()) continue;
    const auto& piece = pieces_[static_cast<std::size_t>(id)];
    if (piece.type == Type::byte) {
      for (int b = 0; b < 256; ++b)
        if (bytes_[b] == id) bytes += static_cast<char>(b);
      continue;
    }
    flush();
    if (skip_special && is_special(id)) continue;
    for (std::size_t i = 0; i < piece.text.size();) {
      if (std::string_view(piece.text).substr(i).starts_with(kSpace))
        out += ' ', i += kSpace.size();
      else
        out += piece.text[i++];
    }
  }
  flush();
  if (out.starts_with(' ')) out.erase(0, 1);
  return out;
}

std::string StreamDecoder::emit(std::string text) {
  if (text.empty()) return text;
  if (!started_) {
    started_ = true;
    if (text.front() == ' ') text.erase(0, 1);
  }
  return text;
}

std::string StreamDecoder::push(std::int32_t id) {
  if (id < 0 || id >= tokenizer_->size()) return {};
  std::string out;
  if (tokenizer_->is_byte(id)) {
    unsigned value = 0;
    std::sscanf(tokenizer_->piece(id).c_str(), "<0x%2X>", &value);
    bytes_ += static_cast<char>(value);
    while (!bytes_.empty()) {
      if (const auto n = utf8_length(bytes_)) {
        out += bytes_.substr(0, n);
        bytes_.erase(0, n);
        continue;
      }
      const auto lead = static_cast<unsigned char>(bytes_[0]);
      const std::size_t want = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc2 ? 2 : 1;
      if (want > 1 && lead < 0xf5 && bytes_.size() < want) {
        bool tail = true;
        for (std::size_t i = 1; i < bytes_.size(); ++i)
          tail = tail && (static_cast<unsigned char>(bytes_[i]) & 0xc0) == 0x80;
        if (tail) break;  // may still become a character
      }
      out += kReplacement;
      bytes_.erase(0, 1);
    }
    return emit(std::move(out));
  }
  for (std::size_t i = 0; i < bytes_.size(); ++i) out += kReplacement;
  bytes_.clear();
  if (!(skip_special_ && tokenizer_->is_special(id))) {
    const auto& text = tokenizer_->piece(id);
    for (std::size_t i = 0; i < text.size();) {
      if (std::string_view(text).substr(i).starts_with(kSpace))
        out += ' ', i += kSpace.size();
      else
        out += text[i++];
    }
  }
  return emit(std::move(out));
}

std::string StreamDecoder::finish() {
  const bool open = !bytes_.empty();
  bytes_.clear();
  return open ? emit(std::string(kReplacement)) : std::string{};
}

}  // namespace parlando::llm
