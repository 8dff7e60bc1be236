#include "common/service/host.hpp"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <caf/all.hpp>
#include <deque>
#include <mutex>

#include "common/base/assert.hpp"
#include "common/base/random_id.hpp"
#include "common/http/server.hpp"
#include "common/service/host_metrics.hpp"
#include "common/service/progress_watch.hpp"
#include "common/telemetry/log.hpp"

namespace parlando::service {

// What actors of one service say to each other. They live in one process, so nothing of it is ever serialised.
struct Deliver {  // link -> worker: what happened, in order
  std::vector<transport::Mesh::Event> events;
};
struct Refusals {  // link -> worker: messages that could not be taken
  std::vector<std::pair<Out, Error>> messages;
};
struct Done {  // worker -> link: what was handled, and what the core wants to send
  std::vector<std::pair<std::string, protocol::Envelope>> handled;
  std::vector<Out> out;
  std::size_t events = 0;
};
struct Call {
  std::function<void(Core&, Time)> function;
};
struct WorkerLink {  // link -> worker, first of all
  caf::actor link;
  std::shared_ptr<std::atomic<bool>> ticking;
};
struct Tick {};
struct Step {};
struct Stop {};

}  // namespace parlando::service

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Deliver)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Refusals)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Done)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Call)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::WorkerLink)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Tick)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Step)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(parlando::service::Stop)

namespace parlando::service {
using transport::Mesh;

namespace {

constexpr milliseconds kSleepMax{500};  // so that standing still can be told from having nothing to do
constexpr milliseconds kWatchTick{250};
constexpr int kWorkerNice = 5;  // links and light services run before heavy work
constexpr int kPassesMax = 16;  // over mesh and core before the sockets get their turn

}  // namespace

struct Runtime::Impl {
  Impl() : config(), system(config) {}
  struct Config : caf::actor_system_config {
    Config() {
      set("scheduler.max-threads",
          1);  // only the watching actors are scheduled; everything else has a thread of its own
      set("scheduler.policy", caf::atom("sharing"));
    }
  };
  Config config;
  caf::actor_system system;
};

std::string caf_version() {
  return fmt::format("{}.{}.{}", CAF_VERSION / 10000, CAF_VERSION / 100 % 100, CAF_VERSION % 100);
}

Runtime::Runtime() : impl(std::make_unique<Impl>()), context(std::make_shared<transport::ZmqContext>()) {}
Runtime::~Runtime() = default;

namespace {

/// Between the link's thread, the worker's, the watching actor and the metrics server.
struct Shared {
  std::string role, instance;
  telemetry::Metrics metrics;
  std::unique_ptr<HostMetrics> host_metrics;
  std::atomic<std::uint64_t> link_steps{0}, worker_steps{0};
  std::atomic<bool> worker_busy{false};
  std::atomic<pid_t> link_thread{0}, worker_thread{0};
  std::atomic<std::int64_t> load{0}, slots{0}, own_slots{0}, waiting{0}, tick_interval_ms{500};
  std::atomic<bool> is_ready{false}, draining{false}, drained{false};
  std::int64_t waiting_max = 4096;
  milliseconds step_limit{2000};
  mutable std::mutex mutex;
  std::string why_not_ready = "starting";
  RunnerCounters runner;  // of a worker; guarded by the mutex
  SteadyClock clock;

