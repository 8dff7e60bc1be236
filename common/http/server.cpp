#include "common/http/server.hpp"

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/websocket.hpp>
#include <deque>
#include <optional>
#include <thread>

namespace parlando::http {
namespace beast = boost::beast;
namespace asio = boost::asio;
namespace bhttp = beast::http;
namespace ws = beast::websocket;
using tcp = asio::ip::tcp;
using boost::system::error_code;

class Socket;

struct Server::Impl : std::enable_shared_from_this<Server::Impl> {
  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  std::function<Response(const Request&)> handle;
  SocketHandlers handlers;
  Limits limits;
  std::atomic<int> connections{0};
  std::atomic<std::size_t> socket_count{0};
  std::uint64_t next_id = 1;
  std::map<std::uint64_t, std::shared_ptr<Socket>> sockets;  // io thread only
  std::thread thread;
  int port = 0;

  void accept();
};

/// One WebSocket. Lives in the server's map and in its pending operations.
class Socket : public std::enable_shared_from_this<Socket> {
 public:
  Socket(beast::tcp_stream stream, std::shared_ptr<Server::Impl> server, std::uint64_t id) : ws_(std::move(stream)), server_(std::move(server)), id_(id) {}
  ~Socket() { --server_->connections; }

  void start(bhttp::request<bhttp::string_body> request) {
    beast::get_lowest_layer(ws_).expires_never();
    auto timeout = ws::stream_base::timeout::suggested(beast::role_type::server);
    timeout.handshake_timeout = std::chrono::seconds(server_->limits.header_seconds_max),
    timeout.idle_timeout = std::chrono::seconds(server_->limits.idle_seconds_max), timeout.keep_alive_pings = true;
    ws_.set_option(timeout);
    ws_.read_message_max(server_->limits.message_bytes_max);
    request_ = std::move(request);
    ws_.async_accept(request_, [self = shared_from_this()](error_code ec) {
      if (ec) return;
      self->open_ = true;
      self->server_->sockets[self->id_] = self;
      ++self->server_->socket_count;
      self->server_->handlers.opened(self->id_);
      self->read();
    });
  }
  void send(std::string data, bool binary) {
    if (!open_) return;
    unsent_ += data.size();
    if (unsent_ > server_->limits.unsent_bytes_max) return close();
    queue_.emplace_back(std::move(data), binary);
    if (queue_.size() == 1) write();
  }
  void close() {
    if (!open_) return;
    ended();
    beast::get_lowest_layer(ws_).close();
  }

 private:
  void ended() {
    if (!std::exchange(open_, false)) return;
    server_->sockets.erase(id_);
    --server_->socket_count;
    server_->handlers.closed(id_);
  }
  void read() {
    ws_.async_read(buffer_, [self = shared_from_this()](error_code ec, std::size_t) {
      if (ec) return self->ended();
      self->server_->handlers.message(self->id_, beast::buffers_to_string(self->buffer_.data()), self->ws_.got_binary());
      self->buffer_.consume(self->buffer_.size());
      self->read();
    });
  }
  void write() {
    ws_.binary(queue_.front().second);
    ws_.async_write(asio::buffer(queue_.front().first), [self = shared_from_this()](error_code ec, std::size_t) {
      if (ec) return self->ended();
      self->unsent_ -= self->queue_.front().first.size();
      self->queue_.pop_front();
      if (!self->queue_.empty()) self->write();
    });
  }
  ws::stream<beast::tcp_stream> ws_;
  std::shared_ptr<Server::Impl> server_;
  std::uint64_t id_;
  bhttp::request<bhttp::string_body> request_;
  beast::flat_buffer buffer_;
  std::deque<std::pair<std::string, bool>> queue_;
  std::size_t unsent_ = 0;
  bool open_ = false;
};

namespace {

/// One HTTP connection, until it ends or becomes a WebSocket.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, std::shared_ptr<Server::Impl> server) : stream_(std::move(socket)), server_(std::move(server)) {}
  ~Connection() {
    if (!handed_over_) --server_->connections;
  }
  void read() {
    parser_.emplace();
    parser_->body_limit(server_->limits.body_bytes_max);
    parser_->header_limit(16 << 10);
    stream_.expires_after(std::chrono::seconds(first_ ? server_->limits.header_seconds_max : server_->limits.idle_seconds_max));
    first_ = false;
    bhttp::async_read(stream_, buffer_, *parser_, [self = shared_from_this()](error_code ec, std::size_t) {
      if (ec == bhttp::error::body_limit || ec == bhttp::error::header_limit) return self->answer({413, "text/plain", "the request is too large\n"}, false);
      if (ec) return;
      auto request = self->parser_->release();
      const std::string target(request.target());
      if (ws::is_upgrade(request)) {
        if (self->server_->handlers.path.empty() || target.substr(0, target.find('?')) != self->server_->handlers.path)
          return self->answer({404, "text/plain", "no WebSocket here\n"}, false);
        self->handed_over_ = true;
        std::make_shared<Socket>(std::move(self->stream_), self->server_, self->server_->next_id++)->start(std::move(request));
        return;
      }
      self->answer(self->server_->handle({std::string(request.method_string()), target, std::move(request.body())}), request.keep_alive());
    });
  }

