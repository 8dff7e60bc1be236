#include "common/http/server.hpp"

#include <sys/epoll.h>
#include <unistd.h>

#include <cstring>

#include <algorithm>
#include <boost/asio/write.hpp>

#include "common/http/impl.hpp"
#include "common/http/socket.hpp"

namespace parlando::http {
namespace {

// Steps of clients before the caller's descriptors and the clock are looked at again: at about 10 µs a step, 0.6 ms.
constexpr int kTurnSteps = 64;

/// What one client can hardly have many of: an IPv4 address, or the network part of an IPv6 address.
std::string address_key(const asio::ip::address& address) {
  const auto text = [](const auto& bytes, std::size_t count) {
    return std::string(bytes.begin(), bytes.begin() + count);
  };
  if (address.is_v4()) return text(address.to_v4().to_bytes(), 4);
  const auto v6 = address.to_v6();
  if (v6.is_v4_mapped()) return text(asio::ip::make_address_v4(asio::ip::v4_mapped, v6).to_bytes(), 4);
  return text(v6.to_bytes(), 8);
}

/// Best effort: says why in one write that cannot block, then the socket closes. In the form of the APIs, because which
/// of them is asked for is not known yet.
void refuse(TcpSocket& socket, std::string_view status, std::string_view type, std::string_view why) {
  error_code ignored;
  const auto body = fmt::format(
      R"({{"error":{{"message":"{}","type":"{}","param":null,"code":"too_many_connections"}}}})", why, type);
  const auto text = fmt::format(
      "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nRetry-After: 1\r\nConnection: "
      "close\r\n\r\n{}",
      status, body.size(), body);
  socket.non_blocking(true, ignored);
  socket.write_some(asio::buffer(text), ignored);
  socket.shutdown(tcp::socket::shutdown_send, ignored);
}

}  // namespace

Server::Impl::Impl(Limits l) : limits(std::move(l)), budget(std::make_shared<Budget>(limits)) {
  // Often enough for the shortest limit to be kept within a quarter.
  auto shortest = std::chrono::milliseconds(1000);
  for (const auto t : {limits.header_time_max, limits.body_time_max, limits.idle_time_max / 2, limits.close_time_max,
                       limits.flush_time_max, limits.gone_time_max, limits.socket_stall_time_max})
    shortest = std::min(shortest, t);
  sweep_period = std::max(shortest / 4, std::chrono::milliseconds(5));
}

Server::Impl::~Impl() {
  stopping = true;
  stop_accepting();
  sweep_timer.cancel();
  std::vector<std::shared_ptr<Connection>> all;
  for (const auto& [id, entry] : connections) all.push_back(entry.connection);
  for (const auto& connection : all) connection->cut();
  all.clear();
  error_code ignored;
  watcher.close(ignored);
  // Cancelled operations own their connections and, through `this`, know the server: they end here, while it exists.
  io.restart();
  io.poll();
}

// ---- driving

template <class F>
void Server::Impl::run_handlers(F&& f) try {
  if (io.stopped()) io.restart();
  f();
} catch (...) {
  counters.callback_errors.add();  // callbacks are guarded: this is std::bad_alloc inside Asio or Beast
}

void Server::Impl::count_step() {
  if (++steps >= kTurnSteps && in_turn) io.stop();
}

void Server::Impl::stop_waiting() {
  stop = true;
  if (in_turn) io.stop();
}

/// Runs what is ready, in the order in which it became so; at most about kTurnSteps steps.
void Server::Impl::turn() {
  steps = 0;
  in_turn = true;
  run_handlers([this] { io.poll(); });
  in_turn = false;
}

/// Asio cannot watch foreign descriptors without owning them; an epoll descriptor of ours can, and Asio watches that
/// one. Adding again costs 0.2 µs a descriptor and finds out whether its number means another file by now.
void Server::Impl::watch(std::span<const pollfd> fds) {
  for (const int old : watched) {
    const bool kept = std::any_of(fds.begin(), fds.end(), [old](const pollfd& p) { return p.fd == old; });
    if (!kept) epoll_ctl(watch_fd, EPOLL_CTL_DEL, old, nullptr);
  }
  watched.clear();
  for (const auto& p : fds) {
    epoll_event event{.events = EPOLLIN, .data = {}};
    if (p.fd >= 0) epoll_ctl(watch_fd, EPOLL_CTL_ADD, p.fd, &event);
    watched.push_back(p.fd);
  }
  if (watch_armed) return;
  watch_armed = true;
  // Asio re-arms the descriptor (EPOLL_CTL_MOD), so one that is ready already fires at once.
  watcher.async_wait(Descriptor::wait_read, [this](error_code ec) {
    watch_armed = false;
    watch_fired = !ec;
  });
}

int Server::Impl::wait(std::span<pollfd> fds, std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + (timeout.count() < 0 ? std::chrono::hours(24 * 365) : timeout);
  bool watching = false;
  watch_fired = true;  // the first look is at the descriptors themselves
  for (;;) {
    turn();
    int ready = 0;
    if (watch_fired && !fds.empty()) {
      ready = std::max(0, ::poll(fds.data(), fds.size(), 0));
      watch_fired = false;
      watching = watching && watch_armed;
    }
    if (ready > 0 || stop || Clock::now() >= deadline) {
      stop = false;
      return ready;
    }
    if (steps >= kTurnSteps) continue;  // more is waiting
    if (!fds.empty() && !watching) {
      watch(fds);
      watching = true;
    }
    run_handlers([&] { io.run_one_until(deadline); });
  }
}

// ---- connections

void Server::Impl::accept(Listener& at) {
  at.acceptor.async_accept([this, &at](error_code ec, TcpSocket socket) {
    if (!accepting) return;
    count_step();
    if (!ec) {
      admit(std::move(socket));
      return accept(at);
    }
    // EMFILE, ENFILE, ENOBUFS, ENOMEM: the connection stays in the queue, and asking again at once would only spin.
    counters.accept_backoffs.add();
    at.timer.expires_after(limits.accept_retry_time);
    at.timer.async_wait([this, &at](error_code) {
      if (accepting) accept(at);
    });
  });
}

void Server::Impl::admit(TcpSocket socket) {
  error_code ec;
  const auto remote = socket.remote_endpoint(ec);
  if (ec) return;  // it has gone already
  if (static_cast<int>(connections.size()) >= limits.connections_max) {
    counters.refused_full.add();
    if (tls) return;  // nothing can be said before the handshake, which costs more than it is worth
    return refuse(socket, "503 Service Unavailable", "server_error", "too many connections; try again later");
  }
  const auto key = address_key(remote.address());
  auto& count = per_address[key];
  if (limits.connections_per_address_max > 0 && count >= limits.connections_per_address_max) {
    counters.refused_address.add();
    if (tls) return;
    return refuse(socket, "429 Too Many Requests", "rate_limit_error", "too many connections from this address");
  }
  ++count;
  counters.accepted.add();
  socket.set_option(tcp::no_delay(true), ec);
  // A peer that vanished without a word is noticed after 60 s even when nothing is being sent.
  socket.set_option(asio::socket_base::keep_alive(true), ec);
  socket.set_option(asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPIDLE>(30), ec);
  socket.set_option(asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPINTVL>(10), ec);
  socket.set_option(asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPCNT>(3), ec);
  const auto id = next_id++;
  connections[id].address = key;
  arm_sweep();
  start_exchange(id, std::move(socket));
}

void Server::Impl::leave(std::uint64_t id) {
  const auto found = connections.find(id);
  if (found == connections.end()) return;
  if (const auto count = per_address.find(found->second.address); --count->second == 0) per_address.erase(count);
  connections.erase(found);
}

/// One timer for all deadlines, running while there are connections: none is re-armed per message.
void Server::Impl::arm_sweep() {
  if (sweeping || stopping) return;
  sweeping = true;
  now = Clock::now();
  sweep_timer.expires_after(sweep_period);
  sweep_timer.async_wait([this](error_code ec) {
    sweeping = false;
    if (ec || stopping) return;
    now = Clock::now();
    std::vector<std::shared_ptr<Connection>> all;  // a sweep takes connections out of the table
    all.reserve(connections.size());
    for (const auto& [id, entry] : connections) all.push_back(entry.connection);
    for (const auto& connection : all) connection->sweep(now);
    if (!connections.empty()) arm_sweep();
  });
}

void Server::Impl::stop_accepting() {
  accepting = false;
  error_code ignored;
  for (auto& listener : listeners) {
    listener.acceptor.close(ignored);
    listener.timer.cancel();
  }
}

bool Budget::take(std::size_t bytes, const std::string& share) {
  if (bytes > bytes_max_ - std::min(taken_, bytes_max_)) return false;
  if (share_max_ > 0 && !share.empty() && bytes > 0) {
    const auto found = shares_.find(share);
    const auto held = found == shares_.end() ? 0 : found->second;
    if (bytes > share_max_ - std::min(held, share_max_)) return false;
    shares_[share] = held + bytes;
  }
  taken_ += bytes;
  return true;
}

void Budget::give(std::size_t bytes, const std::string& share) {
  taken_ -= bytes;
  const auto found = shares_.find(share);
  if (found != shares_.end() && (found->second -= bytes) == 0) shares_.erase(found);
}

bool Server::Impl::allows_host(std::string_view host) const {
  return std::any_of(hosts.begin(), hosts.end(), [&](const HostRule& rule) { return rule.allows(host); });
}

Answering* Server::Impl::find_request(std::uint64_t id) const {
  const auto found = answering.find(id);
  return found == answering.end() ? nullptr : found->second;
}

Socket* Server::Impl::find(std::uint64_t id) const {
  const auto found = open.find(id);
  return found == open.end() ? nullptr : found->second;
}

Result<std::shared_ptr<Tls>> Tls::load(const std::string& certificate, const std::string& key) {
  auto out = std::make_shared<Tls>();
  error_code ec;
  auto* context = out->context.native_handle();
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  // Memory of an idle connection matters more here than the copies that it costs.
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  for (const auto& file : {certificate, key})
    if (::access(file.c_str(), R_OK) != 0) return fail(Errc::io, "'{}' cannot be read: {}", file, strerror(errno));
  out->context.use_certificate_chain_file(certificate, ec);
  if (ec) return fail(Errc::bad_format, "'{}' holds no certificate in PEM: {}", certificate, ec.message());
  out->context.use_private_key_file(key, ssl::context::pem, ec);
  if (ec)
    return fail(Errc::bad_format, "'{}' holds no key in PEM for the certificate '{}': {}", key, certificate,
                ec.message());
  return out;
}

// ---- interface

std::string_view Request::header(std::string_view name) const {
  const auto same = [&](std::string_view other) {
    return std::equal(name.begin(), name.end(), other.begin(), other.end(), [](char a, char b) {
      const auto low = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 'a' - 'A') : c; };
      return low(a) == low(b);
    });
  };
  for (const auto& [key, value] : headers)
    if (same(key)) return value;
  return {};
}

