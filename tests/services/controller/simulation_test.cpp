/// Whole conversations from a seed: people who speak, cough, interrupt, type, flush, cancel and correct, tools that
/// answer late or never, in front of controllers that think ahead, while services, stores and controllers die, stall,
/// lose their last words or are left. Checked at the end and all along the way: the invariants of a session.
///   - every question has one fate: an answer, an error or a cancellation (I2, I6)
///   - what was reported as durable is in the store, unaltered, and what is in the store was reported once (I1, I5)
///   - sound, texts, ids and calls reach the client in order, once, and nothing of what was cancelled (I4, I10)
///   - no call of a tool before the end of speech is decided; a former owner is not listened to (I3)
///   - the model is told what was heard
///   - behind the faults the session goes on, nothing is left at the services, little is kept (I7, I8)
///   - the same seed makes the same conversation (I11)
/// More or others of them: PARLANDO_SEEDS=20000, PARLANDO_SEED=4711 (tells the story of that one).
#define BOOST_TEST_MODULE controller_simulation
#include <boost/test/unit_test.hpp>
#include <map>
#include <random>

#include "tests/services/controller/rig.hpp"

namespace parlando::controller {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr unsigned kSeeds = 1000;
#else
constexpr unsigned kSeeds = 10000;
#endif

struct Conversation {
  std::mt19937 random;
  Rig rig;
  Microphone microphone;
  std::string story, stalled, muted;
  int controllers = 1, sentences = 1, part = 0;
  int tool_steps = 0;  ///< that the client's tool takes; 0: it never answers
  bool controller_lost = false, store_failed = false;
  std::map<std::string, int> told_calls;  ///< and the step in which the client was told
  std::set<std::int64_t> lost_turns;      ///< reported as degraded, and perhaps lost with their controller

  static ControllerConfig config(unsigned seed) {
    ControllerConfig out;
    out.tools = "demo";
    out.tail_ms = 100;
    out.trials_max = seed % 2 == 0 ? 8 : 0;
    out.tool_seconds_max = 3;
    return out;
  }
  explicit Conversation(unsigned seed) : random(seed), rig(config(seed)) {
    for (const auto& role : kServiceRoles)
      for (const int i : {1, 2}) furnish(fmt::format("{}-{}", role, i), role);
    rig.add("controller-1", "controller");
    rig.add("gateway-1", "gateway");
    auto& s = g().settings;
    s.answers = draw(0, 3) > 0;
    s.detection = static_cast<Detection>(draw(0, 3) % 3);
    s.interrupts = draw(0, 3) > 0;
    s.tools = {R"([{"name":"look"}])"};
    g().keeps_time = g().opens_again = true;
    g().plays = draw(0, 3) > 0;
    tool_steps = draw(0, 4) == 0 ? 0 : draw(1, 60);
    const auto tool = std::vector<std::string>{"look", "set_timer", "", ""}[static_cast<std::size_t>(draw(0, 3))];
    likely_ = draw(0, 1) * 500 + 300;
    delay_ = draw(0, 6);
    speaks_first_ = draw(0, 1) == 1;
    if (!tool.empty())
      rounds_ = draw(0, 2) == 0 ? std::vector<std::vector<std::string>>{{tool, "look"}, {tool}}
                                : std::vector<std::vector<std::string>>{{tool}};
    sentences = draw(1, 12);
    for (const auto& role : kServiceRoles)
      for (const int i : {1, 2}) prepare(fmt::format("{}-{}", role, i), role);
    g().is_stored_turn = [this](std::int64_t turn) { return rig.store->sessions[kSession].turns.contains(turn); };
    rig.swallow = [this](const std::string& from, const std::string& to, const Message&) {
      return !muted.empty() && from == muted && to == "gateway-1";
    };
    g().open("controller-1");
    rig.run(8);
  }
  FakeGateway& g() { return rig.gateway(); }
  int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
  std::string controller() const { return fmt::format("controller-{}", controllers); }
  const Turn* turn() { return rig.controller(controller()).turn_of(kSession); }