 private:
  void answer(Response r, bool keep) {
    response_ = {};
    response_.version(11);
    response_.result(static_cast<unsigned>(r.status));
    response_.set(bhttp::field::content_type, r.type);
    response_.set(bhttp::field::cache_control, "no-store");
    response_.body() = std::move(r.body);
    response_.keep_alive(keep);
    response_.prepare_payload();
    bhttp::async_write(stream_, response_, [self = shared_from_this(), keep](error_code ec, std::size_t) {
      if (!ec && keep) return self->read();
      error_code ignored;
      self->stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    });
  }
  beast::tcp_stream stream_;
  std::shared_ptr<Server::Impl> server_;
  beast::flat_buffer buffer_;
  std::optional<bhttp::request_parser<bhttp::string_body>> parser_;
  bhttp::response<bhttp::string_body> response_;
  bool first_ = true, handed_over_ = false;
};

}  // namespace

void Server::Impl::accept() {
  acceptor.async_accept([self = shared_from_this()](error_code ec, tcp::socket socket) {
    if (ec == asio::error::operation_aborted) return;
    if (!ec && self->connections < self->limits.connections_max) {
      ++self->connections;
      std::make_shared<Connection>(std::move(socket), self)->read();
    }  // above the limit the connection is closed at once
    self->accept();
  });
}

Result<std::unique_ptr<Server>> Server::start(const std::string& address, std::function<Response(const Request&)> handle, SocketHandlers sockets,
                                              Limits limits) try {
  const auto colon = address.rfind(':');
  if (colon == std::string::npos) return fail(Errc::invalid_argument, "the address '{}' has no port, expected host:port", address);
  std::unique_ptr<Server> out(new Server);
  out->impl_ = std::make_shared<Impl>();
  auto& s = *out->impl_;
  s.handle = std::move(handle), s.handlers = std::move(sockets), s.limits = limits;
  const tcp::endpoint where(asio::ip::make_address(address.substr(0, colon)), static_cast<unsigned short>(std::stoi(address.substr(colon + 1))));
  s.acceptor.open(where.protocol());
  s.acceptor.set_option(tcp::acceptor::reuse_address(true));
  s.acceptor.bind(where);
  s.acceptor.listen();
  s.port = s.acceptor.local_endpoint().port();
  s.accept();
  s.thread = std::thread([impl = out->impl_] { impl->io.run(); });
  return out;
} catch (const std::exception& e) {
  return fail(Errc::io, "'{}' cannot be listened on: {}", address, e.what());
}

Server::~Server() {
  if (!impl_) return;
  asio::post(impl_->io, [impl = impl_] {
    error_code ignored;
    impl->acceptor.close(ignored);
    impl->io.stop();
  });
  if (impl_->thread.joinable()) impl_->thread.join();
  impl_->sockets.clear();
}

int Server::port() const { return impl_->port; }
std::size_t Server::sockets() const { return impl_->socket_count; }

void Server::send(std::uint64_t id, std::string data, bool binary) {
  asio::post(impl_->io, [impl = impl_.get(), id, data = std::move(data), binary]() mutable {
    if (const auto found = impl->sockets.find(id); found != impl->sockets.end()) std::shared_ptr(found->second)->send(std::move(data), binary);
  });
}
void Server::close(std::uint64_t id) {
  asio::post(impl_->io, [impl = impl_.get(), id] {
    if (const auto found = impl->sockets.find(id); found != impl->sockets.end()) std::shared_ptr(found->second)->close();
  });
}

}  // namespace parlando::http
