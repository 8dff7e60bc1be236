/// HTTP: one connection and its requests, until it ends or becomes a WebSocket.
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/beast/http/span_body.hpp>
#include <sstream>

#include "common/http/socket.hpp"

namespace parlando::http {
namespace {

constexpr std::size_t kLingerBytesMax = 64 << 20;  // read and dropped: a client hears its refusal behind its upload
constexpr std::size_t kSmallBodyBytes = 64 << 10;  // not counted against bodies_bytes_max
constexpr std::size_t kEarlyBytesMax = 64 << 10;   // of further requests while one is being answered
constexpr std::size_t kHeaderPartBytes = 4 << 10;  // read at first of a later request in TLS
constexpr std::size_t kSliceBytes = 32 << 10;      // of a streamed answer, given to the system at a time
constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

class Exchange final : public Connection, public Answering {
 public:
  Exchange(Server::Impl& server, std::uint64_t id, Stream stream)
      : server_(server), id_(id), stream_(std::move(stream)) {}

  void start() {
    if (!stream_.is_secure()) return read(true);
    expire_after(server_.limits.header_time_max);
    stream_.async_handshake([me = self()](error_code ec) {
      if (me->ended_) return;
      me->server_.count_step();
      if (!ec) return me->read(true);
      me->server_.counters.protocol_errors.add();
      me->cut();
    });
  }

  void read(bool first) {
    parser_.emplace();
    parser_->body_limit(server_.limits.body_bytes_max);
    parser_->header_limit(static_cast<std::uint32_t>(server_.limits.header_bytes_max));
    if (first || buffer_.size() > 0) return read_header();
    // A later request: idle until its first byte, then as quick as the first one.
    expire_after(server_.limits.idle_time_max);
    // In TLS its bytes may be here already: they came in the same segment as the former request.
    if (stream_.is_secure())
      return stream_.async_read_some(buffer_.prepare(kHeaderPartBytes),
                                     [me = self()](error_code ec, std::size_t count) {
                                       if (me->ended_) return;
                                       me->server_.count_step();
                                       if (ec) return me->cut();
                                       me->buffer_.commit(count);
                                       me->read_header();
                                     });
    stream_.tcp().async_wait(TcpSocket::wait_read, [me = self()](error_code ec) {
      if (me->ended_) return;
      if (ec) return me->cut();
      me->read_header();
    });
  }

  void sweep(Clock::time_point now) override {
    if (ended_) return;
    if (is_unwatched_ && request_ != 0 && has_left()) return cut();
    if (now < deadline_) return;
    if (!lingering_) server_.counters.closed_idle.add();
    cut();
  }

  void cut() override {
    if (std::exchange(ended_, true)) return;
    const auto me = self();
    error_code ignored;
    stream_.tcp().close(ignored);
    server_.leave(id_);
    counted_body_.reset();
    const auto request = std::exchange(request_, 0);
    leave_answering();
    if (request != 0 && server_.answering.erase(request) != 0 && server_.request_handlers.gone)
      server_.guarded([&] { server_.request_handlers.gone(request); });
  }

  // ---- an answer that is given later

  void respond(Response response) override {
    server_.answering.erase(std::exchange(request_, 0));
    answer(std::move(response), keep_);
  }

  bool begin(Response head) override {
    if (std::exchange(streaming_, true)) return false;
    bhttp::response<bhttp::empty_body> out;
    fill(out, head);
    chunked_ = version_ >= 11;
    keep_ = keep_ && chunked_;
    out.keep_alive(keep_);
    if (chunked_) out.chunked(true);
    std::ostringstream text;
    text << out.base();
    queue(text.str());
    return head.body.empty() || write(head.body);
  }

  bool write(std::string_view part) override {
    if (!streaming_) return false;
    if (part.empty()) return true;
    for (; !part.empty(); part.remove_prefix(std::min(part.size(), kSliceBytes))) {
      const auto slice = part.substr(0, kSliceBytes);
      queue(chunked_ ? fmt::format("{:x}\r\n{}\r\n", slice.size(), slice) : std::string(slice));
    }
    if (unsent_ <= server_.limits.stream_unsent_bytes_max) return true;
    server_.counters.cut_streams.add();
    // Posted: no callback runs inside `write`.
    asio::post(server_.io, [me = self()] { me->cut(); });
    return false;
  }

  bool finish() override {
    if (!streaming_) return false;
    server_.answering.erase(std::exchange(request_, 0));
    finished_ = true;
    if (chunked_) queue("0\r\n\r\n");
    if (!writing_) on_all_written();
    return true;
  }

