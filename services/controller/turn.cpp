#include "services/controller/turn.hpp"

#include <algorithm>

namespace parlando::controller {
using nlohmann::json;

std::optional<TextTrack::News> TextTrack::push(std::int64_t at_bytes, std::string_view part) {
  const auto size = static_cast<std::int64_t>(text.size());
  if (at_bytes > size) return std::nullopt;
  News news;
  news.fresh = part.substr(static_cast<std::size_t>(std::min(size - at_bytes, static_cast<std::int64_t>(part.size()))));
  text += news.fresh;
  // Another telling may have other words: what the client has counts by its bytes, and the rest of a character that is
  // cut becomes spaces, so that both go on counting alike.
  const auto skip = std::clamp<std::int64_t>(told_bytes - size, 0, static_cast<std::int64_t>(news.fresh.size()));
  const auto inside = [&](std::int64_t at) {
    return (static_cast<unsigned char>(news.fresh[static_cast<std::size_t>(at)]) & 0xc0) == 0x80;
  };
  news.telling = news.fresh.substr(static_cast<std::size_t>(skip));
  for (auto at = skip; skip > 0 && at < static_cast<std::int64_t>(news.fresh.size()) && inside(at); ++at)
    news.telling[static_cast<std::size_t>(at - skip)] = ' ';
  news.at_bytes = news.telling.empty() ? told_bytes : size + skip;
  told_bytes = std::max(told_bytes, static_cast<std::int64_t>(text.size()));
  return news;
}

json to_json(const ToolCall& call) {
  json out{{"id", call.id}, {"name", call.name}, {"arguments", call.arguments}};
  if (call.is_answered) out["result"] = call.result;
  return out;
}

bool Turn::is_complete() const {
  return text_done && std::all_of(pieces.begin(), pieces.end(), [](const Piece& p) { return p.done; });
}

void Turn::mark(const char* stage_name, Time now) {
  stages[stage_name] = std::chrono::duration<double, std::milli>(now - ended_at).count();
}

void Turn::rewind(std::int64_t samples_had) {
  samples = std::min(samples_had, samples);
  if (samples < told.whole_samples) {
    // Where it is within pieces of unknown length cannot be said: they are made from the first one on.
    for (auto& p : pieces) {
      p.samples = 0;
      p.done = false;
    }
    told.pieces = told.piece_samples = told.whole_samples = 0;
    told.lengths.clear();
    skip = samples;
    return;
  }
  auto left = samples - told.whole_samples;
  for (auto i = static_cast<std::size_t>(told.pieces); i < pieces.size(); ++i) {
    auto& p = pieces[i];
    p.done = p.done && p.samples <= left;
    p.samples = std::min(p.samples, left);
    left -= p.samples;
  }
  if (static_cast<std::int64_t>(pieces.size()) <= told.pieces) {
    told.piece_samples = std::min(told.piece_samples, left);
    left -= told.piece_samples;
  }
  skip = left;
}

namespace {
/// The beginning of a text of about so many bytes: it ends behind a word, or behind any character of a script that
/// knows no spaces.
std::string_view words_of(std::string_view text, std::size_t bytes) {
  if (bytes >= text.size()) return text;
  const auto is_inside = [&](std::size_t at) { return (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80; };
  const auto is_wide = [&](std::size_t at) { return static_cast<unsigned char>(text[at]) >= 0xe3; };
  while (bytes > 0 && is_inside(bytes)) --bytes;
  while (bytes > 0 && text[bytes] != ' ' && !is_wide(bytes)) --bytes;
  while (bytes > 0 && text[bytes - 1] == ' ') --bytes;
  return text.substr(0, bytes);
}
}  // namespace

std::string Turn::heard_text(std::int64_t samples_heard) const {
  constexpr std::int64_t kSamplesPerByte = 22050 / 15;  // of a piece whose end is not known: fifteen letters a second
  // Of pieces that a former owner has spoken and nobody knows the lengths of, each has its letters' share.
  const bool is_known = static_cast<std::int64_t>(told.lengths.size()) == told.pieces;
  const auto letters = [](const Piece& p) { return static_cast<std::int64_t>(p.text.size() - p.tag_bytes); };
  std::int64_t told_letters = 0;
  for (std::size_t i = 0; i < pieces.size() && static_cast<std::int64_t>(i) < told.pieces; ++i)
    told_letters += letters(pieces[i]);
  auto left = samples_heard;
  std::size_t end = 0;
  for (std::size_t i = 0; i < pieces.size() && left > 0; ++i) {
    const auto& p = pieces[i];
    const auto spoken = std::string_view(p.text).substr(p.tag_bytes);
    const auto size = letters(p);
    const bool shared = !is_known && static_cast<std::int64_t>(i) < told.pieces;
    const auto whole = shared   ? told.whole_samples * size / std::max<std::int64_t>(1, told_letters)
                       : p.done ? p.samples
                                : std::max(p.samples, size * kSamplesPerByte);
    if (left >= whole) {
      end = p.end;
    } else {
      const auto words = words_of(spoken, static_cast<std::size_t>(size * left / whole));
      if (!words.empty()) end = p.end - (spoken.size() - words.size());
    }
    left -= whole;
  }
  return reply.text.substr(0, end);
}

std::string Turn::noted_id() const { return fmt::format("utterance_{}_{}", id.value, begin_sample); }

std::vector<TextChunk> Turn::cut_again(std::string_view whole) {
  std::vector<TextChunk> out;
  const auto add = [&](std::vector<TextChunk> chunks) {
    out.insert(out.end(), std::make_move_iterator(chunks.begin()), std::make_move_iterator(chunks.end()));
  };
  std::size_t from = 0;
  for (const auto end : call_ends) {
    if (end < from || end > whole.size()) break;  // an interruption has cut the reply in front of it
    add(chunker.push(whole.substr(from, end - from)));
    add(chunker.pause());
    from = end;
  }
  add(chunker.push(whole.substr(from)));
  return out;
}

json Turn::record() const {
  json calls = json::array();
  for (const auto& c : tool_calls) calls.push_back(to_json(c));
  json out{{"user", transcript.text},
           {"assistant", reply.text},
           {"tool_calls", calls},
           {"typed", typed.has_value()},
           {"seed", seed},
           {"last_input", last_input}};
  // Whoever takes the session over does not answer these again.
  auto& settled = out["inputs"] = inputs;
  for (const auto& w : before) settled.push_back(w.input);
  for (const auto& c : corrections)
    if (c.input != 0) settled.push_back(c.input);
  if (sound_end >= 0) out["sound_end"] = sound_end;
  if (interrupted) out["interrupted"] = true;
  if (responds) out["responds"] = true;
  if (given) out["given"] = true;
  if (notes) out["noted"] = {{"id", noted_id()}, {"first_sample", begin_sample}, {"end_sample", end_sample}};
  if (history_from > 1) out["history_from"] = history_from;
  if (!call_ends.empty()) out["call_ends"] = call_ends;
  // Whoever tells later how much of it was heard.
  const bool is_known = static_cast<std::int64_t>(told.lengths.size()) == told.pieces;
  if (!pieces.empty() && is_known) {
    auto& lengths = out["piece_lengths"] = json::array();
    for (const auto& p : pieces) lengths.push_back(p.samples);
  }
  write_before(out, before);
  return out;
}

std::uint64_t mix_seed(std::uint64_t seed, std::uint64_t number) {
  // SplitMix64: neighbouring numbers give unrelated seeds.
  auto z = seed + (number + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return z == 0 ? 1 : z;
}

}  // namespace parlando::controller
