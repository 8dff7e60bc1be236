#include "common/http/socket.hpp"

#include <netinet/tcp.h>

#include <algorithm>

namespace parlando::http {
namespace {
// Bookkeeping of a queued frame, so that empty frames count against the limit, too.
constexpr std::size_t kFrameBytes = 64;
constexpr std::size_t kReasonBytesMax = 123;
constexpr std::size_t kKeptBytes = 128 << 10;  // of a buffer that a large message has made larger
constexpr std::size_t kSmallBytes = 64 << 10;  // of a message, not counted against bodies_bytes_max
constexpr std::size_t kPartBytes = 64 << 10;   // read of a message at a time

/// Cut between characters: the reason must be UTF-8.
std::string_view shortened(std::string_view text) {
  if (text.size() <= kReasonBytesMax) return text;
  auto end = kReasonBytesMax;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}
}  // namespace

Socket::Socket(Server::Impl& server, std::uint64_t id, Stream stream, const SocketPath& path, std::string share)
    : server_(server),
      id_(id),
      path_(path),
      share_(std::move(share)),
      ws_(std::in_place, std::move(stream)),
      heard_(server.now) {}

Socket::~Socket() { server_.budget->give(counted_, share_); }

/// A browser that offers subprotocols and is answered with none fails the connection.
void Socket::agree_to_protocol() {
  if (path_.protocol.empty()) return;
  const auto offered = request_.equal_range(bhttp::field::sec_websocket_protocol);
  for (auto field = offered.first; field != offered.second; ++field)
    for (const auto& name : bhttp::token_list(field->value()))
      if (std::string_view(name.data(), name.size()) == path_.protocol)
        return ws_->set_option(ws::stream_base::decorator([protocol = path_.protocol](ws::response_type& response) {
          response.set(bhttp::field::sec_websocket_protocol, protocol);
        }));
}

void Socket::tell_opened() {
  Upgrade upgrade{path_.path, std::string(request_.target()), {}, share_};
  for (const auto& field : request_)
    upgrade.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
  request_ = {};
  if (!server_.guarded([&] { server_.handlers.opened(id_, upgrade); }))
    close(CloseCode::internal, "internal error", CloseMode::now);
}

void Socket::start(UpgradeRequest request) {
  // Beast's own timeouts would arm a timer for each socket and cut a paused one, whose pongs are not read.
  ws_->set_option(ws::stream_base::timeout{ws::stream_base::none(), ws::stream_base::none(), false});
  ws_->read_message_max(path_.message_bytes_max > 0 ? path_.message_bytes_max : server_.limits.message_bytes_max);
  ws_->auto_fragment(false);
  ws_->control_callback([this](ws::frame_type type, beast::string_view) {
    if (type == ws::frame_type::close) said_goodbye_ = true;
    heard_ = server_.now;
    pinged_ = false;
  });
  if (const auto bytes = server_.limits.system_unsent_bytes_max; bytes > 0) {
    error_code ignored;
    using Option = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_NOTSENT_LOWAT>;
    ws_->next_layer().tcp().set_option(Option(static_cast<int>(std::min<std::size_t>(bytes, 1 << 30))), ignored);
  }
  request_ = std::move(request);
  agree_to_protocol();
  deadline_ = Clock::now() + server_.limits.header_time_max;
  ws_->async_accept(request_, [me = self()](error_code ec) {
    if (me->state_ == State::ended) return;
    me->server_.count_step();
    if (ec) {
      me->server_.counters.protocol_errors.add();
      return me->cut();
    }
    me->deadline_.reset();
    me->state_ = State::open;
    me->opened_ = true;
    me->server_.open[me->id_] = me.get();
    ++me->server_.open_count;
    me->tell_opened();
    me->read();
  });
}

bool Socket::send(std::string data, bool binary, std::uint32_t tag, std::optional<Due> due) {
  if (state_ != State::open) return false;
  unsent_ += data.size();
  queue_.push_back({std::move(data), binary, tag, due});
  const auto most = path_.unsent_bytes_max > 0 ? path_.unsent_bytes_max : server_.limits.unsent_bytes_max;
  if (!makes_room(most)) {
    close_slow();
    return false;
  }
  if (!slow_ && unsent_ > server_.limits.unsent_bytes_soft) {
    slow_ = true;
    tell_slow();
  }
  if (!writing_) write();
  return true;
}

void Socket::close_slow() {
  server_.counters.closed_slow.add();
  close(CloseCode::try_later, "the connection is too slow", CloseMode::now);
}

/// The oldest sound goes first. @return false: without any it is still too much
bool Socket::makes_room(std::size_t bytes_max) {
  const auto all = [this] { return unsent_ + queue_.size() * kFrameBytes; };
  if (all() <= bytes_max) return true;
  auto rest = all();
  const auto dropped = drop_frames([&](const Frame& frame) {
    const bool goes = rest > bytes_max && frame.due && frame.due->may_drop;
    if (goes) rest -= frame.data.size() + kFrameBytes;
    return goes;
  });
  server_.counters.dropped_late.add(dropped);
  return all() <= bytes_max;
}

/// Sound that nobody waits for any more.
void Socket::review_late(Clock::time_point now) {
  if (state_ != State::open || queue_.empty()) return;
  const auto late = [now](const Frame& frame) { return frame.due && frame.due->by < now; };
  const auto first = queue_.begin() + (writing_ ? 1 : 0);
  if (std::any_of(first, queue_.end(), [&](const Frame& f) { return late(f) && !f.due->may_drop; }))
    return close_slow();
  server_.counters.dropped_late.add(drop_frames(late));
}

/// Posted: no callback runs inside `send`.
void Socket::tell_slow() {
  if (!server_.handlers.slow || std::exchange(telling_slow_, true)) return;
  asio::post(server_.io, [me = self(), slow = slow_] {
    me->telling_slow_ = false;
    if (me->state_ != State::open) return;
    if (!me->server_.guarded([&] { me->server_.handlers.slow(me->id_, slow); }))
      return me->close(CloseCode::internal, "internal error", CloseMode::now);
    if (me->slow_ != slow) me->tell_slow();  // it changed in between
  });
}

void Socket::write() {
  writing_ = true;
  ws_->binary(queue_.front().binary);
  ws_->async_write(asio::buffer(queue_.front().data), [me = self()](error_code ec, std::size_t) { me->on_write(ec); });
}

void Socket::on_write(error_code ec) {
  writing_ = false;
  if (state_ == State::ended) return;
  server_.count_step();
  if (ec) {
    if (state_ == State::open || state_ == State::flushing) cut(true);
    return;  // when closing, the handshake or its time limit ends the socket
  }
  unsent_ -= queue_.front().data.size();
  queue_.pop_front();
  if (slow_ && unsent_ <= server_.limits.unsent_bytes_soft / 2) {
    slow_ = false;
    tell_slow();
  }
  if (state_ == State::flushing && queue_.empty()) return begin_close();
  review_late(Clock::now());
  if (state_ != State::closing && !queue_.empty() && !writing_) write();
}

void Socket::drop_all() { drop_queued(nullptr); }

std::size_t Socket::drop_queued(const std::function<bool(std::uint32_t)>& drop) {
  return drop_frames([&](const Frame& frame) { return !drop || (frame.binary && drop(frame.tag)); });
}

/// Of those that are not being written. @return how many
template <class F>
std::size_t Socket::drop_frames(F goes) {
  const auto first = queue_.begin() + (writing_ ? 1 : 0);
  const auto kept = std::remove_if(first, queue_.end(), [&](const Frame& frame) {
    const bool it_goes = goes(frame);
    if (it_goes) unsent_ -= frame.data.size();
    return it_goes;
  });
  const auto count = static_cast<std::size_t>(queue_.end() - kept);
  queue_.erase(kept, queue_.end());
  if (slow_ && unsent_ <= server_.limits.unsent_bytes_soft / 2) {
    slow_ = false;
    tell_slow();
  }
  return count;
}

void Socket::close(CloseCode code, std::string_view reason, CloseMode mode) {
  if (state_ != State::open && !(state_ == State::flushing && mode == CloseMode::now)) return;
  if (state_ == State::open) {
    const auto text = shortened(reason);
    reason_ = ws::close_reason(static_cast<ws::close_code>(code), beast::string_view(text.data(), text.size()));
  }
  if (mode == CloseMode::now) drop_all();
  if (queue_.empty() || mode == CloseMode::now) return begin_close();
  state_ = State::flushing;
  deadline_ = Clock::now() + server_.limits.flush_time_max;
}

/// Beast sends the frame after the one that is being written, and reads on until the peer's answer.
void Socket::begin_close() {
  state_ = State::closing;
  deadline_ = Clock::now() + server_.limits.close_time_max;
  if (!ws_->is_open()) return;  // the peer was first: the read that is outstanding answers it
  ws_->async_close(reason_, [me = self()](error_code) {
    if (me->state_ == State::ended) return;
    me->cut();
  });
}

void Socket::pause() { paused_ = true; }

void Socket::resume() {
  if (!std::exchange(paused_, false)) return;
  gone_since_.reset();
  heard_ = server_.now;
  part_ = server_.now;
  if (message_until_) message_until_ = server_.now + server_.limits.idle_time_max;
  if (!reading_ && !delivering_) read();
}

void Socket::read() {
  if (reading_ || paused_ || (state_ != State::open && state_ != State::flushing)) return;
  reading_ = true;
  ws_->async_read_some(buffer_, kPartBytes,
                       [me = self()](error_code ec, std::size_t bytes) { me->on_read(ec, bytes); });
}

/// Large messages of all sockets, and large bodies, have one budget. @return false: it is spent
bool Socket::count_memory() {
  const auto bytes = buffer_.capacity() > kSmallBytes + kPartBytes ? buffer_.capacity() : 0;
  if (bytes <= counted_) {
    server_.budget->give(counted_ - bytes, share_);
  } else if (!server_.budget->take(bytes - counted_, share_)) {
    return false;
  }
  counted_ = bytes;
  return true;
}

void Socket::on_read(error_code ec, std::size_t bytes) {
  reading_ = false;
  if (state_ == State::ended) return;
  server_.count_step();
  if (ec) {
    const bool of_protocol = ec.category() == make_error_code(ws::error::closed).category();
    if (of_protocol && ec != ws::error::closed) server_.counters.protocol_errors.add();
    return cut(!of_protocol && state_ != State::closing);
  }
  heard_ = server_.now;
  pinged_ = false;
  if (ws_->is_message_done()) {
    message_until_.reset();
    deliver();
    buffer_.clear();
    if (buffer_.capacity() > kKeptBytes) buffer_.shrink_to_fit();
    count_memory();
  } else {
    // What comes quickly at first earns no time to be silent in.
    const auto most = server_.now + server_.limits.idle_time_max;
    const auto earned = std::chrono::nanoseconds(std::chrono::seconds(bytes)) / kSlowestBytesPerSecond;
    message_until_ = message_until_ ? std::min<Clock::time_point>(*message_until_ + earned, most) : most;
    if (bytes > 0) part_ = server_.now;
    if (!count_memory()) {
      server_.counters.refused_bodies.add();
      close(CloseCode::try_later, "too many large messages are being received", CloseMode::now);
      buffer_.clear();
      buffer_.shrink_to_fit();
      count_memory();
    }
  }
  read();
}

void Socket::deliver() {
  if (state_ != State::open) return;
  const auto data = buffer_.cdata();
  delivering_ = true;
  const bool fine = server_.guarded([&] {
    server_.handlers.message(id_, std::string_view(static_cast<const char*>(data.data()), data.size()),
                             ws_->got_binary());
  });
  delivering_ = false;
  if (!fine) close(CloseCode::internal, "internal error", CloseMode::now);
}

int Socket::tcp_state() {
  tcp_info info{};
  socklen_t bytes = sizeof(info);
  const int fd = ws_->next_layer().tcp().native_handle();
  return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) == 0 ? int{info.tcpi_state} : int{TCP_CLOSE};
}

