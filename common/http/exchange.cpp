/// HTTP: one connection and its requests, until it ends or becomes a WebSocket.
#include <algorithm>
#include <array>
#include <boost/beast/http/span_body.hpp>

#include "common/http/socket.hpp"

namespace parlando::http {
namespace {

constexpr std::size_t kSlowestBytesPerSecond = 16 << 10;  // of a response that is not cut
constexpr std::size_t kLingerBytesMax = 256 << 10;

class Exchange final : public Connection {
 public:
  Exchange(Server::Impl& server, std::uint64_t id, TcpSocket socket)
      : server_(server), id_(id), socket_(std::move(socket)) {}

  void read(bool first) {
    parser_.emplace();
    parser_->body_limit(server_.limits.body_bytes_max);
    parser_->header_limit(static_cast<std::uint32_t>(server_.limits.header_bytes_max));
    if (first || buffer_.size() > 0) return read_header();
    // A later request: idle until its first byte, then as quick as the first one.
    expire_after(server_.limits.idle_time_max);
    socket_.async_wait(TcpSocket::wait_read, [me = self()](error_code ec) {
      if (me->ended_) return;
      if (ec) return me->cut();
      me->read_header();
    });
  }

  void sweep(Clock::time_point now) override {
    if (ended_ || now < deadline_) return;
    if (!lingering_) server_.counters.closed_idle.add();
    cut();
  }

  void cut() override {
    if (std::exchange(ended_, true)) return;
    const auto me = self();
    error_code ignored;
    socket_.close(ignored);
    server_.leave(id_);
  }

 private:
  std::shared_ptr<Exchange> self() { return std::static_pointer_cast<Exchange>(shared_from_this()); }
  void expire_after(Clock::duration time) { deadline_ = Clock::now() + time; }

  void read_header() {
    expire_after(server_.limits.header_time_max);
    bhttp::async_read_header(socket_, buffer_, *parser_, [me = self()](error_code ec, std::size_t) {
      if (me->ended_) return;
      me->server_.count_step();
      if (ec) return me->on_bad_request(ec);
      me->on_header();
    });
  }

  void on_bad_request(error_code ec) {
    const bool malformed = ec.category() == make_error_code(bhttp::error::bad_method).category();
    if (!malformed || ec == bhttp::error::end_of_stream || ec == bhttp::error::partial_message) return cut();
    server_.counters.protocol_errors.add();
    if (ec == bhttp::error::body_limit)
      return answer({413, "text/plain", "the body of the request is too large\n"}, false);
    if (ec == bhttp::error::header_limit)
      return answer({431, "text/plain", "the header of the request is too large\n"}, false);
    answer({400, "text/plain", "the request is malformed: " + ec.message() + "\n"}, false);
  }

  void on_header() {
    const auto& request = parser_->get();
    const auto hosts = request.count(bhttp::field::host);
    const std::string host(request[bhttp::field::host]);
    if (hosts > 1 || (hosts == 0 && request.version() >= 11)) {
      server_.counters.refused_host.add();
      return answer({400, "text/plain", "the request needs one Host header\n"}, false);
    }
    if (hosts == 1 && !server_.hosts.allows(host)) {
      server_.counters.refused_host.add();
      const auto text =
          "the host '" + host.substr(0, 100) + "' is not served here; add it to the allowed hosts of this server\n";
      return answer({403, "text/plain", text}, false);
    }
    if (ws::is_upgrade(request)) return upgrade(host);
    expire_after(server_.limits.body_time_max);
    if (parser_->is_done()) return on_request();
    bhttp::async_read(socket_, buffer_, *parser_, [me = self()](error_code ec, std::size_t) {
      if (me->ended_) return;
      me->server_.count_step();
      if (ec) return me->on_bad_request(ec);
      me->on_request();
    });
  }

