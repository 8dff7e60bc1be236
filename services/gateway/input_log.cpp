#include "services/gateway/input_log.hpp"

#include <nlohmann/json.hpp>

#include "common/base/assert.hpp"
#include "common/base/nesting.hpp"

namespace parlando::gateway {

namespace {

/// Bytes of text in an input.
struct Written {
  std::size_t operator()(const protocol::Say& say) const { return say.text.size(); }
  std::size_t operator()(const protocol::Utter& utter) const { return utter.text.size(); }
  std::size_t operator()(const protocol::Item& item) const { return item.text.size() + item.calls.text.size(); }
  std::size_t operator()(const protocol::ToolOutput& out) const { return out.output.size(); }
  std::size_t operator()(const protocol::Respond& respond) const { return respond.settings.text.size(); }
  std::size_t operator()(const protocol::Configure& settings) const {
    return settings.system.size() + settings.tools.text.size();
  }
  template <class T>
  std::size_t operator()(const T&) const {
    return 0;
  }
};

}  // namespace

InputLog::Size InputLog::size_of(const Input& input) {
  if (const auto* audio = std::get_if<protocol::Audio>(&input))
    return {static_cast<std::int64_t>(audio->payload.size() / kSampleBytes), 0};
  return {0, std::visit(Written{}, input)};
}

std::uint64_t InputLog::add(Input input, std::uint64_t trace) {
  const auto size = size_of(input);
  samples_ += size.samples;
  waiting_samples_ += size.samples;
  text_bytes_ += size.text_bytes;
  waiting_text_bytes_ += size.text_bytes;
  entries_.push_back({std::move(input), trace});
  trim();
  return last();
}

const InputLog::Entry* InputLog::next() const { return handed_ < last() ? &entries_[handed_ + 1 - first_] : nullptr; }

void InputLog::handed_out() {
  PARLANDO_ASSERT(handed_ < last(), "only what next() gave can be handed out");
  const auto number = ++handed_;
  said_ = std::max(said_, number);
  const auto size = size_of(at(number).input);
  waiting_samples_ -= size.samples;
  waiting_text_bytes_ -= size.text_bytes;
  count_behind(number, size.samples);
  drop_behind();
  trim();
}

void InputLog::go_back_to(std::uint64_t number) {
  number = std::max(number, first_);
  for (; handed_ >= number; --handed_) {
    const auto size = size_of(at(handed_).input);
    waiting_samples_ += size.samples;
    waiting_text_bytes_ += size.text_bytes;
    count_behind(handed_, -size.samples);
  }
}

/// Audio that was handed out and lies behind what is kept in any case has come (or has gone).
void InputLog::count_behind(std::uint64_t number, std::int64_t samples) {
  if (keep_until_ != 0 && number > keep_until_) behind_samples_ += samples;
}

/// Only the latest of it stays.
void InputLog::drop_behind() {
  if (keep_until_ == 0) return;
  for (behind_from_ = std::max(behind_from_, first_); behind_from_ <= handed_; ++behind_from_) {
    const auto samples = size_of(at(behind_from_).input).samples;
    if (samples == 0) continue;
    if (behind_samples_ - samples < recent_samples_) return;
    blank(behind_from_);
  }
}

void InputLog::blank(std::uint64_t number) {
  if (number < first_ || number > last()) return;
  auto& entry = at(number);
  const auto size = size_of(entry.input);
  samples_ -= size.samples;
  text_bytes_ -= size.text_bytes;
  if (handed_has(number)) {
    count_behind(number, -size.samples);
  } else {
    waiting_samples_ -= size.samples;
    waiting_text_bytes_ -= size.text_bytes;
  }
  protocol::Audio empty;
  if (const auto* audio = std::get_if<protocol::Audio>(&entry.input)) empty.first_sample = audio->first_sample;
  entry.input = std::move(empty);
}

void InputLog::pop_front() {
  const auto size = size_of(entries_.front().input);
  samples_ -= size.samples;
  text_bytes_ -= size.text_bytes;
  count_behind(first_, -size.samples);
  if (auto* configured = std::get_if<protocol::Configure>(&entries_.front().input)) settings_ = std::move(*configured);
  entries_.pop_front();
  ++first_;
}

void InputLog::checkpoint(std::uint64_t input, std::uint64_t keep_until, std::int64_t recent_samples) {
  while (first_ <= std::min(input, handed_)) pop_front();
  keep_until_ = keep_until;
  recent_samples_ = recent_samples;
  behind_samples_ = 0;
  behind_from_ = std::max(first_, keep_until + 1);
  if (keep_until == 0) return;
  for (auto number = behind_from_; number <= handed_; ++number) behind_samples_ += size_of(at(number).input).samples;
  drop_behind();
}

void InputLog::settle(const protocol::JsonText& settled, std::int64_t sound_from) {
  const auto list =
      nested_deeper_than(settled.text, 2) ? nlohmann::json() : nlohmann::json::parse(settled.text, nullptr, false);
  for (const auto& number : list.is_array() ? list : nlohmann::json::array()) {
    if (!number.is_number_unsigned()) continue;
    const auto n = number.get<std::uint64_t>();
    if (n < first_ || n > std::min(said_, last()) || std::holds_alternative<protocol::Audio>(at(n).input)) continue;
    blank(n);
  }
  sound_from_ = std::max(sound_from_, sound_from);
  trim();
}

void InputLog::turn_over(TurnId turn, bool stored) {
  if (turn >= decided_.of_turn) decided_ = {};
  // Turns are told in order: with this one, those before it were, also where nobody knew (a session that was resumed).
  if (stored) turn_told_ = std::max<std::int64_t>(turn_told_, turn.value);
}

void InputLog::describe(protocol::Open& open) const {
  open.first_input = first_;
  open.last_input = said_;
  open.turn_told = turn_told_;
  open.sound_from = sound_from_;
  open.decided = decided_;
}

/// Keeps the limits at the expense of what was handed out: the oldest audio first, then whole inputs from the front.
void InputLog::trim() {
  audio_from_ = std::max(audio_from_, first_);
  while (samples_ > limits_.audio_samples_max && audio_from_ <= handed_) {
    const auto samples = size_of(at(audio_from_).input).samples;
    if (samples > 0) {
      dropped_samples_ += samples;
      blank(audio_from_);
    }
    ++audio_from_;
  }
  const auto is_blank = [this] {
    const auto* audio = std::get_if<protocol::Audio>(&entries_.front().input);
    return audio != nullptr && audio->payload.empty();
  };
  while (first_ <= handed_ &&
         (entries_.size() > limits_.inputs_max || text_bytes_ > limits_.text_bytes_max || is_blank())) {
    dropped_samples_ += size_of(entries_.front().input).samples;
    pop_front();
  }
}

bool InputLog::is_full() const {
  return waiting_samples_ >= limits_.audio_samples_max - kInputRate || waiting_text_bytes_ >= limits_.text_bytes_max ||
         last() - handed_ >= limits_.inputs_max;
}

}  // namespace parlando::gateway
