#include "common/service/host.hpp"

#include <atomic>
#include <caf/all.hpp>
#include <future>
#include <mutex>

#include "common/base/random_id.hpp"
#include "common/http/server.hpp"
#include "common/telemetry/log.hpp"
#include "common/transport/channels.hpp"

namespace parlando::service {

// What the two actors say to each other. They live in one process, so nothing of it is ever serialised.
struct Arrived {
  std::string peer;
  protocol::Message message;
  Time at;
};
struct PeerChanged {
  transport::Peer peer;
  bool up = false;
};
struct Deliver {
  std::vector<Arrived> messages;
};
struct Done {
  std::vector<std::pair<std::string, protocol::Envelope>> handled;
  std::vector<Out> out;
};
struct Call {
  std::shared_ptr<std::function<void(Core&, Time)>> function;
};
struct Tick {};
struct Step {};

}  // namespace parlando::service

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Arrived)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::PeerChanged)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Deliver)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Done)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Call)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Tick)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Step)

namespace parlando::service {

struct Runtime::Impl {
  Impl() : config(), system(config) {}
  struct Config : caf::actor_system_config {
    Config() { set("scheduler.max-threads", 2); }  // bridges are light; workers have threads of their own
  };
  Config config;
  caf::actor_system system;
};

std::string caf_version() { return fmt::format("{}.{}.{}", CAF_VERSION / 10000, CAF_VERSION / 100 % 100, CAF_VERSION % 100); }

Runtime::Runtime() : impl(std::make_unique<Impl>()), context(std::make_shared<transport::ZmqContext>()) {}
Runtime::~Runtime() = default;

namespace {

constexpr milliseconds kTick{20};

/// Shared between the socket thread, the two actors and the metrics server.
struct Shared {
  std::string role, instance;
  std::shared_ptr<transport::Progress> progress = std::make_shared<transport::Progress>();
  std::unique_ptr<transport::ZmqTransport> transport;
  telemetry::Metrics metrics;
  telemetry::Metrics::Counter in, out, refused, dropped, failed, duplicates, gaps, resent, expired, credit, malformed, unknown, keys, peers_gone, peers_hung;
  telemetry::Metrics::Gauge queue, ready_gauge, load;
  telemetry::Metrics::Histogram step_time, handle_time;
  std::atomic<std::int64_t> waiting{0};
  std::int64_t waiting_max = 4096;
  std::atomic<bool> draining{false}, drained{false};
  std::mutex mutex;
  std::string why_not_ready = "starting";
  SteadyClock clock;

  void count_transport(const transport::ChannelCounters& c) {
    duplicates.set_at_least(static_cast<double>(c.duplicates)), gaps.set_at_least(static_cast<double>(c.gaps)),
        resent.set_at_least(static_cast<double>(c.resent));
    credit.set_at_least(static_cast<double>(c.credit_exceeded)), refused.set_at_least(static_cast<double>(c.refused));
    const auto& z = transport->counters();
    malformed.set_at_least(static_cast<double>(z.malformed)), unknown.set_at_least(static_cast<double>(z.unknown_type)),
        keys.set_at_least(static_cast<double>(z.keys_refused));
    peers_gone.set_at_least(static_cast<double>(z.peers_gone)), peers_hung.set_at_least(static_cast<double>(z.peers_hung)),
        dropped.set_at_least(static_cast<double>(z.dropped_full));
    queue.set(static_cast<double>(waiting.load()));
  }
};

struct BridgeState {
  transport::Channels channels;
  std::shared_ptr<Shared> shared;
  caf::actor worker;
  void flush(Time now) {
    for (auto& due : channels.due(now))
      if (shared->transport->send(due.peer, std::move(due.message))) shared->out.add();
  }
};

caf::behavior bridge(caf::stateful_actor<BridgeState>* self, std::shared_ptr<Shared> shared, transport::ChannelLimits limits, caf::actor worker) {
  auto& s = self->state;
  s.channels = transport::Channels(limits), s.shared = std::move(shared), s.worker = std::move(worker);
  self->delayed_send(self, kTick, Tick{});
  return {
      // A message from the socket thread: judged, and handed to the worker when it is next in its stream.
      [self](const Arrived& a) {
        auto& s = self->state;
        --s.shared->waiting;
        s.shared->in.add();
        if (auto m = s.channels.receive(a.peer, a.message, s.shared->clock.now())) self->send(s.worker, Deliver{{{a.peer, *std::move(m), a.at}}});
        s.flush(s.shared->clock.now());
      },
      // A peer came or went: its streams are forgotten, and the worker decides where its work goes.
      [self](const PeerChanged& p) {
        if (!p.up) self->state.channels.forget(p.peer.instance);
        self->send(self->state.worker, p);
      },
      // What the worker has handled and wants to send.
      [self](const Done& d) {
        auto& s = self->state;
        const auto now = s.shared->clock.now();
        for (const auto& [peer, head] : d.handled) s.channels.handled(peer, head);
        for (const auto& o : d.out) {
          if (protocol::is_control(o.message.head.type)) {
            if (s.shared->transport->send(o.peer, o.message)) s.shared->out.add();
          } else if (auto sent = s.channels.send(o.peer, o.message, now); !sent) {
            telemetry::log(telemetry::Level::warning, "{} could not queue a message for '{}': {}", s.shared->role, o.peer, sent.error().message);
          }
        }
        s.flush(now);
      },
      [self](const Tick&) {
        auto& s = self->state;
        s.flush(s.shared->clock.now());
        s.shared->count_transport(s.channels.counters());
        self->send(s.worker, Tick{});
        self->delayed_send(self, kTick, Tick{});
      },
  };
}

struct WorkerState {
  std::unique_ptr<Core> core;
  std::shared_ptr<Shared> shared;
  caf::actor bridge;
  bool stepping = false;

