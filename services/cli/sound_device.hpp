#pragma once
/// Microphone and loudspeaker of this machine by ALSA's own programs, `arecord` and `aplay`, over pipes.
#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

/// A child process with one end of a pipe.
class PipedProgram {
 public:
  /// @param reads  its output is ours to read; else its input is ours to write
  /// @error Errc::not_found: there is no such program
  static Result<PipedProgram> start(const std::vector<std::string>& words, bool reads);
  PipedProgram() = default;
  PipedProgram(PipedProgram&& other) noexcept;
  PipedProgram& operator=(PipedProgram&& other) noexcept;
  /// Ends it.
  ~PipedProgram();
  int fd() const { return fd_; }
  bool runs() const { return pid_ > 0; }
  /// Waits for its end. @return what it has complained of
  std::string complaint();
  void end();

 private:
  pid_t pid_ = -1;
  int fd_ = -1, errors_ = -1;
};

/// Reads the microphone on a thread of its own: mono, 16 kHz, 20 ms a time.
class Microphone {
 public:
  using Hear = std::function<void(std::span<const std::int16_t>)>;
  /// @param device  of ALSA; empty: its default
  /// @error Errc::unavailable with what to do about it: no program, no device
  static Result<std::unique_ptr<Microphone>> open(const std::string& device, Hear hear);
  ~Microphone();
  /// Why nothing comes any more; empty while it works.
  std::string failure();

 private:
  Microphone(PipedProgram program, Hear hear);
  void run();
  PipedProgram program_;
  Hear hear_;
  std::mutex mutex_;
  std::string failure_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

/// Plays sound as it comes, on a thread of its own, at most 60 ms ahead of the device: what is taken back is not heard.
class Loudspeaker {
 public:
  static Result<std::unique_ptr<Loudspeaker>> open(const std::string& device, int rate);
  ~Loudspeaker();
  void play(std::span<const std::int16_t> samples);
  void hold();
  void release();
  /// What is not heard yet is not wanted any more.
  void clear();
  bool is_playing();
  void wait_until_silent();
  std::string failure();

 private:
  Loudspeaker(PipedProgram program, int rate);
  void run();
  PipedProgram program_;
  int rate_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::int16_t> waiting_;
  bool held_ = false, stop_ = false, sounds_ = false;
  std::string failure_;
  std::thread thread_;
};

}  // namespace parlando::cli
