#include "common/service/process/restart_policy.hpp"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>

namespace parlando::service::process {

namespace {
constexpr std::size_t kEndsMax = 256;
}

Exit Exit::of_status(int status) {
  if (WIFSIGNALED(status)) return {true, WTERMSIG(status)};
  return {false, WEXITSTATUS(status)};
}

std::string Exit::to_text() const { return fmt::format("{} {}", by_signal ? "signal" : "exit", number); }

bool RestartPolicy::has_process() const {
  return state_ == State::running || state_ == State::ending || state_ == State::aborting || state_ == State::killing;
}

RestartPolicy::Action RestartPolicy::act(Time now) {
  const auto kill = [&] {
    state_ = State::killing;
    ++counters_.killed;
    return Action::kill;
  };
  switch (state_) {
    case State::waiting:
      return now >= start_at_ ? Action::start : Action::none;
    case State::running:
      if (stopped_since_) {
        if (limits_.stopped_max.count() == 0 || now - *stopped_since_ < limits_.stopped_max) return Action::none;
        ++counters_.stopped_killed;
        return kill();
      }
      if (!alive_at_ || limits_.hung_max.count() == 0 || now - *alive_at_ < limits_.hung_max) return Action::none;
      state_ = State::aborting;
      deadline_ = now + limits_.abort_grace;
      ++counters_.hung_aborted;
      return Action::abort;
    case State::ending:
      if (term_due_) {
        term_due_ = false;
        return Action::terminate;
      }
      return now >= deadline_ ? kill() : Action::none;
    case State::aborting:
      return now >= deadline_ ? kill() : Action::none;
    case State::killing:
    case State::done:
    case State::given_up:
      break;
  }
  return Action::none;
}

std::optional<Time> RestartPolicy::next() const {
  switch (state_) {
    case State::waiting:
      return start_at_;
    case State::running:
      if (stopped_since_) {
        if (limits_.stopped_max.count() != 0) return *stopped_since_ + limits_.stopped_max;
      } else if (alive_at_ && limits_.hung_max.count() != 0) {
        return *alive_at_ + limits_.hung_max;
      }
      return {};
    case State::ending:
      if (term_due_) return Time{};
      return deadline_;
    case State::aborting:
      return deadline_;
    case State::killing:
    case State::done:
    case State::given_up:
      break;
  }
  return {};
}

void RestartPolicy::started(Time now) {
  state_ = State::running;
  wish_ = Wish::run;
  started_ = now;
  alive_at_.reset();
  stopped_since_.reset();
  ++counters_.starts;
}

void RestartPolicy::start_failed(Time now) {
  ++counters_.start_failures;
  back_off_ = std::clamp(back_off_ * 2, limits_.back_off_min, limits_.back_off_max);
  start_at_ = now + back_off_;
}

void RestartPolicy::alive(Time now) { alive_at_ = now; }

void RestartPolicy::stopped(Time now) {
  if (stopped_since_) return;
  stopped_since_ = now;
  ++counters_.stops_seen;
}

void RestartPolicy::continued(Time now) {
  stopped_since_.reset();
  if (alive_at_) alive_at_ = now;
}

void RestartPolicy::ended(Exit exit, Time now) {
  stopped_since_.reset();
  alive_at_.reset();
  if (wish_ == Wish::end) {
    state_ = State::done;
    return;
  }
  if (wish_ == Wish::restart) {
    state_ = State::waiting;
    start_at_ = now;
    back_off_ = milliseconds(0);
    return;
  }
  ++counters_.ends;
  ends_.push_back(now);
  if (ends_.size() > kEndsMax) ends_.pop_front();
  if (!exit.by_signal && (exit.number == kExitConfiguration || exit.number == kExitUsage)) {
    state_ = State::given_up;
    ++counters_.given_up;
    return;
  }
  state_ = State::waiting;
  if (now - started_ >= limits_.life_good) back_off_ = milliseconds(0);
  back_off_ = std::clamp(back_off_ * 2, limits_.back_off_min, limits_.back_off_max);
  start_at_ = now + back_off_;
}

void RestartPolicy::forgive(Time now) {
  if (alive_at_) alive_at_ = now;
  if (stopped_since_) stopped_since_ = now;
}

void RestartPolicy::end_process(Time now, milliseconds grace) {
  // One that is aborting or killed already ends soon enough.
  if (state_ != State::running && state_ != State::ending) return;
  deadline_ = state_ == State::ending ? std::min(deadline_, now + grace) : now + grace;
  state_ = State::ending;
  term_due_ = true;
}

void RestartPolicy::stop(Time now, milliseconds grace) {
  // A second SIGTERM means "at once" to a child; one that ends in order to start again has heard the first.
  const bool heard = state_ == State::ending && wish_ == Wish::restart;
  wish_ = Wish::end;
  if (!has_process())
    state_ = State::done;
  else if (!heard)
    end_process(now, grace);
}

void RestartPolicy::restart(Time now, milliseconds grace) {
  if (has_process()) {
    wish_ = Wish::restart;
    if (state_ != State::ending) end_process(now, grace);
    return;
  }
  state_ = State::waiting;
  wish_ = Wish::run;
  start_at_ = now;
  back_off_ = milliseconds(0);
}

std::size_t RestartPolicy::ends_within(Time now, milliseconds window) const {
  return static_cast<std::size_t>(std::count_if(ends_.begin(), ends_.end(), [&](Time t) { return now - t <= window; }));
}

}  // namespace parlando::service::process
