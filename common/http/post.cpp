#include "common/http/post.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <thread>

namespace parlando::http {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kHeaderBytesMax = 16 << 10;

/// An open socket that does not block.
struct Socket {
  int fd = -1;
  explicit Socket(int fd) : fd(fd) {}
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  ~Socket() {
    if (fd >= 0) ::close(fd);
  }
};

/// How long, and for whom, anything is waited for.
struct Patience {
  Clock::time_point until;
  int give_up;
};

/// Until the socket can be used. @error Errc::deadline_exceeded, Errc::cancelled
Result<void> wait_for(int fd, short events, const Patience& patience) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(patience.until - Clock::now()).count();
    if (left <= 0) return fail(Errc::deadline_exceeded, "no answer in time");
    pollfd p[] = {{fd, events, 0}, {patience.give_up, POLLIN, 0}};
    const int ready = ::poll(p, 2, static_cast<int>(std::min<long long>(left, 1 << 20)));
    if (ready > 0 && (p[1].revents & POLLIN) != 0) return fail(Errc::cancelled, "nobody waits for the answer any more");
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return fail(Errc::unavailable, "the connection broke: {}", std::strerror(errno));
  }
}

constexpr int kLookupsMax = 16;  // that hang at a time
std::atomic<int> lookups{0};

/// A look-up of a name, which two threads share: the one that waits may leave first.
struct Lookup {
  std::string host, port;
  Socket done{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  int error = 0;  ///< of getaddrinfo; it and the list may be read when `is_done`, which is so before `done` can be read
  std::atomic<bool> is_done{false};
  addrinfo* list = nullptr;
  ~Lookup() {
    if (list != nullptr) ::freeaddrinfo(list);
  }
};

Result<std::shared_ptr<Lookup>> look_up(const Url& url, const PostLimits& limits, const Patience& until) {
  auto lookup = std::make_shared<Lookup>();
  lookup->host = url.host;
  lookup->port = std::to_string(url.port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST;  // an address needs nobody
  if (::getaddrinfo(lookup->host.c_str(), lookup->port.c_str(), &hints, &lookup->list) == 0) return lookup;
  if (lookup->done.fd < 0) return fail(Errc::unavailable, "there is no descriptor: {}", std::strerror(errno));
  if (lookups.fetch_add(1) >= kLookupsMax) {
    --lookups;
    return fail(Errc::overloaded, "{} look-ups of names have no answer yet", kLookupsMax);
  }
  hints.ai_flags = 0;
  const Spawner spawn =
      limits.spawner ? limits.spawner : [](std::function<void()> run) { std::thread(std::move(run)).detach(); };
  try {
    spawn([lookup, hints, resolver = limits.resolver ? limits.resolver : Resolver(::getaddrinfo)] {
      lookup->error = resolver(lookup->host.c_str(), lookup->port.c_str(), &hints, &lookup->list);
      --lookups;
      lookup->is_done.store(true, std::memory_order_release);
      const std::uint64_t one = 1;
      [[maybe_unused]] const auto ignored = ::write(lookup->done.fd, &one, sizeof one);
    });
  } catch (const std::system_error& e) {  // as many threads as the system allows
    --lookups;
    return fail(Errc::overloaded, "there is no thread to look '{}' up: {}", url.host, e.what());
  }
  PARLANDO_DO(wait_for(lookup->done.fd, POLLIN, until));
  if (!lookup->is_done.load(std::memory_order_acquire))
    return fail(Errc::internal, "a look-up ended before its answer");
  if (lookup->error != 0)
    return fail(Errc::unavailable, "'{}' is not known: {}", url.host, ::gai_strerror(lookup->error));
  return lookup;
}

Result<void> connect_to(const Socket& socket, const addrinfo& address, const Patience& until) {
  if (::connect(socket.fd, address.ai_addr, address.ai_addrlen) == 0) return {};
  if (errno != EINPROGRESS) return fail(Errc::unavailable, "it cannot be reached: {}", std::strerror(errno));
  PARLANDO_DO(wait_for(socket.fd, POLLOUT, until));
  int error = 0;
  socklen_t size = sizeof error;
  ::getsockopt(socket.fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error != 0) return fail(Errc::unavailable, "it cannot be reached: {}", std::strerror(error));
  return {};
}

Result<void> send_all(const Socket& socket, std::string_view text, const Patience& until) {
  while (!text.empty()) {
    const auto sent = ::send(socket.fd, text.data(), text.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      text.remove_prefix(static_cast<std::size_t>(sent));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      PARLANDO_DO(wait_for(socket.fd, POLLOUT, until));
    } else if (errno != EINTR) {
      return fail(Errc::unavailable, "the connection broke: {}", std::strerror(errno));
    }
  }
  return {};
}

/// The value of a header, whose name is lower case; empty when there is none.
std::string header_of(std::string_view head, std::string_view name) {
  std::string lower(head);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  const auto at = lower.find("\r\n" + std::string(name) + ":");
  if (at == std::string::npos) return {};
  const auto begin = lower.find_first_not_of(' ', at + 3 + name.size());
  return lower.substr(begin, lower.find("\r\n", begin) - begin);
}

Result<PostAnswer> read_answer(const Socket& socket, const PostLimits& limits, const Patience& until) {
  std::string all;
  std::size_t head = std::string::npos, want = std::string::npos;
  char block[4096];
  for (;;) {
    const auto got = ::recv(socket.fd, block, sizeof block, 0);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      PARLANDO_DO(wait_for(socket.fd, POLLIN, until));
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(Errc::unavailable, "the connection broke: {}", std::strerror(errno));
    all.append(block, static_cast<std::size_t>(got));
    if (head == std::string::npos && (head = all.find("\r\n\r\n")) != std::string::npos) {
      head += 4;
      if (const auto length = header_of(std::string_view(all).substr(0, head), "content-length"); !length.empty()) {
        const auto [end, error] = std::from_chars(length.data(), length.data() + length.size(), want);
        if (error != std::errc()) return fail(Errc::bad_format, "its answer has the length '{}'", length);
      }
    }
    if (head == std::string::npos && all.size() > kHeaderBytesMax)
      return fail(Errc::bad_format, "its answer has no end of a header in {} bytes", kHeaderBytesMax);
    if (head == std::string::npos && got > 0) continue;
    if (head == std::string::npos) return fail(Errc::bad_format, "its answer is no HTTP");
    const auto body = all.size() - head;
    if (body > limits.answer_bytes_max || (want != std::string::npos && want > limits.answer_bytes_max))
      return fail(Errc::overloaded, "its answer has more than {} bytes", limits.answer_bytes_max);
    if (want != std::string::npos && body >= want) break;
    if (got > 0) continue;
    if (want != std::string::npos) return fail(Errc::unavailable, "its answer breaks off behind {} bytes", body);
    break;
  }
  PostAnswer out;
  const auto space = all.find(' ');
  if (!all.starts_with("HTTP/") || space == std::string::npos) return fail(Errc::bad_format, "its answer is no HTTP");
  std::from_chars(all.data() + space + 1, all.data() + all.size(), out.status);
  out.body = all.substr(head, want);
  return out;
}

}  // namespace

Result<Url> Url::parse(std::string_view text) {
  constexpr std::string_view kScheme = "http://";
  const auto bad = [&] { return fail(Errc::invalid_argument, "'{}' is no http://host:port/path", text); };
  if (!text.starts_with(kScheme)) return bad();
  auto rest = text.substr(kScheme.size());
  Url out;
  const auto slash = rest.find('/');
  out.target = slash == std::string_view::npos ? "/" : std::string(rest.substr(slash));
  rest = rest.substr(0, slash);
  const auto colon = rest.rfind(':');
  if (const auto bracket = rest.rfind(']');
      colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket)) {
    const auto port = rest.substr(colon + 1);
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), out.port);
    if (error != std::errc() || end != port.data() + port.size() || out.port == 0) return bad();
    rest = rest.substr(0, colon);
  }
  if (rest.starts_with('[') && rest.ends_with(']')) rest = rest.substr(1, rest.size() - 2);
  out.host = rest;
  const auto is_bad = [](unsigned char c) { return c <= ' ' || c == 0x7f; };
  if (rest.find('@') != std::string_view::npos)
    return fail(Errc::invalid_argument, "an address with a password is not taken");
  if (out.host.empty() || std::any_of(text.begin(), text.end(), is_bad)) return bad();
  return out;
}

