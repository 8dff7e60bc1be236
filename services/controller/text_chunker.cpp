#include "services/controller/text_chunker.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace parlando::controller {

namespace {

constexpr auto kTitles =
    std::to_array<std::string_view>({"mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "approx", "dept", "gen",
                                     "col", "lt", "capt", "rev", "mt", "e.g", "i.e"});

constexpr std::size_t kShortBytes = 14;  // "good morning!" is short: a second of speech

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
char small(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c; }

/// Of a full stop in front of a space, in a sentence that begins at `from`. Behind letters with stops it is for what
/// follows the space to say, and nothing is ended before that is there.
bool ends_sentence(std::string_view s, std::size_t from, std::size_t at) {
  auto begin = at;
  while (begin > 0 && (is_letter(s[begin - 1]) || is_digit(s[begin - 1]) || s[begin - 1] == '.')) --begin;
  std::string word(s.substr(begin, at - begin));
  std::transform(word.begin(), word.end(), word.begin(), small);
  if (std::find(kTitles.begin(), kTitles.end(), word) != kTitles.end()) return false;
  const bool is_first = s.find_first_not_of(" \n", from) == begin;
  if (is_first && !word.empty() && std::all_of(word.begin(), word.end(), is_digit)) return false;
  if (word.size() == 1 && is_letter(word[0]) && word != "i") return false;
  const bool has_stops = word.size() == 3 && is_letter(word[0]) && word[1] == '.' && is_letter(word[2]);
  return !has_stops || (at + 2 < s.size() && !(s[at + 2] >= 'a' && s[at + 2] <= 'z'));
}

/// Bytes of a sentence's end at `at`, 0 when there is none.
std::size_t sentence_end(std::string_view s, std::size_t from, std::size_t at) {
  const char c = s[at];
  // A full stop inside a number is none, so the character behind it has to be there and to be a space.
  if (c == '.' || c == '!' || c == '?' || c == ';') {
    if (at + 1 >= s.size() || s[at + 1] != ' ') return 0;
    return c != '.' || ends_sentence(s, from, at) ? 1 : 0;
  }
  if (c == '\n') return 1;
  for (const std::string_view mark : {"。", "！", "？", "；"})
    if (s.substr(at).starts_with(mark)) return mark.size();
  return 0;
}

std::size_t comma(std::string_view s, std::size_t at) {
  if (s[at] == ',' && at + 1 < s.size() && s[at + 1] == ' ') return 1;
  for (const std::string_view mark : {"，", "、"})
    if (s.substr(at).starts_with(mark)) return mark.size();
  return 0;
}

/// Whether a whole character begins at `at`: a part of one may be a mark when the rest has come.
bool is_character(std::string_view s, std::size_t at) {
  const auto lead = static_cast<unsigned char>(s[at]);
  if ((lead & 0xc0) == 0x80) return false;
  return at + (lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4) <= s.size();
}

/// Bytes of a tag that a text begins with.
std::size_t tag_bytes(std::string_view s) {
  if (s.starts_with("(")) return s.find(')') + 1;  // 0 without one
  const auto close = s.starts_with("（") ? s.find("）") : std::string_view::npos;
  return close == std::string_view::npos ? 0 : close + 3;
}

/// Of a piece that ends behind a sentence.
bool is_short(std::string_view piece, bool is_first) {
  piece.remove_prefix(piece.find_first_not_of(" \n"));
  return piece.size() < kShortBytes + (is_first ? tag_bytes(piece) : 0);
}

/// Of a script that has no spaces.
bool is_wide(std::string_view s, std::size_t at) { return static_cast<unsigned char>(s[at]) >= 0xe3; }

}  // namespace

/// The first bytes of what is open.
void TextChunker::emit(std::vector<TextChunk>& out, std::size_t size) {
  auto piece = open_.substr(0, size);
  open_.erase(0, size);
  const auto begin = std::exchange(done_bytes_, done_bytes_ + size);
  const auto first = piece.find_first_not_of(" \n"), last = piece.find_last_not_of(" \n");
  if (first == std::string::npos) return;
  piece = piece.substr(first, last - first + 1);
  if (!begun_) {
    begun_ = true;
    // "(快速1)say it again. goodbye." : the tag is spoken with both sentences.
    tag_ = piece.substr(0, tag_bytes(piece));
    out.push_back({std::move(piece), tag_.size(), begin + last + 1});
    return;
  }
  out.push_back({tag_ + piece, tag_.size(), begin + last + 1});
}

std::vector<TextChunk> TextChunker::push(std::string_view text) {
  open_ += text;
  std::vector<TextChunk> out;
  std::size_t sentence = 0;  // begins there
  for (std::size_t at = 0; at < open_.size(); ++at) {
    const auto& limits = begun_ ? options_.later : options_.first;
    auto size = sentence_end(open_, sentence, at);
    if (size != 0 && open_[at] != '\n' && is_short(std::string_view(open_).substr(0, at + size), !begun_)) {
      sentence = at + size;
      size = 0;
    }
    if (size == 0 && at >= limits.comma_bytes) size = comma(open_, at);
    if (size == 0 && at >= limits.space_bytes && open_[at] == ' ') size = 1;
    // Without a mark or a space: between two characters, of other scripts only when nothing else helps.
    const auto most = is_wide(open_, at) ? limits.wide_bytes : options_.bytes_hard_max;
    // The last one may be a mark that only the next one tells.
    if (size == 0 && (at < most || !is_character(open_, at) || at + 1 == open_.size())) continue;
    emit(out, at + size);
    sentence = 0;
    at = static_cast<std::size_t>(-1);
  }
  return out;
}

std::vector<TextChunk> TextChunker::pause() {
  std::vector<TextChunk> out;
  auto at = open_.find_last_not_of(" \n");
  if (at == std::string::npos) return out;
  const auto closed = open_.substr(0, at + 1) + ' ';
  while (at > 0 && !is_character(closed, at)) --at;
  if (sentence_end(closed, 0, at) != 0) emit(out, open_.size());
  return out;
}

std::vector<TextChunk> TextChunker::finish() {
  std::vector<TextChunk> out;
  emit(out, open_.size());
  return out;
}

}  // namespace parlando::controller
