#pragma once
/// One thread for what takes long to read, bodies and messages of megabytes: the gateway's own thread, which serves
/// everybody, does not wait for it. Jobs are done in order. Who gives one sees to it that few wait: by memory that is
/// counted until it is done (`http::Server`, bodies_bytes_max), or by a number.
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "common/base/clock.hpp"

namespace parlando::gateway {

class Helper {
 public:
  using Then = std::function<void(Time now)>;
  using Work = std::function<Then()>;
  /// @param post  has a function run on the gateway's thread; called on the helper's
  explicit Helper(std::function<void(Then)> post) : post_(std::move(post)) {}
  /// Waits for the job under way; the others are dropped.
  ~Helper();
  Helper(const Helper&) = delete;
  /// Runs `work` here, then what it gives on the gateway's thread; `failed` there when it throws.
  void start(Work work, Then failed);

 private:
  void run();
  std::function<void(Then)> post_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<Work, Then>> waiting_;
  bool over_ = false;
  std::thread thread_;  ///< begun with the first job
};

}  // namespace parlando::gateway
