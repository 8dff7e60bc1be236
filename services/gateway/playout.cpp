#include "services/gateway/playout.hpp"

#include <algorithm>

namespace parlando::gateway {

namespace {

using std::chrono::nanoseconds;

constexpr milliseconds kSliceMost{40};  // a message of sound; what is being written cannot be taken back
constexpr int kSlicesInLead = 4;        // at least
constexpr milliseconds kLookAgain{20};  // at a socket that was full
constexpr std::int64_t kSecond = 1'000'000'000;

std::int64_t size_of(const std::string& pcm) { return static_cast<std::int64_t>(pcm.size() / kSampleBytes); }
std::int64_t samples_in(Time::duration span) {
  return std::chrono::duration_cast<nanoseconds>(span).count() * kSpeechRate / kSecond;
}
/// At least so long that `samples_in` it are that many.
nanoseconds span_of(std::int64_t samples) { return nanoseconds((samples * kSecond + kSpeechRate - 1) / kSpeechRate); }

}  // namespace

Playout::Playout(milliseconds lead, PlayoutLimits limits)
    : lead_time_(lead),
      limits_(limits),
      lead_(samples_in(lead)),
      slice_(std::max<std::int64_t>(1, samples_in(std::min(kSliceMost, lead / kSlicesInLead)))) {}

// ------------------------------------------------------------------------------------------------ the loudspeaker

/// What was heard of the front one.
std::int64_t Playout::position(Time now) const {
  const auto& front = answers_.front();
  if (held_turn_) return front.heard;
  return std::min(front.sent, front.heard + samples_in(std::max(now, since_) - since_));
}

Time Playout::time_of(std::int64_t position) const {
  const auto& front = answers_.front();
  return position <= front.heard ? since_ : since_ + span_of(position - front.heard);
}

bool Playout::hold(TurnId turn, Time now) {
  if (held_turn_ == turn || heard(turn, now).over) return false;
  answers_.front().heard = position(now);
  since_ = now;
  held_turn_ = turn;
  return true;
}

bool Playout::release(TurnId turn, Time now) {
  if (held_turn_ != turn) return false;
  thaw(now);
  return true;
}

void Playout::thaw(Time now) {
  held_turn_.reset();
  since_ = now;
  if (answers_.empty()) return;
  auto& front = answers_.front();
  if (front.heard == front.sent) front.begun = false;
}

Playout::Heard Playout::heard(TurnId turn, Time now) const {
  const auto found = std::find_if(answers_.rbegin(), answers_.rend(), [&](const auto& a) { return a.turn == turn; });
  if (found == answers_.rend()) return {over_ == turn ? over_samples_ : 0, true};
  return {&*found == &answers_.front() ? position(now) : found->sent, found->silent};
}

// ------------------------------------------------------------------------------------------------ what is told

void Playout::begin(TurnId turn) {
  if (!answers_.empty() && answers_.back().turn == turn && !answers_.back().complete) return;
  if (!answers_.empty()) answers_.back().complete = true;
  answers_.emplace_back().turn = turn;
}

void Playout::resume(TurnId turn, std::int64_t samples) {
  begin(turn);
  auto& answer = answers_.back();
  answer.first = answer.sent = answer.heard = samples;
}

void Playout::event(TurnId turn, std::string event) {
  begin(turn);
  answers_.back().events.push_back(std::move(event));
}

void Playout::sound(TurnId turn, std::span<const std::byte> pcm) {
  begin(turn);
  auto& answer = answers_.back();
  if (answer.silent) return;
  const auto* data = reinterpret_cast<const char*>(pcm.data());
  const auto bytes = static_cast<std::size_t>(slice_) * kSampleBytes;
  for (std::size_t at = 0; at < pcm.size(); at += bytes)
    answer.unsent.emplace_back(data + at, std::min(bytes, pcm.size() - at));
  held_samples_ += static_cast<std::int64_t>(pcm.size() / kSampleBytes);
}

void Playout::end(TurnId turn, std::string event) {
  begin(turn);
  answers_.back().complete = true;
  answers_.back().last_event = std::move(event);
}

void Playout::end_unanswered(TurnId turn) {
  if (answers_.empty() || answers_.back().turn != turn || answers_.back().complete) return;
  auto& answer = answers_.back();
  answer.complete = true;
  answer.silent = answer.silent || (answer.unsent.empty() && answer.sent == 0);
}

/// The client drops what it has got and not heard, too.
void Playout::silence(Answer& answer, Time now) {
  for (const auto& slice : answer.unsent) held_samples_ -= size_of(slice);
  answer.unsent.clear();
  if (&answer != &answers_.front()) return;
  answer.sent = answer.heard = position(now);
  since_ = now;
  recent_.clear();
  recent_samples_ = 0;
}

void Playout::drop(TurnId turn, Time now) {
  for (auto& answer : answers_) {
    if (turn.value != 0 && answer.turn != turn) continue;
    silence(answer, now);
    answer.silent = answer.complete = true;
  }
  if (held_turn_ && (turn.value == 0 || held_turn_ == turn)) thaw(now);
}

void Playout::interrupt(TurnId turn, Time now) {
  for (auto& answer : answers_) {
    if (answer.turn > turn) continue;
    silence(answer, now);
    answer.silent = answer.silent || answer.turn == turn;
  }
  if (held_turn_ && *held_turn_ <= turn) thaw(now);
}

std::vector<std::string> Playout::give_up() {
  std::vector<std::string> out;
  for (auto& answer : answers_) {
    std::move(answer.events.begin(), answer.events.end(), std::back_inserter(out));
    if (!answer.last_event.empty()) out.push_back(std::move(answer.last_event));
  }
  answers_.clear();
  held_turn_.reset();
  held_samples_ = 0;
  return out;
}

// ------------------------------------------------------------------------------------------------ what leaves

std::vector<Playout::Out> Playout::take(Time now, std::int64_t unsent) {
  std::vector<Out> out;
  look_again_ = Time::max();
  if (!answers_.empty()) {
    auto& front = answers_.front();
    const auto left = std::max(front.first, front.sent - unsent);
    if (!front.silent && position(now) > left) {
      front.heard = left;
      since_ = now;
    }
  }
  while (!answers_.empty()) {
    play(now, unsent, out);
    tell(out);
    if (!finish(now, out)) break;
  }
  return out;
}

/// Events up to the first turn that has sound to send or is not over.
void Playout::tell(std::vector<Out>& out) {
  for (auto& answer : answers_) {
    for (auto& event : std::exchange(answer.events, {}))
      out.push_back({Out::Kind::event, answer.turn, std::move(event)});
    if (!answer.complete || !answer.unsent.empty()) return;
    if (!answer.last_event.empty())
      out.push_back({Out::Kind::event, answer.turn, std::exchange(answer.last_event, {})});
  }
}

void Playout::play(Time now, std::int64_t& unsent, std::vector<Out>& out) {
  auto& front = answers_.front();
  while (!held_turn_ && !front.unsent.empty()) {
    const auto samples = size_of(front.unsent.front());
    const auto ahead = front.sent - position(now);
    const bool early = ahead + samples > lead_;
    if (early && held_samples_ <= limits_.early_samples) return;
    if (unsent + samples > lead_) {
      look_again_ = now + kLookAgain;
      return;
    }
    if (early) early_samples_ += samples;
    if (ahead == 0) {
      underruns_ += front.begun;
      front.heard = front.sent;
      since_ = now;
    }
    unsent += samples;
    send_slice(front, out);
  }
}

void Playout::send_slice(Answer& answer, std::vector<Out>& out) {
  auto& slice = answer.unsent.front();
  const auto samples = size_of(slice);
  answer.begun = true;
  answer.sent += samples;
  held_samples_ -= samples;
  recent_.push_back(slice);
  for (recent_samples_ += samples; recent_samples_ - size_of(recent_.front()) >= lead_; recent_.pop_front())
    recent_samples_ -= size_of(recent_.front());
  out.push_back({Out::Kind::sound, answer.turn, std::move(slice)});
  answer.unsent.pop_front();
}

/// @return whether the front one was heard to its end, and has gone
bool Playout::finish(Time now, std::vector<Out>& out) {
  auto& front = answers_.front();
  if (held_turn_ || !front.complete || !front.unsent.empty() || position(now) < front.sent) return false;
  if (!front.silent) out.push_back({Out::Kind::over, front.turn, {}, front.sent});
  over_ = front.turn;
  over_samples_ = front.sent;
  answers_.pop_front();
  recent_.clear();
  recent_samples_ = 0;
  since_ = now;
  return true;
}

std::int64_t Playout::take_back(std::size_t messages, Time now) {
  if (answers_.empty() || messages == 0) return 0;
  auto& front = answers_.front();
  const auto heard = position(now);
  std::int64_t taken = 0;
  for (; messages > 0 && !recent_.empty(); --messages) {
    taken += size_of(recent_.back());
    front.unsent.push_front(std::move(recent_.back()));
    recent_.pop_back();
  }
  recent_samples_ -= taken;
  held_samples_ += taken;
  front.sent -= taken;
  front.heard = std::max(front.first, std::min(heard, front.sent));
  since_ = now;
  return taken;
}

Time Playout::due() const {
  if (answers_.empty() || held_turn_) return Time::max();
  if (look_again_ != Time::max()) return look_again_;
  const auto& front = answers_.front();
  if (!front.unsent.empty()) return time_of(front.sent + size_of(front.unsent.front()) - lead_);
  return front.complete ? time_of(front.sent) : Time::max();
}

}  // namespace parlando::gateway
