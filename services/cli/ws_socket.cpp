#include "services/cli/ws_socket.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace parlando::cli {

namespace {

constexpr std::size_t kUnsentMax = 1 << 20;  // who is so far behind is not read by the server
constexpr std::size_t kMessageMax = 64u << 20;
constexpr std::size_t kAnswerMax = 64u << 10;  // of the handshake
constexpr int kText = 1, kBinary = 2, kClose = 8, kPing = 9, kPong = 10;

timeval time_of(double seconds) {
  return {static_cast<time_t>(seconds), static_cast<suseconds_t>((seconds - static_cast<time_t>(seconds)) * 1e6)};
}

bool must_wait() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

// ------------------------------------------------------------------------------------------------ addresses

Result<WsUrl> WsUrl::parse(std::string_view text) {
  const auto wrong = [&] {
    return fail(Errc::invalid_argument, "'{}' is no address, expected ws://, wss://, http:// or https:// and a host",
                text);
  };
  const auto cut = text.find("://");
  if (cut == std::string_view::npos) return wrong();
  const auto scheme = text.substr(0, cut);
  WsUrl out;
  out.tls = scheme == "wss" || scheme == "https";
  if (!out.tls && scheme != "ws" && scheme != "http") return wrong();
  auto rest = text.substr(cut + 3);
  const auto path = rest.find_first_of("/?");
  auto authority = rest.substr(0, path);
  out.target = path == std::string_view::npos ? "/" : std::string(rest.substr(path));
  if (out.target.front() == '?') out.target.insert(0, "/");
  out.port = out.tls ? 443 : 80;
  const auto bracket = authority.starts_with('[') ? authority.find(']') : std::string_view::npos;
  const auto colon = authority.find(':', bracket == std::string_view::npos ? 0 : bracket);
  if (colon != std::string_view::npos) {
    const auto digits = authority.substr(colon + 1);
    const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), out.port);
    if (code != std::errc() || end != digits.data() + digits.size() || out.port < 1 || out.port > 65535) return wrong();
    authority = authority.substr(0, colon);
  }
  if (bracket != std::string_view::npos) authority = authority.substr(1, bracket - 1);
  out.host = authority;
  // What would end a line of the request is nobody's name.
  const auto bad = [](char c) { return static_cast<unsigned char>(c) <= ' '; };
  if (out.host.empty() || std::any_of(text.begin(), text.end(), bad)) return wrong();
  return out;
}

std::string WsUrl::authority() const {
  const auto name = host.find(':') == std::string::npos ? host : "[" + host + "]";
  return port == (tls ? 443 : 80) ? name : fmt::format("{}:{}", name, port);
}

// ------------------------------------------------------------------------------------------------ opening

struct WsSocket::Tls {
  SSL_CTX* context = nullptr;
  SSL* ssl = nullptr;
  ~Tls() {
    SSL_free(ssl);
    SSL_CTX_free(context);
  }
};

Result<std::unique_ptr<WsSocket>> WsSocket::open(const WsUrl& url, const std::vector<std::string>& headers,
                                                 double seconds_max) {
  std::unique_ptr<WsSocket> out(new WsSocket);
  PARLANDO_DO(out->connect(url, seconds_max));
  PARLANDO_DO(out->shake_hands(url, headers));
  ::fcntl(out->fd_, F_SETFL, ::fcntl(out->fd_, F_GETFL) | O_NONBLOCK);
  return out;
}

