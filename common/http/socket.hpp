#pragma once
/// One WebSocket from its handshake to its end. Included by the sources of this folder only: it brings Boost.Beast.
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/websocket.hpp>
#include <deque>
#include <optional>

#include "common/http/impl.hpp"

namespace parlando::http {
namespace beast = boost::beast;
namespace bhttp = beast::http;
namespace ws = beast::websocket;

/// A TCP socket that first delivers bytes which were read with the upgrade request: a client may send frames before it
/// has the answer.
class Wire {
 public:
  using executor_type = Executor;
  Wire(TcpSocket s, std::string first) : socket(std::move(s)), first_(std::move(first)) {}
  executor_type get_executor() { return socket.get_executor(); }
  template <class Buffers, class Handler>
  void async_read_some(const Buffers& buffers, Handler&& handler) {
    if (first_.empty()) return socket.async_read_some(buffers, std::forward<Handler>(handler));
    const auto count = asio::buffer_copy(buffers, asio::buffer(first_));
    first_.erase(0, count);
    asio::post(get_executor(), beast::bind_front_handler(std::forward<Handler>(handler), error_code(), count));
  }
  template <class Buffers, class Handler>
  void async_write_some(const Buffers& buffers, Handler&& handler) {
    socket.async_write_some(buffers, std::forward<Handler>(handler));
  }
  TcpSocket socket;

 private:
  std::string first_;
};
template <class Handler>
void async_teardown(beast::role_type role, Wire& wire, Handler&& handler) {
  ws::async_teardown(role, wire.socket, std::forward<Handler>(handler));
}
inline void teardown(beast::role_type role, Wire& wire, error_code& ec) { ws::teardown(role, wire.socket, ec); }
inline void beast_close_socket(Wire& wire) {
  error_code ignored;
  wire.socket.close(ignored);
}

class Socket final : public Connection {
 public:
  using UpgradeRequest = bhttp::request<bhttp::string_body>;
  /// @param path  of the server's handlers, which outlive it
  Socket(Server::Impl& server, std::uint64_t id, TcpSocket socket, std::string first, const SocketPath& path);
  void start(UpgradeRequest request);
  bool send(std::string data, bool binary, std::uint32_t tag);
  void close(CloseCode code, std::string_view reason, CloseMode mode);
  void pause();
  void resume();
  std::size_t drop_queued(const std::function<bool(std::uint32_t)>& drop);
  std::size_t unsent_bytes() const { return unsent_; }
  void sweep(Clock::time_point now) override;
  void cut() override { cut(false); }
  /// @param lost  the peer broke the connection
  void cut(bool lost);

 private:
  enum class State { handshake, open, flushing, closing, ended };
  struct Frame {
    std::string data;
    bool binary;
    std::uint32_t tag;
  };
  std::shared_ptr<Socket> self() { return std::static_pointer_cast<Socket>(shared_from_this()); }
  void read();
  void on_read(error_code ec);
  void write();
  void on_write(error_code ec);
  void begin_close();
  void drop_all();
  void agree_to_protocol();
  void tell_opened();
  void tell_slow();
  int tcp_state();

  Server::Impl& server_;
  const std::uint64_t id_;
  const SocketPath& path_;
  std::optional<ws::stream<Wire, false>> ws_;  // without compression
  UpgradeRequest request_;
  beast::flat_buffer buffer_;
  std::deque<Frame> queue_;  // the front one is being written while `writing_`
  std::size_t unsent_ = 0;
  State state_ = State::handshake;
  bool reading_ = false, delivering_ = false, writing_ = false, paused_ = false;
  bool slow_ = false, telling_slow_ = false, pinged_ = false, ping_pending_ = false, opened_ = false;
  bool said_goodbye_ = false;  // the peer's close frame came, whatever became of the answer
  ws::close_reason reason_;
  Clock::time_point heard_;                      // the last frame came then
  std::optional<Clock::time_point> deadline_;    // of handshake, flush or close
  std::optional<Clock::time_point> gone_since_;  // paused, and the peer has ended its side
};

}  // namespace parlando::http