  void upgrade(const std::string& host) {
    const auto& request = parser_->get();
    const std::string target(request.target());
    const auto& paths = server_.handlers.paths;
    const auto path = std::find_if(paths.begin(), paths.end(),
                                   [&](const auto& p) { return target.substr(0, target.find('?')) == p.path; });
    if (path == paths.end()) return answer({404, "text/plain", "no WebSocket here\n"}, false);
    const auto origins = request.count(bhttp::field::origin);
    const std::string origin(request[bhttp::field::origin]);
    if (origins > 1 || (origins == 1 && !origin_allowed(origin, host, server_.limits.origins))) {
      server_.counters.refused_origin.add();
      const auto text =
          "pages of '" + origin.substr(0, 100) + "' may not connect; add it to the allowed origins of this server\n";
      return answer({403, "text/plain", text}, false);
    }
    ended_ = true;  // as an exchange; the place in the table goes on
    const auto socket =
        std::make_shared<Socket>(server_, id_, std::move(socket_), beast::buffers_to_string(buffer_.data()), *path);
    const auto me = self();
    server_.connections[id_].connection = socket;
    socket->start(parser_->release());
  }

  void on_request() {
    const auto request = parser_->release();
    head_ = request.method() == bhttp::verb::head;
    Response response;
    const Request asked{head_ ? "GET" : std::string(request.method_string()), std::string(request.target()),
                        request.body()};
    if (!server_.guarded([&] { response = server_.handle(asked); }))
      return answer({500, "text/plain", "internal error\n"}, false);
    answer(std::move(response), request.keep_alive() && server_.accepting);
  }

  void answer(Response given, bool keep) {
    given_ = std::move(given);
    const std::string& body = given_.shared_body ? *given_.shared_body : given_.body;
    response_ = {};
    response_.version(11);
    response_.result(static_cast<unsigned>(given_.status));
    response_.set(bhttp::field::content_type, given_.type);
    response_.set(bhttp::field::cache_control, "no-store");
    for (const auto& [name, value] : given_.headers) response_.set(name, value);
    if (given_.status == 405 && response_.count(bhttp::field::allow) == 0)
      response_.set(bhttp::field::allow, "GET, HEAD");
    response_.keep_alive(keep);
    response_.content_length(body.size());
    response_.body() = head_ ? beast::span<const char>() : beast::span<const char>(body.data(), body.size());
    expire_after(server_.limits.idle_time_max + std::chrono::seconds(body.size() / kSlowestBytesPerSecond));
    bhttp::async_write(socket_, response_, [me = self(), keep](error_code ec, std::size_t) {
      if (me->ended_) return;
      me->server_.count_step();
      me->given_ = {};
      if (ec) return me->cut();
      if (keep) return me->read(false);
      // Closing with bytes unread would reset the connection, and the client might never see the answer.
      me->lingering_ = true;
      me->expire_after(me->server_.limits.close_time_max);
      error_code ignored;
      me->socket_.shutdown(TcpSocket::shutdown_send, ignored);
      me->linger();
    });
  }

  void linger() {
    socket_.async_read_some(asio::buffer(rest_), [me = self()](error_code ec, std::size_t count) {
      if (me->ended_) return;
      me->server_.count_step();
      me->lingered_ += count;
      if (ec || me->lingered_ > kLingerBytesMax) return me->cut();
      me->linger();
    });
  }

  Server::Impl& server_;
  const std::uint64_t id_;
  TcpSocket socket_;
  beast::flat_buffer buffer_;
  std::optional<bhttp::request_parser<bhttp::string_body>> parser_;
  Response given_;  // owns what the response shows
  bhttp::response<bhttp::span_body<const char>> response_;
  std::array<char, 1024> rest_;
  std::size_t lingered_ = 0;
  Clock::time_point deadline_;
  bool head_ = false, lingering_ = false, ended_ = false;
};

}  // namespace

void Server::Impl::start_exchange(std::uint64_t id, TcpSocket socket) {
  const auto exchange = std::make_shared<Exchange>(*this, id, std::move(socket));
  connections[id].connection = exchange;
  exchange->read(true);
}

}  // namespace parlando::http
