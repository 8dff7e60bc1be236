#include "services/cli/round_trip.hpp"

#include <time.h>
#include <zmq.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "common/base/units.hpp"
#include "common/protocol/codec.hpp"
#include "common/service/host.hpp"

namespace parlando::cli {
using namespace protocol;
using Clock = std::chrono::steady_clock;

namespace {

constexpr std::size_t kFrameBytes = 640;
constexpr std::chrono::seconds kPatience{10};
constexpr Envelope kHead{.session = {1, 1}, .stream = {1}};

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

/// Calls `once` at every beat; a beat that is late is not made up for.
template <class F>
Result<void> at_pace(const RoundTripOptions& o, F&& once) {
  const auto beat = std::chrono::nanoseconds(1'000'000'000 / o.per_second);
  auto next = Clock::now();
  for (int n = 0; n < o.warm_up + o.count; ++n) {
    next = std::max(next + beat, Clock::now());
    const auto at = next.time_since_epoch();
    const timespec until{std::chrono::duration_cast<std::chrono::seconds>(at).count(),
                         static_cast<long>(at.count() % 1'000'000'000)};
    ::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
    PARLANDO_DO(once(n >= o.warm_up));
  }
  return {};
}

class EchoCore final : public service::Core {
 public:
  void on_message(const std::string& peer, Message message, Time) override {
    if (message.head.type != MessageType::audio) return;
    const auto head = message.head;
    if (auto audio = read<Audio>(message))
      answer(peer, head, Speech{0, audio->first_sample, kSpeechRate, false, std::move(audio->payload)});
  }
};

class PingCore final : public service::Core {
 public:
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time) override {
    if (state != transport::PeerState::up) return;
    const std::lock_guard lock(mutex);
    callee = peer.instance;
    changed.notify_all();
  }
  void ping(Clock::time_point handed) {
    handed_ = handed;
    sent_ = Clock::now();
    send(callee, kHead, Audio{position_, Bytes(kFrameBytes)});
    position_ += static_cast<std::int64_t>(kFrameBytes / 2);
  }
  void on_message(const std::string&, Message message, Time) override {
    if (message.head.type != MessageType::speech) return;
    const std::lock_guard lock(mutex);
    whole = us_since(handed_);
    from_core = us_since(sent_);
    ++answers;
    changed.notify_all();
  }
  std::mutex mutex;
  std::condition_variable changed;
  std::string callee;
  int answers = 0;
  double whole = 0, from_core = 0;

 private:
  Clock::time_point handed_, sent_;
  std::int64_t position_ = 0;
};

/// Sockets of a context, closed in the right order.
struct Bare {
  Bare()
      : context(::zmq_ctx_new()),
        router(::zmq_socket(context, ZMQ_ROUTER)),
        dealer(::zmq_socket(context, ZMQ_DEALER)) {}
  ~Bare() {
    const int none = 0;
    for (void* socket : {router, dealer}) {
      ::zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
      ::zmq_close(socket);
    }
    ::zmq_ctx_term(context);
  }
  void* context;
  void* router;
  void* dealer;
};

/// Reads one message of several frames as it comes. @param each  gets every frame and whether more follow
bool receive(void* socket, const std::function<void(zmq_msg_t&, bool)>& each) {
  for (bool more = true; more;) {
    zmq_msg_t part;
    ::zmq_msg_init(&part);
    if (::zmq_msg_recv(&part, socket, ZMQ_DONTWAIT) < 0) return false;
    more = ::zmq_msg_more(&part) != 0;
    each(part, more);
    ::zmq_msg_close(&part);
  }
  return true;
}

void echo(void* router, const std::atomic<bool>& stop) {
  while (!stop) {
    zmq_pollitem_t item{router, 0, ZMQ_POLLIN, 0};
    if (::zmq_poll(&item, 1, 100) <= 0) continue;
    receive(router, [&](zmq_msg_t& part, bool more) { ::zmq_msg_send(&part, router, more ? ZMQ_SNDMORE : 0); });
  }
}

}  // namespace

Result<RoundTrips> round_trips(const RoundTripOptions& o) {
  service::Runtime runtime;
  service::WireConfig listens;
  listens.bind = o.endpoint;
  listens.curve.plain_tcp = true;
  PARLANDO_TRY(const auto echo, service::Host::start(runtime, "echo", listens, std::make_unique<EchoCore>()));
  service::WireConfig calls;
  calls.connect["echo"] = {echo->endpoint()};
  calls.curve.plain_tcp = true;
  auto core = std::make_unique<PingCore>();
  auto& ping = *core;
  PARLANDO_TRY(const auto host, service::Host::start(runtime, "controller", calls, std::move(core)));
  {
    std::unique_lock lock(ping.mutex);
    if (!ping.changed.wait_for(lock, kPatience, [&] { return !ping.callee.empty(); }))
      return fail(Errc::unavailable, "no link was made over {}", o.endpoint);
  }
  RoundTrips out;
  PARLANDO_DO(at_pace(o, [&](bool counts) -> Result<void> {
    const auto before = [&] {
      const std::lock_guard lock(ping.mutex);
      return ping.answers;
    }();
    host->post([handed = Clock::now()](service::Core& c, Time) { static_cast<PingCore&>(c).ping(handed); });
    std::unique_lock lock(ping.mutex);
    if (!ping.changed.wait_for(lock, kPatience, [&] { return ping.answers > before; }))
      return fail(Errc::unavailable, "a frame over {} was not answered", o.endpoint);
    if (counts) {
      out.whole.push_back(ping.whole);
      out.from_core.push_back(ping.from_core);
    }
    return {};
  }));
  return out;
}

Result<std::vector<double>> bare_round_trips(const RoundTripOptions& o) {
  Bare zmq;
  if (::zmq_bind(zmq.router, o.endpoint.c_str()) != 0)
    return fail(Errc::io, "{} cannot be bound: {}", o.endpoint, ::zmq_strerror(::zmq_errno()));
  char endpoint[256];
  std::size_t size = sizeof endpoint;
  ::zmq_getsockopt(zmq.router, ZMQ_LAST_ENDPOINT, endpoint, &size);
  if (::zmq_connect(zmq.dealer, endpoint) != 0)
    return fail(Errc::io, "{} cannot be called: {}", endpoint, ::zmq_strerror(::zmq_errno()));
  std::atomic<bool> stop{false};
  std::thread server([&] { echo(zmq.router, stop); });
  const auto frames = encode(pack(Audio{0, Bytes(kFrameBytes)}, kHead));
  std::vector<double> out;
  auto done = at_pace(o, [&](bool counts) -> Result<void> {
    const auto start = Clock::now();
    ::zmq_send(zmq.dealer, frames.envelope.data(), frames.envelope.size(), ZMQ_SNDMORE);
    ::zmq_send(zmq.dealer, frames.body.data(), frames.body.size(), ZMQ_SNDMORE);
    ::zmq_send(zmq.dealer, frames.payload.data(), frames.payload.size(), 0);
    zmq_pollitem_t item{zmq.dealer, 0, ZMQ_POLLIN, 0};
    if (::zmq_poll(&item, 1, std::chrono::milliseconds(kPatience).count()) <= 0)
      return fail(Errc::unavailable, "a frame over {} was not answered", endpoint);
    receive(zmq.dealer, [](zmq_msg_t&, bool) {});
    if (counts) out.push_back(us_since(start));
    return {};
  });
  stop = true;
  server.join();
  PARLANDO_DO(std::move(done));
  return out;
}

}  // namespace parlando::cli
