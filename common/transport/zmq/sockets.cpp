#include "common/transport/zmq/sockets.hpp"

#include <algorithm>
#include <list>
#include <zmq.hpp>

#include "common/telemetry/log.hpp"

namespace parlando::transport {
using protocol::Frames;

namespace {

constexpr int kFramesMax = 3;
constexpr int kReadMax = 64;  // messages read from one socket before the others get their turn
/// A ROUTER never says which of its callers takes something again: those that were full are tried this often.
constexpr milliseconds kFullAgain{20};

std::string text_of(const zmq::message_t& m) { return {m.data<char>(), m.size()}; }
std::span<const std::byte> bytes_of(const zmq::message_t& m) { return {m.data<std::byte>(), m.size()}; }

}  // namespace

ZmqContext::ZmqContext() {
  auto* context = new zmq::context_t(1);
  handle_ = context;
  zap_ = std::make_unique<curve::ZapServer>(context->handle());
}
ZmqContext::~ZmqContext() {
  zap_.reset();
  delete static_cast<zmq::context_t*>(handle_);
}

std::string zmq_version() {
  int major = 0, minor = 0, patch = 0;
  ::zmq_version(&major, &minor, &patch);
  return fmt::format("{}.{}.{}, {}", major, minor, patch, zmq_has("curve") != 0 ? "CURVE" : "no CURVE");
}

struct Sockets::Impl {
  /// A socket of ours and whether it may have something to say. ZeroMQ's descriptors signal edges: a socket is asked
  /// again after every use until it says that nothing waits.
  struct Socket {
    zmq::socket_t socket;
    bool ask = true;
  };
  struct Dealer : Socket {
    Mesh::Route route = 0;
    std::string role, endpoint;
    bool blocked = false;
  };
  struct Caller {
    Mesh::Route route;
    std::string id;  ///< as the ROUTER names the connection
  };

  std::shared_ptr<ZmqContext> shared;
  zmq::context_t* context = nullptr;
  SocketOptions options;
  Mesh* mesh = nullptr;
  SocketCounters* counters = nullptr;
  std::optional<Directory> directory;
  Socket router;
  std::vector<std::unique_ptr<Dealer>> dealers;
  std::list<Caller> callers;  ///< least recently heard first
  std::unordered_map<std::string, std::list<Caller>::iterator> caller_ids;
  std::unordered_map<Mesh::Route, std::list<Caller>::iterator> caller_routes;
  std::unordered_map<Mesh::Route, Dealer*> dealer_routes;
  Mesh::Route next_route = 1;
  std::vector<pollfd> descriptors;
  bool changed = true;
  std::string domain;
  std::size_t turn = 0;                   ///< the dealer that is read first
  std::uint64_t taken = 0;                ///< messages read and connections that take more again
  std::vector<Mesh::Route> full_callers;  ///< to be tried again at `full_again`
  Time full_again = Time::max();
  std::vector<Mesh::Route> unreachable;  ///< callers' connections that turned out to be closed

  ~Impl() {
    if (!domain.empty()) shared->zap().unregister_domain(domain);
  }

  void prepare(zmq::socket_t& s) {
    s.set(zmq::sockopt::linger, 0);
    s.set(zmq::sockopt::sndhwm, options.high_water_messages);
    s.set(zmq::sockopt::rcvhwm, options.high_water_messages);
    s.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(protocol::kMessageBytesMax));
    s.set(zmq::sockopt::handshake_ivl, 1000);
    s.set(zmq::sockopt::reconnect_ivl, 50);
    s.set(zmq::sockopt::reconnect_ivl_max, 1000);
  }

  Result<std::string> listen(const std::string& instance) {
    router.socket = zmq::socket_t(*context, zmq::socket_type::router);
    auto& s = router.socket;
    prepare(s);
    s.set(zmq::sockopt::router_mandatory, 1);
    if (options.keys && options.bind.starts_with("tcp:")) {
      if (!options.keys->callers)
        return fail(Errc::invalid_argument, "'{}' has keys but no table of callers' keys", options.bind);
      domain = instance;
      // First the answer, then the question: without a ZAP server libzmq lets every key in.
      if (auto done = shared->zap().register_domain(domain, options.keys->callers); !done) {
        domain.clear();
        return tl::make_unexpected(done.error());
      }
      s.set(zmq::sockopt::curve_server, 1);
      s.set(zmq::sockopt::curve_secretkey, options.keys->own.secret_key);
      s.set(zmq::sockopt::zap_domain, domain);
      const int enforce = 1;
      zmq_setsockopt(s.handle(), curve::kZapEnforceDomain, &enforce, sizeof enforce);
    }
    s.bind(options.bind);
    return s.get(zmq::sockopt::last_endpoint);
  }

