#pragma once
/// A controller among fakes without a network: every message takes one step, so that a fault can be put between any
/// two. Deaths are announced as they happen; `World` (tests/support/world.hpp) plays the same cores over real links
/// with seeded time.
#include <functional>

#include <boost/test/unit_test.hpp>

#include "common/service/runner.hpp"
#include "common/transport/owners.hpp"
#include "services/controller/controller_core.hpp"
#include "tests/services/controller/fakes.hpp"

namespace parlando::controller {
using namespace fakes;
using transport::PeerState;

inline constexpr SessionId kSession{7, 7};
inline const std::vector<std::string> kServiceRoles{"vad", "tokenizer", "llm-chat", "tts", "context"};

class Rig {
 public:
  static constexpr milliseconds kStep{20};
  explicit Rig(ControllerConfig config = {}) : config(std::move(config)) {}

  ControllerConfig config;
  std::shared_ptr<FakeStore> store = std::make_shared<FakeStore>();

  // ---- nodes
  Core& add(const std::string& name, const std::string& role) { return add_core(name, role, make(role)); }
  Core& add_core(const std::string& name, const std::string& role, std::unique_ptr<Core> core) {
    auto& node = nodes_[name];
    node.role = role;
    node.core = std::move(core);
    node.alive = true;
    for (auto& [other, n] : nodes_)
      if (other != name && n.alive) introduce(name, node, other, n);
    return *node.core;
  }
  /// One replica of every role, a controller, a gateway whose client has opened its session.
  void furnish(int replicas = 1) {
    for (const auto& role : kServiceRoles)
      for (int i = 1; i <= replicas; ++i) add(fmt::format("{}-{}", role, i), role);
    add("controller-1", "controller");
    add("gateway-1", "gateway");
    gateway().open("controller-1");
  }
  template <class T>
  T& get(const std::string& name) {
    return static_cast<T&>(*nodes_.at(name).core);
  }
  FakeGateway& gateway(const std::string& name = "gateway-1") { return get<FakeGateway>(name); }
  ControllerCore& controller(const std::string& name = "controller-1") { return get<ControllerCore>(name); }
  bool is_alive(const std::string& name) const { return nodes_.contains(name) && nodes_.at(name).alive; }

  void kill(const std::string& name) {
    auto& node = nodes_.at(name);
    node.alive = false;
    collect_errors(name);
    // What is on its way to it, or about to be, goes with its links: a successor of the same name gets none of it.
    std::erase_if(wire_, [&](const Packet& p) { return p.from == name || p.to == name; });
    for (auto& [other, n] : nodes_) {
      n.gather();
      std::erase_if(n.said, [&](const service::Out& o) { return o.peer == name; });
    }
    node.said.clear();
    for (auto& [other, n] : nodes_)
      if (n.alive && meets(node.role, n.role)) n.core->on_peer(peer(name, node.role, n.role), PeerState::down, now);
  }
  /// All its links are lost behind what is on its way; it lives. Others take it for gone until it is linked again.
  void unlink(const std::string& name) {
    for (int round = 0; round < 3; ++round) {
      auto all = std::exchange(wire_, {});
      for (auto& p : all) {
        if (p.from == name || p.to == name)
          deliver(std::move(p));
        else
          wire_.push_back(std::move(p));
      }
      for (auto& [other, n] : nodes_)
        if (n.alive && !n.suspended) leave(other, n);
    }
    unlinked_.insert(name);
    tell_of(name, PeerState::down);
  }
  void link(const std::string& name) {
    unlinked_.erase(name);
    tell_of(name, PeerState::up);
  }
  /// It stands still; what is sent to it waits.
  void suspend(const std::string& name) {
    nodes_.at(name).suspended = true;
    tell_of(name, PeerState::suspect);
  }
  void wake(const std::string& name) {
    auto& node = nodes_.at(name);
    node.suspended = false;
    auto held = std::exchange(node.held, {});
    wire_.insert(wire_.begin(), std::make_move_iterator(held.begin()), std::make_move_iterator(held.end()));
    tell_of(name, PeerState::up);
  }
  /// What its heartbeats say of it.
  void describe(const std::string& name, bool ready, bool draining, std::int64_t slots) {
    auto& node = nodes_.at(name);
    for (auto& [other, n] : nodes_) {
      if (!n.alive || !meets(node.role, n.role)) continue;
      auto p = peer(name, node.role, n.role);
      p.ready = ready;
      p.draining = draining;
      p.slots = slots;
      n.core->on_peer(p, PeerState::changed, now);
    }
  }

