#include "services/cli/sound_device.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "common/base/units.hpp"

namespace parlando::cli {
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

namespace {

constexpr std::size_t kDeviceFrame = kInputRate / 50;
constexpr int kFirstMs = 3000;  // until a microphone has given something
constexpr milliseconds kPiece{20};
constexpr milliseconds kAhead{60};
constexpr milliseconds kDevice{120};  // that the device itself is behind
constexpr std::size_t kComplaintMax = 500;

std::string help(const char* what, const char* program, const std::string& why) {
  return fmt::format(
      "the {} cannot be used: {}. It is read by `{}` (package alsa-utils; `{} -l` lists the devices, "
      "--{} names one); without it type your questions",
      what, why, program, program, what);
}

}  // namespace

// ------------------------------------------------------------------------------------------------ programs

Result<PipedProgram> PipedProgram::start(const std::vector<std::string>& words, bool reads) {
  int data[2], errors[2], started[2];
  if (::pipe2(data, O_CLOEXEC) != 0 || ::pipe2(errors, O_CLOEXEC) != 0 || ::pipe2(started, O_CLOEXEC) != 0)
    return fail(Errc::io, "no pipe can be made: {}", std::strerror(errno));
  std::vector<char*> arguments;
  std::vector<std::string> copies = words;
  for (auto& word : copies) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  PipedProgram out;
  out.pid_ = ::fork();
  if (out.pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::setpgid(0, 0);  // Ctrl-C is for us
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::dup2(reads ? data[1] : data[0], reads ? 1 : 0);
    ::dup2(errors[1], 2);
    ::execvp(arguments[0], arguments.data());
    [[maybe_unused]] const auto told = ::write(started[1], "x", 1);
    ::_exit(127);
  }
  ::close(started[1]);
  ::close(errors[1]);
  ::close(reads ? data[1] : data[0]);
  out.fd_ = reads ? data[0] : data[1];
  out.errors_ = errors[0];
  ::fcntl(out.errors_, F_SETFL, O_NONBLOCK);
  char failed;
  const bool is_there = out.pid_ > 0 && ::read(started[0], &failed, 1) == 0;
  ::close(started[0]);
  if (!is_there) return fail(Errc::not_found, "there is no program '{}'", words.front());
  return out;
}

PipedProgram::PipedProgram(PipedProgram&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      fd_(std::exchange(other.fd_, -1)),
      errors_(std::exchange(other.errors_, -1)) {}

PipedProgram& PipedProgram::operator=(PipedProgram&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(fd_, other.fd_);
  std::swap(errors_, other.errors_);
  return *this;
}

PipedProgram::~PipedProgram() { end(); }

std::string PipedProgram::complaint() {
  if (pid_ <= 0) return {};
  ::waitpid(std::exchange(pid_, -1), nullptr, 0);
  std::string out(kComplaintMax, '\0');
  const auto got = ::read(errors_, out.data(), out.size());
  out.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  std::replace(out.begin(), out.end(), '\n', ' ');
  while (out.ends_with(' ')) out.pop_back();
  return out.empty() ? "it has ended" : out;
}

void PipedProgram::end() {
  if (pid_ > 0) {
    ::kill(pid_, SIGTERM);
    ::waitpid(std::exchange(pid_, -1), nullptr, 0);
  }
  for (int* fd : {&fd_, &errors_})
    if (*fd >= 0) ::close(std::exchange(*fd, -1));
}

// ------------------------------------------------------------------------------------------------ microphone

Result<std::unique_ptr<Microphone>> Microphone::open(const std::string& device, Hear hear) {
  std::vector<std::string> words{"arecord", "-q", "-t", "raw", "-f", "S16_LE", "-r", std::to_string(kInputRate),
                                 "-c",      "1"};
  if (!device.empty()) words.insert(words.end(), {"-D", device});
  auto program = PipedProgram::start(words, true);
  if (!program) return fail(Errc::unavailable, "{}", help("microphone", "arecord", program.error().message));
  pollfd item{program->fd(), POLLIN, 0};
  const bool sounds = ::poll(&item, 1, kFirstMs) > 0 && (item.revents & POLLIN) != 0;
  if (!sounds) {
    const auto why = item.revents != 0 ? program->complaint() : std::string("it gives no sound");
    return fail(Errc::unavailable, "{}", help("microphone", "arecord", why));
  }
  return std::unique_ptr<Microphone>(new Microphone(*std::move(program), std::move(hear)));
}

Microphone::Microphone(PipedProgram program, Hear hear)
    : program_(std::move(program)), hear_(std::move(hear)), thread_([this] { run(); }) {}

Microphone::~Microphone() {
  stop_ = true;
  thread_.join();
}

void Microphone::run() {
  std::vector<std::int16_t> frame(kDeviceFrame);
  auto* const bytes = reinterpret_cast<char*>(frame.data());
  std::size_t filled = 0;
  while (!stop_) {
    pollfd item{program_.fd(), POLLIN, 0};
    if (::poll(&item, 1, 100) <= 0) continue;
    const auto got = ::read(program_.fd(), bytes + filled, 2 * kDeviceFrame - filled);
    if (got <= 0) {
      const auto why = program_.complaint();
      const std::lock_guard lock(mutex_);
      failure_ = why;
      return;
    }
    filled += static_cast<std::size_t>(got);
    if (filled < 2 * kDeviceFrame) continue;
    filled = 0;
    hear_(frame);
  }
}

std::string Microphone::failure() {
  const std::lock_guard lock(mutex_);
  return failure_;
}

// ------------------------------------------------------------------------------------------------ loudspeaker

Result<std::unique_ptr<Loudspeaker>> Loudspeaker::open(const std::string& device, int rate) {
  std::vector<std::string> words{"aplay",
                                 "-q",
                                 "-t",
                                 "raw",
                                 "-f",
                                 "S16_LE",
                                 "-r",
                                 std::to_string(rate),
                                 "-c",
                                 "1",
                                 fmt::format("--buffer-time={}", kDevice.count() * 1000)};
  if (!device.empty()) words.insert(words.end(), {"-D", device});
  auto program = PipedProgram::start(words, false);
  if (!program) return fail(Errc::unavailable, "{}", help("loudspeaker", "aplay", program.error().message));
  return std::unique_ptr<Loudspeaker>(new Loudspeaker(*std::move(program), rate));
}

Loudspeaker::Loudspeaker(PipedProgram program, int rate)
    : program_(std::move(program)), rate_(rate), thread_([this] { run(); }) {}

Loudspeaker::~Loudspeaker() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Loudspeaker::play(std::span<const std::int16_t> samples) {
  const std::lock_guard lock(mutex_);
  waiting_.insert(waiting_.end(), samples.begin(), samples.end());
  changed_.notify_all();
}
void Loudspeaker::hold() {
  const std::lock_guard lock(mutex_);
  held_ = true;
}
void Loudspeaker::release() {
  const std::lock_guard lock(mutex_);
  held_ = false;
  changed_.notify_all();
}
void Loudspeaker::clear() {
  const std::lock_guard lock(mutex_);
  waiting_.clear();
  held_ = false;
  changed_.notify_all();
}
bool Loudspeaker::is_playing() {
  const std::lock_guard lock(mutex_);
  return failure_.empty() && (sounds_ || !waiting_.empty());
}
void Loudspeaker::wait_until_silent() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stop_ || !failure_.empty() || (!sounds_ && waiting_.empty()); });
}
std::string Loudspeaker::failure() {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void Loudspeaker::run() {
  const auto piece = static_cast<std::size_t>(rate_ * kPiece.count() / 1000);
  std::vector<std::int16_t> now;
  Clock::time_point heard_until{};  // by what the device has been given
  std::unique_lock lock(mutex_);
  while (!stop_) {
    const auto ahead = heard_until - Clock::now();
    if (held_ || waiting_.empty() || ahead > kAhead) {
      const bool over = !held_ && waiting_.empty() && ahead <= -kDevice;
      if (sounds_ && over) {
        sounds_ = false;
        changed_.notify_all();
      }
      changed_.wait_for(lock, sounds_ || held_ ? kPiece : milliseconds(500));
      continue;
    }
    const auto count = static_cast<std::ptrdiff_t>(std::min(piece, waiting_.size()));
    now.assign(waiting_.begin(), waiting_.begin() + count);
    waiting_.erase(waiting_.begin(), waiting_.begin() + count);
    sounds_ = true;
    heard_until = std::max(heard_until, Clock::now()) + std::chrono::microseconds(count * 1'000'000 / rate_);
    lock.unlock();
    const char* bytes = reinterpret_cast<const char*>(now.data());
    std::size_t left = 2 * now.size();
    bool gone = false;
    while (left > 0 && !gone) {
      const auto sent = ::write(program_.fd(), bytes, left);
      gone = sent < 0 && errno != EINTR;
      if (sent > 0) bytes += sent, left -= static_cast<std::size_t>(sent);
    }
    const auto why = gone ? program_.complaint() : std::string();
    lock.lock();
    if (!gone) continue;
    failure_ = why;
    changed_.notify_all();
    return;
  }
}

}  // namespace parlando::cli