  /// The key of the service behind an endpoint; null where there is none.
  const std::string* server_key(const Dealer& d) const {
    if (!options.keys || !d.endpoint.starts_with("tcp:")) return nullptr;
    const auto key = options.keys->server_keys.find(d.role);
    return key == options.keys->server_keys.end() ? nullptr : &key->second;
  }

  /// @throw zmq::error_t
  void connect(Dealer& d) {
    d.socket = zmq::socket_t(*context, zmq::socket_type::dealer);
    prepare(d.socket);
    d.socket.set(zmq::sockopt::immediate, 1);
    if (const auto* key = server_key(d)) {
      d.socket.set(zmq::sockopt::curve_serverkey, *key);
      d.socket.set(zmq::sockopt::curve_publickey, options.keys->own.public_key);
      d.socket.set(zmq::sockopt::curve_secretkey, options.keys->own.secret_key);
    }
    d.socket.connect(d.endpoint);
    d.route = next_route++;
    d.ask = true;
    d.blocked = false;
    dealer_routes[d.route] = &d;
    ++counters->connections;
    changed = true;
  }

  const Dealer* dealer_of(const std::string& role, const std::string& endpoint) const {
    const auto found = std::find_if(dealers.begin(), dealers.end(),
                                    [&](const auto& d) { return d->role == role && d->endpoint == endpoint; });
    return found == dealers.end() ? nullptr : found->get();
  }

  /// Calls to endpoints that are named no more and have nothing left to do.
  void close_finished() {
    for (const auto route : mesh->take_finished()) {
      std::erase_if(dealers, [route](const auto& d) { return d->route == route; });
      dealer_routes.erase(route);
      changed = true;
    }
  }

  void follow_directory(Time now) {
    if (!directory || now < directory->next()) return;
    const auto changes = directory->poll(now);
    for (const auto& [role, endpoint] : changes.removed)
      if (const auto* d = dealer_of(role, endpoint)) mesh->retire(d->route, now);
    for (const auto& [role, endpoint] : changes.added) {
      if (const auto* known = dealer_of(role, endpoint)) {
        mesh->reinstate(known->route);
        continue;
      }
      auto d = std::make_unique<Dealer>();
      d->role = role;
      d->endpoint = endpoint;
      // What a file names is seen only now; the configuration's rule holds for it, too.
      if (endpoint.starts_with("tcp:") && !options.plain_tcp && server_key(*d) == nullptr) {
        ++counters->errors;
        telemetry::log(telemetry::Level::error,
                       "'{}' of role {} is not connected: there is no key for it and plain_tcp is not set", endpoint,
                       role);
        continue;
      }
      try {
        connect(*d);
      } catch (const zmq::error_t& e) {
        ++counters->errors;
        telemetry::log(telemetry::Level::error, "'{}' of role {} cannot be connected: {}", endpoint, role, e.what());
        continue;
      }
      mesh->connected(d->route, role, now);
      dealers.push_back(std::move(d));
    }
  }

  void reconnect(Time now) {
    for (const auto route : mesh->take_reconnects()) {
      const auto found = dealer_routes.find(route);
      if (found == dealer_routes.end()) continue;
      auto& d = *found->second;
      dealer_routes.erase(found);
      d.socket.close();
      changed = true;
      try {
        connect(d);
      } catch (const zmq::error_t& e) {
        // The old route is gone; a route that nothing reaches keeps the mesh trying.
        ++counters->errors;
        d.route = next_route++;
        dealer_routes[d.route] = &d;
      }
      mesh->reconnected(route, d.route, now);
    }
  }

  // ---- out

  static bool send_frames(zmq::socket_t& s, const std::string* id, const Frames& f) {
    using zmq::send_flags;
    const auto more = send_flags::sndmore | send_flags::dontwait;
    if (id != nullptr && !s.send(zmq::buffer(*id), more)) return false;
    if (!s.send(zmq::buffer(f.envelope), more)) return false;
    // Once the first frame is taken, the rest of the message is, too.
    s.send(zmq::buffer(f.body), send_flags::sndmore);
    s.send(zmq::buffer(f.payload), send_flags::none);
    return true;
  }

