#include "services/gateway/open_turn.hpp"

#include <algorithm>
#include <cstdlib>

#include "common/base/nesting.hpp"
#include "common/base/units.hpp"
#include "services/gateway/json_text.hpp"

namespace parlando::gateway {
using nlohmann::json;
using protocol::TextKind;

namespace {

constexpr std::int64_t kPiecesMax = 8192;  // whose lengths are kept; of more they count as unknown
constexpr int kResultDepthMax = 24;        // inside the array of results, inside a body of at most 32 levels

/// What a tool_call's text says of itself under this key, as JSON.
std::string part_of(const std::string& text, const char* key) {
  if (nested_deeper_than(text, kResultDepthMax)) return "null";
  const auto call = json::parse(text, nullptr, false);
  if (!call.is_object() || !call.contains(key)) return "null";
  return dump(call[key]);
}

/// The elements of a JSON array, as JSON.
std::vector<std::string> elements_of(const protocol::JsonText& list) {
  const auto parsed =
      nested_deeper_than(list.text, kResultDepthMax + 1) ? json() : json::parse(list.text, nullptr, false);
  std::vector<std::string> out;
  for (const auto& element : parsed.is_array() ? parsed : json::array()) out.push_back(dump(element));
  return out;
}

/// The first byte at or behind `at` that begins a character.
std::size_t next_character(std::string_view text, std::size_t at) {
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) ++at;
  return at;
}

}  // namespace

void OpenTurn::begin(TurnId id) {
  if (id == id_) return;
  *this = OpenTurn();
  id_ = id;
}

void OpenTurn::count_tool_call(const protocol::Text& message) {
  tool_results_.push_back(part_of(message.text, "result"));
  call_ids_.push_back(part_of(message.text, "id"));
}

std::optional<std::string_view> OpenTurn::text(const protocol::Text& message) {
  const std::string_view all = message.text;
  const auto take_ids = [&] { ids_.insert(ids_.end(), message.payload.begin(), message.payload.end()); };
  if (message.kind == TextKind::tool_call) {
    if (message.at_bytes < static_cast<std::int64_t>(tool_results_.size())) return {};
    take_ids();
    count_tool_call(message);
    return all;
  }
  if (message.kind == TextKind::done) {
    take_ids();
    return {};
  }
  auto& have = message.kind == TextKind::transcript ? transcript_bytes_ : reply_bytes_;
  const auto end = message.at_bytes + static_cast<std::int64_t>(all.size());
  if (end <= have && !all.empty()) return {};
  take_ids();
  const auto known = static_cast<std::size_t>(std::max<std::int64_t>(0, have - message.at_bytes));
  have = std::max(have, end);
  if (known >= all.size()) return {};
  return all.substr(next_character(all, known));
}

std::span<const std::byte> OpenTurn::speech(const protocol::Speech& message) {
  const std::span<const std::byte> all = message.payload;
  const std::int64_t piece = message.piece;
  if (piece < pieces_) return {};
  if (piece > pieces_) {
    lengths_.resize(static_cast<std::size_t>(std::min(piece, kPiecesMax)), -1);
    pieces_ = piece;
    piece_samples_ = 0;
  }
  const auto samples = static_cast<std::int64_t>(all.size() / kSampleBytes);
  const auto known = std::clamp<std::int64_t>(piece_samples_ - message.first_sample, 0, samples);
  piece_samples_ = std::max(piece_samples_, message.first_sample + samples);
  turn_samples_ += samples - known;
  if (message.last) {
    if (pieces_ < kPiecesMax) lengths_.push_back(piece_samples_);
    ++pieces_;
    piece_samples_ = 0;
  }
  return all.subspan(static_cast<std::size_t>(known) * kSampleBytes);
}

void OpenTurn::resume(protocol::Conversation state) {
  *this = OpenTurn();
  id_ = state.open_turn;
  transcript_bytes_ = state.transcript_bytes;
  reply_bytes_ = state.reply_bytes;
  tool_results_ = elements_of(state.tool_results);
  call_ids_ = elements_of(state.call_ids);
  ids_ = std::move(state.payload);
  pieces_ = state.pieces;
  piece_samples_ = state.piece_samples;
  turn_samples_ = state.turn_samples;
  for (const auto& length : elements_of(state.piece_lengths)) lengths_.push_back(std::atoll(length.c_str()));
  lengths_.resize(static_cast<std::size_t>(std::min(pieces_, kPiecesMax)), -1);
}

void OpenTurn::describe(protocol::Conversation& open) const {
  open.open_turn = id_;
  open.transcript_bytes = transcript_bytes_;
  open.reply_bytes = reply_bytes_;
  open.tool_calls = static_cast<std::int64_t>(tool_results_.size());
  open.tool_results.text = fmt::format("[{}]", fmt::join(tool_results_, ","));
  open.call_ids.text = fmt::format("[{}]", fmt::join(call_ids_, ","));
  open.pieces = pieces_;
  open.piece_samples = piece_samples_;
  open.turn_samples = turn_samples_;
  open.piece_lengths.text = fmt::format("[{}]", fmt::join(lengths_, ","));
  open.payload = ids_;
}

}  // namespace parlando::gateway
