#pragma once
/// Carries meshes over a seeded network on a clock turned by hand: connections keep order and lose what was under way
/// when they are cut, as ZMTP over TCP does; a partition holds frames back until it heals; a stopped process reads
/// nothing while frames pile up. Frames are really encoded and decoded. The same seed and the same calls give the same
/// `hash`. One thread.
#include <deque>
#include <functional>
#include <map>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/transport/mesh.hpp"

namespace parlando::transport::sim {

struct NetworkOptions {
  milliseconds delay_min{0}, delay_max{2};  ///< of each frame; order within a connection is kept
  std::size_t high_water = 1000;            ///< frames in one direction of a connection; above it `out` says false
  double corrupted = 0;                     ///< share of the frames that arrive with a flipped bit
  milliseconds redial{20};                  ///< between two attempts to make a connection
};

struct NetworkCounters {
  std::uint64_t frames = 0, lost = 0, corrupted = 0, full = 0, connections = 0, turns = 0;
};

class Network {
 public:
  /// What a node does after its mesh was given frames or the time: take events, send. @return when it wants another
  /// turn without a cause
  using Turn = std::function<Time(Time now)>;

  explicit Network(std::uint64_t seed, NetworkOptions options = {});

  // ---- nodes, by name
  /// The mesh must live until `kill`. A name that was killed may be added again.
  void add(const std::string& name, Mesh& mesh, Turn turn);
  void listen(const std::string& name, const std::string& endpoint);
  void connect(const std::string& name, const std::string& role, const std::string& endpoint);
  void disconnect(const std::string& name, const std::string& endpoint);
  /// The process is gone: its connections are cut, its endpoints do not answer.
  void kill(const std::string& name);
  /// SIGSTOP and SIGCONT: nothing is read, no time passes for it; what arrives waits.
  void stall(const std::string& name);
  void wake(const std::string& name);
  bool is_stalled(const std::string& name) const { return node(name).stalled; }
  /// The node's thread computes until then and reads nothing meanwhile.
  void occupy(const std::string& name, Time until);
  /// A turn now (in the next step of `run`), for instance because a test gave it something to send.
  void poke(const std::string& name);

  // ---- faults
  /// All connections between two nodes are cut; what was under way is lost; callers dial again.
  void cut(const std::string& a, const std::string& b);
  /// Nothing passes from one to the other for a while (the other direction does); it arrives afterwards unless the
  /// connection was given up.
  void partition(const std::string& from, const std::string& to, milliseconds duration);
  void set_corrupted(double share) { options_.corrupted = share; }

  // ---- time
  Time now() const { return now_; }
  void run(milliseconds duration) { run_to(now_ + duration); }
  /// @return whether `done` became true before the limit; it is asked after every step
  bool run_until(const std::function<bool()>& done, milliseconds limit);

  /// FNV-1a over (time, route, bytes) of every frame that was received.
  std::uint64_t hash() const { return hash_; }
  const NetworkCounters& counters() const { return counters_; }
  /// Turns a node has had: an idle one has few.
  std::uint64_t turns(const std::string& name) const { return node(name).turns; }

 private:
  using Route = Mesh::Route;
  struct Parcel {
    Time arrives;
    std::array<protocol::Bytes, 3> frames;
  };
  struct Pipe {
    std::deque<Parcel> parcels;
    Time last{};        ///< arrival of the newest
    bool full = false;  ///< its sender was told so
  };
  struct Node {
    std::string name;
    Mesh* mesh = nullptr;
    Turn turn;
    bool alive = false, stalled = false;
    Time busy_until{}, wakes = Time::max();
    std::uint64_t turns = 0;
    std::vector<std::pair<std::size_t, bool>> readable;  ///< connection and direction with parcels that have arrived
    std::vector<Route> unreachable;                      ///< to dead callers, found out while sending
  };
  struct Call {
    std::size_t node;
    std::string role, endpoint;
    Route route;
    std::size_t connection = 0;  ///< 0: none
    bool wanted = true;
  };
  struct Connection {
    std::size_t call, callee;
    Route near, far;
    Pipe pipes[2];  ///< to the callee, to the caller
    bool open = true;
  };
  enum class Kind { arrival, wake, dial };
  struct Event {
    Time at;
    std::uint64_t order;
    Kind kind;
    std::size_t id;
    bool to_caller;
    bool operator>(const Event& other) const { return std::tie(at, order) > std::tie(other.at, other.order); }
  };

  const Node& node(const std::string& name) const;
  std::size_t index(const std::string& name) const;
  void schedule(Time at, Kind kind, std::size_t id, bool to_caller = false);
  void wake_at(std::size_t node, Time at);
  void run_to(Time end);
  bool step(Time end);
  void arrive(std::size_t connection, bool to_caller);
  void dial(std::size_t call);
  void close(std::size_t connection);
  void turn(std::size_t node);
  bool out(std::size_t node, Route route, const protocol::Frames& frames);
  std::size_t sender(const Connection& c, bool to_caller) const;
  std::size_t receiver(const Connection& c, bool to_caller) const;
  Time blocked_until(std::size_t from, std::size_t to) const;
  void add_to_hash(std::uint64_t value);

  NetworkOptions options_;
  std::mt19937_64 random_;
  Time now_{std::chrono::hours(1)};
  std::uint64_t order_ = 0, hash_ = 0xcbf29ce484222325ull;
  Route route_ = 0;
  std::deque<Node> nodes_;
  std::map<std::string, std::size_t> names_;
  std::deque<Call> calls_;
  std::deque<Connection> connections_;  ///< those that are closed keep their place and nothing else
  std::unordered_map<Route, std::pair<std::size_t, bool>>
      routes_;  ///< of open connections: connection, whether it leads to the caller
  std::map<Route, std::size_t> call_routes_;
  std::set<Route> dead_routes_;  ///< led to callers that were killed
  std::map<std::string, std::size_t> listeners_;
  std::map<std::pair<std::size_t, std::size_t>, Time> partitions_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  NetworkCounters counters_;
};

}  // namespace parlando::transport::sim
