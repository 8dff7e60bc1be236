#pragma once
/// Service cores over the seeded network, each run by `service::Runner` in the loop of a host, on a clock turned by
/// hand. A node keeps its name when it is restarted; its process gets a new instance: "vad-1", then "vad-1~2", ….
///
///   World w(seed);
///   auto& vad = w.add<FakeVad>("vad-1", "vad", "sim://vad");
///   auto& core = w.add<ControllerCore>("controller-1", "controller", "sim://controller", {{"vad", {"sim://vad"}}},
///   config); BOOST_TEST(w.run_until([&] { return core.load() == 1; }, 2000ms)); w.kill("vad-1");
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/service/runner.hpp"
#include "common/transport/sim/network.hpp"

namespace parlando {

/// What goes wrong by itself; everything from the seed. Nothing by default.
struct Faults {
  transport::sim::NetworkOptions network;
  double cuts_per_s = 0, partitions_per_s = 0, stalls_per_s = 0, restarts_per_s = 0;
  milliseconds stall_min{50}, stall_max{1000}, partition_max{500}, restart_after{200};
  std::vector<std::string> spared;  ///< nodes that are neither stalled nor restarted
};

/// How a node works.
struct NodeOptions {
  std::size_t messages_per_turn = 1000;
  std::chrono::microseconds per_message{0},
      per_step{0};  ///< simulated time of a message, of a unit of work that did something
  milliseconds step_limit{2000};
  transport::MeshOptions mesh;  ///< instance, role and seed are filled in
};

class World {
 public:
  using Endpoints = std::map<std::string, std::vector<std::string>>;  ///< role -> endpoints that are called
  using Make = std::function<std::unique_ptr<service::Core>()>;

  explicit World(std::uint64_t seed, Faults faults = {});
  ~World();

  /// A node that runs a core of type C, made of `args` (copied; std::ref for what it shares with the test), now and at
  /// every restart.
  template <class C, class... Args>
  C& add(const std::string& name, const std::string& role, const std::string& endpoint, Endpoints calls = {},
         Args... args) {
    return static_cast<C&>(
        add_core(name, role, endpoint, std::move(calls), [args...] { return std::make_unique<C>(args...); }));
  }
  /// @param endpoint  empty: nobody calls it
  service::Core& add_core(const std::string& name, const std::string& role, const std::string& endpoint,
                          Endpoints calls, Make make);
  /// Of nodes added from now on.
  NodeOptions options;

  // ---- nodes
  template <class C>
  C& get(const std::string& name) {
    return static_cast<C&>(core(name));
  }
  service::Core& core(const std::string& name);
  transport::Mesh& mesh(const std::string& name);
  const service::RunnerCounters& counters(const std::string& name);
  /// Of its present process.
  std::string instance(const std::string& name) const;
  bool is_alive(const std::string& name) const;
  /// Does something with a core from outside, as its front end would; what it sends leaves in the next step.
  void call(const std::string& name, const std::function<void(service::Core&, Time)>& function);
  template <class C, class F>
  void call(const std::string& name, F&& function) {
    call(name, std::function<void(service::Core&, Time)>(
                   [&](service::Core& c, Time now) { function(static_cast<C&>(c), now); }));
  }

  // ---- what happens to them
  void kill(const std::string& name);
  /// Another process at the same endpoint, at once; kills the present one first if it lives.
  service::Core& restart(const std::string& name);
  void stall(const std::string& name, milliseconds duration);
  /// The core's thread stands still at its next message while the link lives: heavy cores look hung, light ones stall.
  void hang(const std::string& name, milliseconds duration);
  void drain(const std::string& name);
  bool is_drained(const std::string& name) const;
  void cut(const std::string& a, const std::string& b);
  void partition(const std::string& from, const std::string& to, milliseconds duration);
  /// Called before each message of the node's core, in its place: may throw; false: the core does not see the message.
  using Hook = std::function<bool(const std::string& peer, const protocol::Message& message)>;
  void before_message(const std::string& name, Hook hook);
  /// No more random faults; those under way end as planned.
  void stop_faults() { faulty_ = false; }

  // ---- time
  Time now() const { return network_.now(); }
  void run(milliseconds duration);
  /// @return whether `done` became true in time; it is asked after every millisecond
  bool run_until(const std::function<bool()>& done, milliseconds limit);
  /// The same seed and calls give the same value.
  std::uint64_t hash() const { return network_.hash(); }
  transport::sim::Network& network() { return network_; }
  /// Open streams of all living nodes.
  std::size_t streams() const;

 private:
  struct Node;
  struct Hooked;
  Node& node(const std::string& name) const;
  void start(Node& node);
  Time turn(Node& node, Time now);
  void break_something();
  void settle();

  Faults faults_;
  bool faulty_ = true;
  std::mt19937_64 random_;
  transport::sim::Network network_;
  std::map<std::string, std::unique_ptr<Node>> nodes_;
  std::vector<std::pair<Time, std::function<void()>>> later_;
};

}  // namespace parlando
