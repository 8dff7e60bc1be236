#pragma once
/// A client's WebSocket (RFC 6455), in the clear or in TLS, for programs that drive many of them on one thread: opening
/// blocks, what follows does not. Plain class over one descriptor; who owns it asks `poll` for it.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

/// ws://, wss://, http:// or https://
struct WsUrl {
  bool tls = false;
  std::string host;
  int port = 0;
  std::string target;  ///< path and query
  /// @error Errc::invalid_argument naming what is expected
  static Result<WsUrl> parse(std::string_view text);
  std::string authority() const;  ///< of the Host header
};

/// A frame as clients send it. @param opcode  1 text, 2 binary, 8 close, 9 ping, 10 pong
std::string ws_frame(std::string_view payload, int opcode, std::uint32_t key);

class WsSocket {
 public:
  /// What the server has said behind its answer waits for `read`, which is to be called once.
  /// @param headers  whole lines without their end
  /// @error Errc::unavailable (nobody there, or what the handshake was answered), Errc::bad_format (no certificate that
  /// is trusted)
  static Result<std::unique_ptr<WsSocket>> open(const WsUrl& url, const std::vector<std::string>& headers = {},
                                                double seconds_max = 10);
  ~WsSocket();
  WsSocket(const WsSocket&) = delete;
  WsSocket& operator=(const WsSocket&) = delete;

  int fd() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  /// There is something to be written; poll for it.
  bool wants_write() const { return !out_.empty(); }

  /// What cannot leave at once waits, at most 1 MiB. @error Errc::overloaded (the server does not read), Errc::io
  Result<void> send(std::string_view payload, bool binary);
  /// Frames that are made already.
  Result<void> send_frames(std::string_view frames);
  /// As much of finished bytes as the system takes now, past everything that waits. @return how many
  Result<std::size_t> send_some(std::string_view bytes);
  Result<void> write();

  struct Message {
    bool binary = false;
    std::string payload;
  };
  /// Takes what has come, for `next`. Pings are answered. @error Errc::unavailable: it is closed, and why; what came
  /// before can be taken still
  Result<void> read();
  /// A whole message of what was read.
  std::optional<Message> next();

  /// Says goodbye and that nothing follows; the other end closes. Not in the middle of a frame.
  void finish();
  /// Waits for the other end to close, then closes.
  void close(int milliseconds_max);

 private:
  struct Tls;
  WsSocket() = default;
  Result<void> connect(const WsUrl& url, double seconds_max);
  Result<void> shake_hands(const WsUrl& url, const std::vector<std::string>& headers);
  std::ptrdiff_t raw_send(std::string_view bytes);
  std::ptrdiff_t raw_recv(char* to, std::size_t size);
  bool take_frame();
  std::uint32_t next_mask();

  int fd_ = -1;
  std::unique_ptr<Tls> tls_;
  std::string in_, out_;
  std::size_t at_ = 0;           ///< of `in_`: read up to here
  std::optional<Message> part_;  ///< of a message in several frames
  std::vector<Message> whole_;
  std::size_t taken_ = 0;
  std::uint32_t mask_ = 0x5ca1ab1e;
  std::optional<std::string> closed_;  ///< the server has said goodbye, with this
};

}  // namespace parlando::cli
