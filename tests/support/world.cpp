#include "tests/support/world.hpp"

#include <algorithm>

#include "common/base/assert.hpp"

namespace parlando {
using service::Core;
using transport::Mesh;

/// Lets a hook stand in front of a core; everything else goes to the core. What the core sends is taken from it, not
/// from here.
struct World::Hooked final : Core {
  Core& core;
  Hook hook;
  explicit Hooked(Core& of) : core(of) {}
  void on_message(const std::string& peer, protocol::Message message, Time now) override {
    if (hook && !hook(peer, message)) return;
    core.on_message(peer, std::move(message), now);
  }
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time now) override {
    core.on_peer(peer, state, now);
  }
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) override {
    core.on_refused(peer, head, error, now);
  }
  void on_tick(Time now) override { core.on_tick(now); }
  bool work(Time now) override { return core.work(now); }
};

struct World::Node {
  std::string name, role, endpoint, instance;
  Endpoints calls;
  Make make;
  NodeOptions options;
  int process = 0;
  Hook hook;
  // Of the present process; core first, so that it goes last.
  std::unique_ptr<Core> core;
  std::unique_ptr<Hooked> hooked;
  std::unique_ptr<service::Runner> runner;
  std::unique_ptr<Mesh> mesh;
  std::deque<Mesh::Event> inbox;  ///< between link and core
  Time busy_until{}, ticks_at{}, ticked{}, hangs_until{};
  bool more = false, draining = false, drained = false;
  std::uint64_t progress = 0;
};

World::World(std::uint64_t seed, Faults faults)
    : faults_(std::move(faults)), random_(seed * 0x9e3779b97f4a7c15ull + 1), network_(seed, faults_.network) {}
World::~World() = default;

World::Node& World::node(const std::string& name) const {
  const auto found = nodes_.find(name);
  if (found != nodes_.end()) return *found->second;
  const auto by_instance =
      std::find_if(nodes_.begin(), nodes_.end(), [&](const auto& n) { return n.second->instance == name; });
  PARLANDO_ASSERT(by_instance != nodes_.end(), "tests name nodes that they have added");
  return *by_instance->second;
}

Core& World::add_core(const std::string& name, const std::string& role, const std::string& endpoint, Endpoints calls,
                      Make make) {
  PARLANDO_ASSERT(!nodes_.contains(name), "names are used once; restart() begins another process");
  auto& n = *(nodes_[name] = std::make_unique<Node>());
  n.name = name;
  n.role = role;
  n.endpoint = endpoint;
  n.calls = std::move(calls);
  n.make = std::move(make);
  n.options = options;
  start(n);
  return *n.core;
}

void World::start(Node& n) {
  ++n.process;
  n.instance = n.process == 1 ? n.name : fmt::format("{}~{}", n.name, n.process);
  auto mesh = n.options.mesh;
  mesh.instance = n.instance;
  mesh.role = n.role;
  mesh.seed = random_() | 1;
  n.core = n.make();
  n.hooked = std::make_unique<Hooked>(*n.core);
  n.hooked->hook = n.hook;
  n.runner = std::make_unique<service::Runner>(*n.hooked);
  n.mesh = std::make_unique<Mesh>(std::move(mesh));
  n.inbox.clear();
  n.busy_until = n.ticks_at = n.hangs_until = now();
  n.more = n.draining = n.drained = false;
  network_.add(n.name, *n.mesh, [this, &n](Time now) { return turn(n, now); });
  if (!n.endpoint.empty()) network_.listen(n.name, n.endpoint);
  for (const auto& [role, endpoints] : n.calls)
    for (const auto& endpoint : endpoints) network_.connect(n.name, role, endpoint);
}

/// The loop of a host, once round; its network part (receive, tick, flush) is `Network::turn`.
Time World::turn(Node& n, Time now) {
  for (auto& event : n.mesh->take()) n.inbox.push_back(std::move(event));
  if (now >= n.busy_until) {
    auto cost = std::chrono::microseconds(0);
    for (std::size_t handled = 0; !n.inbox.empty() && handled < n.options.messages_per_turn; ++handled) {
      if (n.hangs_until > now) break;
      auto event = std::move(n.inbox.front());
      n.inbox.pop_front();
      if (event.peer) n.runner->peer(event.peer->peer, event.peer->state, now);
      if (event.delivery) {
        const auto head = event.delivery->message.head;
        if (n.runner->deliver(event.delivery->peer, std::move(event.delivery->message), now))
          n.mesh->handled(event.delivery->peer, head);
        for (const auto& [peer, place] : n.runner->take_handled()) n.mesh->handled(peer, place);
        cost += n.options.per_message;
      }
      ++n.progress;
    }
    if (n.hangs_until <= now) {
      if (now >= n.ticks_at) {
        n.runner->tick(now);
        n.ticked = now;
        if (n.draining) n.drained = n.core->drain();
      }
      n.more = n.runner->work(now);
      if (n.more) {
        cost += n.options.per_step;
        ++n.progress;
      }
      n.ticks_at = n.ticked + n.core->tick_interval();
    } else {
      n.busy_until = n.hangs_until;
    }
    n.busy_until = std::max(n.busy_until, now + cost);
    if (n.busy_until > now && !n.core->is_heavy()) network_.occupy(n.name, n.busy_until);
  }
  // Refusals may make the core say something else, which may be refused in turn: an end is owed to the test, not to the
  // core.
  for (int round = 0; round < 8; ++round) {
    auto out = n.core->take();
    for (auto& o : n.runner->take()) out.push_back(std::move(o));
    if (out.empty()) break;
    for (auto& o : out) {
      const auto head = o.message.head;
      const auto sent = n.mesh->send(o.peer, std::move(o.message));
      if (!sent && sent.error().code != Errc::cancelled) n.runner->refused(o.peer, head, sent.error(), now);
    }
  }
  transport::Status status;
  status.ready = n.core->why_not_ready().empty();
  status.draining = n.draining;
  status.busy = n.more || !n.inbox.empty() || n.busy_until > now;
  status.slots = n.core->slots();
  status.load = n.core->load();
  status.progress = n.progress;
  status.step_limit = n.options.step_limit;
  n.mesh->set_status(status);
  if (n.more || !n.inbox.empty()) return std::max(now, n.busy_until);
  return std::max(n.ticks_at, n.busy_until);
}