  void furnish(const std::string& name, const std::string& role) {
    rig.add(name, role);
    prepare(name, role);
  }
  void prepare(const std::string& name, const std::string& role) {
    if (role == "vad") rig.get<FakeVad>(name).silence = 8000;
    if (role == "tokenizer") {
      auto& tokenizer = rig.get<FakeTokenizer>(name);
      tokenizer.complete = [likely = likely_](std::int64_t samples) { return samples % 3 == 0 ? 800 : likely; };
      tokenizer.delay_steps = delay_;
    }
    if (role != "llm-chat") return;
    auto& chat = rig.get<FakeChat>(name);
    chat.calls_tool = !rounds_.empty();
    chat.rounds = rounds_;
    chat.speaks_first = speaks_first_;
    chat.sentences = static_cast<std::size_t>(sentences);
  }

  // ---------------------------------------------------------------------------------------------- what the user does
  void step() {
    answer_calls();
    rig.step();
  }
  void run(int steps) {
    for (int i = 0; i < steps; ++i) step();
  }
  void say(int frames, bool speech) {
    for (int i = 0; i < frames; ++i) {
      g().say(microphone.frame(speech));
      step();
    }
  }
  /// In a burst, as a recording comes.
  void say_at_once(int frames, bool speech) {
    for (int i = 0; i < frames; ++i) g().say(microphone.frame(speech));
    step();
  }
  bool until(const std::function<bool()>& done, int limit) {
    for (int i = 0; i < limit && !done(); ++i) say(1, false);
    return done();
  }
  /// The client's tool; every call is answered once.
  void answer_calls() {
    for (const auto& call : g().calls)
      if (call["name"] == "look") told_calls.try_emplace(call["id"].get<std::string>(), rig.steps);
    if (tool_steps == 0) return;
    for (auto& [id, since] : told_calls) {
      if (since < 0 || rig.steps - since < tool_steps) continue;
      since = -1;
      g().say(ToolOutput{id, "of " + id});
    }
  }
  bool is_manual() { return g().settings.detection == Detection::none; }

  void user_does_something() {
    ++part;
    switch (draw(0, 17)) {
      case 0:
      case 1:
      case 2:  // a voice, with pauses perhaps
        story += 'v';
        for (int n = draw(1, 3); n > 0; --n) {
          say(draw(4, 50), true);
          say(draw(0, 22), false);
        }
        if (is_manual()) g().say(Flush{microphone.at});
        return;
      case 3:
        story += 'V';
        say_at_once(draw(10, 60), true);
        if (is_manual()) g().say(Flush{-1});
        return;
      case 4:
        story += 'c';  // a cough
        return say(draw(1, 12), true);
      case 5:
        story += 't';
        say(draw(0, 2) * draw(0, 10), true);
        return g().say(Say{fmt::format("typed {}", part)});
      case 6:
        story += 'f';
        say(draw(0, 45), true);
        return g().say(Flush{microphone.at});
      case 7:
        story += 'F';
        say_at_once(draw(1, 20), true);
        return g().say(Flush{-1});
      case 8:
        story += 'x';
        say(draw(0, 20), true);
        return g().say(Cancel{});
      case 9:
        story += 'g';  // sound is missing
        say(draw(0, 20), true);
        microphone.at += 320 * draw(1, 30);
        return;
      case 10:
        story += 'm';  // the microphone is off
        return run(draw(5, 60));
      case 11:
        story += 'i';
        return g().say(Item{fmt::format("i{}", part), ItemRole::user, fmt::format("item {}", part), {}});
      case 12:
      case 13:
        story += 'r';
        say(draw(0, 2) * draw(0, 8), true);
        return g().say(Respond{{}, draw(0, 2) > 0});
      case 14:
        story += 'u';
        return g().say(Utter{fmt::format("given {}. And more of it.", part)});
      case 15: {
        story += 's';
        Configure c;
        static_cast<Settings&>(c) = g().settings;
        c.answers = draw(0, 1) == 1;
        c.interrupts = draw(0, 1) == 1;
        return g().say(c);
      }
      case 16:
        story += 'o';
        if (!g().turns.empty()) g().say(Forget{"", {g().turns.back()["turn"].get<std::uint32_t>()}, TurnPart::user});
        return;
      default:
        story += 'b';  // everything at once
        say_at_once(draw(0, 20), true);
        g().say(Respond{});
        g().say(Item{fmt::format("j{}", part), ItemRole::system, "be brief", {}});
        g().say(Utter{fmt::format("given {}.", part)});
        return;
    }
  }

