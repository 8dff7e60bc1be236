#include "common/transport/zmq_transport.hpp"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <zmq.hpp>

#include "common/base/assert.hpp"
#include "common/base/mapped_file.hpp"

namespace parlando::transport {
using namespace protocol;
using nlohmann::json;

namespace {

constexpr std::size_t kMessageBytesMax = 8u << 20;  // above the largest payload of any type
constexpr int kFramesMax = 3;
constexpr const char* kZapEndpoint = "inproc://zeromq.zap.01";
constexpr std::chrono::microseconds kSpin{40};
constexpr int kDrainMax = 256;  // messages read from one socket before the others get their turn

template <class Option, class Value>
void set(zmq::socket_t& socket, Option option, Value value) {
  socket.set(option, value);
}

std::string text_of(const zmq::message_t& m) { return {m.data<char>(), m.size()}; }
std::span<const std::byte> bytes_of(const zmq::message_t& m) { return {m.data<std::byte>(), m.size()}; }

}  // namespace

ZmqContext::ZmqContext() : handle_(new zmq::context_t(1)) {}
ZmqContext::~ZmqContext() { delete static_cast<zmq::context_t*>(handle_); }

std::string zmq_version() {
  int major = 0, minor = 0, patch = 0;
  ::zmq_version(&major, &minor, &patch);
  return fmt::format("{}.{}.{}, {}", major, minor, patch, zmq_has("curve") != 0 ? "CURVE" : "no CURVE");
}

Result<CurveKeys> CurveKeys::generate() {
  char open[41], secret[41];
  if (zmq_curve_keypair(open, secret) != 0) return fail(Errc::unsupported, "this ZeroMQ has no CURVE");
  CurveKeys keys;
  keys.public_key = open, keys.secret_key = secret;
  return keys;
}

Result<std::string> CurveKeys::read_key(const std::string& file) {
  PARLANDO_TRY(auto text, read_file(file, 4096));
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  std::uint8_t raw[32];
  if (text.size() != 40 || zmq_z85_decode(raw, text.c_str()) == nullptr)
    return fail(Errc::bad_format, "'{}' holds {} characters, a key has 40 in Z85", file, text.size());
  return text;
}

/// Owns the sockets. Everything but `send` runs on its thread.
class ZmqTransport::Loop {
 public:
  Loop(std::shared_ptr<ZmqContext> context, ZmqOptions options, Handlers handlers, ZmqCounters& counters)
      : shared_(std::move(context)),
        context_(*static_cast<zmq::context_t*>(shared_->handle())),
        options_(std::move(options)),
        handlers_(std::move(handlers)),
        counters_(counters),
        wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    PARLANDO_ASSERT(wake_ >= 0, "an event descriptor is needed to wake the socket thread");
  }
  ~Loop() {
    stop_ = true;
    wake();
    if (thread_.joinable()) thread_.join();
    ::close(wake_);
  }

  Result<std::string> start() try {
    std::string endpoint;
    if (options_.curve && !options_.curve->allowed.empty() && !options_.bind.empty()) {
      zap_ = zmq::socket_t(context_, zmq::socket_type::rep);
      set(zap_, zmq::sockopt::linger, 0);
      zap_.bind(kZapEndpoint);
    }
    if (!options_.bind.empty()) {
      router_ = zmq::socket_t(context_, zmq::socket_type::router);
      common(router_);
      set(router_, zmq::sockopt::router_mandatory, 1);
      if (options_.curve && options_.bind.starts_with("tcp:")) {
        set(router_, zmq::sockopt::curve_server, 1);
        set(router_, zmq::sockopt::curve_secretkey, options_.curve->secret_key);
        set(router_, zmq::sockopt::zap_domain, std::string("parlando"));
      }
      router_.bind(options_.bind);
      endpoint = router_.get(zmq::sockopt::last_endpoint);
    }
    for (const auto& [role, where] : options_.connect) {
      dealers_.push_back(std::make_unique<Dealer>());
      dealers_.back()->role = role, dealers_.back()->endpoint = where;
      connect(*dealers_.back());
    }
    thread_ = std::thread([this] { run(); });
    return endpoint;
  } catch (const zmq::error_t& e) {
    return fail(Errc::io, "'{}' cannot be opened: {}", options_.bind.empty() ? "a connection" : options_.bind, e.what());
  }