  // ---- time
  Time now{std::chrono::hours(1)};
  int steps = 0;
  void step() {
    now += kStep;
    ++steps;
    auto arrived = std::exchange(wire_, {});
    for (auto& p : arrived) deliver(std::move(p));
    for (auto& [name, n] : nodes_) {
      if (!n.alive || n.suspended) continue;
      n.core->on_tick(now);
      n.core->work(now);
    }
    for (auto& [name, n] : nodes_)
      if (n.alive && !n.suspended) leave(name, n);
  }
  void run(int count) {
    for (int i = 0; i < count; ++i) step();
  }
  bool run_until(const std::function<bool()>& done, int limit = 1000) {
    for (int i = 0; i < limit && !done(); ++i) step();
    return done();
  }
  /// Everything that any fake found strange, and any gateway wrong.
  std::vector<std::string> complaints() {
    for (auto& [name, n] : nodes_)
      if (n.alive) collect_errors(name);
    return complaints_;
  }
  std::size_t streams_at_services() {
    std::size_t out = 0;
    for (auto& [name, n] : nodes_)
      if (n.alive && n.role != "context" && n.role != "controller" && n.role != "gateway")
        out += static_cast<std::size_t>(n.core->load());
    return out;
  }

  /// Messages of this type to this node are not delivered any more.
  std::function<bool(const std::string& from, const std::string& to, const Message&)> swallow;
  std::set<std::string> may_be_wrong;  ///< what these say need not be a message
  /// What was sent to whom, envelopes only.
  std::vector<std::pair<std::string, Envelope>> sent;
  std::vector<Time> deadlines;

 private:
  struct Packet {
    std::string from, to;
    Message message;
  };
  struct Node {
    std::unique_ptr<Core> core;
    std::string role;
    bool alive = false, suspended = false;
    std::vector<Packet> held;
    std::vector<service::Out> said;  ///< and not on its way yet
    transport::Owners owners;
    void gather() {
      for (auto& o : core->take()) said.push_back(std::move(o));
    }
  };