  /// What the core says of itself, for heartbeats, health and metrics. On the core's thread.
  void describe(Core& core, const RunnerCounters& counters) {
    load = core.load();
    slots = core.slots();
    own_slots = core.own_slots();
    tick_interval_ms = draining ? 20 : core.tick_interval().count();
    if (draining) drained = core.drain();
    auto why = core.why_not_ready();
    is_ready = why.empty();
    const std::lock_guard lock(mutex);
    why_not_ready = std::move(why);
    runner = counters;
  }
};

[[noreturn]] void end_process(const std::string& why) {
  telemetry::log(telemetry::Level::error, "process ends so that it is started again: {}", why);
  ::_exit(kExitStuck);
}

// ------------------------------------------------------------------------------------------------ the core's side

/// How the link's loop reaches the core: on its own thread, or through the worker's mailbox.
class CoreSide {
 public:
  virtual ~CoreSide() = default;
  /// Before everything else. @param link  the actor that drives it
  virtual void start(const caf::actor& link) = 0;
  virtual void take_events(std::vector<Mesh::Event> events, Mesh& mesh, Time now) = 0;
  virtual void refuse(std::vector<std::pair<Out, Error>> messages, Time now) = 0;
  virtual void tick(Time now) = 0;
  /// @return whether there is more to do at once
  virtual bool work(Time now) = 0;
  virtual std::vector<Out> take() = 0;
  /// Messages that the core had put by, and that it has worked on.
  virtual Core::Places take_handled() { return {}; }
  virtual void call(Call& call, Time now) = 0;
  virtual int wait(std::span<pollfd> descriptors, milliseconds timeout) = 0;
};

/// A light core: everything happens on the link's thread.
class LocalCore final : public CoreSide {
 public:
  LocalCore(std::unique_ptr<Core> core, std::shared_ptr<Shared> shared)
      : core_(std::move(core)), shared_(std::move(shared)), runner_(*core_) {}
  void start(const caf::actor&) override { core_->on_thread(); }
  void take_events(std::vector<Mesh::Event> events, Mesh& mesh, Time now) override {
    const auto start = shared_->clock.now();
    for (auto& e : events) {
      if (e.peer) runner_.peer(e.peer->peer, e.peer->state, now);
      if (!e.delivery) continue;
      const auto head = e.delivery->message.head;
      if (runner_.deliver(e.delivery->peer, std::move(e.delivery->message), now)) mesh.handled(e.delivery->peer, head);
    }
    shared_->host_metrics->handle_seconds.observe(std::chrono::duration<double>(shared_->clock.now() - start).count());
  }
  void refuse(std::vector<std::pair<Out, Error>> messages, Time now) override {
    for (const auto& [out, error] : messages) runner_.refused(out.peer, out.message.head, error, now);
  }
  void tick(Time now) override {
    runner_.tick(now);
    shared_->describe(*core_, runner_.counters());
  }
  bool work(Time now) override {
    const bool more = runner_.work(now);
    if (!shared_->draining) shared_->tick_interval_ms = core_->tick_interval().count();
    return more;
  }
  std::vector<Out> take() override { return runner_.take(); }
  Core::Places take_handled() override { return runner_.take_handled(); }
  void call(Call& call, Time now) override {
    --shared_->waiting;
    call.function(*core_, now);
  }
  int wait(std::span<pollfd> descriptors, milliseconds timeout) override { return core_->wait(descriptors, timeout); }

 private:
  std::unique_ptr<Core> core_;
  std::shared_ptr<Shared> shared_;
  Runner runner_;
};

/// A heavy core in its worker actor. At most `waiting_max` messages are in the worker's mailbox; the others wait here,
/// where the windows of their streams bound them.
class RemoteCore final : public CoreSide {
 public:
  RemoteCore(caf::actor worker, std::shared_ptr<Shared> shared)
      : worker_(std::move(worker)), shared_(std::move(shared)) {}
  void start(const caf::actor& link) override { caf::anon_send(worker_, WorkerLink{link, ticking_}); }
  void take_events(std::vector<Mesh::Event> events, Mesh&, Time) override {
    for (auto& e : events) held_.push_back(std::move(e));
    hand_over();
  }
  void refuse(std::vector<std::pair<Out, Error>> messages, Time) override {
    caf::anon_send(worker_, Refusals{std::move(messages)});
  }
  void tick(Time) override {
    if (ticking_->exchange(true)) return;  // the worker is behind; one tick waits for it
    caf::anon_send(worker_, Tick{});
  }
  bool work(Time) override { return false; }
  std::vector<Out> take() override { return {}; }
  void call(Call& call, Time) override { caf::anon_send(worker_, std::move(call)); }
  int wait(std::span<pollfd> descriptors, milliseconds timeout) override {
    return ::poll(descriptors.data(), descriptors.size(), static_cast<int>(timeout.count()));
  }
  void done(std::size_t events) {
    given_ -= std::min(given_, events);
    hand_over();
  }
  std::size_t held() const { return held_.size() + given_; }

