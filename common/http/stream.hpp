#pragma once
/// The bytes of a connection, plain or in TLS. Included by the sources of this folder only.
#include <openssl/ssl.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/websocket.hpp>
#include <memory>
#include <string>

#include "common/http/impl.hpp"

namespace parlando::http {
namespace beast = boost::beast;
namespace ssl = asio::ssl;

inline constexpr std::size_t kSlowestBytesPerSecond = 16 << 10;  ///< of a message or response that is not cut

/// The certificate that connections are begun with.
class Tls {
 public:
  /// @error Errc::io, Errc::bad_format
  static Result<std::shared_ptr<Tls>> load(const std::string& certificate, const std::string& key);
  ssl::context context{ssl::context::tls_server};
};

/// Delivers first what was read beyond an upgrade request: a client may send frames before it has the answer.
class Stream {
 public:
  using executor_type = Executor;
  using Secure = ssl::stream<TcpSocket>;
  explicit Stream(TcpSocket socket) : plain_(std::move(socket)) {}
  Stream(TcpSocket socket, std::shared_ptr<Tls> tls)
      : secure_(std::make_shared<Secure>(std::move(socket), tls->context)), tls_(std::move(tls)) {}

  executor_type get_executor() { return tcp().get_executor(); }
  TcpSocket& tcp() { return secure_ ? secure_->next_layer() : *plain_; }
  bool is_secure() const { return secure_ != nullptr; }
  /// The system took bytes then, or was first asked to.
  Clock::time_point written() const { return written_; }
  void give_back(std::string read) { first_ = std::move(read); }

  template <class Handler>
  void async_handshake(Handler&& handler) {
    secure_->async_handshake(ssl::stream_base::server, keeping(std::forward<Handler>(handler)));
  }
  /// Tells the peer that nothing follows.
  template <class Handler>
  void async_shutdown(Handler&& handler) {
    secure_->async_shutdown(keeping(std::forward<Handler>(handler)));
  }
  template <class Buffers, class Handler>
  void async_read_some(const Buffers& buffers, Handler&& handler) {
    if (!first_.empty()) {
      const auto count = asio::buffer_copy(buffers, asio::buffer(first_));
      first_.erase(0, count);
      return asio::post(get_executor(), beast::bind_front_handler(std::forward<Handler>(handler), error_code(), count));
    }
    if (secure_) return secure_->async_read_some(buffers, keeping(std::forward<Handler>(handler)));
    plain_->async_read_some(buffers, std::forward<Handler>(handler));
  }
  template <class Buffers, class Handler>
  void async_write_some(const Buffers& buffers, Handler&& handler) {
    written_ = Clock::now();  // what is written in parts asks again after each
    if (secure_) return secure_->async_write_some(buffers, keeping(std::forward<Handler>(handler)));
    plain_->async_write_some(buffers, std::forward<Handler>(handler));
  }

 private:
  /// An operation in TLS works on the stream's insides until its handler is called: one that waits behind another may
  /// still do so when this object has gone.
  template <class Handler>
  auto keeping(Handler&& handler) {
    return [secure = secure_, tls = tls_, handler = std::forward<Handler>(handler)](auto&&... results) mutable {
      handler(std::forward<decltype(results)>(results)...);
    };
  }

  std::optional<TcpSocket> plain_;
  std::shared_ptr<Secure> secure_;
  std::shared_ptr<Tls> tls_;  // outlives `secure_`'s use of it
  std::string first_;
  Clock::time_point written_{};
};

// How Beast ends a WebSocket's connection; the closing handshake was the last word either way.
template <class Handler>
void async_teardown(beast::role_type role, Stream& stream, Handler&& handler) {
  beast::websocket::async_teardown(role, stream.tcp(), std::forward<Handler>(handler));
}
inline void teardown(beast::role_type role, Stream& stream, error_code& ec) {
  beast::websocket::teardown(role, stream.tcp(), ec);
}
inline void beast_close_socket(Stream& stream) {
  error_code ignored;
  stream.tcp().close(ignored);
}

}  // namespace parlando::http
