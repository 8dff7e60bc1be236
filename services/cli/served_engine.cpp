#include "services/cli/served_engine.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <thread>

namespace parlando::cli {
namespace fs = std::filesystem;
using std::chrono::milliseconds;

namespace {

constexpr int kInstances = 8;             // one of each role
constexpr int kMetricsFirst = 21'000;     // below what the system gives to connections
constexpr double kReadySecondsMax = 180;  // models are read from a cold disk by a loaded machine
constexpr milliseconds kEndMax{30'000};
constexpr std::size_t kLogShown = 2000;

/// The fields of /proc/PID/stat behind the name, which may hold anything.
std::vector<std::string> stat_of(pid_t process) {
  std::ifstream file(fmt::format("/proc/{}/stat", process));
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const auto end = text.rfind(')');
  std::vector<std::string> out;
  if (end == std::string::npos) return out;
  std::istringstream words(text.substr(end + 1));
  for (std::string word; words >> word;) out.push_back(word);
  return out;
}

bool is_free(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(static_cast<std::uint16_t>(port));
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int one = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  const bool free = ::bind(fd, reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0;
  ::close(fd);
  return free;
}

/// The first of a row of free ports.
int free_ports(int count) {
  for (int first = kMetricsFirst + ::getpid() % 400 * 16; first < 32'000; first += 16) {
    bool all = true;
    for (int n = 0; n < count; ++n) all = all && is_free(first + n);
    if (all) return first;
  }
  return 0;
}

Result<std::string> get(int port, const std::string& target) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const timeval patience{5, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  const auto request = fmt::format("GET {} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n", target, port);
  std::string out;
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0 &&
      ::send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
    char part[65536];
    for (ssize_t got; (got = ::recv(fd, part, sizeof part, 0)) > 0;) out.append(part, static_cast<std::size_t>(got));
  }
  ::close(fd);
  const auto body = out.find("\r\n\r\n");
  if (body == std::string::npos || out.compare(0, 12, "HTTP/1.1 200") != 0)
    return fail(Errc::unavailable, "port {} does not answer {}", port, target);
  return out.substr(body + 4);
}

}  // namespace

double cpu_seconds(const std::vector<pid_t>& processes) {
  constexpr std::size_t kUser = 11, kSystem = 12;
  double ticks = 0;
  for (const auto process : processes)
    if (const auto fields = stat_of(process); fields.size() > kSystem)
      ticks += std::stod(fields[kUser]) + std::stod(fields[kSystem]);
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

std::int64_t resident_bytes(const std::vector<pid_t>& processes) {
  constexpr std::size_t kResident = 21;
  std::int64_t pages = 0;
  for (const auto process : processes)
    if (const auto fields = stat_of(process); fields.size() > kResident) pages += std::stoll(fields[kResident]);
  return pages * ::sysconf(_SC_PAGESIZE);
}

std::vector<pid_t> family_of(pid_t root) {
  constexpr std::size_t kParent = 1;
  std::multimap<pid_t, pid_t> children;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator("/proc", code)) {
    const auto process = static_cast<pid_t>(std::atol(entry.path().filename().c_str()));
    if (process <= 0) continue;
    if (const auto fields = stat_of(process); fields.size() > kParent)
      children.emplace(std::stol(fields[kParent]), process);
  }
  std::vector<pid_t> out{root};
  for (std::size_t n = 0; n < out.size(); ++n)
    for (auto [at, end] = children.equal_range(out[n]); at != end; ++at) out.push_back(at->second);
  return out;
}

Result<ServedEngine> ServedEngine::start(const fs::path& folder, const fs::path& model, bool processes) {
  ServedEngine out;
  out.metrics_port_ = free_ports(kInstances);
  if (out.metrics_port_ == 0)
    return fail(Errc::unavailable, "there are no {} free ports in a row for metrics", kInstances);
  out.log_ = folder / (processes ? "processes.log" : "engine.log");
  std::vector<std::string> words{fs::canonical("/proc/self/exe").string(),
                                 "serve",
                                 "--listen",
                                 "127.0.0.1:0",
                                 "--model-path",
                                 model.string(),
                                 "--store",
                                 (folder / (processes ? "processes.sqlite" : "engine.sqlite")).string(),
                                 "--metrics-port",
                                 std::to_string(out.metrics_port_)};
  if (processes) words.push_back("--processes");
  std::vector<char*> arguments;
  for (auto& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const int log = ::open(out.log_.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
  if (log < 0) return fail(Errc::io, "'{}' cannot be written", out.log_.string());
  out.pid_ = ::fork();
  if (out.pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    ::setpgid(0, 0);  // Ctrl-C is for whoever measures
    ::dup2(log, 1);
    ::dup2(log, 2);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  ::close(log);
  if (out.pid_ < 0) return fail(Errc::io, "no process can be started");
  PARLANDO_DO(out.wait_ready(kReadySecondsMax));
  return out;
}

Result<void> ServedEngine::wait_ready(double seconds) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < until) {
    const auto said = log();
    if (const auto at = said.find("ready: "); at != std::string::npos && said.find('\n', at) != std::string::npos) {
      const auto line = said.substr(at, said.find('\n', at) - at);
      port_ = std::atoi(line.c_str() + line.rfind(':') + 1);
      return {};
    }
    if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      break;
    }
    std::this_thread::sleep_for(milliseconds(50));
  }
  const auto said = log();
  return fail(Errc::unavailable, "the engine was not ready; it said: …{}",
              said.substr(said.size() - std::min(said.size(), kLogShown)));
}

Result<void> ServedEngine::wait_taking(double seconds_max) const {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds_max);
  while (!get(port_, "/readyz")) {
    if (std::chrono::steady_clock::now() >= until)
      return fail(Errc::unavailable, "the engine has taken no sessions for {:.0f} s", seconds_max);
    std::this_thread::sleep_for(milliseconds(100));
  }
  return {};
}

std::string ServedEngine::log() const {
  std::ifstream file(log_);
  return {std::istreambuf_iterator<char>(file), {}};
}

ServedEngine::ServedEngine(ServedEngine&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      port_(other.port_),
      metrics_port_(other.metrics_port_),
      log_(std::move(other.log_)) {}

ServedEngine::~ServedEngine() {
  if (pid_ < 0) return;
  const auto all = processes();
  ::kill(pid_, SIGTERM);
  const auto until = std::chrono::steady_clock::now() + kEndMax;
  while (std::chrono::steady_clock::now() < until) {
    if (::waitpid(pid_, nullptr, WNOHANG) == pid_) return;
    std::this_thread::sleep_for(milliseconds(20));
  }
  // Its own children end with it, or are ended here.
  for (const auto process : all) ::kill(process, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

Result<double> ServedEngine::metric(const std::string& end) const {
  double sum = 0;
  for (int n = 0; n < kInstances; ++n) {
    PARLANDO_TRY(const auto text, get(metrics_port_ + n, "/metrics"));
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      const auto cut = line.find_first_of("{ ");
      if (line.empty() || line[0] == '#' || cut == std::string::npos) continue;
      if (line.substr(0, cut).ends_with(end)) sum += std::atof(line.c_str() + line.rfind(' ') + 1);
    }
  }
  return sum;
}

}  // namespace parlando::cli