  bool send(Mesh::Route route, const Frames& frames) {
    try {
      if (const auto dealer = dealer_routes.find(route); dealer != dealer_routes.end()) {
        auto& d = *dealer->second;
        if (!d.socket) return false;
        d.ask = true;
        if (send_frames(d.socket, nullptr, frames)) return true;
        d.blocked = true;
        ++counters->full;
        return false;
      }
      const auto caller = caller_routes.find(route);
      if (caller == caller_routes.end()) {
        ++counters->unroutable;
        return true;  // gone; its link, if there is one, resumes on another route
      }
      // A send that fails, too, may swallow the edge of what has come meanwhile: whoever sleeps now sleeps on it.
      router.ask = true;
      if (send_frames(router.socket, &caller->second->id, frames)) return true;
      full_callers.push_back(route);
      ++counters->full;
      return false;
    } catch (const zmq::error_t& e) {
      // EHOSTUNREACH: the connection is gone. What was said is kept by the link and said again when it resumes.
      if (e.num() == EHOSTUNREACH) {
        ++counters->unroutable;
        unreachable.push_back(route);
      } else {
        ++counters->errors;
      }
      return true;
    }
  }

  // ---- in

  Caller& caller_of(const std::string& id) {
    if (const auto found = caller_ids.find(id); found != caller_ids.end()) {
      callers.splice(callers.end(), callers, found->second);
      return *found->second;
    }
    if (callers.size() >= options.callers_max) forget_one();
    callers.push_back({next_route++, id});
    const auto place = std::prev(callers.end());
    caller_ids[id] = place;
    caller_routes[place->route] = place;
    return *place;
  }
  /// The caller that was silent longest; connections that speak for nobody go first.
  void forget_one() {
    auto victim = std::find_if(callers.begin(), callers.end(), [&](const Caller& c) { return !mesh->knows(c.route); });
    if (victim == callers.end()) victim = callers.begin();
    caller_ids.erase(victim->id);
    caller_routes.erase(victim->route);
    callers.erase(victim);
  }

  static void drop_rest(zmq::socket_t& s, bool more) {
    while (more) {
      zmq::message_t part;
      if (!s.recv(part, zmq::recv_flags::dontwait)) return;
      more = part.more();
    }
  }

  /// One message of a socket. @return false when nothing was there
  bool receive(zmq::socket_t& s, Dealer* dealer, Time now) {
    zmq::message_t id, frames[kFramesMax];
    if (dealer == nullptr && !s.recv(id, zmq::recv_flags::dontwait)) return false;
    int count = 0;
    curve::Identity identity;
    for (bool more = dealer != nullptr || id.more(); more; ++count) {
      zmq::message_t part;
      if (!s.recv(part, zmq::recv_flags::dontwait)) return count > 0;
      more = part.more();
      if (count == 0 && !domain.empty() && dealer == nullptr) {
        const char* user = zmq_msg_gets(part.handle(), "User-Id");
        const char* key = zmq_msg_gets(part.handle(), "Key");
        // ZAP decides at the handshake only: a key that was taken away since is asked for again.
        const auto who = user != nullptr && key != nullptr ? options.keys->callers->who(key) : std::nullopt;
        if (!who) {
          drop_rest(s, part.more());
          return true;
        }
        identity = *who;
      }
      if (count < kFramesMax) frames[count] = std::move(part);
    }
    const auto route = dealer != nullptr ? dealer->route : caller_of(text_of(id)).route;
    if (count != kFramesMax) {
      ++counters->oversized;
      // What is no message is refused by the mesh, which tells why.
      const std::span<const std::byte> parts[] = {bytes_of(frames[0]), bytes_of(frames[1]), bytes_of(frames[2]), {}};
      mesh->receive(route, std::span(parts, static_cast<std::size_t>(std::min(count, kFramesMax + 1))), identity.role,
                    now, identity.instance);
      return true;
    }
    const std::span<const std::byte> parts[] = {bytes_of(frames[0]), bytes_of(frames[1]), bytes_of(frames[2])};
    mesh->receive(route, parts, identity.role, now, identity.instance);
    return true;
  }

  /// Reads a socket until it is empty or its turn is over. Every question to it costs two system calls: one that finds
  /// a single message there asks twice, and a burst is read without asking in between. @return whether more waits
  bool read(Socket& s, Dealer* dealer, Time now) {
    if (!s.ask || !s.socket) return false;
    try {
      for (int n = 0; n < kReadMax;) {
        const int events = s.socket.get(zmq::sockopt::events);
        if (dealer != nullptr && (events & ZMQ_POLLOUT) != 0 && std::exchange(dealer->blocked, false)) {
          mesh->writable(dealer->route);
          ++taken;
        }
        if ((events & ZMQ_POLLIN) == 0) {
          s.ask = false;
          return false;
        }
        const bool burst = n++ > 0;
        while (receive(s.socket, dealer, now)) {
          ++taken;
          if (!burst || ++n >= kReadMax) break;
        }
      }
      return true;
    } catch (const zmq::error_t&) {
      ++counters->errors;  // a single operation failed; the loop lives and asks again when something happens
      s.ask = false;
      return false;
    }
  }