Result<void> Server::Impl::listen(const std::string& address) {
  PARLANDO_TRY(const auto where, parse_listen_address(address));
  auto& added = listeners.emplace_back(io);
  auto& acceptor = added.acceptor;
  const tcp::endpoint endpoint(asio::ip::make_address(where.host), where.port);
  try {
    acceptor.open(endpoint.protocol());
    acceptor.set_option(tcp::acceptor::reuse_address(true));
    acceptor.bind(endpoint);
    acceptor.listen();
    added.port = acceptor.local_endpoint().port();
  } catch (const std::exception& e) {
    listeners.pop_back();
    return fail(Errc::io, "'{}' cannot be listened on: {}", address, e.what());
  }
  hosts.emplace_back(limits.hosts, where, static_cast<std::uint16_t>(added.port));
  accept(added);
  return {};
}

Result<std::unique_ptr<Server>> Server::start(const std::string& address, Handle handle, SocketHandlers sockets,
                                              Limits limits) try {
  std::unique_ptr<Server> out(new Server);
  out->impl_ = std::make_unique<Impl>(std::move(limits));
  auto& s = *out->impl_;
  s.handle = std::move(handle);
  s.handlers = std::move(sockets);
  PARLANDO_DO(s.listen(address));
  s.watch_fd = epoll_create1(EPOLL_CLOEXEC);
  if (s.watch_fd < 0) return fail(Errc::io, "'{}' cannot be listened on: no descriptor is left", address);
  s.watcher.assign(s.watch_fd);
  return out;
} catch (const std::exception& e) {
  return fail(Errc::io, "'{}' cannot be listened on: {}", address, e.what());
}