  void abort() override {
    server_.answering.erase(std::exchange(request_, 0));
    // What is queued already is still sent.
    aborted_ = true;
    if (!writing_) asio::post(server_.io, [me = self()] { me->cut(); });
  }

  std::size_t unsent_bytes() const override { return unsent_; }

 private:
  std::shared_ptr<Exchange> self() { return std::static_pointer_cast<Exchange>(shared_from_this()); }
  void expire_after(Clock::duration time) { deadline_ = Clock::now() + time; }

  void read_header() {
    expire_after(server_.limits.header_time_max);
    bhttp::async_read_header(stream_, buffer_, *parser_, [me = self()](error_code ec, std::size_t) {
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
    if (ec == bhttp::error::body_limit) return refuse(413, "the body of the request is too large\n");
    if (ec == bhttp::error::header_limit) return refuse(431, "the header of the request is too large\n");
    refuse(400, "the request is malformed: " + ec.message() + "\n");
  }

  /// The server's own answer; the connection ends with it.
  void refuse(int status, std::string text, std::vector<std::pair<std::string, std::string>> headers = {}) {
    refuse(describe(), status, std::move(text), std::move(headers));
  }
  void refuse(const Request& asked, int status, std::string text,
              std::vector<std::pair<std::string, std::string>> headers = {}) {
    Response out{status, "text/plain", std::move(text)};
    out.headers = std::move(headers);
    if (server_.request_handlers.shape)
      server_.guarded([&] { out = server_.request_handlers.shape(asked, std::move(out)); });
    answer(std::move(out), false);
  }

  /// The request as far as it is known, without its body.
  Request describe() const {
    Request out;
    if (!parser_) return out;
    const auto& request = parser_->get();
    out.method = request.method() == bhttp::verb::head ? "GET" : std::string(request.method_string());
    out.target = std::string(request.target());
    for (const auto& field : request)
      out.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
    return out;
  }

  /// Asks whether this request may be, and how large. @return false when it was answered
  bool admit() {
    const bool counts_addresses = server_.limits.connections_per_address_max > 0;
    Admission admission{server_.limits.body_bytes_max,
                        counts_addresses ? "address " + server_.connections[id_].address : ""};
    share_.clear();
    if (server_.request_handlers.admit) {
      std::optional<Response> refusal;
      auto asked = describe();
      if (ws::is_upgrade(parser_->get())) asked.id = id_;
      if (!server_.guarded([&] { refusal = server_.request_handlers.admit(asked, admission); })) {
        refuse(500, "internal error\n");
        return false;
      }
      // With nothing left to read the connection may go on.
      const bool upgrade = ws::is_upgrade(parser_->get());
      if (refusal) {
        head_ = parser_->get().method() == bhttp::verb::head;
        const bool keep = !upgrade && parser_->is_done() && parser_->get().keep_alive() && server_.accepting;
        answer(std::move(*refusal), keep);
        return false;
      }
    }
    share_ = std::move(admission.share);
    if (ws::is_upgrade(parser_->get())) return true;
    const auto most = std::min(admission.body_bytes_max, server_.limits.body_bytes_max);
    const auto length = parser_->content_length();
    if (length && *length > most) {
      server_.counters.protocol_errors.add();
      refuse(413, fmt::format("the body of the request has {} bytes, at most {} are taken here\n", *length, most));
      return false;
    }
    parser_->body_limit(most);
    const std::size_t bytes = length ? static_cast<std::size_t>(*length) : parser_->is_done() ? 0 : most;
    if (bytes <= kSmallBodyBytes) return true;
    if (!server_.budget->take(bytes, share_)) {
      server_.counters.refused_bodies.add();
      refuse(503, "too many large requests are being received; try again later\n", {{"Retry-After", "1"}});
      return false;
    }
    counted_body_ = std::shared_ptr<void>(
        server_.budget.get(), [budget = server_.budget, bytes, share = share_](void*) { budget->give(bytes, share); });
    return true;
  }

  void on_header() {
    const auto& request = parser_->get();
    const auto hosts = request.count(bhttp::field::host);
    const std::string host(request[bhttp::field::host]);
    if (hosts > 1 || (hosts == 0 && request.version() >= 11)) {
      server_.counters.refused_host.add();
      return refuse(400, "the request needs one Host header\n");
    }
    if (hosts == 1 && !server_.allows_host(host)) {
      server_.counters.refused_host.add();
      return refuse(403, "the host '" + host.substr(0, 100) +
                             "' is not served here; add it to the allowed hosts of this server\n");
    }
    if (!admit()) return;
    if (ws::is_upgrade(request)) return upgrade(host);
    expire_after(server_.limits.body_time_max);
    if (parser_->is_done()) return on_request();
    if (beast::iequals(request[bhttp::field::expect], "100-continue")) {
      asio::async_write(stream_, asio::buffer(kContinue), [me = self()](error_code ec, std::size_t) {
        if (me->ended_) return;
        ec ? me->cut() : me->read_body();
      });
      return;
    }
    read_body();
  }

  void read_body() {
    bhttp::async_read(stream_, buffer_, *parser_, [me = self()](error_code ec, std::size_t) {
      if (me->ended_) return;
      me->server_.count_step();
      if (ec) return me->on_bad_request(ec);
      me->on_request();
    });
  }

  /// It was admitted, and its place is free again.
  void tell_not_opened() {
    const auto& handlers = server_.request_handlers;
    if (handlers.admit && handlers.gone) server_.guarded([&] { handlers.gone(id_); });
  }

  void upgrade(const std::string& host) {
    const auto& request = parser_->get();
    const std::string target(request.target());
    const auto& paths = server_.handlers.paths;
    const auto path = std::find_if(paths.begin(), paths.end(),
                                   [&](const auto& p) { return target.substr(0, target.find('?')) == p.path; });
    if (path == paths.end()) {
      tell_not_opened();
      return refuse(404, "no WebSocket here\n");
    }
    const auto origins = request.count(bhttp::field::origin);
    const std::string origin(request[bhttp::field::origin]);
    if (origins > 1 || (origins == 1 && !origin_allowed(origin, host, server_.limits.origins))) {
      server_.counters.refused_origin.add();
      tell_not_opened();
      return refuse(403, "pages of '" + origin.substr(0, 100) +
                             "' may not connect; add it to the allowed origins of this server\n");
    }
    ended_ = true;  // as an exchange; the place in the table goes on
    stream_.give_back(beast::buffers_to_string(buffer_.data()));
    const auto socket = std::make_shared<Socket>(server_, id_, std::move(stream_), *path, share_);
    const auto me = self();
    server_.connections[id_].connection = socket;
    socket->start(parser_->release());
  }

  void on_request() {
    auto asked = describe();
    auto request = parser_->release();
    head_ = request.method() == bhttp::verb::head;
    version_ = request.version();
    keep_ = request.keep_alive() && server_.accepting;
    asked.id = request_ = server_.next_id++;
    asked.body = std::move(request.body());
    asked.counted = counted_body_;
    server_.answering[request_] = this;
    const auto me = self();
    Response response;
    const bool fine = server_.guarded([&] { response = server_.handle(asked); });
    if (fine && response.later) {
      enter_answering();
      return watch();
    }
    server_.answering.erase(std::exchange(request_, 0));
    fine ? answer(std::move(response), keep_) : refuse(asked, 500, "internal error\n");
  }

  void enter_answering() {
    if (ended_ || (request_ == 0 && !streaming_)) return;  // it was answered at once
    if (!std::exchange(counted_, true)) ++server_.requests_open;
    if (!writing_) deadline_ = Clock::time_point::max();
  }
  void leave_answering() {
    if (std::exchange(counted_, false)) --server_.requests_open;
  }

  /// Notices that the client goes while its answer is being made. What it sends meanwhile is kept for then; who sends
  /// much would fill the window and could go unnoticed behind it. In TLS it is not read, and every sweep asks the
  /// system.
  void watch() {
    is_unwatched_ = false;
    if (ended_ || request_ == 0) return;
    stream_.tcp().async_wait(TcpSocket::wait_read, [me = self(), request = request_](error_code ec) {
      if (me->ended_ || me->request_ != request) return;
      me->server_.count_step();
      char first = 0;
      const auto count = ec ? 0 : ::recv(me->stream_.tcp().native_handle(), &first, 1, MSG_PEEK | MSG_DONTWAIT);
      if (count > 0 && me->stream_.is_secure()) {  // another request, or a goodbye
        me->is_unwatched_ = true;
        return;
      }
      if (count > 0) return me->keep_early();
      if (count < 0 && (errno == EAGAIN || errno == EINTR)) return me->watch();
      me->cut();
    });
  }

  /// What came before its time: another request, behind the one that is being answered.
  void keep_early() {
    const auto to = buffer_.prepare(kEarlyBytesMax);
    const auto count = ::recv(stream_.tcp().native_handle(), to.data(), to.size(), MSG_DONTWAIT);
    if (count > 0) buffer_.commit(static_cast<std::size_t>(count));
    if (buffer_.size() < kEarlyBytesMax) return watch();
    server_.counters.protocol_errors.add();
    cut();
  }

  bool has_left() {
    tcp_info info{};
    socklen_t bytes = sizeof(info);
    const int fd = stream_.tcp().native_handle();
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0 || info.tcpi_state != TCP_ESTABLISHED;
  }

  // ---- a streamed answer

  void queue(std::string bytes) {
    unsent_ += bytes.size();
    pieces_.push_back(std::move(bytes));
    if (!writing_) write_next();
  }

  void write_next() {
    writing_ = true;
    expire_after(server_.limits.stall_time_max);
    asio::async_write(stream_, asio::buffer(pieces_.front()), [me = self()](error_code ec, std::size_t) {
      me->writing_ = false;
      if (me->ended_) return;
      me->server_.count_step();
      if (ec) return me->cut();
      me->unsent_ -= me->pieces_.front().size();
      me->pieces_.pop_front();
      if (!me->pieces_.empty()) return me->write_next();
      if (me->aborted_) return me->cut();
      if (me->finished_) return me->on_all_written();
      me->deadline_ = Clock::time_point::max();  // the next part may take its time
    });
  }

  void on_all_written() {
    streaming_ = finished_ = false;
    on_answered(keep_);
  }

  void on_answered(bool keep) {
    leave_answering();
    counted_body_.reset();
    if (keep) return read(false);
    // Closing with bytes unread would reset the connection, and the client might never see the answer.
    lingering_ = true;
    expire_after(server_.limits.close_time_max);
    if (stream_.is_secure())
      return stream_.async_shutdown([me = self()](error_code) {
        if (me->ended_) return;
        me->server_.count_step();
        me->end_sending();
      });
    end_sending();
  }

  void end_sending() {
    error_code ignored;
    stream_.tcp().shutdown(TcpSocket::shutdown_send, ignored);
    linger();
  }

  template <class Message>
  void fill(Message& out, const Response& given) {
    out.version(11);
    out.result(static_cast<unsigned>(given.status));
    out.set(bhttp::field::content_type, given.type);
    out.set(bhttp::field::cache_control, "no-store");
    for (const auto& [name, value] : given.headers) out.set(name, value);
    if (given.status == 405 && out.count(bhttp::field::allow) == 0) out.set(bhttp::field::allow, "GET, HEAD");
  }

  void answer(Response given, bool keep) {
    given_ = std::move(given);
    const std::string& body = given_.shared_body ? *given_.shared_body : given_.body;
    response_ = {};
    fill(response_, given_);
    response_.keep_alive(keep);
    response_.content_length(body.size());
    response_.body() = head_ ? beast::span<const char>() : beast::span<const char>(body.data(), body.size());
    expire_after(server_.limits.idle_time_max + std::chrono::seconds(body.size() / kSlowestBytesPerSecond));
    bhttp::async_write(stream_, response_, [me = self(), keep](error_code ec, std::size_t) {
      if (me->ended_) return;
      me->server_.count_step();
      me->given_ = {};
      if (ec) return me->cut();
      me->on_answered(keep);
    });
  }

  void linger() {
    stream_.tcp().async_read_some(asio::buffer(rest_), [me = self()](error_code ec, std::size_t count) {
      if (me->ended_) return;
      me->server_.count_step();
      me->lingered_ += count;
      if (ec || me->lingered_ > kLingerBytesMax) return me->cut();
      me->linger();
    });
  }

  Server::Impl& server_;
  const std::uint64_t id_;
  Stream stream_;
  beast::flat_buffer buffer_;
  std::optional<bhttp::request_parser<bhttp::string_body>> parser_;
  Response given_;  // owns what the response shows
  bhttp::response<bhttp::span_body<const char>> response_;
  std::array<char, 16384> rest_;
  std::size_t lingered_ = 0;
  Clock::time_point deadline_;
  bool head_ = false, lingering_ = false, ended_ = false;

  std::uint64_t request_ = 0;  // the one that is answered later, until its last word was said
  unsigned version_ = 11;
  bool keep_ = false, counted_ = false;
  bool is_unwatched_ = false;           // the client has sent more than its request
  std::string share_;                   // of its Admission
  std::shared_ptr<void> counted_body_;  // against bodies_bytes_max
  // Of a streamed answer: the front piece is being written while `writing_`.
  std::deque<std::string> pieces_;
  std::size_t unsent_ = 0;
  bool streaming_ = false, chunked_ = false, writing_ = false, finished_ = false, aborted_ = false;
};

}  // namespace

void Server::Impl::start_exchange(std::uint64_t id, TcpSocket socket) {
  const auto exchange =
      std::make_shared<Exchange>(*this, id, tls ? Stream(std::move(socket), tls) : Stream(std::move(socket)));
  connections[id].connection = exchange;
  exchange->start();
}

}  // namespace parlando::http
