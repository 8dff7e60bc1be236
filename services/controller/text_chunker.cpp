#include "services/controller/text_chunker.hpp"

#include <utility>

namespace parlando::controller {

namespace {

/// Bytes of a sentence's end at `at`, 0 when there is none.
std::size_t sentence_end(std::string_view s, std::size_t at) {
  const char c = s[at];
  // A full stop inside a number is none, so the character behind it has to be there and to be a space.
  if (c == '.' || c == '!' || c == '?' || c == ';') return at + 1 < s.size() && s[at + 1] == ' ' ? 1 : 0;
  if (c == '\n') return 1;
  for (const std::string_view mark : {"。", "！", "？", "；"})
    if (s.substr(at).starts_with(mark)) return mark.size();
  return 0;
}

std::size_t comma(std::string_view s, std::size_t at) {
  if (s[at] == ',' && at + 1 < s.size() && s[at + 1] == ' ') return 1;
  return s.substr(at).starts_with("，") ? 3 : 0;
}

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
    // "(快速1)hello. goodbye." : the tag is spoken with both sentences.
    if (piece.front() == '(')
      if (const auto close = piece.find(')'); close != std::string::npos) tag_ = piece.substr(0, close + 1);
    if (piece.starts_with("（"))
      if (const auto close = piece.find("）"); close != std::string::npos) tag_ = piece.substr(0, close + 3);
    out.push_back({std::move(piece), tag_.size(), begin + last + 1});
    return;
  }
  out.push_back({tag_ + piece, tag_.size(), begin + last + 1});
}

std::vector<TextChunk> TextChunker::push(std::string_view text) {
  open_ += text;
  std::vector<TextChunk> out;
  for (std::size_t at = 0; at < open_.size(); ++at) {
    auto size = sentence_end(open_, at);
    if (size == 0 && at >= options_.comma_bytes) size = comma(open_, at);
    if (size == 0 && at >= options_.bytes_max && open_[at] == ' ') size = 1;
    if (size == 0) continue;
    emit(out, at + size);
    at = static_cast<std::size_t>(-1);
  }
  return out;
}

std::vector<TextChunk> TextChunker::finish() {
  std::vector<TextChunk> out;
  emit(out, open_.size());
  return out;
}

}  // namespace parlando::controller
