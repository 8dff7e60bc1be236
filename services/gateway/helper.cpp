#include "services/gateway/helper.hpp"

namespace parlando::gateway {

Helper::~Helper() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
    waiting_.clear();
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Helper::start(Work work, Then failed) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.emplace_back(std::move(work), std::move(failed));
  }
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  changed_.notify_one();
}

void Helper::run() {
  for (;;) {
    std::pair<Work, Then> job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return over_ || !waiting_.empty(); });
      if (over_) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    Then then;
    try {
      then = job.first();
    } catch (...) {  // no memory: whoever waits for it is told
      then = std::move(job.second);
    }
    job = {};  // what it has read is free before anybody goes on
    post_(std::move(then));
  }
}

}  // namespace parlando::gateway