  // ---------------------------------------------------------------------------------------------- what happens
  void wake() {
    if (!stalled.empty()) rig.wake(std::exchange(stalled, {}));
    if (rig.store->fails) story += "[store works]";
    rig.store->fails.reset();
  }
  /// Another controller has the session from here on. What was reported and not stored may be lost with the former.
  void hand_over(bool dies) {
    controller_lost = true;
    const auto& stored = rig.store->sessions[kSession].turns;
    for (std::size_t i = 0; i < g().turns.size(); ++i)
      if (const auto turn = g().turns[i]["turn"].get<std::int64_t>(); g().degraded[i] && !stored.contains(turn))
        lost_turns.insert(turn);
    rig.add(fmt::format("controller-{}", controllers + 1), "controller");
    if (dies)
      rig.kill(controller());
    else
      g().close();
    muted.clear();
    ++controllers;
    g().open(controller());
  }
  void something_happens() {
    wake();
    const auto role = kServiceRoles[static_cast<std::size_t>(draw(0, 4))];
    const auto victim = fmt::format("{}-{}", role, draw(1, 2));
    switch (draw(0, 7)) {
      case 0:
        story += "[" + victim + " dies]";
        rig.kill(victim);
        run(draw(0, 3));
        return furnish(victim, role);  // its supervisor
      case 1:
        stalled = victim;
        story += "[" + victim + " stalls]";
        return rig.suspend(victim);
      case 2:
        stalled = controller();
        story += "[" + stalled + " stalls]";
        return rig.suspend(stalled);
      case 3:  // and is left
        story += "[" + controller() + " stalls and is left]";
        stalled = controller();
        rig.suspend(stalled);
        run(draw(0, 5));
        return hand_over(false);
      case 4:
        story += "[store fails]";
        store_failed = true;
        rig.store->fails = Errc::io;
        return;
      case 5:  // its last words are lost
        story += "[" + controller() + " is cut off and dies]";
        muted = controller();
        say(draw(1, 60), draw(0, 3) == 0);
        return hand_over(true);
      default:
        story += "[" + controller() + " dies]";
        return hand_over(true);
    }
  }

  // ---------------------------------------------------------------------------------------------- the whole
  bool is_calm() {
    const auto* t = turn();
    return t != nullptr && t->stage == Turn::Stage::listening && !t->sealed && g().is_silent() && !g().holds &&
           g().open_questions().empty();
  }
  /// For longer than a vad is behind.
  bool comes_to_rest(int limit) {
    int calm = 0, open = 0;
    return until(
        [&] {
          // An utterance that only its client ends is ended by its client.
          open = is_manual() && turn() != nullptr && turn()->stage == Turn::Stage::hearing ? open + 1 : 0;
          if (open % 50 == 49) g().say(Flush{-1});
          return (calm = is_calm() ? calm + 1 : 0) > 40;
        },
        limit);
  }
  std::string why_not_calm() {
    const auto* t = turn();
    if (t == nullptr) return "the session is gone";
    if (const auto open = g().open_questions(); !open.empty() && t->stage == Turn::Stage::listening && !t->sealed)
      return fmt::format("{} has no fate", open.front().second);
    return fmt::format("stands still in stage {}{}{}{}{}", static_cast<int>(t->stage), t->sealed ? " sealed" : "",
                       g().holds ? " held" : "", g().is_silent() ? "" : " sounding",
                       g().open_questions().empty() ? "" : ", " + g().open_questions().front().second);
  }

