/// Whole conversations from a seed: people who speak, cough, interrupt, type, flush, cancel, truncate, forget and
/// correct, lose their gateway and come back, have their session erased; tools that answer late or never; in front of
/// controllers that think ahead and summarise what is old, while services, stores and controllers die, stall, lose
/// their last words or are left, other clients crowd in and strangers say what they may not. Checked at the end and all
/// along the way: the invariants of a session.
///   - every question has one fate: an answer, an error or a cancellation (I2, I6)
///   - what was reported as durable is in the store, unaltered, and what is in the store was reported once (I1, I5)
///   - sound, texts, ids and calls reach the client in order, once, and nothing of what was cancelled (I4, I10)
///   - no call of a tool before the end of speech is decided; a former owner is not listened to (I3)
///   - the model is told what was heard
///   - behind the faults the session goes on, nothing is left at the services, little is kept (I7, I8)
///   - the same seed makes the same conversation (I11)
///   - never more sessions than places, whoever wants one (I9)
///   - who is not the session's client changes nothing, whatever it says (I12; that bytes without a key reach no
///     service at all is the transport's: sockets_test, curve_test, front_door_fuzz)
///   - what is summarised is not told besides, every owner tells the summary of the record; what is forgotten is told
///   no
///     more; of what is erased nothing is left
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

/// Whoever else is about: clients that want a place, somebody who says what only the session's client may, somebody who
/// may erase it.
class Others final : public Core {
 public:
  std::string strange;
  bool erased = false;
  bool is_crowd() const { return !open_.empty(); }
  void crowd(const std::string& at, int count) {
    at_ = at;
    for (int i = 0; i < count; ++i) {
      Envelope head;
      head.session = {9, ++sessions_};
      head.stream = {++streams_};
      open_[head.stream.value] = head;
      Open open;
      open.seed = 1;
      send(at, head, std::move(open));
    }
  }
  void leave() {
    for (const auto& [stream, head] : open_) send(at_, head, Close{});
    open_.clear();
  }
  /// @param stream  that the session's client has
  void meddle(const std::string& at, StreamId stream, std::uint64_t kind) {
    Envelope head;
    head.session = kSession;
    head.stream = kind % 2 == 0 ? stream : StreamId{++streams_};
    meddled_.insert(head.stream.value);
    switch (kind / 2) {
      case 0:
        return send(at, head, Say{"not mine"});
      case 1:
        return send(at, head, Cancel{});
      case 2:
        return send(at, head, Attach{});
      case 3: {
        auto message = pack(Say{"x"}, head);
        message.body = "{\"text\": [1, {";
        return post(at, std::move(message));
      }
      default:
        return send(at, head, Close{true});
    }
  }
  void erase(const std::string& at) {
    Envelope head;
    head.session = kSession;
    head.stream = {++streams_};
    send(at, head, Erase{});
  }
  void on_message(const std::string&, Message m, Time) override {
    erased = erased || m.head.type == MessageType::erased;
    const bool meddled = m.head.session == kSession && meddled_.contains(m.head.stream.value);
    if (meddled && m.head.type != MessageType::error) strange = "somebody else is told of the session";
    if (m.head.session == kSession || m.head.type != MessageType::error) return;
    const auto error = read<ErrorMessage>(m);
    if (error->code != "overloaded" && error->code != "unavailable") strange = "a client is refused: " + error->message;
    open_.erase(m.head.stream.value);
  }
  void on_peer(const transport::Peer& peer, PeerState state, Time) override {
    if (state == PeerState::down && peer.instance == at_) open_.clear();
  }

 private:
  std::string at_;
  std::map<std::uint32_t, Envelope> open_;
  std::set<std::uint32_t> meddled_;
  std::uint32_t streams_ = 1000;
  std::uint64_t sessions_ = 0;
};

/// Two ways to draw what conversations are like: what one seed in the one does not come upon, one in the other may.
enum class Family { first, second };

struct Conversation {
  static constexpr int kPlaces = 4;
  const Family family;
  std::mt19937 random;
  Rig rig;
  Microphone microphone;
  std::string story, stalled, muted;
  int controllers = 1, sentences = 1, part = 0;
  int tool_steps = 0;  ///< that the client's tool takes; 0: it never answers
  bool controller_lost = false, store_failed = false;
  std::map<std::string, int> told_calls;  ///< and the step in which the client was told
  std::set<std::int64_t> lost_turns;      ///< reported as degraded, and perhaps lost with their controller
  std::map<std::int64_t, TurnPart> forgotten;
  std::set<std::int64_t> at_risk;  ///< of these: their gateway was lost before that was stored
  std::string broken;              ///< an invariant of every moment