 private:
  void hand_over() {
    const auto room = static_cast<std::size_t>(shared_->waiting_max) -
                      std::min(given_, static_cast<std::size_t>(shared_->waiting_max));
    const auto count = std::min(room, held_.size());
    if (count == 0) return;
    Deliver out;
    out.events.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      out.events.push_back(std::move(held_.front()));
      held_.pop_front();
    }
    given_ += count;
    caf::anon_send(worker_, std::move(out));
  }
  caf::actor worker_;
  std::shared_ptr<Shared> shared_;
  std::deque<Mesh::Event> held_;
  std::size_t given_ = 0;  ///< events in the worker's mailbox
  std::shared_ptr<std::atomic<bool>> ticking_ = std::make_shared<std::atomic<bool>>(false);
};

// ------------------------------------------------------------------------------------------------ the worker

struct WorkerState {
  std::unique_ptr<Core> core;
  std::unique_ptr<Runner> runner;
  std::shared_ptr<Shared> shared;
  std::shared_ptr<std::atomic<bool>> ticking;
  caf::actor link;
  bool stepping = false;

  /// Marks a piece of work for the watching actor and for heartbeats.
  template <class F>
  void busy(F&& f) {
    shared->worker_busy = true;
    f();
    ++shared->worker_steps;
    shared->worker_busy = false;
  }
};

struct WorkerSetup {
  std::unique_ptr<Core> core;
  std::shared_ptr<Shared> shared;
};

caf::behavior worker(caf::stateful_actor<WorkerState>* self, std::shared_ptr<WorkerSetup> setup) {
  auto& s = self->state;
  s.core = std::move(setup->core);
  s.shared = std::move(setup->shared);
  s.runner = std::make_unique<Runner>(*s.core);
  // Hands over what the core wants to say, and sees to it that its work goes on.
  const auto finish = [self](Done done) {
    auto& s = self->state;
    done.out = s.runner->take();
    for (auto& place : s.runner->take_handled()) done.handled.push_back(std::move(place));
    s.shared->load = s.core->load();
    s.shared->slots = s.core->slots();
    s.shared->own_slots = s.core->own_slots();
    if (!s.shared->draining) s.shared->tick_interval_ms = s.core->tick_interval().count();
    if (!done.out.empty() || !done.handled.empty() || done.events > 0) self->send(s.link, std::move(done));
    if (!s.stepping) {
      s.stepping = true;
      self->send(self, Step{});
    }
  };
  return {
      [self](WorkerLink& link) {
        auto& s = self->state;
        s.link = std::move(link.link);
        s.ticking = std::move(link.ticking);
        ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kWorkerNice);
        s.shared->worker_thread = ::gettid();
        s.core->on_thread();
      },
      [self, finish](Deliver& d) {
        auto& s = self->state;
        Done done;
        done.events = d.events.size();
        const auto start = s.shared->clock.now();
        for (auto& e : d.events)
          s.busy([&] {
            const auto now = s.shared->clock.now();
            if (e.peer) s.runner->peer(e.peer->peer, e.peer->state, now);
            if (!e.delivery) return;
            const auto head = e.delivery->message.head;
            if (s.runner->deliver(e.delivery->peer, std::move(e.delivery->message), now))
              done.handled.emplace_back(e.delivery->peer, head);
          });
        s.shared->host_metrics->handle_seconds.observe(
            std::chrono::duration<double>(s.shared->clock.now() - start).count());
        finish(std::move(done));
      },
      [self, finish](Refusals& r) {
        auto& s = self->state;
        for (const auto& [out, error] : r.messages)
          s.busy([&, &out = out, &error = error] {
            s.runner->refused(out.peer, out.message.head, error, s.shared->clock.now());
          });
        finish({});
      },
      [self, finish](Call& c) {
        auto& s = self->state;
        --s.shared->waiting;
        s.busy([&] { c.function(*s.core, s.shared->clock.now()); });
        finish({});
      },
      [self, finish](Tick) {
        auto& s = self->state;
        *s.ticking = false;
        s.busy([&] {
          s.runner->tick(s.shared->clock.now());
          s.shared->describe(*s.core, s.runner->counters());
        });
        finish({});
      },
      // One unit of work, then the mailbox gets its turn.
      [self](Step) {
        auto& s = self->state;
        bool more = false;
        const auto start = s.shared->clock.now();
        s.busy([&] { more = s.runner->work(start); });
        auto out = s.runner->take();
        if (more || !out.empty())
          s.shared->host_metrics->step_seconds.observe(
              std::chrono::duration<double>(s.shared->clock.now() - start).count());
        if (!out.empty()) {
          Done done;
          done.out = std::move(out);
          self->send(s.link, std::move(done));
        }
        s.stepping = more;
        if (more) self->send(self, Step{});
      },
  };
}

// ------------------------------------------------------------------------------------------------ the link

