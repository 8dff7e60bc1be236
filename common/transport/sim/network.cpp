#include "common/transport/sim/network.hpp"

#include <algorithm>

#include "common/base/assert.hpp"

namespace parlando::transport::sim {
using protocol::Bytes;

namespace {
// A carrier wakes at this grain: what is due at once is done in a turn of its own, and a mesh that is always due would
// be seen in `turns`.
constexpr std::chrono::microseconds kGrain{50};

Bytes bytes_of(std::span<const std::byte> from) { return {from.begin(), from.end()}; }
}  // namespace

Network::Network(std::uint64_t seed, NetworkOptions options) : options_(options), random_(seed) {
  connections_.emplace_back();  // number 0 is none
  connections_.front().open = false;
}

// ------------------------------------------------------------------------------------------------ nodes

std::size_t Network::index(const std::string& name) const {
  const auto found = names_.find(name);
  PARLANDO_ASSERT(found != names_.end(), "tests name nodes that they have added");
  return found->second;
}
const Network::Node& Network::node(const std::string& name) const { return nodes_[index(name)]; }

void Network::add(const std::string& name, Mesh& mesh, Turn turn) {
  const auto found = names_.find(name);
  PARLANDO_ASSERT(found == names_.end() || !nodes_[found->second].alive, "a name belongs to one living node");
  const auto at = nodes_.size();
  auto& n = nodes_.emplace_back();
  n.name = name;
  n.mesh = &mesh;
  n.turn = std::move(turn);
  n.alive = true;
  names_[name] = at;
  wake_at(at, now_);
}

void Network::listen(const std::string& name, const std::string& endpoint) { listeners_[endpoint] = index(name); }

void Network::connect(const std::string& name, const std::string& role, const std::string& endpoint) {
  const auto caller = index(name);
  const auto at = calls_.size();
  calls_.push_back({caller, role, endpoint, ++route_});
  call_routes_[route_] = at;
  nodes_[caller].mesh->connected(route_, role, now_);
  dial(at);
  wake_at(caller, now_);
}

void Network::disconnect(const std::string& name, const std::string& endpoint) {
  const auto caller = index(name);
  for (auto& call : calls_) {
    if (call.node != caller || call.endpoint != endpoint || !call.wanted) continue;
    call.wanted = false;
    call_routes_.erase(call.route);
    nodes_[caller].mesh->disconnected(call.route);
    close(call.connection);
  }
  wake_at(caller, now_);
}

void Network::kill(const std::string& name) {
  const auto at = index(name);
  auto& n = nodes_[at];
  n.alive = n.stalled = false;
  n.mesh = nullptr;
  n.turn = nullptr;
  std::erase_if(listeners_, [at](const auto& l) { return l.second == at; });
  for (auto& call : calls_) {
    if (call.node != at || !call.wanted) continue;
    call.wanted = false;
    call_routes_.erase(call.route);
  }
  for (std::size_t c = 1; c < connections_.size(); ++c) {
    const bool calls = calls_[connections_[c].call].node == at;
    if (!connections_[c].open || (connections_[c].callee != at && !calls)) continue;
    if (calls) dead_routes_.insert(connections_[c].far);
    close(c);
  }
}

void Network::stall(const std::string& name) { nodes_[index(name)].stalled = true; }

void Network::wake(const std::string& name) {
  const auto at = index(name);
  nodes_[at].stalled = false;
  wake_at(at, now_);
}

void Network::occupy(const std::string& name, Time until) {
  const auto at = index(name);
  nodes_[at].busy_until = std::max(nodes_[at].busy_until, until);
  wake_at(at, nodes_[at].busy_until);
}

void Network::poke(const std::string& name) { wake_at(index(name), now_); }

// ------------------------------------------------------------------------------------------------ faults

void Network::cut(const std::string& a, const std::string& b) {
  const auto one = index(a);
  const auto other = index(b);
  for (std::size_t c = 1; c < connections_.size(); ++c) {
    if (!connections_[c].open) continue;
    const auto callee = connections_[c].callee;
    const auto caller = calls_[connections_[c].call].node;
    if ((callee == one && caller == other) || (callee == other && caller == one)) close(c);
  }
}

void Network::partition(const std::string& from, const std::string& to, milliseconds duration) {
  auto& until = partitions_[{index(from), index(to)}];
  until = std::max(until, now_ + duration);
}

Time Network::blocked_until(std::size_t from, std::size_t to) const {
  const auto found = partitions_.find({from, to});
  return found == partitions_.end() ? Time{} : found->second;
}

// ------------------------------------------------------------------------------------------------ connections

std::size_t Network::sender(const Connection& c, bool to_caller) const {
  return to_caller ? c.callee : calls_[c.call].node;
}
std::size_t Network::receiver(const Connection& c, bool to_caller) const {
  return to_caller ? calls_[c.call].node : c.callee;
}

void Network::dial(std::size_t at) {
  auto& call = calls_[at];
  if (!call.wanted || call.connection != 0) return;
  const auto listener = listeners_.find(call.endpoint);
  const bool can = listener != listeners_.end() && blocked_until(call.node, listener->second) <= now_ &&
                   blocked_until(listener->second, call.node) <= now_;
  if (!can) return schedule(now_ + options_.redial, Kind::dial, at);
  call.connection = connections_.size();
  auto& made = connections_.emplace_back();
  made.call = at;
  made.callee = listener->second;
  made.near = call.route;
  made.far = ++route_;
  routes_[made.near] = {call.connection, false};
  routes_[made.far] = {call.connection, true};
  ++counters_.connections;
  nodes_[call.node].mesh->writable(call.route);
  wake_at(call.node, now_);
}

void Network::close(std::size_t at) {
  if (at == 0 || !connections_[at].open) return;
  auto& c = connections_[at];
  c.open = false;
  routes_.erase(c.near);
  routes_.erase(c.far);
  for (auto& pipe : c.pipes) {
    counters_.lost += pipe.parcels.size();
    pipe.parcels.clear();
  }
  auto& call = calls_[c.call];
  call.connection = 0;
  if (call.wanted) schedule(now_ + options_.redial, Kind::dial, c.call);
}

bool Network::out(std::size_t from, Route route, const protocol::Frames& frames) {
  const auto found = routes_.find(route);
  if (found == routes_.end()) {
    if (dead_routes_.contains(route)) nodes_[from].unreachable.push_back(route);
    return false;
  }
  const auto [at, to_caller] = found->second;
  auto& c = connections_[at];
  if (sender(c, to_caller) != from) return false;
  auto& pipe = c.pipes[to_caller];
  if (pipe.parcels.size() >= options_.high_water) {
    pipe.full = true;
    ++counters_.full;
    return false;
  }
  const auto spread = static_cast<std::uint64_t>((options_.delay_max - options_.delay_min).count()) * 1000 + 1;
  const auto delay = options_.delay_min + std::chrono::microseconds(random_() % spread);
  pipe.last = std::max(pipe.last, now_ + std::chrono::duration_cast<Time::duration>(delay));
  Parcel parcel{pipe.last,
                {bytes_of(frames.envelope), bytes_of(std::as_bytes(std::span(frames.body))), frames.payload}};
  if (options_.corrupted > 0 && static_cast<double>(random_() % 1000000) < options_.corrupted * 1e6) {
    ++counters_.corrupted;
    auto& frame = parcel.frames[parcel.frames[2].empty() ? 0 : 2];
    frame[random_() % frame.size()] ^= std::byte(1u << random_() % 8);
  }
  pipe.parcels.push_back(std::move(parcel));
  schedule(pipe.last, Kind::arrival, at, to_caller);
  return true;
}

/// Something has arrived: the receiver reads it in its next turn.
void Network::arrive(std::size_t at, bool to_caller) {
  auto& c = connections_[at];
  if (!c.open) return;
  const auto to = receiver(c, to_caller);
  if (const auto until = blocked_until(sender(c, to_caller), to); until > now_)
    return schedule(until, Kind::arrival, at, to_caller);
  const std::pair ready{at, to_caller};
  auto& readable = nodes_[to].readable;
  if (std::find(readable.begin(), readable.end(), ready) == readable.end()) readable.push_back(ready);
  wake_at(to, now_);
}

// ------------------------------------------------------------------------------------------------ turns

void Network::turn(std::size_t at) {
  auto& n = nodes_[at];
  if (!n.alive || n.stalled) return;
  if (now_ < n.busy_until) return wake_at(at, n.busy_until);
  ++n.turns;
  ++counters_.turns;
  for (const auto& [id, to_caller] : std::exchange(n.readable, {})) {
    auto& c = connections_[id];
    auto& pipe = c.pipes[to_caller];
    while (c.open && !pipe.parcels.empty() && pipe.parcels.front().arrives <= now_) {
      const auto parcel = std::move(pipe.parcels.front());
      pipe.parcels.pop_front();
      const auto route = to_caller ? c.near : c.far;
      add_to_hash(static_cast<std::uint64_t>(now_.time_since_epoch().count()));
      add_to_hash(route);
      for (const auto& frame : parcel.frames)
        for (const auto b : frame) hash_ = (hash_ ^ std::to_integer<std::uint64_t>(b)) * 0x100000001b3ull;
      ++counters_.frames;
      const std::span<const std::byte> frames[] = {parcel.frames[0], parcel.frames[1], parcel.frames[2]};
      n.mesh->receive(route, frames, {}, now_);
    }
    if (c.open && pipe.full && pipe.parcels.size() <= options_.high_water / 2) {
      pipe.full = false;
      const auto from = sender(c, to_caller);
      nodes_[from].mesh->writable(to_caller ? c.far : c.near);
      wake_at(from, now_);
    }
  }
  n.mesh->tick(now_);
  const auto wanted = n.turn(now_);
  const auto say = [this, at](Route route, const protocol::Frames& frames) { return out(at, route, frames); };
  n.mesh->flush(now_, say);
  for (const auto route : std::exchange(n.unreachable, {})) n.mesh->unreachable(route, now_);
  const auto again = n.mesh->take_reconnects();
  for (const auto old : again) {
    const auto found = call_routes_.find(old);
    if (found == call_routes_.end()) continue;
    const auto id = found->second;
    auto& call = calls_[id];
    close(call.connection);
    call_routes_.erase(found);
    call.route = ++route_;
    call_routes_[call.route] = id;
    n.mesh->reconnected(old, call.route, now_);
    dial(id);
  }
  if (!again.empty()) n.mesh->flush(now_, say);
  wake_at(at, std::max(std::min(n.mesh->due(now_), wanted), now_ + kGrain));
}

void Network::schedule(Time at, Kind kind, std::size_t id, bool to_caller) {
  events_.push({at, ++order_, kind, id, to_caller});
}

void Network::wake_at(std::size_t at, Time when) {
  auto& n = nodes_[at];
  if (when >= n.wakes || when == Time::max()) return;
  n.wakes = when;
  schedule(when, Kind::wake, at);
}

/// One event. @return false when there is none up to the end
bool Network::step(Time end) {
  if (events_.empty() || events_.top().at > end) return false;
  const auto event = events_.top();
  events_.pop();
  now_ = std::max(now_, event.at);
  switch (event.kind) {
    case Kind::arrival:
      arrive(event.id, event.to_caller);
      break;
    case Kind::dial:
      dial(event.id);
      break;
    case Kind::wake:
      if (nodes_[event.id].wakes == event.at) {  // else an earlier turn has taken its place
        nodes_[event.id].wakes = Time::max();
        turn(event.id);
      }
      break;
  }
  return true;
}

void Network::run_to(Time end) {
  while (step(end)) {
  }
  now_ = end;
}

bool Network::run_until(const std::function<bool()>& done, milliseconds limit) {
  const auto end = now_ + limit;
  if (done()) return true;
  while (step(end))
    if (done()) return true;
  now_ = end;
  return done();
}

void Network::add_to_hash(std::uint64_t value) {
  for (int i = 0; i < 8; ++i) hash_ = (hash_ ^ (value >> (8 * i) & 0xff)) * 0x100000001b3ull;
}

}  // namespace parlando::transport::sim