Server::~Server() {
  if (!impl_ || !impl_->thread.joinable()) return;
  asio::post(impl_->io, [impl = impl_.get()] {
    impl->quit = true;
    impl->stop_waiting();
  });
  impl_->thread.join();
}

int Server::wait(std::span<pollfd> fds, std::chrono::milliseconds timeout) { return impl_->wait(fds, timeout); }

void Server::stop_waiting() { impl_->stop_waiting(); }

void Server::run_thread() {
  if (impl_->threaded.exchange(true)) return;
  impl_->thread = std::thread([impl = impl_.get()] {
    while (!impl->quit) impl->wait({}, std::chrono::milliseconds(-1));
  });
}

bool Server::send(std::uint64_t id, std::string data, bool binary, std::uint32_t tag, std::optional<Due> due) {
  bool taken = true;
  if (impl_->threaded) {
    impl_->on_driver([impl = impl_.get(), id, data = std::move(data), binary, tag, due]() mutable {
      if (auto* socket = impl->find(id)) socket->send(std::move(data), binary, tag, due);
    });
  } else {
    auto* socket = impl_->find(id);
    taken = socket && socket->send(std::move(data), binary, tag, due);
  }
  return taken;
}

void Server::post(std::function<void()> f) {
  asio::post(impl_->io, [impl = impl_.get(), f = std::move(f)] {
    impl->count_step();
    impl->guarded(f);
  });
}