struct LinkSetup {
  std::shared_ptr<Shared> shared;
  std::unique_ptr<Mesh> mesh;
  std::unique_ptr<transport::Sockets> sockets;
  std::unique_ptr<CoreSide> core;
  RemoteCore* remote = nullptr;  ///< the same, when it is one
};

/// Owns the sockets and the mesh, and a light core beside them. Its thread sleeps in one poll over sockets, mailbox and
/// timers.
class LinkActor final : public caf::blocking_actor {
 public:
  LinkActor(caf::actor_config& config, std::shared_ptr<LinkSetup> setup)
      : caf::blocking_actor(config), setup_(std::move(setup)), wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    PARLANDO_ASSERT(wake_ >= 0, "an event descriptor is needed to wake the link's thread");
  }
  ~LinkActor() override { ::close(wake_); }

  void enqueue(caf::mailbox_element_ptr element, caf::execution_unit* unit) override {
    caf::blocking_actor::enqueue(std::move(element), unit);
    if (signalled_.exchange(true)) return;
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto ignored = ::write(wake_, &one, sizeof one);
  }

  void act() override {
    setup_->shared->link_thread = ::gettid();
    setup_->core->start(caf::actor_cast<caf::actor>(this));
    while (!stopped_) pass();
    // The sockets close on the thread that used them, and the core ends where it ran.
    setup_.reset();
  }

 private:
  void pass() {
    auto& s = *setup_;
    auto& shared = *s.shared;
    const auto now = shared.clock.now();
    read_mailbox(now);
    bool more = s.sockets->read(now);
    if (now >= next_tick_) {
      s.core->tick(now);
      next_tick_ = now + milliseconds(shared.tick_interval_ms.load());
      update_status();
    }
    more = settle(now) || more;
    // What has just begun wants its ticks sooner than what was idle.
    next_tick_ = std::min(next_tick_, now + milliseconds(shared.tick_interval_ms.load()));
    s.mesh->tick(now);
    s.sockets->flush(now);
    more = s.sockets->look_again(now) || more;
    if (now >= next_figures_) {
      next_figures_ = now + kSleepMax;
      publish();
    }
    ++shared.link_steps;
    if (stopped_) return;
    sleep(more || !s.sockets->idle());
  }

  /// Lets the core have what arrived until it has nothing more to say.
  bool settle(Time now) {
    auto& s = *setup_;
    bool more = false;
    for (int passes = 0; passes < kPassesMax; ++passes) {
      auto events = s.mesh->take();
      if (!events.empty()) s.core->take_events(std::move(events), *s.mesh, now);
      more = s.core->work(now);
      for (const auto& [peer, head] : s.core->take_handled()) s.mesh->handled(peer, head);
      if (!send(s.core->take(), now)) return more;
    }
    return true;
  }

  /// @return whether the core may have something to say about it
  bool send(std::vector<Out> out, Time now) {
    std::vector<std::pair<Out, Error>> refused;
    for (auto& o : out) {
      Out named{o.peer, {}};
      named.message.head = o.message.head;
      auto sent = setup_->mesh->send(o.peer, std::move(o.message));
      // A stream that has ended meanwhile is nobody's fault.
      if (!sent && sent.error().code != Errc::cancelled)
        refused.emplace_back(std::move(named), std::move(sent).error());
    }
    if (refused.empty()) return false;
    setup_->core->refuse(std::move(refused), now);
    return true;
  }

  void read_mailbox(Time now) {
    if (!signalled_) return;
    // First the count, then the flag: what is posted in between signals anew.
    std::uint64_t count = 0;
    [[maybe_unused]] const auto ignored = ::read(wake_, &count, sizeof count);
    signalled_ = false;
    while (has_next_message()) {
      auto element = dequeue();
      if (!element) return;
      auto& content = element->content();
      if (content.match_elements<Done>()) {
        auto& done = content.get_mutable_as<Done>(0);
        for (const auto& [peer, head] : done.handled) setup_->mesh->handled(peer, head);
        send(std::move(done.out), now);
        if (setup_->remote != nullptr) setup_->remote->done(done.events);
      } else if (content.match_elements<Call>()) {
        setup_->core->call(content.get_mutable_as<Call>(0), now);
      } else if (content.match_elements<Stop>()) {
        stopped_ = true;
      }
    }
  }

  void update_status() {
    auto& shared = *setup_->shared;
    transport::Status status;
    status.ready = shared.is_ready;
    status.draining = shared.draining;
    status.busy = shared.worker_busy;
    status.slots = shared.slots;
    status.load = shared.load;
    status.progress = shared.worker_steps;
    status.step_limit = shared.step_limit;
    setup_->mesh->set_status(status);
  }

  void publish() {
    auto& shared = *setup_->shared;
    HostFigures f;
    f.mesh = setup_->mesh->counters();
    f.sockets = setup_->sockets->counters();
    f.directory = setup_->sockets->directory();
    f.streams = static_cast<std::int64_t>(setup_->mesh->streams());
    f.load = shared.load;
    f.slots = shared.own_slots;
    f.waiting = shared.waiting + static_cast<std::int64_t>(setup_->remote != nullptr ? setup_->remote->held() : 0);
    f.ready = shared.is_ready;
    f.draining = shared.draining;
    {
      const std::lock_guard lock(shared.mutex);
      f.runner = shared.runner;
    }
    shared.host_metrics->update(f);
  }

  void sleep(bool at_once) {
    auto& s = *setup_;
    const auto sockets = s.sockets->descriptors();
    polled_.assign(sockets.begin(), sockets.end());
    polled_.push_back({wake_, POLLIN, 0});
    milliseconds timeout{0};
    if (!at_once) {
      const auto now = s.shared->clock.now();
      const auto until = std::min({next_tick_, next_figures_, s.mesh->due(now), s.sockets->due(), now + kSleepMax});
      if (until > now) timeout = std::chrono::ceil<milliseconds>(until - now);
    }
    s.core->wait(polled_, timeout);
    s.sockets->readable(std::span(polled_).first(sockets.size()));
  }

  std::shared_ptr<LinkSetup> setup_;
  int wake_;
  std::atomic<bool> signalled_{true};
  bool stopped_ = false;
  Time next_tick_{}, next_figures_{};
  std::vector<pollfd> polled_;
};

