/// Users who speak over answers, cough, type, flush and cancel, while services and controllers die and stall. Whatever
/// is said when: nothing stands still, and everybody knows the same.
#include <boost/test/unit_test.hpp>
#include <map>
#include <random>

#include "tests/services/controller/rig.hpp"

namespace parlando::controller {
namespace {

constexpr unsigned kSeeds = 2400;

/// One dialogue with two replicas of everything.
struct Dialogue {
  std::mt19937 random;
  Rig rig;
  Microphone microphone;
  std::string story, suspended;
  int controllers = 1, sentences = 1;
  bool controller_died = false;

  explicit Dialogue(unsigned seed) : random(seed), rig(config(seed)) {
    for (const auto& role : kServiceRoles) {
      for (const int i : {1, 2}) rig.add(fmt::format("{}-{}", role, i), role);
      for (const int i : {1, 2}) {
        const auto name = fmt::format("{}-{}", role, i);
        if (role == "vad") rig.get<FakeVad>(name).silence = 8000;
        if (role == "llm-chat") rig.get<FakeChat>(name).calls_tool = false;
      }
    }
    speak_long(sentences = draw(1, 12));
    rig.add("controller-1", "controller");
    rig.add("gateway-1", "gateway");
    g().keeps_time = true;
    g().plays = draw(0, 3) > 0;
    g().open("controller-1");
    rig.run(8);
  }
  static ControllerConfig config(unsigned seed) {
    ControllerConfig out;
    out.tail_ms = 100;
    out.trials_max = seed % 2 == 0 ? 8 : 0;
    return out;
  }
  FakeGateway& g() { return rig.gateway(); }
  int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
  std::string controller() const { return fmt::format("controller-{}", controllers); }
  void speak_long(int count) {
    for (const int i : {1, 2})
      if (const auto name = fmt::format("llm-chat-{}", i); rig.is_alive(name))
        rig.get<FakeChat>(name).sentences = static_cast<std::size_t>(count);
  }
  void say(int frames, bool speech) {
    for (int i = 0; i < frames; ++i) {
      g().say(microphone.frame(speech));
      rig.step();
    }
  }
  /// In bursts, as a recording comes.
  void say_at_once(int frames, bool speech) {
    for (int i = 0; i < frames; ++i) g().say(microphone.frame(speech));
    rig.step();
  }
  bool until(const std::function<bool()>& done, int limit) {
    for (int i = 0; i < limit && !done(); ++i) say(1, false);
    return done();
  }

  void user_does_something() {
    switch (draw(0, 8)) {
      case 0:  // a voice, with pauses perhaps
        story += 'v';
        for (int n = draw(1, 3); n > 0; --n) {
          say(draw(4, 50), true);
          say(draw(0, 22), false);
        }
        return;
      case 1:
        story += 'V';
        return say_at_once(draw(10, 60), true);
      case 2:
        story += 'c';  // a cough
        return say(draw(1, 12), true);
      case 3:
        story += 't';
        say(draw(0, 20), true);
        return g().say(Say{"typed"});
      case 4:
        story += 'f';
        say(draw(0, 45), true);
        return g().say(Flush{microphone.at});
      case 5:
        story += 'F';
        say_at_once(draw(1, 20), true);
        return g().say(Flush{-1});
      case 6:
        story += 'x';
        say(draw(0, 20), true);
        return g().say(Cancel{});
      case 7:
        story += 'g';  // sound is missing
        say(draw(0, 20), true);
        microphone.at += 320 * draw(1, 30);
        return;
      default:
        story += 'm';  // the microphone is off
        return rig.run(draw(5, 60));
    }
  }