  void try_full_callers(Time now) {
    if (full_callers.empty() || now < full_again) return;
    for (const auto route : std::exchange(full_callers, {})) mesh->writable(route);
    full_again = Time::max();
  }
};

Result<std::unique_ptr<Sockets>> Sockets::open(std::shared_ptr<ZmqContext> context, SocketOptions options, Mesh& mesh,
                                               Time now) {
  std::unique_ptr<Sockets> out(new Sockets);
  out->impl_ = std::make_unique<Impl>();
  auto& s = *out->impl_;
  s.shared = std::move(context);
  s.context = static_cast<zmq::context_t*>(s.shared->handle());
  s.options = std::move(options);
  s.mesh = &mesh;
  s.counters = &out->counters_;
  const bool names = std::any_of(s.options.connect.begin(), s.options.connect.end(), [](const auto& role) {
    return std::any_of(role.second.begin(), role.second.end(),
                       [](const std::string& source) { return source.starts_with("dns:"); });
  });
  PARLANDO_TRY(auto directory,
               Directory::make(s.options.connect, names ? std::make_unique<ThreadResolver>() : nullptr));
  s.directory = std::move(directory);
  try {
    if (!s.options.bind.empty()) {
      PARLANDO_TRY(out->endpoint_, s.listen(mesh.instance()));
    }
  } catch (const zmq::error_t& e) {
    return fail(Errc::io, "'{}' cannot be opened: {}", s.options.bind, e.what());
  }
  s.follow_directory(now);
  return out;
}

Sockets::~Sockets() = default;

bool Sockets::read(Time now) {
  auto& s = *impl_;
  bool more = false;
  if (s.router.socket) more = s.read(s.router, nullptr, now);
  for (std::size_t n = 0; n < s.dealers.size(); ++n) {
    auto& d = *s.dealers[(s.turn + n) % s.dealers.size()];
    more = s.read(d, &d, now) || more;
  }
  ++s.turn;
  return more;
}

bool Sockets::look_again(Time now) {
  if (idle()) return false;
  const auto before = impl_->taken;
  return read(now) || impl_->taken != before;
}

void Sockets::flush(Time now) {
  auto& s = *impl_;
  s.close_finished();
  s.follow_directory(now);
  s.reconnect(now);
  if (s.options.keys && s.options.keys->callers) s.options.keys->callers->refresh(now);
  s.try_full_callers(now);
  s.mesh->flush(now, [&s](Mesh::Route route, const Frames& frames) { return s.send(route, frames); });
  if (!s.full_callers.empty() && s.full_again == Time::max()) s.full_again = now + kFullAgain;
  for (const auto route : std::exchange(s.unreachable, {})) s.mesh->unreachable(route, now);
}

std::span<const pollfd> Sockets::descriptors() {
  auto& s = *impl_;
  if (std::exchange(s.changed, false)) {
    s.descriptors.clear();
    const auto add = [&s](zmq::socket_t& socket) {
      s.descriptors.push_back({socket ? socket.get(zmq::sockopt::fd) : -1, POLLIN, 0});
    };
    if (s.router.socket) add(s.router.socket);
    for (auto& d : s.dealers) add(d->socket);
  }
  return s.descriptors;
}

void Sockets::readable(std::span<const pollfd> polled) {
  auto& s = *impl_;
  std::size_t at = 0;
  if (s.router.socket && at < polled.size()) s.router.ask = polled[at++].revents != 0 || s.router.ask;
  for (auto& d : s.dealers) {
    if (at >= polled.size()) return;
    d->ask = polled[at++].revents != 0 || d->ask;
  }
}

bool Sockets::idle() const {
  const auto& s = *impl_;
  return !(s.router.socket && s.router.ask) &&
         std::none_of(s.dealers.begin(), s.dealers.end(), [](const auto& d) { return d->ask; });
}

Time Sockets::due() const { return std::min(impl_->directory->next(), impl_->full_again); }
const DirectoryCounters& Sockets::directory() const { return impl_->directory->counters(); }

}  // namespace parlando::transport