// ------------------------------------------------------------------------------------------------ who watches

struct WatchState {
  std::shared_ptr<Shared> shared;
  ProgressWatch link{kWatchTick, kWatchTick}, worker{kWatchTick, kWatchTick};
  bool heavy = false;
};

caf::behavior watch(caf::stateful_actor<WatchState>* self, std::shared_ptr<Shared> shared, milliseconds limit,
                    caf::actor link, caf::actor worker) {
  auto& s = self->state;
  s.shared = std::move(shared);
  s.link = ProgressWatch(limit, kWatchTick);
  s.worker = ProgressWatch(std::max(limit, s.shared->step_limit), kWatchTick);
  s.heavy = static_cast<bool>(worker);
  self->monitor(link);
  if (worker) self->monitor(worker);
  self->set_down_handler([self](caf::down_msg& down) {
    if (down.reason == caf::exit_reason::user_shutdown || !down.reason) return;
    end_process(fmt::format("an actor of {} has died: {}", self->state.shared->role, caf::to_string(down.reason)));
  });
  self->delayed_send(self, kWatchTick, Tick{});
  return {[self](Tick) {
    auto& s = self->state;
    // The link's loop passes at least every kSleepMax; it is never excused.
    if (s.link.stuck(s.shared->link_steps, true, thread_use(s.shared->link_thread)))
      end_process(fmt::format("the link of {} stands still", s.shared->role));
    if (s.heavy && s.worker.stuck(s.shared->worker_steps, s.shared->worker_busy, thread_use(s.shared->worker_thread)))
      end_process(fmt::format("the work of {} stands still", s.shared->role));
    self->delayed_send(self, kWatchTick, Tick{});
  }};
}

http::Response answer_health(const Shared& shared, const http::Request& request) {
  if (request.target == "/metrics") return {200, "text/plain; version=0.0.4", shared.metrics.text()};
  if (request.target == "/healthz") return {200, "text/plain", "alive\n"};  // a process that is not ends itself
  if (const auto lines = request.target.empty() ? std::nullopt : shared.metrics.lines_of(request.target.substr(1)))
    return {200, "application/x-ndjson", *lines};
  if (request.target != "/readyz") return {404, "text/plain", "there are /metrics, /healthz and /readyz\n"};
  if (shared.draining) return {503, "text/plain", "draining\n"};
  const std::lock_guard lock(shared.mutex);
  if (shared.why_not_ready.empty()) return {200, "text/plain", "ready\n"};
  return {503, "text/plain", shared.why_not_ready + "\n"};
}