// ------------------------------------------------------------------------------------------------ nodes

Core& World::core(const std::string& name) {
  auto& n = node(name);
  PARLANDO_ASSERT(n.core != nullptr, "a killed node has no core");
  return *n.core;
}
Mesh& World::mesh(const std::string& name) {
  auto& n = node(name);
  PARLANDO_ASSERT(n.mesh != nullptr, "a killed node has no mesh");
  return *n.mesh;
}
const service::RunnerCounters& World::counters(const std::string& name) { return node(name).runner->counters(); }
std::string World::instance(const std::string& name) const { return node(name).instance; }
bool World::is_alive(const std::string& name) const { return node(name).core != nullptr; }
bool World::is_drained(const std::string& name) const { return node(name).drained; }

void World::call(const std::string& name, const std::function<void(Core&, Time)>& function) {
  auto& n = node(name);
  function(core(name), now());
  network_.poke(n.name);
}

void World::kill(const std::string& name) {
  auto& n = node(name);
  if (!n.core) return;
  network_.kill(n.name);
  n.mesh.reset();
  n.runner.reset();
  n.hooked.reset();
  n.core.reset();
  n.inbox.clear();
}

Core& World::restart(const std::string& name) {
  auto& n = node(name);
  kill(name);
  start(n);
  return *n.core;
}

void World::stall(const std::string& name, milliseconds duration) {
  auto& n = node(name);
  network_.stall(n.name);
  const auto process = n.process;
  later_.emplace_back(now() + duration, [this, &n, process] {
    if (n.core && n.process == process) network_.wake(n.name);
  });
}

void World::hang(const std::string& name, milliseconds duration) {
  auto& n = node(name);
  n.hangs_until = std::max(n.hangs_until, now() + duration);
}

void World::drain(const std::string& name) {
  auto& n = node(name);
  n.draining = true;
  n.ticks_at = now();
  network_.poke(n.name);
}

void World::cut(const std::string& a, const std::string& b) { network_.cut(node(a).name, node(b).name); }
void World::partition(const std::string& from, const std::string& to, milliseconds duration) {
  network_.partition(node(from).name, node(to).name, duration);
}

void World::before_message(const std::string& name, Hook hook) {
  auto& n = node(name);
  n.hook = hook;
  if (n.hooked) n.hooked->hook = std::move(hook);
}

std::size_t World::streams() const {
  std::size_t out = 0;
  for (const auto& [name, n] : nodes_)
    if (n->mesh) out += n->mesh->streams();
  return out;
}

// ------------------------------------------------------------------------------------------------ time

/// Once a millisecond: what was planned, and what goes wrong by chance.
void World::settle() {
  for (std::size_t i = 0; i < later_.size();) {
    if (later_[i].first > now()) {
      ++i;
      continue;
    }
    const auto what = std::move(later_[i].second);
    later_.erase(later_.begin() + static_cast<std::ptrdiff_t>(i));
    what();
    i = 0;
  }
  if (faulty_) break_something();
}

void World::break_something() {
  const auto happens = [this](double per_s) {
    return per_s > 0 && static_cast<double>(random_() % 1000000) < per_s * 1000;
  };
  const auto any = [this]() -> Node& {
    return *std::next(nodes_.begin(), static_cast<std::ptrdiff_t>(random_() % nodes_.size()))->second;
  };
  const auto spared = [this](const Node& n) {
    return std::find(faults_.spared.begin(), faults_.spared.end(), n.name) != faults_.spared.end();
  };
  const auto within = [this](milliseconds low, milliseconds high) {
    return low +
           milliseconds(static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>((high - low).count() + 1)));
  };
  if (nodes_.empty()) return;
  if (happens(faults_.cuts_per_s)) network_.cut(any().name, any().name);
  if (happens(faults_.partitions_per_s)) {
    auto& from = any();
    auto& to = any();
    network_.partition(from.name, to.name, within(milliseconds(1), faults_.partition_max));
  }
  if (happens(faults_.stalls_per_s)) {
    auto& n = any();
    const auto how_long = within(faults_.stall_min, faults_.stall_max);
    if (n.core && !spared(n) && !network_.is_stalled(n.name)) stall(n.name, how_long);
  }
  if (happens(faults_.restarts_per_s)) {
    auto& n = any();
    if (n.core && !spared(n)) {
      kill(n.name);
      later_.emplace_back(now() + faults_.restart_after, [this, &n] {
        if (!n.core) start(n);
      });
    }
  }
}

void World::run(milliseconds duration) {
  for (milliseconds passed{0}; passed < duration; ++passed) {
    network_.run(milliseconds(1));
    settle();
  }
}

bool World::run_until(const std::function<bool()>& done, milliseconds limit) {
  for (milliseconds passed{0}; !done(); ++passed) {
    if (passed >= limit) return false;
    network_.run(milliseconds(1));
    settle();
  }
  return true;
}

}  // namespace parlando
