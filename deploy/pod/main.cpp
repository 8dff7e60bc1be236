/// What a container without a shell needs from one: `parlando-pod probe HOST:PORT/PATH` (a health check: exit 0 for an
/// answer of 200 within 2 s), `parlando-pod wait SECONDS` (a `preStop` hook), `parlando-pod copy FROM TO` (an image
/// that holds models fills a volume). Exit codes: 0 done, 1 not, 2 usage.
#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>

#include "common/base/result.hpp"

namespace parlando::pod {
namespace {

namespace fs = std::filesystem;
constexpr int kFailed = 1, kUsage = 2;
constexpr time_t kProbeSeconds = 2;
constexpr int kWaitSecondsMax = 3600;

class Socket {
 public:
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  ~Socket() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

/// The first address that answers counts; each wait is bounded by the socket's own timeouts.
Result<void> probe(std::string_view target) {
  const auto slash = target.find('/');
  const auto address = target.substr(0, slash);
  const std::string path(slash == std::string_view::npos ? "/" : target.substr(slash));
  const auto colon = address.rfind(':');
  if (colon == std::string_view::npos)
    return fail(Errc::invalid_argument, "'{}' names no port, expected HOST:PORT/PATH", target);
  const std::string host(address.substr(0, colon)), port(address.substr(colon + 1));
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); code != 0)
    return fail(Errc::not_found, "'{}' has no address: {}", address, ::gai_strerror(code));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, &::freeaddrinfo);
  std::string why = "no address";
  for (const auto* a = found; a != nullptr; a = a->ai_next) {
    const Socket socket(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    const timeval limit{kProbeSeconds, 0};
    ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    const auto request = fmt::format("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", path, address);
    if (::connect(socket.get(), a->ai_addr, a->ai_addrlen) != 0 ||
        ::send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) {
      why = std::strerror(errno);
      continue;
    }
    char answer[13] = {};  // "HTTP/1.1 200 "
    if (::recv(socket.get(), answer, sizeof answer, MSG_WAITALL) != static_cast<ssize_t>(sizeof answer))
      return fail(Errc::unavailable, "{} does not answer within {} s", target, kProbeSeconds);
    const std::string_view status(answer + 9, 3);
    if (status == "200") return {};
    return fail(Errc::not_ready, "{} answers {}, expected 200", target, status);
  }
  return fail(Errc::unavailable, "{} cannot be reached: {}", target, why);
}

Result<void> wait(std::string_view text) {
  int seconds = -1;
  const auto* const end = text.data() + text.size();
  if (std::from_chars(text.data(), end, seconds).ptr != end || seconds < 0 || seconds > kWaitSecondsMax)
    return fail(Errc::invalid_argument, "'{}' is no number of seconds, expected 0 to {}", text, kWaitSecondsMax);
  timespec left{seconds, 0};
  while (::nanosleep(&left, &left) != 0 && errno == EINTR) {
  }
  return {};
}

/// A tree that is there already, with files of the same sizes, is left alone: containers start again.
Result<void> copy(const fs::path& from, const fs::path& to) {
  std::error_code code;
  fs::recursive_directory_iterator entries(from, code);
  if (code) return fail(Errc::not_found, "'{}' cannot be read: {}", from.string(), code.message());
  std::size_t files = 0;
  for (const auto& entry : entries) {
    const auto target = to / fs::relative(entry.path(), from);
    if (entry.is_directory()) {
      fs::create_directories(target, code);
    } else if (entry.is_regular_file()) {
      ++files;
      std::error_code missing;
      if (fs::file_size(target, missing) == entry.file_size() && !missing) continue;
      // Renamed into its place, so that what has the right size is whole.
      const auto part = target.string() + ".part";
      fs::copy_file(entry.path(), part, fs::copy_options::overwrite_existing, code);
      if (!code) fs::rename(part, target, code);
    }
    if (code) return fail(Errc::io, "'{}' cannot be written: {}", target.string(), code.message());
  }
  if (files == 0) return fail(Errc::not_found, "'{}' holds no files", from.string());
  return {};
}

int run(int argc, char** argv) {
  const std::string_view word = argc > 1 ? argv[1] : "";
  Result<void> done = fail(Errc::invalid_argument, "expected: probe HOST:PORT/PATH | wait SECONDS | copy FROM TO");
  if (word == "probe" && argc == 3) done = probe(argv[2]);
  if (word == "wait" && argc == 3) done = wait(argv[2]);
  if (word == "copy" && argc == 4) done = copy(argv[2], argv[3]);
  if (done) return 0;
  std::cerr << "parlando-pod: " << done.error().message << "\n";
  return done.error().code == Errc::invalid_argument ? kUsage : kFailed;
}

}  // namespace
}  // namespace parlando::pod

int main(int argc, char** argv) { return parlando::pod::run(argc, argv); }
