#pragma once
/// What a child tells its supervisor: lines on the pipe whose descriptor stands in PARLANDO_READY_FD. `ready PORT`
/// once, when it serves; then `alive` every 500 ms. Everything else is a sign of life, too.
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/base/clock.hpp"

namespace parlando::service::process {

inline constexpr const char* kReadyVariable = "PARLANDO_READY_FD";
inline constexpr milliseconds kAlivePeriod{500};

/// The child's end. Writes never block; a supervisor that does not read misses lines, not more.
class ReadyPipe {
 public:
  /// Without the variable every call does nothing.
  static ReadyPipe of_environment();
  bool connected() const { return descriptor_ >= 0; }
  void ready(int port);
  void alive();

 private:
  int descriptor_ = -1;
  void write(const std::string& line);
};

/// Whether a worker still takes what is asked of it. A question goes through its queue; alive means that the last
/// answer is not older than `limit`. Plain class of time; answers may come from any thread, even after the watch is
/// gone.
class AnswerWatch {
 public:
  /// Puts `answer` where the worker will call it. @return false when it cannot, which counts as no answer
  using Ask = std::function<bool(std::function<void()> answer)>;
  AnswerWatch(milliseconds limit, Time now, Ask ask);
  /// To be called every `kAlivePeriod` or so. One question at a time is on its way.
  bool alive(Time now);

 private:
  milliseconds limit_;
  Time answered_at_;
  Ask ask_;
  bool asked_ = false;
  std::shared_ptr<std::atomic<bool>> answered_ = std::make_shared<std::atomic<bool>>(true);
};

/// The supervisor's end, without the descriptor: bytes in, what they say out.
class ReadyLines {
 public:
  /// Takes bytes as they come, cut anywhere. Lines longer than 100 characters lose their end.
  void take(const char* bytes, std::size_t count);
  /// Port of a complete `ready PORT` line, 0 if the line has none.
  std::optional<int> port() const { return port_; }

 private:
  std::string line_;
  std::optional<int> port_;
};

}  // namespace parlando::service::process