namespace {

Result<PostAnswer> ask(const Url& url, const std::string& request, const PostLimits& limits) {
  const Patience until{Clock::now() + limits.time_max, limits.give_up};
  PARLANDO_TRY(const auto lookup, look_up(url, limits, until));
  auto failure = Error{Errc::unavailable, "it has no address"};
  for (const auto* a = lookup->list; a != nullptr; a = a->ai_next) {
    const Socket socket(::socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol));
    if (socket.fd < 0) return fail(Errc::unavailable, "there is no socket: {}", std::strerror(errno));
    if (const auto connected = connect_to(socket, *a, until); !connected) {
      failure = connected.error();
      continue;
    }
    PARLANDO_DO(send_all(socket, request, until));
    return read_answer(socket, limits, until);
  }
  return tl::make_unexpected(failure);
}

}  // namespace

Result<PostAnswer> post(const Url& url, std::string_view body, std::string_view type, const PostLimits& limits) {
  return ask(url,
             fmt::format("POST {} HTTP/1.0\r\nHost: {}:{}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: "
                         "close\r\n\r\n{}",
                         url.target, url.host, url.port, type, body.size(), body),
             limits);
}

Result<PostAnswer> get(const Url& url, const PostLimits& limits) {
  return ask(url,
             fmt::format("GET {} HTTP/1.0\r\nHost: {}:{}\r\nConnection: close\r\n\r\n", url.target, url.host, url.port),
             limits);
}

}  // namespace parlando::http