  std::unique_ptr<Core> make(const std::string& role) {
    if (role == "vad") return std::make_unique<FakeVad>();
    if (role == "tokenizer") return std::make_unique<FakeTokenizer>();
    if (role == "llm-chat") return std::make_unique<FakeChat>();
    if (role == "tts") return std::make_unique<FakeTts>();
    if (role == "context") return std::make_unique<FakeContext>(store);
    if (role == "gateway") return std::make_unique<FakeGateway>(kSession);
    return std::make_unique<ControllerCore>(config);
  }
  static bool calls(const std::string& role, const std::string& other) {
    if (role == "gateway") return other == "controller";
    return role == "controller" && other != "gateway" && other != "controller";
  }
  static bool meets(const std::string& a, const std::string& b) { return calls(a, b) || calls(b, a); }
  static transport::Peer peer(const std::string& name, const std::string& role, const std::string& seen_by) {
    transport::Peer p;
    p.instance = name;
    p.role = role;
    p.caller = calls(role, seen_by);
    p.slots = 8;
    return p;
  }
  void introduce(const std::string& name, Node& node, const std::string& other, Node& n) {
    if (!meets(node.role, n.role)) return;
    n.core->on_peer(peer(name, node.role, n.role), PeerState::up, now);
    node.core->on_peer(peer(other, n.role, node.role), PeerState::up, now);
  }
  void tell_of(const std::string& name, PeerState state) {
    auto& node = nodes_.at(name);
    for (auto& [other, n] : nodes_)
      if (n.alive && meets(node.role, n.role)) n.core->on_peer(peer(name, node.role, n.role), state, now);
  }
  void leave(const std::string& name, Node& node) {
    node.gather();
    for (auto& o : std::exchange(node.said, {})) {
      const auto good = check(o.message);
      if (!good && !may_be_wrong.contains(name)) complaints_.push_back(good.error().message);
      sent.push_back({o.peer, o.message.head});
      deadlines.push_back(o.message.deadline);
      wire_.push_back({name, o.peer, std::move(o.message)});
    }
  }
  void deliver(Packet p) {
    if (swallow && swallow(p.from, p.to, p.message)) return;
    if (unlinked_.contains(p.from) || unlinked_.contains(p.to)) return;
    const auto found = nodes_.find(p.to);
    if (found == nodes_.end() || !found->second.alive) {
      if (is_alive(p.from))
        nodes_.at(p.from).core->on_refused(p.to, p.message.head, {Errc::unavailable, "not linked"}, now);
      return;
    }
    auto& node = found->second;
    if (node.suspended) {
      node.held.push_back(std::move(p));
      return;
    }
    if (fenced(p, node)) return;
    node.core->on_message(p.from, std::move(p.message), now);
  }
  /// As every link does for its service.
  bool fenced(const Packet& p, Node& node) {
    if (!calls(nodes_.at(p.from).role, node.role) || p.message.head.type == MessageType::close ||
        node.role == "context")
      return false;
    const auto judged = node.owners.judge(p.from, p.message.head.session, p.message.head.epoch, now);
    if (judged.verdict != transport::Owners::Verdict::stale) return false;
    auto to = p.message.head;
    to.epoch = judged.known;
    wire_.push_back({p.to, p.from, pack(ErrorMessage{"stale_epoch", "fenced"}, to)});
    return true;
  }
  void collect_errors(const std::string& name) {
    auto& n = nodes_.at(name);
    const auto add = [&](std::vector<std::string>& list) {
      for (auto& what : list) complaints_.push_back(name + ": " + what);
      list.clear();
    };
    if (n.role == "vad") add(static_cast<FakeVad&>(*n.core).strange);
    if (n.role == "tokenizer") add(static_cast<FakeTokenizer&>(*n.core).strange);
    if (n.role == "llm-chat") add(static_cast<FakeChat&>(*n.core).strange);
    if (n.role == "tts") add(static_cast<FakeTts&>(*n.core).strange);
    if (n.role == "context") add(static_cast<FakeContext&>(*n.core).strange);
    if (auto* gateway = dynamic_cast<FakeGateway*>(n.core.get())) add(gateway->wrong);
  }
  std::map<std::string, Node> nodes_;
  std::set<std::string> unlinked_;
  std::vector<Packet> wire_;
  std::vector<std::string> complaints_;
};

/// The user's microphone: frames of 20 ms, speech where a function of the frame says so. Positions go on from turn to
/// turn.
class Microphone {
 public:
  std::int64_t at = 0;
  Audio frame(bool speech) {
    constexpr int kSamples = 320;
    std::vector<std::int16_t> wave(kSamples, 0);
    if (speech)
      for (int i = 0; i < kSamples; ++i)
        wave[static_cast<std::size_t>(i)] = static_cast<std::int16_t>(1 + (at + i) * 31 % 1000);
    Audio audio;
    audio.first_sample = at;
    audio.payload = to_bytes(std::span<const std::int16_t>(wave));
    at += kSamples;
    return audio;
  }
};

/// One spoken turn as a client speaks it: 100 ms of silence, 200 ms of speech, silence for as long as it takes.
class Speaker {
 public:
  static constexpr int kFirst = 5, kLast = 15;
  explicit Speaker(FakeGateway& gateway) : gateway_(&gateway) {}
  void step() {
    gateway_->say(microphone_.frame(frames_ >= kFirst && frames_ < kLast));
    ++frames_;
  }
  void again() { frames_ = 0; }

 private:
  FakeGateway* gateway_;
  Microphone microphone_;
  int frames_ = 0;
};

// -------------------------------------------------------------------------------------------- what tests look at

inline constexpr int kLimit = 600;  // steps: twelve seconds

inline ControllerConfig with_tools() {
  ControllerConfig config;
  config.tools = "demo";
  return config;
}

inline std::string stored(const Rig& rig, std::int64_t turn = 1) {
  const auto& turns = rig.store->sessions[kSession].turns;
  return turns.contains(turn) ? turns.at(turn) : "";
}

inline void check_calm(Rig& rig) {
  const auto complaints = rig.complaints();
  BOOST_TEST(complaints.empty(), (complaints.empty() ? "" : complaints.front()));
  BOOST_TEST(rig.store->doubled == 0u);
}

}  // namespace parlando::controller