transport::MeshOptions mesh_options(const WireConfig& wire, const Shared& shared) {
  transport::MeshOptions out;
  out.instance = shared.instance;
  out.role = shared.role;
  out.link.window_messages = static_cast<std::uint32_t>(wire.window_messages);
  out.heartbeat = milliseconds(wire.heartbeat_ms);
  out.misses_max = wire.misses_max;
  out.resume = milliseconds(wire.resume_ms);
  return out;
}

}  // namespace

// ------------------------------------------------------------------------------------------------ the host

struct Host::Impl {
  std::shared_ptr<Shared> shared = std::make_shared<Shared>();
  caf::actor link, worker, watch;
  std::unique_ptr<http::Server> metrics;
  std::string endpoint;
  int listening_port = 0;
};

Result<std::unique_ptr<Host>> Host::start(Runtime& runtime, const std::string& role, const WireConfig& wire,
                                          std::unique_ptr<Core> core) {
  std::unique_ptr<Host> host(new Host);
  host->impl_ = std::make_unique<Impl>();
  auto& h = *host->impl_;
  auto& s = *h.shared;
  s.role = role;
  s.instance = (wire.name.empty() ? role : wire.name) + "-" + random_hex(4);
  s.waiting_max = wire.queue_messages_max;
  s.step_limit = milliseconds(wire.step_limit_ms);
  s.host_metrics = std::make_unique<HostMetrics>(s.metrics, role, core->is_heavy());
  core->add_metrics(s.metrics);
  PARLANDO_DO(core->listen());
  h.listening_port = core->listening_port();

  auto setup = std::make_shared<LinkSetup>();
  setup->shared = h.shared;
  setup->mesh = std::make_unique<Mesh>(mesh_options(wire, s));
  PARLANDO_TRY(auto sockets, socket_options(wire, s.clock.now()));
  PARLANDO_TRY(setup->sockets,
               transport::Sockets::open(runtime.context, std::move(sockets), *setup->mesh, s.clock.now()));
  h.endpoint = setup->sockets->endpoint();
  auto& system = runtime.impl->system;
  if (core->is_heavy()) {
    h.worker =
        system.spawn<caf::detached>(worker, std::make_shared<WorkerSetup>(WorkerSetup{std::move(core), h.shared}));
    auto remote = std::make_unique<RemoteCore>(h.worker, h.shared);
    setup->remote = remote.get();
    setup->core = std::move(remote);
  } else {
    s.worker_busy = false;
    setup->core = std::make_unique<LocalCore>(std::move(core), h.shared);
  }
  h.link = system.spawn<LinkActor, caf::detached>(std::move(setup));
  h.watch = system.spawn(watch, h.shared, milliseconds(wire.watchdog_ms), h.link, h.worker);
  if (!wire.metrics.empty()) {
    PARLANDO_TRY(h.metrics,
                 http::Server::start(wire.metrics,
                                     [shared = h.shared](const http::Request& r) { return answer_health(*shared, r); },
                                     {}, {.connections_max = 16}));
    h.metrics->run_thread();
  }
  telemetry::log(telemetry::Level::info, "{} starts instance={} at={}", role, s.instance, h.endpoint);
  return host;
}

Host::~Host() {
  if (!impl_) return;
  impl_->metrics.reset();
  const auto end = [](caf::actor& actor, auto&& message) {
    if (!actor) return;
    caf::scoped_actor self(actor->home_system());
    message();
    self->wait_for(actor);
    actor = nullptr;
  };
  end(impl_->watch, [&] { caf::anon_send_exit(impl_->watch, caf::exit_reason::user_shutdown); });
  end(impl_->link, [&] { caf::anon_send(impl_->link, Stop{}); });
  end(impl_->worker, [&] { caf::anon_send_exit(impl_->worker, caf::exit_reason::user_shutdown); });
}

bool Host::post(std::function<void(Core&, Time)> function) {
  auto& s = *impl_->shared;
  if (s.waiting >= s.waiting_max) return false;
  ++s.waiting;
  caf::anon_send(impl_->worker ? impl_->worker : impl_->link, Call{std::move(function)});
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
const std::string& Host::endpoint() const { return impl_->endpoint; }
int Host::listening_port() const { return impl_->listening_port; }
int Host::metrics_port() const { return impl_->metrics ? impl_->metrics->port() : 0; }
std::string Host::metrics_text() const { return impl_->shared->metrics.text(); }

}  // namespace parlando::service
