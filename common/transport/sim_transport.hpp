#pragma once
/// A network in one object, from a seed: loss, delay, duplication, reordering, dead peers, on a clock turned by hand. Same interface and the
/// same frames as ZeroMQ: every message is encoded and decoded on its way.
#include <map>
#include <memory>
#include <random>

#include "common/base/clock.hpp"
#include "common/transport/transport.hpp"

namespace parlando::transport {

struct SimFaults {
  double loss = 0, duplication = 0;         ///< probabilities per message
  milliseconds delay_min{0}, delay_max{0};  ///< uniform; unequal delays reorder
};

class SimNetwork {
 public:
  SimNetwork(std::uint64_t seed, SimFaults faults) : random_(seed), faults_(faults) {}
  /// A transport for an instance; `callees` are the roles it connects to (every live instance of them, now and later).
  std::unique_ptr<Transport> join(Peer self, std::vector<std::string> callees, Handlers handlers);
  /// The instance vanishes: its messages under way are lost and its peers are told.
  void kill(const std::string& instance);
  /// Advances the time and delivers what is due, in order of arrival time.
  void advance(milliseconds by);
  const ManualClock& clock() const { return clock_; }
  std::uint64_t delivered() const { return delivered_; }
  std::uint64_t lost() const { return lost_; }

 private:
  friend class SimTransport;
  struct Node {
    Peer self;
    std::vector<std::string> callees;
    Handlers handlers;
  };
  struct Flight {
    std::string from, to;
    protocol::Frames frames;
  };
  Result<void> send(const std::string& from, const std::string& to, protocol::Message message);
  bool linked(const Node& a, const Node& b) const;
  std::mt19937_64 random_;
  SimFaults faults_;
  ManualClock clock_;
  std::map<std::string, Node> nodes_;
  std::multimap<std::pair<Time, std::uint64_t>, Flight> flights_;
  std::uint64_t order_ = 0, delivered_ = 0, lost_ = 0;
};

}  // namespace parlando::transport