bool Server::reserve(std::size_t bytes, const std::string& share) { return impl_->budget->take(bytes, share); }
void Server::release(std::size_t bytes, const std::string& share) { impl_->budget->give(bytes, share); }
std::size_t Server::reserved_bytes() const { return impl_->budget->taken(); }

Result<void> Server::use_tls(const std::string& certificate, const std::string& key) {
  PARLANDO_TRY(impl_->tls, Tls::load(certificate, key));
  return {};
}

void Server::close(std::uint64_t id, CloseCode code, std::string reason, CloseMode mode) {
  impl_->on_driver([impl = impl_.get(), id, code, reason = std::move(reason), mode] {
    if (auto* socket = impl->find(id)) socket->close(code, reason, mode);
  });
}

void Server::pause(std::uint64_t id) {
  impl_->on_driver([impl = impl_.get(), id] {
    if (auto* socket = impl->find(id)) socket->pause();
  });
}

void Server::resume(std::uint64_t id) {
  impl_->on_driver([impl = impl_.get(), id] {
    if (auto* socket = impl->find(id)) socket->resume();
  });
}

std::size_t Server::drop_queued(std::uint64_t id, const std::function<bool(std::uint32_t tag)>& drop) {
  auto* socket = impl_->find(id);
  return socket ? socket->drop_queued(drop) : 0;
}

std::size_t Server::unsent_bytes(std::uint64_t id) const {
  const auto* socket = impl_->find(id);
  return socket ? socket->unsent_bytes() : 0;
}

Result<int> Server::also_listen(const std::string& address) {
  PARLANDO_DO(impl_->listen(address));
  return impl_->listeners.back().port;
}

void Server::set_requests(RequestHandlers requests) { impl_->request_handlers = std::move(requests); }

bool Server::respond(std::uint64_t id, Response response) {
  auto* request = impl_->find_request(id);
  if (request) request->respond(std::move(response));
  return request != nullptr;
}

bool Server::begin(std::uint64_t id, Response response) {
  auto* request = impl_->find_request(id);
  return request && request->begin(std::move(response));
}

bool Server::write(std::uint64_t id, std::string_view part) {
  auto* request = impl_->find_request(id);
  return request && request->write(part);
}

bool Server::finish(std::uint64_t id) {
  auto* request = impl_->find_request(id);
  return request && request->finish();
}

void Server::abort(std::uint64_t id) {
  if (auto* request = impl_->find_request(id)) request->abort();
}

std::size_t Server::unsent_answer_bytes(std::uint64_t id) const {
  const auto* request = impl_->find_request(id);
  return request ? request->unsent_bytes() : 0;
}

std::size_t Server::requests() const { return impl_->requests_open; }

void Server::stop_accepting() {
  impl_->on_driver([impl = impl_.get()] { impl->stop_accepting(); });
}

int Server::port() const { return impl_->listeners.front().port; }
std::size_t Server::sockets() const { return impl_->open_count; }
std::size_t Server::connections() const { return impl_->connections.size(); }
const Counters& Server::counters() const { return impl_->counters; }

}  // namespace parlando::http