Result<void> WsSocket::connect(const WsUrl& url, double seconds_max) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = ::getaddrinfo(url.host.c_str(), std::to_string(url.port).c_str(), &wanted, &found); code != 0)
    return fail(Errc::unavailable, "'{}' is not known: {}", url.host, ::gai_strerror(code));
  const auto patience = time_of(seconds_max);
  const int one = 1;
  for (const auto* at = found; at != nullptr && fd_ < 0; at = at->ai_next) {
    fd_ = ::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd_ < 0) continue;
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);  // of connect, too
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (::connect(fd_, at->ai_addr, at->ai_addrlen) == 0) break;
    ::close(std::exchange(fd_, -1));
  }
  ::freeaddrinfo(found);
  if (fd_ < 0) return fail(Errc::unavailable, "nothing listens at {}", url.authority());
  if (!url.tls) return {};
  ::signal(SIGPIPE, SIG_IGN);  // the library writes as it likes
  tls_ = std::make_unique<Tls>();
  tls_->context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_default_verify_paths(tls_->context);
  SSL_CTX_set_verify(tls_->context, SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_mode(tls_->context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  tls_->ssl = SSL_new(tls_->context);
  SSL_set_tlsext_host_name(tls_->ssl, url.host.c_str());
  SSL_set1_host(tls_->ssl, url.host.c_str());
  SSL_set_fd(tls_->ssl, fd_);
  if (SSL_connect(tls_->ssl) == 1) return {};
  if (const auto code = SSL_get_verify_result(tls_->ssl); code != X509_V_OK)
    return fail(Errc::bad_format, "the certificate of {} is not trusted: {}", url.authority(),
                X509_verify_cert_error_string(code));
  const auto code = ERR_get_error();
  const auto* const why = code == 0 ? nullptr : ERR_reason_error_string(code);
  return fail(Errc::unavailable, "no TLS with {}: {}", url.authority(),
              why == nullptr ? "the connection was closed" : why);
}

Result<void> WsSocket::shake_hands(const WsUrl& url, const std::vector<std::string>& headers) {
  auto request = fmt::format(
      "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
      "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n",
      url.target, url.authority());
  for (const auto& line : headers) request += line + "\r\n";
  request += "\r\n";
  if (raw_send(request) != static_cast<std::ptrdiff_t>(request.size()))
    return fail(Errc::unavailable, "the connection was closed before the handshake");
  std::size_t end;
  while ((end = in_.find("\r\n\r\n")) == std::string::npos) {
    char part[2048];
    const auto got = raw_recv(part, sizeof part);
    if (got <= 0) return fail(Errc::unavailable, "the connection was closed during the handshake");
    in_.append(part, static_cast<std::size_t>(got));
    if (in_.size() > kAnswerMax) return fail(Errc::unavailable, "the handshake was answered by more than is meant");
  }
  if (in_.compare(0, 12, "HTTP/1.1 101") != 0) {
    const auto line = in_.substr(0, in_.find('\r'));
    const auto body = in_.substr(end + 4, 300);
    return fail(Errc::unavailable, "the handshake was answered '{}'{}{}", line, body.empty() ? "" : ": ", body);
  }
  in_.erase(0, end + 4);
  return {};
}

// ------------------------------------------------------------------------------------------------ bytes

/// @return < 0 with errno, as send(2)
std::ptrdiff_t WsSocket::raw_send(std::string_view bytes) {
  if (!tls_) return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  ERR_clear_error();
  const int sent = SSL_write(tls_->ssl, bytes.data(), static_cast<int>(std::min<std::size_t>(bytes.size(), 1 << 20)));
  if (sent > 0) return sent;
  const int why = SSL_get_error(tls_->ssl, sent);
  errno = why == SSL_ERROR_WANT_WRITE || why == SSL_ERROR_WANT_READ ? EAGAIN : EPIPE;
  return -1;
}

std::ptrdiff_t WsSocket::raw_recv(char* to, std::size_t size) {
  if (!tls_) return ::recv(fd_, to, size, 0);
  ERR_clear_error();
  const int got = SSL_read(tls_->ssl, to, static_cast<int>(size));
  if (got > 0) return got;
  const int why = SSL_get_error(tls_->ssl, got);
  if (why == SSL_ERROR_ZERO_RETURN) return 0;
  errno = why == SSL_ERROR_WANT_WRITE || why == SSL_ERROR_WANT_READ ? EAGAIN : ECONNRESET;
  return -1;
}

/// Masks need not be secret here: nothing between us and the server is to be fooled by what we say.
std::uint32_t WsSocket::next_mask() { return mask_ = mask_ * 1664525u + 1013904223u; }

Result<void> WsSocket::send(std::string_view payload, bool binary) {
  return send_frames(ws_frame(payload, binary ? kBinary : kText, next_mask()));
}

Result<void> WsSocket::send_frames(std::string_view frames) {
  if (fd_ < 0) return fail(Errc::io, "the connection is closed");
  if (out_.empty()) {
    PARLANDO_TRY(const auto sent, send_some(frames));
    frames.remove_prefix(sent);
  }
  out_.append(frames);
  if (out_.size() > kUnsentMax) return fail(Errc::overloaded, "the server does not read");
  return {};
}

Result<std::size_t> WsSocket::send_some(std::string_view bytes) {
  if (bytes.empty()) return std::size_t{0};
  const auto sent = raw_send(bytes);
  if (sent >= 0) return static_cast<std::size_t>(sent);
  if (must_wait()) return std::size_t{0};
  return fail(Errc::io, "sending failed: {}", std::strerror(errno));
}

Result<void> WsSocket::write() {
  PARLANDO_TRY(const auto sent, send_some(out_));
  out_.erase(0, sent);
  return {};
}

Result<void> WsSocket::read() {
  char part[65536];
  bool gone = false;
  // What TLS has decrypted already, poll knows nothing of.
  do {
    const auto got = raw_recv(part, sizeof part);
    if (got < 0 && must_wait()) break;
    gone = got <= 0;
    if (!gone) in_.append(part, static_cast<std::size_t>(got));
  } while (!gone && tls_ && in_.size() < kMessageMax);
  while (take_frame()) {
  }
  in_.erase(0, std::exchange(at_, 0));
  if (in_.size() > kMessageMax) return fail(Errc::unavailable, "the server's message is larger than is meant");
  if (closed_) return fail(Errc::unavailable, "the server closed: {}", *closed_);
  if (gone) return fail(Errc::unavailable, "the server closed the connection");
  return {};
}

/// @return false when none is complete
bool WsSocket::take_frame() {
  const auto left = in_.size() - at_;
  if (left < 2 || closed_) return false;
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(in_[at_ + i]); };
  std::size_t size = byte(1) & 127, head = 2;
  if (size >= 126) {
    head = size == 126 ? 4 : 10;
    if (left < head) return false;
    size = 0;
    for (std::size_t i = 2; i < head; ++i) size = size << 8 | byte(i);
  }
  if (size > kMessageMax) {
    closed_ = "a frame that is larger than is meant";
    return false;
  }
  if (left < head + size) return false;
  const bool last = (byte(0) & 0x80) != 0;
  const int opcode = byte(0) & 15;
  auto payload = in_.substr(at_ + head, size);
  at_ += head + size;
  if (opcode == kPing) {
    // An answer that cannot leave is the connection's end, which reading tells.
    [[maybe_unused]] const auto sent = send_frames(ws_frame(payload, kPong, 0));
  } else if (opcode == kClose) {
    const int code = size >= 2 ? static_cast<std::uint8_t>(payload[0]) << 8 | static_cast<std::uint8_t>(payload[1]) : 0;
    closed_ = fmt::format("{} {}", code == 0 ? "no code" : std::to_string(code), size > 2 ? payload.substr(2) : "");
    if (closed_->ends_with(' ')) closed_->pop_back();
  } else if (opcode == kText || opcode == kBinary) {
    part_ = Message{opcode == kBinary, std::move(payload)};
  } else if (opcode == 0 && part_) {
    part_->payload += payload;
  }
  if (last && part_ && opcode < kClose) whole_.push_back(*std::exchange(part_, {}));
  return true;
}

