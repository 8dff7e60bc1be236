#include "services/gateway/input_log.hpp"

#include <algorithm>

#include "common/base/assert.hpp"

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
  const auto size = size_of(at(number).input);
  waiting_samples_ -= size.samples;
  waiting_text_bytes_ -= size.text_bytes;
  if (keep_until_ != 0 && number > keep_until_ && size.samples > 0) blank(number);
  trim();
}

void InputLog::go_back_to(std::uint64_t number) {
  number = std::max(number, first_);
  for (; handed_ >= number; --handed_) {
    const auto size = size_of(at(handed_).input);
    waiting_samples_ += size.samples;
    waiting_text_bytes_ += size.text_bytes;
  }
}

void InputLog::blank(std::uint64_t number) {
  if (number < first_ || number > last()) return;
  auto& entry = at(number);
  const auto size = size_of(entry.input);
  samples_ -= size.samples;
  text_bytes_ -= size.text_bytes;
  if (!handed_has(number)) {
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
  if (auto* configured = std::get_if<protocol::Configure>(&entries_.front().input)) settings_ = std::move(*configured);
  entries_.pop_front();
  ++first_;
}

void InputLog::checkpoint(std::uint64_t input, std::uint64_t keep_until) {
  while (first_ <= std::min(input, handed_)) pop_front();
  keep_until_ = keep_until;
  if (keep_until == 0) return;
  for (auto number = std::max(first_, keep_until + 1); number <= handed_; ++number)
    if (std::holds_alternative<protocol::Audio>(at(number).input)) blank(number);
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