  static ControllerConfig config(unsigned seed) {
    ControllerConfig out;
    out.tools = "demo";
    out.tail_ms = out.semantic_tail_ms = 100;
    out.barge_in_ms = 600;
    out.trials_max = seed % 2 == 0 ? 8 : 0;
    out.tool_seconds_max = 3;
    out.sessions_max = kPlaces;
    if (seed % 4 == 1) {
      out.summary = "model";
      out.history_turns = 3;
    }
    return out;
  }
  explicit Conversation(unsigned seed, Family of = Family::first) : family(of), random(seed), rig(config(seed)) {
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
    g().token_digest = token();
    tool_steps = draw(0, 4) == 0 ? 0 : draw(1, 60);
    const auto tool = std::vector<std::string>{"look", "set_timer", "", ""}[static_cast<std::size_t>(draw(0, 3))];
    likely_ = draw(0, 1) * 500 + 300;
    likely_again_ = (family == Family::first ? static_cast<std::int32_t>(seed % 3) : draw(0, 2)) * 200 + 300;
    delay_ = draw(0, 6);
    speaks_first_ = draw(0, 1) == 1;
    if (!tool.empty())
      rounds_ = draw(0, 2) == 0 ? std::vector<std::vector<std::string>>{{tool, "look"}, {tool}}
                                : std::vector<std::vector<std::string>>{{tool}};
    sentences = draw(1, 12);
    for (const auto& role : kServiceRoles)
      for (const int i : {1, 2}) prepare(fmt::format("{}-{}", role, i), role);
    g().is_stored_turn = [this](std::int64_t turn) {
      const auto& turns = rig.store->sessions[kSession].turns;
      return turns.contains(turn) && !json::parse(turns.at(turn)).contains("items_only");
    };
    rig.swallow = [this](const std::string& from, const std::string& to, const Message&) {
      return !muted.empty() && from == muted && to == "gateway-1";
    };
    g().open("controller-1");
    rig.run(8);
    rig.add_core("gateway-2", "gateway", std::make_unique<Others>());
    rig.may_be_wrong.insert("gateway-2");
  }
  Others& others() { return rig.get<Others>("gateway-2"); }
  std::string token() { return fmt::format("{:064}", ++tokens_); }
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
      tokenizer.complete = [likely = likely_, again = likely_again_](std::int64_t samples) {
        return samples % 3 == 0 ? 800 : samples % 3 == 1 ? likely : again;
      };
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
    for (int i = std::max(1, controllers - 1); i <= controllers; ++i)
      if (const auto name = fmt::format("controller-{}", i);
          rig.is_alive(name) && rig.controller(name).load() > static_cast<std::int64_t>(kPlaces))
        broken = "more sessions than places";
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
    if (tool_steps == 0 || away_) return;
    for (auto& [id, since] : told_calls) {
      if (since < 0 || rig.steps - since < tool_steps) continue;
      since = -1;
      g().say(ToolOutput{id, "of " + id});
    }
  }
  bool is_manual() { return g().settings.detection == Detection::none; }

  void user_does_something() {
    ++part;
    switch (draw(0, 24)) {
      case 0:
      case 1:
      case 2:  // a voice, with pauses perhaps
        story += 'v';
        for (int n = draw(1, 3); n > 0; --n) {
          say(draw(4, 50), true);
          // Of 24 on a pause is judged once more.
          say(family == Family::first ? draw(0, 22) * 4 / 3 : draw(0, 30), false);
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
      case 17:
        story += 'o';
        return forget();
      case 18:
        story += 'O';
        return g().say(Forget{fmt::format("i{}", draw(1, part)), {}, TurnPart::all});
      case 19:
      case 20:
        story += 'T';
        return truncate();
      case 21:
        story += 'R';
        return lose_gateway();
      case 22:
        story += 'k';
        return others().crowd(controller(), draw(1, 2 * kPlaces));
      case 23:
        story += 'z';
        others().meddle(controller(), g().stream(), static_cast<std::uint64_t>(draw(0, 9)));
        return run(2);
      default:
        story += 'b';  // everything at once
        say_at_once(draw(0, 20), true);
        g().say(Respond{});
        g().say(Item{fmt::format("j{}", part), ItemRole::system, "be brief", {}});
        g().say(Utter{fmt::format("given {}.", part)});
        return;
    }
  }

  /// Of a turn that is stored.
  void forget() {
    if (g().turns.empty()) return;
    const auto& done = g().turns[static_cast<std::size_t>(draw(0, static_cast<int>(g().turns.size()) - 1))];
    const auto turn = done["turn"].get<std::int64_t>();
    const auto part_of = static_cast<TurnPart>(draw(0, 2));
    if (done.contains("remembered") || !is_stored(turn) || forgotten.contains(turn)) return;
    forgotten[turn] = part_of;
    g().say(Forget{"", {static_cast<std::uint32_t>(turn)}, part_of});
  }
  /// Of the answer under way, or of an earlier one.
  void truncate() {
    const auto* t = turn();
    if (t != nullptr && t->stage == Turn::Stage::thinking && draw(0, 1) == 0)
      return g().say(Truncate{t->id, draw(0, 3) * 10000});
    if (g().turns.empty()) return;
    const auto& done = g().turns[static_cast<std::size_t>(draw(0, static_cast<int>(g().turns.size()) - 1))];
    if (done.contains("remembered") || !is_stored(done["turn"])) return;
    g().say(Truncate{{done["turn"].get<std::uint32_t>()}, draw(0, 3) * 10000});
  }
  bool is_stored_forgotten(std::int64_t turn) {
    for (const auto& [number, text] : rig.store->sessions[kSession].turns)
      for (const auto& change : json::parse(text).value("forgot", json::array()))
        if (change.value("turn", 0) == turn) return true;
    return false;
  }
  bool is_stored(std::int64_t turn) { return rig.store->sessions[kSession].turns.contains(turn); }
  /// The client comes back through another one: to its controller, which has kept the session.
  void lose_gateway() {
    run(3);
    if (!stalled.empty() || !muted.empty() || turn() == nullptr || !g().is_open() || others().is_crowd()) return;
    away_ = true;
    // Nobody but the controller has what is not stored by now.
    for (const auto& [turn, part_of] : forgotten)
      if (!is_stored_forgotten(turn)) at_risk.insert(turn);
    rig.unlink("gateway-1");
    run(draw(1, 40));
    rig.link("gateway-1");
    g().come_back(controller(), token());
    for (int i = 0; i < 10 && !g().attached; ++i) run(1);
    away_ = false;
    if (!g().attached) broken = "the session is not there any more";
    // What was on its way is said again, or it is missing.
    else if (draw(0, 1) == 0)
      microphone.at = g().attached->position_samples;
  }

  // ---------------------------------------------------------------------------------------------- what happens
  void wake() {
    if (!stalled.empty()) rig.wake(std::exchange(stalled, {}));
  }
  void repair_store() {
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
      g().leave();
    muted.clear();
    ++controllers;
    others().leave();
    g().open(controller());
  }
  /// Of the turn that is cancelled the record of the items in front of it is left, if anything.
  void begins_and_cancels() {
    story += "(i, v, x)";
    g().say(Item{fmt::format("k{}", ++part), ItemRole::user, fmt::format("item {}", part), {}});
    run(draw(0, 10));
    say(draw(4, 40), true);
    g().say(Cancel{});
    say(draw(0, 20), draw(0, 3) == 0);
  }
  void something_happens() {
    wake();
    if (rig.store->fails && draw(0, 1) == 0) repair_store();  // else it stays away through what happens now
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
        g().was_cut_off = true;
        if (draw(0, 2) == 0)
          begins_and_cancels();
        else
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

  /// Whatever is under way, nothing of the session is left, for whoever asks.
  std::string is_not_erased() {
    if (draw(0, 1) == 0) g().say(Say{"more"});
    run(draw(0, 20));
    others().erase(controller());
    run(40);
    const auto& left = rig.store->sessions[kSession];
    if (!others().erased || !left.erased) return "it was not erased";
    if (!left.turns.empty()) return "it was written to behind its end";
    if (rig.controller(controller()).turn_of(kSession) != nullptr) return "it is led behind its end";
    return {};
  }

  /// @return what is wrong; empty: nothing
  std::string play(bool faults) {
    const auto wrong = converse(faults);
    return wrong.empty() ? broken : wrong;
  }
  std::string converse(bool faults) {
    say(5, false);
    say(12, true);
    if (is_manual()) g().say(Flush{-1});
    for (int n = draw(1, 6) + (rig.config.summary == "off" ? 0 : 4); n > 0; --n) {
      say(draw(0, 1) * draw(0, 60), false);
      if (faults && draw(0, 2) == 0) something_happens();
      user_does_something();
    }
    say(draw(0, 30), false);
    wake();
    repair_store();
    others().leave();
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
    if (draw(0, 3) == 0) {
      if (const auto left = is_not_erased(); !left.empty()) return left;
    } else {
      g().close();
    }
    if (!others().strange.empty()) return others().strange;
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
    const auto messages = json::parse(text);
    for (const auto& message : messages)
      if (message["role"] == "assistant") told.push_back(message["content"]);
    const auto& stored = rig.store->sessions[kSession].turns;
    std::int64_t until = 0;
    if (auto before = stored.rbegin(); before != stored.rend() && ++before != stored.rend()) {
      const auto summary = json::parse(before->second).value("summary", json());
      const auto first = messages.empty() ? std::string() : messages[0]["content"].get<std::string>();
      const bool is_told = first.starts_with("What was said before, in short:");
      if (is_told && (summary.is_null() || !first.ends_with("\n" + summary["text"].get<std::string>())))
        return "a summary is told that is not the record's";
      if (!summary.is_null() && !is_told && forgotten.empty() && g().truncated.empty() && story.find('O') == story.npos)
        return "a summary is not told";
      if (is_told) until = summary["until"].get<std::int64_t>();
    }
    summarised = until > 0;
    auto at = told.rbegin();
    bool is_last = true;
    for (auto it = stored.rbegin(); it != stored.rend() && at != told.rend(); ++it) {
      const auto record = json::parse(it->second);
      if (record.contains("items_only") || record.contains("noted")) continue;
      if (std::exchange(is_last, false)) continue;  // the question itself
      const auto turn = it->first;
      const auto part_of = forgotten.find(turn);
      // What was to be forgotten may have gone with a turn that was told and lost.
      const auto is_forgotten = [&](TurnPart part) {
        return part_of != forgotten.end() && part_of->second == part && lost_turns.empty();
      };
      if (at_risk.contains(turn) && controller_lost && !is_stored_forgotten(turn)) return {};
      if (is_forgotten(TurnPart::all)) continue;
      if (turn <= until) return fmt::format("turn {} is told, and the summary of turns up to {}", turn, until);
      // A controller that died had perhaps not stored yet what was heard, or counted it anew.
      const bool shortened = controller_lost || g().truncated.contains(turn);
      const bool heard = is_forgotten(TurnPart::assistant)
                             ? at->empty()
                             : *at == g().heard_of[turn] || (shortened && g().whole_of[turn].starts_with(*at));
      if (part_of != forgotten.end() && !lost_turns.empty() && !heard) return {};
      if (!heard && !lost_turns.contains(turn))
        return fmt::format("of turn {} \"{}\" is told, \"{}\" was heard", turn, *at, g().heard_of[turn]);
      ++at;
    }
    return {};
  }

  bool summarised = false;

 private:
  std::uint64_t tokens_ = 0;
  bool away_ = false;  ///< the client has no gateway
  std::vector<std::vector<std::string>> rounds_;
  std::int32_t likely_ = 300, likely_again_ = 300;
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

void hold_their_invariants(Family family) {
  const auto only = number_of("PARLANDO_SEED", 0);
  const auto seeds = number_of("PARLANDO_SEEDS", kSeeds);
  std::map<std::string, std::pair<int, std::string>> bad;
  std::size_t turns = 0, lost = 0, summarised = 0, judged_again = 0;
  for (unsigned seed = only != 0 ? only : 1; seed <= (only != 0 ? only : seeds); ++seed) {
    Conversation c(seed, family);
    telemetry::Metrics metrics;  // of some, they take their time
    if (seed % 5 == 0) c.rig.controller("controller-1").add_metrics(metrics);
    const auto wrong = c.play(seed % 3 != 0);
    turns += c.g().turns.size();
    lost += c.lost_turns.size();
    summarised += c.summarised ? 1 : 0;
    if (seed % 5 == 0 && metrics.text().find("decisions_total{by=\"semantic_again\"} 0") == std::string::npos)
      ++judged_again;
    if (only != 0) BOOST_TEST_MESSAGE(c.story << "\n" << c.g().told() << c.said() << "\n" << wrong);
    if (wrong.empty()) continue;
    auto& [count, first] = bad[kind_of(wrong)];
    if (count++ < 4) first += fmt::format("\n  seed {} {}: {}", seed, c.story, wrong);
  }
  for (const auto& [kind, what] : bad)
    BOOST_TEST(what.first == 0, what.first << " of " << seeds << ": " << kind << what.second);
  BOOST_TEST_MESSAGE(seeds << " conversations, " << turns << " turns, " << lost << " lost while the store was away, "
                           << summarised << " end with a summary, of every fifth " << judged_again
                           << " with a pause that was judged once more");
  if (only == 0) BOOST_TEST(summarised > seeds / 100);
  if (only == 0) BOOST_TEST(judged_again > seeds / 5 / 20);  // 7 % of them have one
  BOOST_TEST(turns > 2 * (only != 0 ? 0 : seeds));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(simulation)

BOOST_AUTO_TEST_CASE(conversations_of_all_kinds_hold_their_invariants_whatever_dies) {
  hold_their_invariants(Family::first);
}

BOOST_AUTO_TEST_CASE(conversations_of_all_kinds_in_another_order_hold_their_invariants_whatever_dies) {
  hold_their_invariants(Family::second);
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
