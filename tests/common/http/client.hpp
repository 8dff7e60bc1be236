#pragma once
/// A raw HTTP and WebSocket client for tests of the server: it never blocks, so that one thread can drive both ends.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace parlando::http {

class Client {
 public:
  struct Frame {
    int opcode;
    std::string data;
    int code() const {
      return data.size() < 2 ? 1005 : static_cast<unsigned char>(data[0]) << 8 | static_cast<unsigned char>(data[1]);
    }
    std::string reason() const { return data.size() < 2 ? "" : data.substr(2); }
  };

  Client() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
    if (fd_ < 0) throw std::runtime_error("no socket");
  }
  explicit Client(int port, const char* from = nullptr) : Client() { connect(port, from); }
  Client(Client&& other) noexcept : in(std::move(other.in)), ended(other.ended), fd_(std::exchange(other.fd_, -1)) {}
  ~Client() { close(); }

  void connect(int port, const char* from = nullptr) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (from) {
      inet_aton_(from, address);
      ::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address));
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    ::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address));
    const int one = 1;
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  }
  void receive_buffer(int bytes) { ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes)); }
  void send_buffer(int bytes) { ::setsockopt(fd_, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)); }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  /// Ends with a reset instead of a FIN.
  void reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    close();
  }
  void finish() { ::shutdown(fd_, SHUT_WR); }

  /// @return how many bytes the system took
  std::size_t send(std::string_view bytes) {
    const auto n = ::send(fd_, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    return n < 0 ? 0 : static_cast<std::size_t>(n);
  }
  /// Reads what has arrived. @return *this
  Client& pump() {
    char part[65536];
    for (;;) {
      const auto n = ::recv(fd_, part, sizeof(part), MSG_DONTWAIT);
      if (n > 0) {
        in.append(part, static_cast<std::size_t>(n));
        continue;
      }
      if (n == 0 || (errno != EAGAIN && errno != ENOTCONN)) ended = true;
      return *this;
    }
  }
  std::optional<Frame> frame() {
    pump();
    if (in.size() < 2) return {};
    std::size_t length = in[1] & 127, head = 2;
    if (length >= 126) {
      const std::size_t bytes = length == 126 ? 2 : 8;
      if (in.size() < 2 + bytes) return {};
      length = 0;
      for (std::size_t i = 0; i < bytes; ++i) length = length << 8 | static_cast<unsigned char>(in[2 + i]);
      head += bytes;
    }
    if (in.size() < head + length) return {};
    Frame out{in[0] & 15, in.substr(head, length)};
    in.erase(0, head + length);
    return out;
  }

  static std::string encode(int opcode, std::string_view data, bool fin = true) {
    std::string out(1, static_cast<char>((fin ? 0x80 : 0) | opcode));
    if (data.size() < 126) {
      out += static_cast<char>(0x80 | data.size());
    } else {
      const bool wide = data.size() > 65535;
      out += static_cast<char>(0x80 | (wide ? 127 : 126));
      for (int shift = wide ? 56 : 8; shift >= 0; shift -= 8) out += static_cast<char>(data.size() >> shift & 255);
    }
    const char mask[] = {1, 2, 3, 4};
    out.append(mask, 4);
    for (std::size_t i = 0; i < data.size(); ++i) out += static_cast<char>(data[i] ^ mask[i % 4]);
    return out;
  }
  static std::string upgrade(int port, const std::string& more = {}, const std::string& path = "/ws") {
    return "GET " + path + " HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(port) +
           "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
           "Sec-WebSocket-Version: 13\r\n" +
           more + "\r\n";
  }

  std::string in;
  bool ended = false;

 private:
  static void inet_aton_(const char* text, sockaddr_in& address) {
    unsigned a, b, c, d;
    if (std::sscanf(text, "%u.%u.%u.%u", &a, &b, &c, &d) == 4)
      address.sin_addr.s_addr = htonl(a << 24 | b << 16 | c << 8 | d);
  }
  int fd_;
};

}  // namespace parlando::http