  void something_happens() {
    wake();
    const auto role = kServiceRoles[static_cast<std::size_t>(draw(0, 4))];
    const auto victim = fmt::format("{}-{}", role, draw(1, 2));
    switch (draw(0, 4)) {
      case 0:
        story += "[" + victim + " dies]";
        rig.kill(victim);
        rig.run(draw(0, 3));
        rig.add(victim, role);  // its supervisor
        if (role == "vad") rig.get<FakeVad>(victim).silence = 8000;
        if (role == "llm-chat") rig.get<FakeChat>(victim).calls_tool = false;
        return speak_long(sentences);  // the same model
      case 1:
      case 2:
        suspended = victim;
        story += "[" + victim + " stalls]";
        return rig.suspend(victim);
      case 3:
        suspended = controller();
        story += "[" + suspended + " stalls]";
        return rig.suspend(suspended);
      default:
        story += "[" + controller() + " dies]";
        controller_died = true;
        rig.add(fmt::format("controller-{}", controllers + 1), "controller");
        rig.kill(controller());
        ++controllers;
        return g().open(controller());
    }
  }
  void wake() {
    if (!suspended.empty()) rig.wake(std::exchange(suspended, {}));
  }

  /// @return what is wrong at the end; empty: nothing
  std::string play(bool faults) {
    say(5, false);
    say(12, true);
    for (int n = draw(1, 5); n > 0; --n) {
      say(draw(0, 60), false);
      if (faults && draw(0, 2) == 0) something_happens();
      user_does_something();
    }
    wake();
    const auto is_calm = [&] {
      const auto* turn = rig.controller(controller()).turn_of(kSession);
      return turn != nullptr && turn->stage == Turn::Stage::listening && !turn->sealed && g().is_silent() && !g().holds;
    };
    if (!until(is_calm, 1000)) {
      const auto* turn = rig.controller(controller()).turn_of(kSession);
      if (turn == nullptr) return "the session is gone";
      return fmt::format("stands still in stage {}{}{}{}", static_cast<int>(turn->stage), turn->sealed ? " sealed" : "",
                         g().holds ? " held" : "", g().is_silent() ? "" : " sounding");
    }
    // A question that is put to it now is answered, and the model is told what was heard before.
    const auto before = g().turns.size();
    for (const int i : {1, 2}) rig.get<FakeChat>(fmt::format("llm-chat-{}", i)).last_past.clear();
    speak_long(1);
    say(12, true);
    if (!until([&] { return g().turns.size() > before; }, 400)) return "does not answer";
    if (!until(is_calm, 400)) return "does not come to rest";
    if (auto wrong = past_is_wrong(); !wrong.empty()) return wrong;
    if (rig.streams_at_services() > 1) return fmt::format("{} streams are left", rig.streams_at_services());
    for (const auto& e : g().events)
      if (e.type == MessageType::error && (e.text == "internal" || e.text == "deadline_exceeded")) return e.text;
    g().close();
    rig.run(5);
    if (rig.streams_at_services() > 0) return "streams are left behind the session";
    const auto complaints = rig.complaints();
    return complaints.empty() ? "" : complaints.front();
  }

  std::string past_is_wrong() {
    std::string text;
    for (const int i : {1, 2})
      if (const auto& past = rig.get<FakeChat>(fmt::format("llm-chat-{}", i)).last_past; !past.empty()) text = past;
    const auto past = json::parse(text);
    std::int64_t turn = 1;
    for (std::size_t i = 1; i < past.size(); i += 2, ++turn) {
      const auto content = past[i]["content"].get<std::string>();
      // A controller that died had perhaps not stored yet what was heard.
      if (content == g().heard_of[turn] || (controller_died && content == g().whole_of[turn])) continue;
      return fmt::format("of turn {} \"{}\" is told, \"{}\" was heard", turn, content, g().heard_of[turn]);
    }
    return {};
  }
};

void play_all(bool faults) {
  std::map<std::string, int> bad;
  for (unsigned seed = 1; seed <= kSeeds / 2; ++seed) {
    Dialogue dialogue(seed);
    auto wrong = dialogue.play(faults);
    if (wrong.empty()) continue;
    if (bad[wrong]++ < 2)
      BOOST_TEST_MESSAGE("seed " << seed << " plays " << dialogue.g().plays << " " << dialogue.story << ": " << wrong);
  }
  for (const auto& [wrong, count] : bad) BOOST_TEST(count == 0, wrong << " in " << count << " of " << kSeeds / 2);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(barge_in_simulation)

BOOST_AUTO_TEST_CASE(whatever_is_said_over_answers_nothing_stands_still) { play_all(false); }

BOOST_AUTO_TEST_CASE(whatever_dies_or_stalls_meanwhile_nothing_stands_still) { play_all(true); }

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
