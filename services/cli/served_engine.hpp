#pragma once
/// `parlando serve` as a child process, and what the operating system and its metrics say of it; for measurements.
#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

/// User and system time of processes, in seconds; those that have gone count nothing. Resolution: a clock tick, 10 ms.
double cpu_seconds(const std::vector<pid_t>& processes);
std::int64_t resident_bytes(const std::vector<pid_t>& processes);
/// A process and everything it has started.
std::vector<pid_t> family_of(pid_t root);

class ServedEngine {
 public:
  /// Starts this program's `serve` with a store and a log of its own in `folder`, on a free port, and waits until it is
  /// ready.
  /// @error Errc::unavailable with the end of what it said
  static Result<ServedEngine> start(const std::filesystem::path& folder, const std::filesystem::path& model,
                                    bool processes);
  /// Ends it: SIGTERM, and SIGKILL when that is not enough.
  ~ServedEngine();
  ServedEngine(ServedEngine&& other) noexcept;
  ServedEngine& operator=(ServedEngine&&) = delete;

  int port() const { return port_; }
  /// Waits until it takes sessions. On a machine that is too busy it does not always. @error Errc::unavailable
  Result<void> wait_taking(double seconds_max) const;
  std::vector<pid_t> processes() const { return family_of(pid_); }
  /// The sum of all samples whose name has this end, over all instances. @error Errc::unavailable when one does not
  /// answer
  Result<double> metric(const std::string& end) const;

 private:
  ServedEngine() = default;
  Result<void> wait_ready(double seconds);
  std::string log() const;
  pid_t pid_ = -1;
  int port_ = 0, metrics_port_ = 0;
  std::filesystem::path log_;
};

}  // namespace parlando::cli