std::optional<WsSocket::Message> WsSocket::next() {
  if (taken_ == whole_.size()) {
    whole_.clear();
    taken_ = 0;
    return {};
  }
  return std::move(whole_[taken_++]);
}

// ------------------------------------------------------------------------------------------------ the end

void WsSocket::finish() {
  if (fd_ < 0) return;
  [[maybe_unused]] const auto sent = send_frames(ws_frame(std::string_view("\x03\xe8", 2), kClose, 0));
  if (out_.empty() && !tls_) ::shutdown(fd_, SHUT_WR);
}

void WsSocket::close(int milliseconds_max) {
  if (fd_ < 0) return;
  // What is closed with something unread resets the connection.
  char part[65536];
  pollfd item{fd_, POLLIN, 0};
  while (milliseconds_max > 0 && ::poll(&item, 1, milliseconds_max) > 0)
    if (::recv(fd_, part, sizeof part, MSG_DONTWAIT) <= 0) break;
  ::close(std::exchange(fd_, -1));
}

WsSocket::~WsSocket() {
  if (fd_ >= 0) ::close(fd_);
}

std::string ws_frame(std::string_view payload, int opcode, std::uint32_t key) {
  std::string out;
  const auto size = payload.size();
  out.reserve(size + 14);
  out.push_back(static_cast<char>(0x80 | opcode));
  if (size < 126) {
    out.push_back(static_cast<char>(0x80 | size));
  } else {
    const int bytes = size < 65536 ? 2 : 8;
    out.push_back(static_cast<char>(0x80 | (bytes == 2 ? 126 : 127)));
    for (int i = bytes - 1; i >= 0; --i) out.push_back(static_cast<char>(size >> (8 * i) & 0xff));
  }
  char mask[4];
  for (int i = 0; i < 4; ++i) mask[i] = static_cast<char>(key >> (8 * i));
  out.append(mask, 4);
  for (std::size_t i = 0; i < size; ++i) out.push_back(static_cast<char>(payload[i] ^ mask[i % 4]));
  return out;
}

}  // namespace parlando::cli