  /// Runs a piece of the core; nothing it throws leaves the handler.
  template <class F>
  void guarded(const char* what, F&& f) {
    shared->progress->busy = true;
    try {
      f();
    } catch (const std::exception& e) {
      shared->failed.add();
      telemetry::log(telemetry::Level::error, "{} failed to {}: {}", shared->role, what, e.what());
    }
    ++shared->progress->steps;
    shared->progress->busy = false;
  }
};

caf::behavior worker(caf::stateful_actor<WorkerState>* self, std::shared_ptr<Shared> shared, std::shared_ptr<std::unique_ptr<Core>> core) {
  auto& s = self->state;
  s.shared = std::move(shared), s.core = std::move(*core);
  auto finish = [self](std::vector<std::pair<std::string, protocol::Envelope>> handled) {
    auto& s = self->state;
    auto out = s.core->take();
    if (!out.empty() || !handled.empty()) self->send(s.bridge, Done{std::move(handled), std::move(out)});
    if (!s.stepping) {
      s.stepping = true;
      self->send(self, Step{});
    }
  };
  return {
      [self](const caf::actor& bridge) {
        self->state.bridge = bridge;
        self->state.core->on_thread();
      },
      [self, finish](const Deliver& d) {
        auto& s = self->state;
        std::vector<std::pair<std::string, protocol::Envelope>> handled;
        const auto start = s.shared->clock.now();
        for (const auto& m : d.messages) {
          handled.emplace_back(m.peer, m.message.head);
          const auto& head = m.message.head;
          if (head.remaining_ms > 0 && start - m.at > milliseconds(head.remaining_ms)) {  // nobody waits for this any more
            s.shared->expired.add();
            continue;
          }
          s.guarded("handle a message", [&] { s.core->on_message(m.peer, m.message, s.shared->clock.now()); });
        }
        s.shared->handle_time.observe(std::chrono::duration<double>(s.shared->clock.now() - start).count());
        finish(std::move(handled));
      },
      [self, finish](const PeerChanged& p) {
        self->state.guarded("follow a peer", [&] { self->state.core->on_peer(p.peer, p.up, self->state.shared->clock.now()); });
        finish({});
      },
      [self, finish](const Call& c) {
        --self->state.shared->waiting;
        self->state.guarded("run a call", [&] { (*c.function)(*self->state.core, self->state.shared->clock.now()); });
        finish({});
      },
      [self, finish](const Tick&) {
        auto& s = self->state;
        s.guarded("follow the time", [&] { s.core->on_tick(s.shared->clock.now()); });
        s.shared->progress->load = s.core->load(), s.shared->progress->slots = s.core->slots();
        s.shared->load.set(static_cast<double>(s.core->load()));
        auto why = s.core->why_not_ready();
        s.shared->ready_gauge.set(why.empty() ? 1 : 0);
        if (s.shared->draining) s.shared->drained = s.core->drain();
        {
          const std::lock_guard lock(s.shared->mutex);
          s.shared->why_not_ready = std::move(why);
        }
        finish({});
      },
      // One unit of work, then the mailbox gets its turn.
      [self](const Step&) {
        auto& s = self->state;
        const auto start = s.shared->clock.now();
        bool more = false;
        s.guarded("take a step", [&] { more = s.core->work(start); });
        if (more) s.shared->step_time.observe(std::chrono::duration<double>(s.shared->clock.now() - start).count());
        if (auto out = s.core->take(); !out.empty()) self->send(s.bridge, Done{{}, std::move(out)});
        s.stepping = more;
        if (more) self->send(self, Step{});
      },
  };
}

}  // namespace

struct Host::Impl {
  std::shared_ptr<Shared> shared = std::make_shared<Shared>();
  caf::actor bridge, worker;
  std::unique_ptr<http::Server> metrics;
  int listening_port = 0;
};

Result<std::unique_ptr<Host>> Host::start(Runtime& runtime, const std::string& role, const WireConfig& wire, std::unique_ptr<Core> core) {
  std::unique_ptr<Host> host(new Host);
  host->impl_ = std::make_unique<Impl>();
  auto& h = *host->impl_;
  auto& s = *h.shared;
  s.progress->step_limit_ms = wire.step_limit_ms;
  s.role = role, s.instance = role + "-" + random_hex(4), s.waiting_max = wire.queue_messages_max;
  auto prefix = "parlando_" + role + "_";
  std::replace(prefix.begin(), prefix.end(), '-', '_');
  auto counter = [&](const char* name, const char* help) { return s.metrics.counter(prefix + name, help); };
  s.in = counter("messages_received_total", "Messages from peers"), s.out = counter("messages_sent_total", "Messages to peers");
  s.refused = counter("messages_refused_total", "Messages that a full stream refused"),
  s.dropped = counter("messages_dropped_total", "Messages dropped because a queue was full");
  s.failed = counter("failures_total", "Exceptions caught in the service"), s.duplicates = counter("duplicates_total", "Messages that arrived again"),
  s.gaps = counter("gaps_total", "Messages that arrived before an earlier one");
  s.resent = counter("messages_resent_total", "Messages sent again"), s.credit = counter("credit_exceeded_total", "Messages beyond the window"),
  s.expired = counter("expired_total", "Messages dropped because their budget was spent"),
  s.malformed = counter("malformed_total", "Frames that are not messages");
  s.unknown = counter("unknown_types_total", "Messages of a type this build does not know"),
  s.keys = counter("keys_refused_total", "Connections refused for their key");
  s.peers_gone = counter("peers_gone_total", "Peers that died or fell silent"), s.peers_hung = counter("peers_hung_total", "Peers whose work stood still");
  s.queue = s.metrics.gauge(prefix + "queue_messages", "Messages waiting for the service"),
  s.ready_gauge = s.metrics.gauge(prefix + "ready", "1 when requests can be served"),
  s.load = s.metrics.gauge(prefix + "load", "Sessions or utterances at work");
  s.step_time = s.metrics.histogram(prefix + "step_seconds", "Time of one unit of work"),
  s.handle_time = s.metrics.histogram(prefix + "handle_seconds", "Time of handling one message");
  core->add_metrics(s.metrics);

  auto& system = runtime.impl->system;
  auto* front = core.get();
  h.worker = system.spawn<caf::detached>(worker, h.shared, std::make_shared<std::unique_ptr<Core>>(std::move(core)));
  transport::ChannelLimits limits;
  limits.window_messages = static_cast<std::uint64_t>(wire.window_messages);
  transport::ZmqOptions options;
  options.self = {s.instance, role}, options.bind = wire.bind, options.heartbeat = milliseconds(wire.heartbeat_ms), options.misses_max = wire.misses_max,
  options.progress = s.progress;
  options.queue_messages_max = static_cast<std::size_t>(wire.queue_messages_max);
  PARLANDO_TRY(options.curve, keys_of(wire.curve));
  for (const auto& [called, endpoints] : wire.connect)
    for (const auto& e : endpoints) options.connect.emplace_back(called, e);
  // The socket thread may speak before the bridge exists: it waits for this promise once.
  auto promised = std::make_shared<std::promise<caf::actor>>();
  auto bridge_of = [future = promised->get_future().share()] { return future.get(); };
  PARLANDO_TRY(s.transport, transport::ZmqTransport::start(runtime.context, std::move(options),
                                                           {[shared = h.shared, bridge_of](const std::string& peer, protocol::Message m) {
                                                              if (shared->waiting >= shared->waiting_max) {
                                                                shared->dropped.add();
                                                                return;
                                                              }  // it will be sent again
                                                              ++shared->waiting;
                                                              caf::anon_send(bridge_of(), Arrived{peer, std::move(m), shared->clock.now()});
                                                            },
                                                            [bridge_of](const transport::Peer& p, bool up) {
                                                              caf::anon_send(bridge_of(), PeerChanged{p, up});
                                                            }}));
  h.bridge = system.spawn(bridge, h.shared, limits, h.worker);
  caf::anon_send(h.worker, h.bridge);
  promised->set_value(h.bridge);
  if (!wire.metrics.empty()) {
    PARLANDO_TRY(h.metrics, http::Server::start(wire.metrics,
                                                [shared = h.shared](const http::Request& r) -> http::Response {
                                                  if (r.target == "/metrics") return {200, "text/plain; version=0.0.4", shared->metrics.text()};
                                                  if (r.target == "/healthz") return {200, "text/plain", "alive\n"};
                                                  if (r.target == "/readyz") {
                                                    const std::lock_guard lock(shared->mutex);
                                                    if (shared->draining) return {503, "text/plain", "draining\n"};
                                                    return shared->why_not_ready.empty() ? http::Response{200, "text/plain", "ready\n"}
                                                                                         : http::Response{503, "text/plain", shared->why_not_ready + "\n"};
                                                  }
                                                  return {404, "text/plain", "there are /metrics, /healthz and /readyz\n"};
                                                },
                                                {}, {.connections_max = 16}));
  }
  PARLANDO_DO(front->attach([host = host.get()](std::function<void(Core&, Time)> f) { return host->post(std::move(f)); }));
  h.listening_port = front->listening_port();
  telemetry::log(telemetry::Level::info, "{} starts instance={} at={}", role, s.instance, s.transport->endpoint());
  return host;
}

Host::~Host() {
  if (!impl_) return;
  impl_->metrics.reset();
  // Nobody uses the transport, and the core with all its threads is gone, when both actors are.
  for (const auto& actor : {impl_->bridge, impl_->worker}) {
    if (!actor) continue;
    caf::scoped_actor self(actor->home_system());
    caf::anon_send_exit(actor, caf::exit_reason::user_shutdown);
    self->wait_for(actor);
  }
  impl_->shared->transport.reset();  // its thread ends here
}

bool Host::post(std::function<void(Core&, Time)> function) {
  if (impl_->shared->waiting >= impl_->shared->waiting_max) {
    impl_->shared->dropped.add();
    return false;
  }
  ++impl_->shared->waiting;
  caf::anon_send(impl_->worker, Call{std::make_shared<std::function<void(Core&, Time)>>(std::move(function))});
  return true;
}

bool Host::ready(std::string* why) const {
  const std::lock_guard lock(impl_->shared->mutex);
  if (why != nullptr) *why = impl_->shared->why_not_ready;
  return impl_->shared->why_not_ready.empty();
}

bool Host::drain() {
  impl_->shared->draining = true;
  return impl_->shared->drained;
}

const std::string& Host::instance() const { return impl_->shared->instance; }
const std::string& Host::endpoint() const { return impl_->shared->transport->endpoint(); }
int Host::listening_port() const { return impl_->listening_port; }
int Host::metrics_port() const { return impl_->metrics ? impl_->metrics->port() : 0; }
std::string Host::metrics_text() const { return impl_->shared->metrics.text(); }

}  // namespace parlando::service