  Result<void> send(const std::string& peer, Message message) {
    PARLANDO_TRY(auto frames, encode(std::move(message)));
    if (std::this_thread::get_id() == thread_.get_id()) return send_now(peer, frames);
    {
      const std::lock_guard lock(mutex_);
      if (!known_.contains(peer)) return fail(Errc::unavailable, "'{}' is not connected to '{}'", options_.self.instance, peer);
      if (queue_.size() >= options_.queue_messages_max) {
        ++counters_.dropped_full;
        return fail(Errc::overloaded, "{} messages wait for the socket, at most {} are kept", queue_.size(), options_.queue_messages_max);
      }
      queue_.emplace_back(peer, std::move(frames));
    }
    wake();
    return {};
  }

 private:
  struct Dealer {
    std::string role, endpoint;
    zmq::socket_t socket;
    std::optional<Peer> peer;  // after HELLO
    Time said_hello{}, beaten{}, heard{}, progressed{};
    std::uint64_t steps = 0;
    int generation = 0;
    bool sent = false;  // since its last EAGAIN
  };
  struct Caller {
    Peer peer;
    Time heard;
  };

  void common(zmq::socket_t& s) {
    set(s, zmq::sockopt::linger, 200), set(s, zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(kMessageBytesMax));
    set(s, zmq::sockopt::sndhwm, options_.high_water_messages), set(s, zmq::sockopt::rcvhwm, options_.high_water_messages);
    const auto beat = static_cast<int>(options_.heartbeat.count());
    set(s, zmq::sockopt::heartbeat_ivl, beat), set(s, zmq::sockopt::heartbeat_timeout, beat * options_.misses_max);
    set(s, zmq::sockopt::handshake_ivl, 1000), set(s, zmq::sockopt::reconnect_ivl, 20), set(s, zmq::sockopt::reconnect_ivl_max, 1000);
  }

  void connect(Dealer& d) {
    d.socket = zmq::socket_t(context_, zmq::socket_type::dealer);
    common(d.socket);
    set(d.socket, zmq::sockopt::immediate, 1);  // without it a DEALER accepts frames for a dead peer
    set(d.socket, zmq::sockopt::routing_id,
        fmt::format("{}#{}.{}", options_.self.instance,
                    std::find_if(dealers_.begin(), dealers_.end(), [&](const auto& x) { return x.get() == &d; }) - dealers_.begin(), d.generation++));
    if (options_.curve && d.endpoint.starts_with("tcp:")) {
      set(d.socket, zmq::sockopt::curve_serverkey, options_.curve->server_key);
      set(d.socket, zmq::sockopt::curve_publickey, options_.curve->public_key), set(d.socket, zmq::sockopt::curve_secretkey, options_.curve->secret_key);
    }
    d.socket.connect(d.endpoint);
    d.said_hello = {};
    sockets_changed_ = true;
  }