  /// @return what is wrong; empty: nothing
  std::string play(bool faults) {
    say(5, false);
    say(12, true);
    if (is_manual()) g().say(Flush{-1});
    for (int n = draw(1, 6); n > 0; --n) {
      say(draw(0, 1) * draw(0, 60), false);
      if (faults && draw(0, 2) == 0) something_happens();
      user_does_something();
    }
    say(draw(0, 30), false);
    wake();
    if (is_manual()) g().say(Flush{-1});
    // A tool that never answers takes its time in every turn.
    if (!comes_to_rest(tool_steps == 0 ? 6000 : 2500)) return why_not_calm();
    if (store_failed) say(600, false);  // it is asked again every 5 s
    // A question that is put to it now is answered, and the model is told what was heard before.
    const auto before = g().turns.size();
    g().say(Say{"last"});
    if (!until([&] { return g().turns.size() > before; }, 1000)) return "does not answer";
    if (!comes_to_rest(1000)) return "then " + why_not_calm();
    auto wrong = records_are_wrong();
    if (wrong.empty()) wrong = past_is_wrong();
    if (!wrong.empty()) return wrong;
    say(300, false);  // what waits without a turn is stored
    if (rig.streams_at_services() > 1) return fmt::format("{} streams are left", rig.streams_at_services());
    if (g().kept() > 200) return fmt::format("{} inputs are kept", g().kept());
    for (const auto& e : g().events)
      if (e.type == MessageType::error && (e.text == "internal" || e.text == "deadline_exceeded")) return e.text;
    g().close();
    run(5);
    if (rig.streams_at_services() > 0) return "streams are left behind the session";
    const auto complaints = rig.complaints();
    return complaints.empty() ? "" : complaints.front();
  }

  /// What was said to whom last, but for frames.
  std::string said() const {
    std::string out;
    static const std::set<MessageType> kDull{MessageType::audio,   MessageType::text,      MessageType::speech,
                                             MessageType::tokens,  MessageType::hear,      MessageType::renew,
                                             MessageType::granted, MessageType::checkpoint};
    for (const auto& [to, head] : rig.sent)
      if (!kDull.contains(head.type)) out += fmt::format("{} {}; ", to, to_string(head.type));
    return out.substr(out.size() - std::min<std::size_t>(out.size(), 2500));
  }

  std::string records_are_wrong() {
    if (rig.store->doubled > 0) return "another record in a turn's place";
    for (const auto& [input, fates] : g().fates)
      if (fates > 1) return fmt::format("{} has {} fates", g().questions.at(input), fates);
    const auto& stored = rig.store->sessions[kSession].turns;
    std::map<std::int64_t, int> told;
    for (std::size_t i = 0; i < g().turns.size(); ++i) {
      const auto& done = g().turns[i];
      if (done.contains("remembered")) continue;
      const auto turn = done["turn"].get<std::int64_t>();
      ++told[turn];
      if (lost_turns.contains(turn)) continue;
      if (!stored.contains(turn)) return fmt::format("turn {} was reported and is not stored", turn);
      const auto record = json::parse(stored.at(turn));
      if (record["user"] != done["user"] || record["assistant"] != done["assistant"])
        return fmt::format("turn {} was stored otherwise than reported", turn);
    }
    std::map<std::string, int> said;
    for (const auto& [turn, text] : stored) {
      const auto record = json::parse(text);
      if (record.contains("items_only")) continue;
      if (record["typed"] == true) ++said[record["user"].get<std::string>() + record.value("given", json()).dump()];
      if (record.contains("noted")) continue;
      if (!lost_turns.contains(turn) && told[turn] != 1)
        return fmt::format("turn {} was reported {} times", turn, told[turn]);
    }
    return {};
  }

