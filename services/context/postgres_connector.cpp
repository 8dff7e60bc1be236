#include "services/context/postgres_connector.hpp"

#include <algorithm>

#include "common/telemetry/log.hpp"

namespace parlando::context {

namespace {
constexpr milliseconds kRetryMin{100};
}

Connector::Connector(Make make, Pauses pauses)
    : make_(std::move(make)),
      pauses_(pauses),
      why_(Errc::unavailable, "the store is not connected yet"),
      thread_([this] { run(); }) {}

Connector::~Connector() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Connector::want(StoreError why) {
  {
    const std::lock_guard lock(mutex_);
    if (wanted_ || made_) return;
    wanted_ = true;
    attempts_ = 0;
    why_ = std::move(why);
  }
  changed_.notify_all();
}

std::optional<Connection> Connector::take(Time until) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, until, [this] { return made_.has_value(); });
  return std::exchange(made_, std::nullopt);
}

bool Connector::wait(Time until) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, until, [this] { return made_.has_value() || attempts_ > 0; });
  return made_.has_value();
}

StoreError Connector::away() const {
  const std::lock_guard lock(mutex_);
  auto out = why_;
  const auto left = std::chrono::ceil<milliseconds>(next_ - SteadyClock().now());
  out.retry = std::clamp(left, kRetryMin, std::max(kRetryMin, pauses_.max));
  return out;
}

void Connector::run() {
  std::unique_lock lock(mutex_);
  auto pause = pauses_.first;
  while (!ends_) {
    changed_.wait(lock, [this] { return wanted_ || ends_; });
    if (ends_) return;
    lock.unlock();
    auto made = make_();
    lock.lock();
    if (made) {
      made_.emplace(*std::move(made));
      wanted_ = false;
      pause = pauses_.first;
      changed_.notify_all();
      continue;
    }
    if (made.error().message != why_.message)
      telemetry::log(telemetry::Level::warning, "context has no store: {}", made.error().message);
    why_ = std::move(made).error();
    next_ = SteadyClock().now() + pause;
    ++attempts_;
    changed_.notify_all();
    changed_.wait_until(lock, next_, [this] { return ends_; });
    pause = std::min(2 * pause, pauses_.max);
  }
}

}  // namespace parlando::context