/// Of a message that has come in part. Its memory is others', too.
bool Socket::comes_too_slowly(Clock::time_point now) const {
  return message_until_ && (now >= *message_until_ || now - part_ >= server_.limits.body_time_max);
}

void Socket::sweep(Clock::time_point now) {
  if (state_ == State::ended) return;
  if (deadline_) {
    if (now < *deadline_) return;
    auto& counters = server_.counters;
    (state_ == State::handshake ? counters.closed_idle : counters.closed_forced).add();
    return cut();
  }
  // A peer that takes nothing is lost, whatever its connection says; it is cut, because it would not take a close
  // frame either.
  if (writing_ && now - ws_->next_layer().written() >= server_.limits.socket_stall_time_max) {
    server_.counters.closed_slow.add();
    return cut(true);
  }
  review_late(now);
  if (state_ == State::closing) return;
  if (!ws_->is_open()) {  // Beast is answering a close frame or a violation: not for ever
    deadline_ = now + server_.limits.close_time_max;
    return;
  }
  if (paused_ && !reading_) {
    heard_ = now;
    // Nothing is read, so nobody else notices that the peer is gone.
    const int tcp = tcp_state();
    if (tcp == TCP_CLOSE) return cut(true);
    if (tcp == TCP_ESTABLISHED) return;
    if (!gone_since_) gone_since_ = now;
    if (now - *gone_since_ >= server_.limits.gone_time_max) cut(true);
    return;
  }
  const auto silent = now - heard_;
  if (paused_) {
    heard_ = now;
  } else if (comes_too_slowly(now)) {
    server_.counters.closed_idle.add();
    cut();
  } else if (silent >= server_.limits.idle_time_max) {
    server_.counters.closed_idle.add();
    cut();
  } else if (silent >= server_.limits.idle_time_max / 2 && !pinged_ && !ping_pending_) {
    pinged_ = true;
    ping_pending_ = true;
    ws_->async_ping({}, [me = self()](error_code) { me->ping_pending_ = false; });
  }
}

void Socket::cut(bool lost) {
  if (std::exchange(state_, State::ended) == State::ended) return;
  const auto me = self();
  auto& socket = ws_->next_layer().tcp();
  error_code ignored;
  // What the peer does not take is not left to the system, which would go on offering it for minutes.
  if (writing_) socket.set_option(asio::socket_base::linger(true, 0), ignored);
  socket.close(ignored);
  server_.leave(id_);
  // Beast keeps suspended operations, and with them this object, inside the stream: it has to go, but not while it is
  // running.
  asio::post(server_.io, [me] { me->ws_.reset(); });
  if (!opened_) {
    const auto& handlers = server_.request_handlers;
    if (handlers.admit && handlers.gone) server_.guarded([&] { handlers.gone(id_); });
    return;
  }
  server_.open.erase(id_);
  --server_.open_count;
  if (lost && !said_goodbye_ && server_.handlers.lost) server_.guarded([&] { server_.handlers.lost(id_); });
  server_.guarded([&] { server_.handlers.closed(id_); });
}

}  // namespace parlando::http
