#pragma once
/// A session whose user speaks in frames of 20 ms, for tests of what happens while and between them.
#include <boost/test/unit_test.hpp>

#include "tests/services/controller/rig.hpp"

namespace parlando::controller {

inline constexpr int kSpeech = 10, kSilence = 40;  // frames of 20 ms

inline ControllerConfig talking(int trials_max = 8) {
  ControllerConfig config;
  config.tools = "demo";
  config.tail_ms = config.semantic_tail_ms = 100;
  config.barge_in_ms = 600;
  config.trials_max = trials_max;
  return config;
}

/// A session whose vad takes 500 ms of silence to decide and 100 ms to see a pause.
struct Talk {
  Rig rig;
  Microphone microphone;
  explicit Talk(
      ControllerConfig config = talking(), bool plays = false, int replicas = 1,
      const std::function<void(FakeGateway&)>& prepare = [](FakeGateway&) {})
      : rig(std::move(config)) {
    for (const auto& role : kServiceRoles)
      for (int i = 1; i <= replicas; ++i) rig.add(fmt::format("{}-{}", role, i), role);
    for (int i = 1; i <= replicas; ++i) rig.get<FakeVad>(fmt::format("vad-{}", i)).silence = 8000;
    rig.add("controller-1", "controller");
    rig.add("gateway-1", "gateway");
    g().plays = plays;
    prepare(g());
    g().open("controller-1");
    rig.run(8);
  }
  FakeGateway& g() { return rig.gateway(); }
  void say(int frames, bool speech) {
    for (int i = 0; i < frames; ++i) {
      g().say(microphone.frame(speech));
      rig.step();
    }
  }
  bool until(const std::function<bool()>& done, int limit = 400) {
    for (int i = 0; i < limit && !done(); ++i) say(1, false);
    return done();
  }
  bool answered(std::size_t turns) {
    return until([&] { return g().turns.size() == turns; });
  }
  /// The envelope of what was sent there last.
  Envelope last_to(const std::string& peer) const {
    Envelope out;
    for (const auto& [to, head] : rig.sent)
      if (to == peer) out = head;
    return out;
  }
  FakeChat& chat() { return rig.get<FakeChat>("llm-chat-1"); }
  void check_calm() {
    const auto complaints = rig.complaints();
    BOOST_TEST(complaints.empty(), (complaints.empty() ? "" : complaints.front()));
    BOOST_TEST(rig.streams_at_services() <= 1u);  // the vad goes on listening
  }
  std::string record(std::int64_t turn = 1) {
    const auto& turns = rig.store->sessions[kSession].turns;
    if (!turns.contains(turn)) return {};
    auto object = json::parse(turns.at(turn));
    for (const auto* key : {"last_input", "inputs"}) object.erase(key);
    return object.dump();
  }
};

inline double figure(telemetry::Metrics& metrics, const std::string& name) {
  const auto text = metrics.text();
  const auto at = text.find("\nparlando_controller_" + name + " ");
  return at == std::string::npos ? -1 : std::stod(text.substr(text.find(' ', at) + 1));
}

}  // namespace parlando::controller