  void wake() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto ignored = ::write(wake_, &one, sizeof one);
  }

  static bool send_frames(zmq::socket_t& s, const std::string* route, const Frames& f) {
    using zmq::send_flags;
    const auto more = send_flags::sndmore | send_flags::dontwait;
    if (route != nullptr && !s.send(zmq::buffer(*route), more)) return false;
    if (!s.send(zmq::buffer(f.envelope), more)) return false;
    // Once the first frame is taken, the rest of the message is, too.
    s.send(zmq::buffer(f.body), send_flags::sndmore);
    s.send(zmq::buffer(f.payload), send_flags::none);
    return true;
  }

  Result<void> send_now(const std::string& peer, const Frames& frames) try {
    for (const auto& d : dealers_)
      if (d->peer && d->peer->instance == peer) {
        d->sent = true;
        return sent(send_frames(d->socket, nullptr, frames), peer);
      }
    for (const auto& [route, caller] : callers_)
      if (caller.peer.instance == peer) {
        router_sent_ = true;
        return sent(send_frames(router_, &route, frames), peer);
      }
    ++counters_.unroutable;
    return fail(Errc::unavailable, "'{}' is not connected to '{}'", options_.self.instance, peer);
  } catch (const zmq::error_t& e) {
    ++counters_.unroutable;  // EHOSTUNREACH: the connection is gone, its heartbeat will tell
    return fail(Errc::unavailable, "'{}' cannot be reached: {}", peer, e.what());
  }
  Result<void> sent(bool done, const std::string& peer) {
    if (done) {
      ++counters_.sent;
      return {};
    }
    ++counters_.dropped_full;
    return fail(Errc::overloaded, "the connection to '{}' is full", peer);
  }

  Frames control(MessageType type, const json& body) {
    Message m;
    m.head.type = type;
    m.body = body.dump();
    return *encode(std::move(m));
  }
  Frames hello() {
    return control(MessageType::hello, {{"role", options_.self.role},
                                        {"instance", options_.self.instance},
                                        {"version_min", kVersionMin},
                                        {"version_max", kVersion},
                                        {"message_bytes_max", kMessageBytesMax}});
  }
  Frames error(Errc code, const std::string& message) { return control(MessageType::error, {{"code", std::string(to_string(code))}, {"message", message}}); }

  void know(const Peer& peer, bool up) {
    {
      const std::lock_guard lock(mutex_);
      if (up)
        known_.insert_or_assign(peer.instance, 1);
      else
        known_.erase(peer.instance);
    }
    handlers_.peer(peer, up);
  }

  /// One message of a socket. @return false when nothing was there
  bool receive(zmq::socket_t& socket, Dealer* dealer) {
    zmq::message_t route, frames[kFramesMax];
    if (dealer == nullptr && !socket.recv(route, zmq::recv_flags::dontwait)) return false;
    int count = 0;
    bool more = dealer != nullptr || route.more();
    while (more) {
      zmq::message_t part;
      if (!socket.recv(part, zmq::recv_flags::dontwait)) return count > 0;
      more = part.more();
      if (count < kFramesMax) frames[count] = std::move(part);
      ++count;
    }
    const auto now = clock_.now();
    const auto who = dealer == nullptr ? text_of(route) : std::string();
    const std::span<const std::byte> parts[] = {bytes_of(frames[0]), bytes_of(frames[1]), bytes_of(frames[2])};
    auto message = decode(std::span(parts, static_cast<std::size_t>(std::min(count, kFramesMax))));
    if (count != kFramesMax && message) message = fail(Errc::bad_frame, "a message of {} frames, {} are expected", count, kFramesMax);
    auto answer = [&](const Frames& f) {
      (dealer == nullptr ? router_sent_ : dealer->sent) = true;
      try {
        send_frames(socket, dealer == nullptr ? &who : nullptr, f);
      } catch (const zmq::error_t&) {
        ++counters_.unroutable;
      }
    };
    if (!message) {
      if (message.error().code == Errc::unknown_type) {
        ++counters_.unknown_type;
        return true;
      }
      ++(message.error().code == Errc::bad_version ? counters_.version_refused : counters_.malformed);
      answer(error(message.error().code, message.error().message));
      return true;
    }
    ++counters_.received;
    active_ = message->head.type != MessageType::heartbeat && message->head.type != MessageType::heartbeat_reply;
    if (dealer != nullptr)
      from_callee(*dealer, *std::move(message), now);
    else
      from_caller(who, *std::move(message), now, answer);
    return true;
  }

  /// @return the peer a HELLO speaks of and the version both know, or why not
  Result<Peer> read_hello(const Message& m, bool caller) {
    const auto body = body_of(m);
    Peer peer{text_in(body, "instance"), text_in(body, "role"), 0, caller};
    if (peer.instance.empty() || peer.instance.size() > 100 || peer.role.empty() || peer.role.size() > 40)
      return fail(Errc::bad_json, "HELLO names the instance '{}' of role '{}'", peer.instance.substr(0, 100), peer.role.substr(0, 40));
    const auto low = std::max<std::int64_t>(integer_in(body, "version_min"), kVersionMin),
               high = std::min<std::int64_t>(integer_in(body, "version_max"), kVersion);
    if (low > high) {
      ++counters_.version_refused;
      return fail(Errc::bad_version, "the peer speaks versions {} to {}, we {} to {}", integer_in(body, "version_min"), integer_in(body, "version_max"),
                  kVersionMin, kVersion);
    }
    peer.version = static_cast<std::uint16_t>(high);
    return peer;
  }

  template <class Answer>
  void from_caller(const std::string& route, Message m, Time now, Answer&& answer) {
    auto known = callers_.find(route);
    if (m.head.type == MessageType::hello) {
      const auto peer = read_hello(m, true);
      if (!peer) return answer(error(peer.error().code, peer.error().message));
      answer(hello());
      if (known != callers_.end()) {
        known->second.heard = now;
        return;
      }
      // A caller that made its socket anew keeps its instance: the older route is forgotten without a word.
      const auto older = std::find_if(callers_.begin(), callers_.end(), [&](const auto& c) { return c.second.peer.instance == peer->instance; });
      const bool again = older != callers_.end();
      if (again) callers_.erase(older);
      callers_[route] = {*peer, now};
      if (!again) know(*peer, true);
      return;
    }
    if (known == callers_.end()) return answer(error(Errc::not_ready, "HELLO comes first"));
    known->second.heard = now;
    if (m.head.type == MessageType::heartbeat) {
      json body{{"progress", 0}, {"busy", false}, {"step_limit_ms", 2000}, {"load", 0}, {"slots", 0}};
      if (const auto& p = options_.progress)
        body = {{"progress", p->steps.load()},
                {"busy", p->busy.load()},
                {"step_limit_ms", p->step_limit_ms.load()},
                {"load", p->load.load()},
                {"slots", p->slots.load()}};
      return answer(control(MessageType::heartbeat_reply, body));
    }
    handlers_.message(known->second.peer.instance, std::move(m));
  }

  void from_callee(Dealer& d, Message m, Time now) {
    d.heard = now;
    if (m.head.type == MessageType::hello) {
      auto peer = read_hello(m, false);
      if (!peer || (d.peer && d.peer->instance == peer->instance)) return;
      if (d.peer) know(*d.peer, false);
      d.peer = *peer, d.progressed = now, d.steps = 0, d.beaten = now;
      know(*d.peer, true);
      return;
    }
    if (m.head.type == MessageType::heartbeat_reply) {
      const auto body = body_of(m);
      const auto steps = static_cast<std::uint64_t>(integer_in(body, "progress"));
      if (steps != d.steps || !flag_in(body, "busy")) d.steps = steps, d.progressed = now;
      if (now - d.progressed > milliseconds(integer_in(body, "step_limit_ms", 2000))) {
        ++counters_.peers_hung;
        lose(d, now);
      }
      return;
    }
    if (m.head.type == MessageType::error && m.head.session == SessionId{} && text_in(body_of(m), "code") == "not_ready") {
      d.said_hello = {};
      return;
    }  // it has forgotten us
    if (d.peer) handlers_.message(d.peer->instance, std::move(m));
  }

  void lose(Dealer& d, Time now) {
    ++counters_.peers_gone;
    if (d.peer) {
      const auto gone = *std::exchange(d.peer, std::nullopt);
      know(gone, false);
    }
    d.socket.close();
    connect(d);
    d.heard = now;
  }

  void beat(Time now) {
    const auto silence_max = options_.heartbeat * options_.misses_max + options_.heartbeat / 2;
    for (const auto& d : dealers_) {
      if (!d->peer) {
        if (now - d->said_hello >= options_.heartbeat) {
          send_frames(d->socket, nullptr, hello());  // EAGAIN while nobody is connected: the next beat tries again
          d->said_hello = now;
        }
        continue;
      }
      if (now - d->heard > silence_max) {
        lose(*d, now);
        continue;
      }
      if (now - d->beaten >= options_.heartbeat) {
        send_frames(d->socket, nullptr, control(MessageType::heartbeat, json::object()));
        d->beaten = now;
        if (d->said_hello == Time{}) send_frames(d->socket, nullptr, hello()), d->said_hello = now;
      }
    }
    for (auto it = callers_.begin(); it != callers_.end();) {
      if (now - it->second.heard <= 3 * silence_max) {
        ++it;
        continue;
      }
      const auto gone = it->second.peer;
      it = callers_.erase(it);
      ++counters_.peers_gone;
      know(gone, false);
    }
  }

  /// Answers one question about a key. @return false when there was none
  bool zap() {
    zmq::message_t part;
    std::vector<std::string> frames;
    while (zap_.recv(part, zmq::recv_flags::dontwait)) {
      frames.push_back(text_of(part));
      if (!part.more()) break;
    }
    if (frames.empty()) return false;
    bool good = false;
    if (frames.size() >= 7 && frames[0] == "1.0" && frames[5] == "CURVE" && frames[6].size() == 32) {
      char key[41];
      zmq_z85_encode(key, reinterpret_cast<const std::uint8_t*>(frames[6].data()), 32);
      const auto& allowed = options_.curve->allowed;
      good = std::find(allowed.begin(), allowed.end(), key) != allowed.end();
    }
    if (!good) ++counters_.keys_refused;
    const std::string reply[] = {"1.0", frames.size() > 1 ? frames[1] : "", good ? "200" : "400", good ? "" : "this key is not listed", "", ""};
    for (std::size_t i = 0; i < 6; ++i) zap_.send(zmq::buffer(reply[i]), i < 5 ? zmq::send_flags::sndmore : zmq::send_flags::none);
    return true;
  }

  /// Everything that waits on the sockets. Sending may take in a socket's signal for new messages, so a socket that was sent to is read again.
  void drain() {
    while (zap_ && zap()) {
    }
    for (bool again = true; again && !stop_;) {
      again = false;
      if (router_ && std::exchange(router_sent_, false))
        for (int n = 0; (again = receive(router_, nullptr)) && n < kDrainMax; ++n) {
        }
      if (again) router_sent_ = true;
      for (const auto& d : dealers_) {
        if (!std::exchange(d->sent, false)) continue;
        bool more = true;
        for (int n = 0; more && n < kDrainMax; ++n) more = receive(d->socket, d.get());
        if (more) d->sent = again = true;
      }
      again = again || router_sent_ || std::any_of(dealers_.begin(), dealers_.end(), [](const auto& d) { return d->sent; });
    }
  }

  void run() {
    // A ZeroMQ descriptor signals edges: it is safe to wait on it only after every socket has said EAGAIN with nothing sent since. That
    // saves the second look that zmq_poll takes at every socket.
    std::vector<pollfd> items;
    for (auto next = clock_.now(); !stop_;) {
      try {
        {
          const std::lock_guard lock(mutex_);
          outgoing_.swap(queue_);
        }
        for (const auto& [peer, frames] : outgoing_) (void)send_now(peer, frames);  // counted; the sender sends again what is not acknowledged
        outgoing_.clear();
        router_sent_ = static_cast<bool>(router_);
        for (const auto& d : dealers_) d->sent = true;
        drain();
        const auto now = clock_.now();
        if (now >= next) {
          beat(now);
          next = now + options_.heartbeat / 4;
          continue;  // beating sends
        }
        if (std::exchange(sockets_changed_, false)) {
          items.assign(1, {wake_, POLLIN, 0});
          if (zap_) items.push_back({zap_.get(zmq::sockopt::fd), POLLIN, 0});
          if (router_) items.push_back({router_.get(zmq::sockopt::fd), POLLIN, 0});
          for (const auto& d : dealers_) items.push_back({d->socket.get(zmq::sockopt::fd), POLLIN, 0});
        }
        // Right after a message the next one is often near: looking again for some tens of microseconds costs less than being woken on another core.
        int ready = 0;
        if (std::exchange(active_, false))
          for (const auto until = now + kSpin; ready == 0 && clock_.now() < until; ::sched_yield()) ready = ::poll(items.data(), items.size(), 0);
        const auto wait = std::chrono::ceil<milliseconds>(next - now);
        if (ready == 0) ready = ::poll(items.data(), items.size(), static_cast<int>(wait.count()));
        if (ready > 0 && (items[0].revents & POLLIN) != 0) {
          std::uint64_t count;
          [[maybe_unused]] const auto ignored = ::read(wake_, &count, sizeof count);
        }
      } catch (const zmq::error_t& e) {
        if (e.num() == ETERM) return;
        ++counters_.malformed;  // a single operation failed; the loop lives
      }
    }
  }

  std::shared_ptr<ZmqContext> shared_;
  zmq::context_t& context_;
  ZmqOptions options_;
  Handlers handlers_;
  ZmqCounters& counters_;
  SteadyClock clock_;
  int wake_;
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::deque<std::pair<std::string, Frames>> queue_, outgoing_;
  std::map<std::string, int> known_;
  zmq::socket_t router_, zap_;
  bool router_sent_ = false, sockets_changed_ = true, active_ = false;
  std::vector<std::unique_ptr<Dealer>> dealers_;
  std::map<std::string, Caller> callers_;
  std::thread thread_;
};

Result<std::unique_ptr<ZmqTransport>> ZmqTransport::start(std::shared_ptr<ZmqContext> context, ZmqOptions options, Handlers handlers) {
  std::unique_ptr<ZmqTransport> out(new ZmqTransport);
  out->loop_ = std::make_unique<Loop>(std::move(context), std::move(options), std::move(handlers), out->counters_);
  PARLANDO_TRY(out->endpoint_, out->loop_->start());
  return out;
}

ZmqTransport::~ZmqTransport() = default;

Result<void> ZmqTransport::send(const std::string& peer, protocol::Message message) { return loop_->send(peer, std::move(message)); }

}  // namespace parlando::transport
