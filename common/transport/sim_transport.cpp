#include "common/transport/sim_transport.hpp"

#include <algorithm>

namespace parlando::transport {

class SimTransport final : public Transport {
 public:
  SimTransport(SimNetwork& network, std::string self) : network_(network), self_(std::move(self)) {}
  Result<void> send(const std::string& peer, protocol::Message message) override { return network_.send(self_, peer, std::move(message)); }

 private:
  SimNetwork& network_;
  std::string self_;
};

bool SimNetwork::linked(const Node& a, const Node& b) const { return std::find(a.callees.begin(), a.callees.end(), b.self.role) != a.callees.end(); }

std::unique_ptr<Transport> SimNetwork::join(Peer self, std::vector<std::string> callees, Handlers handlers) {
  const auto name = self.instance;
  auto& fresh = nodes_[name] = {std::move(self), std::move(callees), std::move(handlers)};
  auto tell = [](const Node& to, Peer about, bool caller) {
    about.caller = caller;
    to.handlers.peer(about, true);
  };
  for (auto& [other_name, other] : nodes_) {
    if (other_name == name) continue;
    if (linked(fresh, other))
      tell(fresh, other.self, false), tell(other, fresh.self, true);
    else if (linked(other, fresh))
      tell(fresh, other.self, true), tell(other, fresh.self, false);
  }
  return std::make_unique<SimTransport>(*this, name);
}

void SimNetwork::kill(const std::string& instance) {
  const auto found = nodes_.find(instance);
  if (found == nodes_.end()) return;
  const auto dead = found->second;
  nodes_.erase(found);
  std::erase_if(flights_, [&](const auto& f) { return f.second.from == instance || f.second.to == instance; });
  for (auto& [name, node] : nodes_)
    if (linked(node, dead) || linked(dead, node)) node.handlers.peer(dead.self, false);
}

Result<void> SimNetwork::send(const std::string& from, const std::string& to, protocol::Message message) {
  if (!nodes_.contains(from) || !nodes_.contains(to)) return fail(Errc::unavailable, "'{}' is not connected to '{}'", from, to);
  PARLANDO_TRY(const auto frames, protocol::encode(std::move(message)));
  std::uniform_real_distribution<double> chance(0, 1);
  const int copies = chance(random_) < faults_.loss ? 0 : chance(random_) < faults_.duplication ? 2 : 1;
  lost_ += copies == 0;
  for (int n = 0; n < copies; ++n) {
    const auto delay = std::uniform_int_distribution<std::int64_t>(faults_.delay_min.count(), faults_.delay_max.count())(random_);
    flights_.emplace(std::pair{clock_.now() + milliseconds(delay), order_++}, Flight{from, to, frames});
  }
  return {};
}

void SimNetwork::advance(milliseconds by) {
  const auto until = clock_.now() + by;
  while (!flights_.empty() && flights_.begin()->first.first <= until) {
    const auto at = flights_.begin()->first.first;
    if (at > clock_.now()) clock_.advance(std::chrono::ceil<milliseconds>(at - clock_.now()));
    auto flight = std::move(flights_.begin()->second);
    flights_.erase(flights_.begin());
    const auto to = nodes_.find(flight.to);
    if (to == nodes_.end()) continue;
    const auto body = std::as_bytes(std::span(flight.frames.body));
    const std::span<const std::byte> frames[] = {flight.frames.envelope, body, flight.frames.payload};
    if (auto message = protocol::decode(frames)) {
      ++delivered_;
      to->second.handlers.message(flight.from, *std::move(message));
    }
  }
  if (clock_.now() < until) clock_.advance(std::chrono::ceil<milliseconds>(until - clock_.now()));
}

}  // namespace parlando::transport
