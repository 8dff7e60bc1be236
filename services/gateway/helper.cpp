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

void Helper::start(Work work) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(work));
  }
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  changed_.notify_one();
}

void Helper::run() {
  for (;;) {
    Work work;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return over_ || !waiting_.empty(); });
      if (over_) return;
      work = std::move(waiting_.front());
      waiting_.pop_front();
    }
    try {
      post_(work());
    } catch (...) {  // no memory: whoever waits for it is told by its own limit
    }
  }
}

}  // namespace parlando::gateway