  /// Answers as the model was told of them, the latest first.
  std::string past_is_wrong() {
    std::string text;
    for (const int i : {1, 2})
      if (const auto& chat = rig.get<FakeChat>(fmt::format("llm-chat-{}", i)); chat.last_user == "last")
        text = chat.last_past;
    if (text.empty()) return "nobody was asked last";
    std::vector<std::string> told;
    for (const auto& message : json::parse(text))
      if (message["role"] == "assistant") told.push_back(message["content"]);
    const auto& stored = rig.store->sessions[kSession].turns;
    auto at = told.rbegin();
    bool is_last = true;
    for (auto it = stored.rbegin(); it != stored.rend() && at != told.rend(); ++it) {
      const auto record = json::parse(it->second);
      if (record.contains("items_only") || record.contains("noted")) continue;
      if (std::exchange(is_last, false)) continue;  // the question itself
      const auto turn = it->first;
      // A controller that died had perhaps not stored yet what was heard, or counted it anew.
      const bool heard = *at == g().heard_of[turn] || (controller_lost && g().whole_of[turn].starts_with(*at));
      if (!heard && !lost_turns.contains(turn))
        return fmt::format("of turn {} \"{}\" is told, \"{}\" was heard", turn, *at, g().heard_of[turn]);
      ++at;
    }
    return {};
  }

 private:
  std::vector<std::vector<std::string>> rounds_;
  std::int32_t likely_ = 300;
  int delay_ = 0;
  bool speaks_first_ = false;
};

unsigned number_of(const char* name, unsigned otherwise) {
  const auto* text = std::getenv(name);
  return text == nullptr ? otherwise : static_cast<unsigned>(std::atoi(text));
}

/// Like, without numbers.
std::string kind_of(std::string wrong) {
  std::string out;
  for (const char c : wrong)
    if (c < '0' || c > '9') out += c;
  return out.substr(0, 60);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(simulation)

BOOST_AUTO_TEST_CASE(conversations_of_all_kinds_hold_their_invariants_whatever_dies) {
  const auto only = number_of("PARLANDO_SEED", 0);
  const auto seeds = number_of("PARLANDO_SEEDS", kSeeds);
  std::map<std::string, std::pair<int, std::string>> bad;
  std::size_t turns = 0, lost = 0;
  for (unsigned seed = only != 0 ? only : 1; seed <= (only != 0 ? only : seeds); ++seed) {
    Conversation c(seed);
    const auto wrong = c.play(seed % 3 != 0);
    turns += c.g().turns.size();
    lost += c.lost_turns.size();
    if (only != 0) BOOST_TEST_MESSAGE(c.story << "\n" << c.g().told() << c.said() << "\n" << wrong);
    if (wrong.empty()) continue;
    auto& [count, first] = bad[kind_of(wrong)];
    if (count++ < 4) first += fmt::format("\n  seed {} {}: {}", seed, c.story, wrong);
  }
  for (const auto& [kind, what] : bad)
    BOOST_TEST(what.first == 0, what.first << " of " << seeds << ": " << kind << what.second);
  BOOST_TEST_MESSAGE(seeds << " conversations, " << turns << " turns, " << lost << " lost while the store was away");
  BOOST_TEST(turns > 2 * (only != 0 ? 0 : seeds));
}

BOOST_AUTO_TEST_CASE(the_same_seed_makes_the_same_conversation) {
  for (unsigned seed = 1; seed <= 40; ++seed) {
    const auto told = [&] {
      Conversation c(seed);
      c.play(true);
      std::string out;
      for (const auto& e : c.g().events) out += fmt::format("{} {} {};", static_cast<int>(e.type), e.turn, e.text);
      for (const auto& [turn, record] : c.rig.store->sessions[kSession].turns) out += record;
      return out + fmt::format("{:x}", crc32c(c.g().audio));
    };
    BOOST_TEST(told() == told(), "seed " << seed);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
