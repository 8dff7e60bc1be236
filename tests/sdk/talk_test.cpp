#define BOOST_TEST_MODULE sdk_talk
#include "sdk/cpp/src/talk.hpp"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <random>

using namespace parlando;
using namespace parlando::sdk;
using nlohmann::json;
using protocol::Message;
using protocol::MessageType;

namespace {

constexpr int kFar = 1 << 20;
constexpr std::size_t kPart = Talk::kMessageSamples;

/// Takes as many messages as it has room for, and remembers them.
struct Gateway final : Place {
  int room = kFar;
  int tried = 0;  ///< messages, taken or not
  json claim;     ///< the last first message
  bool suspect = false;
  protocol::Envelope head;
  std::vector<std::string> asked;  ///< types of first messages
  std::vector<Message> said;       ///< behind the last of them

  Result<void> send(Message m) override {
    if (m.head.type == MessageType::close) return {};
    ++tried;
    if (room == 0) return fail(Errc::overloaded, "the link is full");
    --room;
    const auto event = m.head.type == MessageType::event ? fields_of(m) : json();
    if (event.is_object() && (event["type"] == "open" || event["type"] == "resume")) {
      head = m.head;
      asked.push_back(event["type"]);
      claim = event;
      said.clear();
    } else {
      said.push_back(std::move(m));
    }
    return {};
  }
  void handled(const protocol::Envelope&) override {}
  bool is_suspect() const override { return suspect; }

  static json fields_of(const Message& m) {
    const auto* text = reinterpret_cast<const char*>(m.payload.data());
    return json::parse(text, text + m.payload.size());
  }
};

/// A user of three gateways, on a clock turned by hand.
struct User : Finder {
  std::array<Gateway, 3> gateways;
  std::set<const Place*> gone;
  Time now{};
  Talk talk;

  explicit User(milliseconds reconnect = milliseconds(10000)) : talk(*this, {{"type", "open"}}, reconnect, 7, now) {}
  Place* find(const Place* but, const std::set<const Place*>& nor) override {
    for (auto& g : gateways)
      if (&g != but && !gone.contains(&g) && !nor.contains(&g)) return &g;
    return nullptr;
  }
  int standing() const override { return static_cast<int>(gateways.size() - gone.size()); }
  void wake() override {}

  /// Where it is, or was last.
  Gateway& gateway() {
    for (auto& g : gateways)
      if (&g == talk.place()) last = &g;
    return *last;
  }
  Gateway* last = &gateways[0];
  void pass(int ms = 50) {
    now += milliseconds(ms);
    talk.on_tick(now);
  }
  void told(const json& fields) {
    const auto text = fields.dump();
    const auto bytes = std::as_bytes(std::span(text));
    auto message = protocol::pack(protocol::Event{{bytes.begin(), bytes.end()}}, gateway().head);
    talk.on_message(gateway(), message, now);
    while (talk.take()) {
    }
  }
  void opened() {
    pass();
    told({{"type", "opened"}, {"session", "s"}, {"resume_token", "t"}, {"rate", 22050}, {"turns", 0}});
  }
  /// @param room  of the link to the gateway that is asked now, behind `resume`
  void resumed(json fields, int room = kFar) {
    for (auto& g : gateways) g.room = kFar;
    for (int n = 0; n < 10 && talk.place() == nullptr; ++n) pass();
    gateway().room = room;
    fields.update({{"type", "opened"}, {"session", "s"}, {"resume_token", "t"}, {"rate", 22050}, {"resumed", true}});
    if (!fields.contains("turns")) fields["turns"] = 0;
    told(fields);
  }
  int asked() const {
    int out = 0;
    for (const auto& g : gateways) out += static_cast<int>(g.asked.size());
    return out;
  }
  void refused(json fields) {
    fields.update({{"type", "error"}, {"message", "not yet"}});
    told(fields);
  }
  /// @return how many ms pass until a gateway is asked once more; none is for 2 s: 2000
  int asks_again_behind() {
    const auto before = asked();
    int out = 0;
    for (; asked() == before && out < 2000; ++out) pass(1);
    return out;
  }
  void lose() {
    auto& lost = gateway();
    gone = {&lost};
    talk.on_down(lost, now);
  }
  /// A second, a third and so on part of sound that counts up.
  Result<void> hear(std::size_t samples = kPart) {
    std::vector<std::int16_t> part(samples);
    for (auto& sample : part) sample = static_cast<std::int16_t>(next_sample++);
    auto result = talk.hear(part);
    if (!result) next_sample -= static_cast<int>(samples);
    return result;
  }
  Result<void> say(const std::string& text) { return talk.say({{"type", "text"}, {"text", text}}, now); }
  void cancel(int turn = 0) {
    json fields{{"type", "cancel"}};
    if (turn != 0) fields["turn"] = turn;
    BOOST_TEST(talk.say(std::move(fields), now).has_value());
  }
  /// @return its first sample, as the user is told
  std::int64_t sound(std::uint32_t turn, std::size_t samples) {
    auto head = gateway().head;
    head.turn = {turn};
    auto message = protocol::pack(protocol::Speech{0, 0, 22050, false, protocol::Bytes(2 * samples)}, head);
    talk.on_message(gateway(), message, now);
    const auto told = talk.take();
    return told ? std::get<Sound>(*told).first_sample : -1;
  }
  void text(int turn, const std::string& kind, const std::string& text) {
    told({{"type", "text"}, {"turn", turn}, {"kind", kind}, {"text", text}});
  }
  /// Loses its gateway. @return what the next one is told: turn, samples, bytes of the user's and of the answer's text
  std::vector<std::int64_t> claims() {
    lose();
    for (int n = 0; n < 10 && talk.place() == nullptr; ++n) pass();
    const auto& c = gateway().claim;
    return {c["turn"], c["samples"], c["transcript_bytes"], c["reply_bytes"]};
  }
  /// What is said again when the gateway is lost now: texts, s of sound, ? of anything else.
  std::string said_again(const json& fields);
  int next_sample = 0;
};

/// What the engine has got of a session.
struct Engine {
  std::vector<std::int16_t> sound;
  std::vector<std::pair<std::int64_t, std::string>> texts;  ///< behind how much sound

  void take(const std::vector<Message>& said, std::size_t from, std::size_t to) {
    for (auto n = from; n < to; ++n) {
      auto m = said[n];
      if (m.head.type == MessageType::event) {
        texts.emplace_back(static_cast<std::int64_t>(sound.size()), Gateway::fields_of(m).value("text", ""));
        continue;
      }
      auto audio = protocol::read<protocol::Audio>(m);
      BOOST_TEST_REQUIRE(audio.has_value());
      BOOST_TEST_REQUIRE(audio->first_sample == static_cast<std::int64_t>(sound.size()));
      const auto at = sound.size();
      sound.resize(at + audio->payload.size() / 2);
      std::memcpy(sound.data() + at, audio->payload.data(), audio->payload.size());
    }
  }
  bool counts_up() const {
    for (std::size_t n = 0; n < sound.size(); ++n)
      if (sound[n] != static_cast<std::int16_t>(n)) return false;
    return true;
  }
};

std::string kinds(const std::vector<Message>& said) {
  std::string out;
  for (const auto& m : said) out += m.head.type == MessageType::audio ? "s" : Gateway::fields_of(m).value("text", "?");
  return out;
}

std::string User::said_again(const json& fields) {
  lose();
  resumed(fields);
  return kinds(gateway().said);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(what_is_said_again)

BOOST_AUTO_TEST_CASE(what_the_link_has_no_room_for_is_said_when_it_has) {
  User c;
  c.opened();
  BOOST_TEST(c.hear().has_value());
  BOOST_TEST(c.say("A").has_value());
  for (int n = 0; n < 3; ++n) BOOST_TEST(c.hear().has_value());
  BOOST_TEST(c.say("B").has_value());
  c.lose();
  c.resumed({{"input_samples", 0}}, 2);
  BOOST_TEST(kinds(c.gateway().said) == "sA");
  const auto* place = c.talk.place();
  for (int n = 0; n < 40; ++n) c.pass();
  BOOST_TEST(c.talk.is_open());
  BOOST_TEST(c.talk.place() == place);
  BOOST_TEST(c.gateway().asked.size() == 1u);
  // What is said meanwhile stands behind it.
  BOOST_TEST(c.say("C").has_value());
  BOOST_TEST(c.hear().has_value());
  BOOST_TEST(kinds(c.gateway().said) == "sA");
  c.gateway().room = 2;
  c.pass();
  BOOST_TEST(kinds(c.gateway().said) == "sAss");
  c.gateway().room = kFar;
  BOOST_TEST(c.say("D").has_value());
  BOOST_TEST(kinds(c.gateway().said) == "sAsssBCsD");
  Engine engine;
  engine.take(c.gateway().said, 0, c.gateway().said.size());
  BOOST_TEST(engine.sound.size() == 5 * kPart);
  BOOST_TEST(engine.counts_up());
  BOOST_TEST(c.talk.metrics().said_again == 6);
}

BOOST_AUTO_TEST_CASE(what_still_waits_when_the_next_gateway_is_lost_is_said_there_once) {
  User c;
  c.opened();
  for (int n = 0; n < 6; ++n) BOOST_TEST(c.hear().has_value());
  c.lose();
  c.resumed({{"input_samples", 0}}, 3);
  BOOST_TEST(c.say("A").has_value());
  Engine engine;
  engine.take(c.gateway().said, 0, 2);
  c.lose();
  c.resumed({{"input_samples", 2 * kPart}});
  BOOST_TEST(kinds(c.gateway().said) == "ssssA");
  engine.take(c.gateway().said, 0, 5);
  BOOST_TEST(engine.sound.size() == 6 * kPart);
  BOOST_TEST(engine.counts_up());
}

/// Gateways die at any moment, with links of any room; of what they were told the engine got any beginning.
BOOST_AUTO_TEST_CASE(whatever_links_take_and_lose_everything_arrives_once_and_in_order) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      const auto below = [&](unsigned n) { return static_cast<std::size_t>(random() % n); };
      User c;
      c.opened();
      Engine engine;
      std::size_t arrived = 0;  // messages of the present gateway that the engine has
      std::vector<std::pair<std::int64_t, std::string>> given;
      const auto arrive = [&](std::size_t to) {
        engine.take(c.gateway().said, arrived, to);
        arrived = to;
      };
      for (int step = 0; step < 120; ++step) {
        const auto what = below(10);
        if (what < 5) {
          (void)c.hear(1 + below(kPart));
        } else if (what < 7) {
          const auto text = std::to_string(step);
          if (c.say(text)) given.emplace_back(c.next_sample, text);
        } else if (what < 8) {
          c.gateway().room = static_cast<int>(below(6));
          c.pass();
        } else if (what < 9) {
          c.gateway().room = kFar;
          c.pass();
        } else {
          // Sound is what tells how much has come: messages behind the last of it are in doubt, and are left out here.
          const auto& said = c.gateway().said;
          auto to = arrived + below(static_cast<unsigned>(said.size() - arrived + 1));
          while (to > arrived && said[to - 1].head.type == MessageType::event) --to;
          arrive(to);
          c.lose();
          arrived = 0;
          c.resumed({{"input_samples", engine.sound.size()}}, static_cast<int>(below(8)));
        }
      }
      c.gateway().room = kFar;
      c.pass();
      arrive(c.gateway().said.size());
      BOOST_TEST(engine.sound.size() == static_cast<std::size_t>(c.next_sample));
      BOOST_TEST(engine.counts_up());
      BOOST_TEST((engine.texts == given));
    }
  }
}

BOOST_AUTO_TEST_CASE(limits_stay_while_inputs_wait_and_nothing_that_was_taken_is_dropped) {
  User c;
  c.opened();
  const auto seconds = [](int n) { return n * 10; };  // in parts
  for (int n = 0; n < seconds(60); ++n) BOOST_TEST_REQUIRE(c.hear().has_value());
  c.lose();
  c.resumed({{"input_samples", 0}}, seconds(30));
  const auto full = c.hear();
  BOOST_TEST_REQUIRE(!full.has_value());
  BOOST_TEST((full.error().code == Errc::overloaded));
  BOOST_TEST(c.say("A").has_value());  // has a limit of its own
  c.gateway().room = seconds(15);
  c.pass();
  int more = 0;
  while (c.hear()) ++more;
  BOOST_TEST(more == seconds(20 - 15));
  int texts = 1;
  while (c.say("A")) ++texts;
  BOOST_TEST(texts == 512);
  c.gateway().room = kFar;
  c.pass();
  Engine engine;
  engine.take(c.gateway().said, 0, c.gateway().said.size());
  BOOST_TEST(engine.sound.size() == static_cast<std::size_t>(seconds(65)) * kPart);
  BOOST_TEST(engine.counts_up());
  BOOST_TEST(engine.texts.size() == 512u);
  BOOST_TEST(c.hear().has_value());
}

BOOST_AUTO_TEST_CASE(what_was_sent_takes_no_room_from_what_is_to_be_sent) {
  User c;
  c.opened();
  for (int n = 0; n < 10; ++n) BOOST_TEST(c.hear().has_value());
  for (int n = 0; n < 600; ++n) BOOST_TEST_REQUIRE(c.talk.say({{"type", "item"}, {"text", "i"}}, c.now).has_value());
  c.lose();
  BOOST_TEST(c.hear().has_value());
  int texts = 0;
  while (c.say("A")) ++texts;
  BOOST_TEST(texts == 512);
  BOOST_TEST(c.hear().has_value());  // has a limit of its own
  c.resumed({{"input_samples", 0}});
  BOOST_TEST(kinds(c.gateway().said) == std::string(11, 's') + std::string(512, 'A') + "s");
  Engine engine;
  engine.take(c.gateway().said, 0, c.gateway().said.size());
  BOOST_TEST(engine.counts_up());
}

BOOST_AUTO_TEST_CASE(nor_do_its_bytes) {
  User c;
  c.opened();
  const std::string large(100000, 'A');
  for (int n = 0; n < 20; ++n) BOOST_TEST_REQUIRE(c.say(large).has_value());
  c.lose();
  int texts = 0;
  while (c.say(large)) ++texts;
  BOOST_TEST(texts == 10);  // 1 MiB
  c.resumed({{"input_samples", 0}});
  BOOST_TEST(c.gateway().said.size() == 10u);
}

/// Its end is no reason to forget what the user said next.
BOOST_AUTO_TEST_CASE(the_end_of_a_turn_that_had_come_before_a_resume_forgets_nothing_that_was_said_since) {
  User c;
  c.opened();
  BOOST_TEST(c.say("A").has_value());
  c.lose();
  BOOST_TEST(c.say("B").has_value());
  c.resumed({{"input_samples", 0}, {"turn", 1}}, 0);
  c.told({{"type", "turn"}, {"turn", 1}});
  c.gateway().room = kFar;
  c.pass();
  BOOST_TEST(kinds(c.gateway().said) == "B");
  c.lose();  // B was on its way
  c.resumed({{"input_samples", 0}, {"turns", 1}});
  BOOST_TEST(kinds(c.gateway().said) == "B");
  c.told({{"type", "turn"}, {"turn", 2}});
  c.lose();
  c.resumed({{"input_samples", 0}, {"turns", 2}});
  BOOST_TEST(kinds(c.gateway().said) == "");
}

BOOST_AUTO_TEST_CASE(the_number_of_a_cancelled_turn_may_come_again) {
  User c;
  c.opened();
  BOOST_TEST(c.say("A").has_value());
  c.lose();
  c.resumed({{"input_samples", 0}, {"turn", 1}});
  c.told({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(c.say("B").has_value());
  c.told({{"type", "turn"}, {"turn", 1}});
  c.lose();
  c.resumed({{"input_samples", 0}, {"turns", 1}});
  BOOST_TEST(kinds(c.gateway().said) == "");
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(cancelling)

namespace {
/// Has asked A, cancelled it and asked B.
struct Cancelling : User {
  Cancelling() {
    opened();
    BOOST_TEST(say("A").has_value());
    cancel();
    BOOST_TEST(say("B").has_value());
  }
};
}  // namespace

BOOST_AUTO_TEST_CASE(a_turn_that_was_as_good_as_over_takes_no_question_behind_the_cancel_with_it) {
  Cancelling u;
  u.told({{"type", "turn"}, {"turn", 1}});
  u.told({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(u.said_again({{"input_samples", 0}, {"turns", 1}}) == "B");
  u.told({{"type", "turn"}, {"turn", 2}});
  BOOST_TEST(u.said_again({{"input_samples", 0}, {"turns", 2}}) == "");
}

BOOST_AUTO_TEST_CASE(a_cancel_that_was_answered_is_not_said_again) {
  Cancelling u;
  u.told({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(u.said_again({{"input_samples", 0}}) == "B");
}

BOOST_AUTO_TEST_CASE(an_error_without_a_turn_forgets_nothing_behind_a_cancel) {
  Cancelling u;
  u.told({{"type", "turn"}, {"turn", 1}});
  u.told({{"type", "error"}, {"code", "invalid_argument"}, {"message", "no such voice"}});
  BOOST_TEST(u.said_again({{"input_samples", 0}, {"turns", 1}}) == "?B");
}

BOOST_AUTO_TEST_CASE(a_spoken_turn_that_ends_in_front_of_a_cancel_forgets_nothing_behind_it) {
  User u;
  u.opened();
  u.cancel();
  BOOST_TEST(u.say("B").has_value());
  u.told({{"type", "turn"}, {"turn", 1}});
  BOOST_TEST(u.said_again({{"input_samples", 0}, {"turns", 1}}) == "?B");
}

BOOST_AUTO_TEST_CASE(a_turn_under_way_may_be_the_one_that_was_cancelled) {
  Cancelling u;
  BOOST_TEST(u.said_again({{"input_samples", 0}, {"turn", 1}}) == "?B");
  u.told({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(u.said_again({{"input_samples", 0}}) == "B");
}

BOOST_AUTO_TEST_CASE(each_answer_is_of_one_cancel) {
  Cancelling u;
  u.cancel();
  BOOST_TEST(u.say("C").has_value());
  u.told({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(u.said_again({{"input_samples", 0}}) == "B?C");
  u.told({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(u.said_again({{"input_samples", 0}}) == "C");
}

BOOST_AUTO_TEST_CASE(a_cancel_of_a_turn_that_was_over_ends_no_other) {
  User u;
  u.opened();
  BOOST_TEST(u.say("A").has_value());
  u.told({{"type", "turn"}, {"turn", 1}});
  BOOST_TEST(u.say("B").has_value());
  u.told({{"type", "text"}, {"turn", 2}, {"kind", "text"}, {"text", "Paris"}});
  u.cancel(1);
  u.told({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(u.said_again({{"input_samples", 0}, {"turns", 1}}) == "B");
  BOOST_TEST(u.gateway().claim["turn"] == 2);
  BOOST_TEST(u.gateway().claim["reply_bytes"] == 5);
}

BOOST_AUTO_TEST_CASE(a_turn_that_the_engine_drops_of_its_own_accord_takes_its_question_with_it) {
  User u;
  u.opened();
  BOOST_TEST(u.say("A").has_value());
  u.told({{"type", "cancelled"}, {"turn", 1}});
  BOOST_TEST(u.said_again({{"input_samples", 0}}) == "");
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(what_is_claimed)

namespace {
using Claim = std::vector<std::int64_t>;
struct Told : User {
  Told() { opened(); }
};
}  // namespace

BOOST_AUTO_TEST_CASE(of_a_turn_with_the_number_of_one_that_was_not_remembered) {
  Told u;
  u.text(1, "text", "Bern");
  u.told({{"type", "turn"}, {"turn", 1}, {"remembered", false}});
  u.text(1, "text", "Paris");
  BOOST_TEST(u.sound(1, 100) == 0);
  BOOST_TEST(u.claims() == (Claim{1, 100, 0, 5}), boost::test_tools::per_element());
  u.resumed({{"input_samples", 0}, {"turn", 1}});
  BOOST_TEST(u.sound(1, 50) == 100);
  u.told({{"type", "turn"}, {"turn", 1}});
  BOOST_TEST(u.claims() == (Claim{2, 0, 0, 0}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(behind_an_utterance_that_was_noted) {
  Told u;
  u.text(1, "transcript", "hello");
  u.told({{"type", "noted"}, {"id", "utterance_1_0"}, {"text", "hello"}});
  BOOST_TEST(u.claims() == (Claim{2, 0, 0, 0}), boost::test_tools::per_element());
  u.resumed({{"input_samples", 0}, {"turns", 1}});
  u.text(2, "transcript", "you");
  BOOST_TEST(u.claims() == (Claim{2, 0, 3, 0}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(while_a_turn_is_heard_and_an_utterance_behind_it_was_noted) {
  Told u;
  u.text(1, "text", "Paris");
  u.told({{"type", "noted"}, {"id", "utterance_2_16000"}, {"text", "thanks"}});
  u.sound(1, 100);
  BOOST_TEST(u.claims() == (Claim{1, 100, 0, 5}), boost::test_tools::per_element());
  u.resumed({{"input_samples", 0}, {"turn", 1}});
  u.told({{"type", "turn"}, {"turn", 1}});
  u.text(2, "transcript", "thanks");
  BOOST_TEST(u.claims() == (Claim{3, 0, 0, 0}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(behind_a_note_that_was_lost_with_its_controller) {
  Told u;
  u.told({{"type", "noted"}, {"id", "utterance_1_0"}, {"text", "hello"}});
  u.told({{"type", "turn"}, {"turn", 1}});
  u.text(2, "text", "Paris");
  BOOST_TEST(u.claims() == (Claim{2, 0, 0, 5}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(of_a_turn_that_has_another_number_than_the_next) {
  Told u;
  u.told({{"type", "turn"}, {"turn", 1}});
  u.text(3, "text", "Paris");  // 2 are items
  BOOST_TEST(u.claims() == (Claim{3, 0, 0, 5}), boost::test_tools::per_element());
  u.resumed({{"input_samples", 0}, {"turn", 3}});
  u.told({{"type", "turn"}, {"turn", 3}, {"degraded", true}});
  u.sound(3, 100);             // late
  u.text(3, "text", "Berne");  // it was lost with its controller
  BOOST_TEST(u.claims() == (Claim{3, 0, 0, 5}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(nothing_of_a_turn_that_was_over_when_the_session_was_resumed) {
  Told u;
  u.text(1, "text", "Pa");
  u.sound(1, 100);
  u.claims();
  u.resumed({{"input_samples", 0}});
  u.text(1, "text", "Paris");
  BOOST_TEST(u.sound(1, 10) == 0);
  BOOST_TEST(u.claims() == (Claim{1, 10, 0, 5}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_note_forgets_its_flush_and_no_other_question) {
  for (const bool flushed : {true, false}) {
    Told u;
    if (flushed) BOOST_TEST(u.talk.say({{"type", "flush"}}, u.now).has_value());
    BOOST_TEST(u.talk.say({{"type", "respond"}}, u.now).has_value());
    u.told({{"type", "noted"}, {"id", "utterance_1_0"}, {"text", "hello"}});
    BOOST_TEST(u.said_again({{"input_samples", 0}, {"turns", 1}}) == "?");
    BOOST_TEST(Gateway::fields_of(u.gateway().said.front())["type"] == "respond");
  }
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(pauses)

namespace {
/// Was opened, has lost its gateway and asks the next one, which does not have the session yet.
struct Lost : User {
  Lost() {
    opened();
    lose();
    talk.on_tick(now);
  }
};
constexpr std::array kMost{50, 100, 200, 400, 400, 400, 400};
}  // namespace

BOOST_AUTO_TEST_CASE(the_next_gateway_is_asked_at_once_then_behind_pauses_that_grow_to_a_limit) {
  Lost u;
  BOOST_TEST(u.asked() == 2);
  std::set<int> limit;
  for (const auto most : kMost) {
    u.refused({{"code", "not_found"}});
    const auto ms = u.asks_again_behind();
    BOOST_TEST(ms >= most / 2);
    BOOST_TEST(ms <= most);
    if (most == kMost.back()) limit.insert(ms);
  }
  BOOST_TEST(limit.size() > 1u);  // not all clients of a gateway at the same time
}

BOOST_AUTO_TEST_CASE(no_pause_is_shorter_than_a_gateway_says) {
  Lost u;
  u.refused({{"code", "overloaded"}, {"retry_ms", 700}});
  BOOST_TEST(u.asks_again_behind() == 700);
}

BOOST_AUTO_TEST_CASE(a_gateway_that_opens_and_is_lost_before_it_has_told_anything_is_a_failed_attempt) {
  Lost u;
  for (const auto most : kMost) {
    u.resumed({{"input_samples", 0}});
    u.lose();
    const auto ms = u.asks_again_behind();
    BOOST_TEST(ms >= most / 2);
    BOOST_TEST(ms <= most);
  }
}

BOOST_AUTO_TEST_CASE(behind_a_gateway_that_has_served_the_next_one_is_asked_at_once) {
  for (const bool tells : {true, false}) {
    Lost u;
    for (int n = 0; n < 5; ++n) {
      u.refused({{"code", "not_found"}});
      u.asks_again_behind();
    }
    u.resumed({{"input_samples", 0}});
    if (tells)
      u.told({{"type", "text"}, {"kind", "text"}, {"text", "Paris"}});
    else
      u.pass(5000);  // nothing was to be told
    u.lose();
    BOOST_TEST(u.asks_again_behind() == 1);
  }
}

BOOST_AUTO_TEST_CASE(an_error_serves_nobody) {
  Lost u;
  for (const auto most : kMost) {
    u.resumed({{"input_samples", 0}});
    u.told({{"type", "error"}, {"code", "unavailable"}, {"message", "the model is gone"}});
    u.lose();
    BOOST_TEST(u.asks_again_behind() >= most / 2);
  }
}

BOOST_AUTO_TEST_CASE(links_that_are_full_are_tried_one_after_the_other_and_not_without_end) {
  User u;
  u.opened();
  for (auto& g : u.gateways) g.room = 0;
  u.lose();
  for (int n = 0; n < 2000; ++n) u.pass(1);
  const auto one = u.gateways[1].tried, other = u.gateways[2].tried;
  BOOST_TEST(one > 0);
  BOOST_TEST(std::abs(one - other) <= 1);
  BOOST_TEST(one + other >= 5);
  BOOST_TEST(one + other <= 13);  // 25, 50, 100, then 200 ms at least
  u.gateways[2].room = kFar;
  for (int n = 0; n < 1000; ++n) u.pass(1);
  BOOST_TEST(u.gateways[2].asked.size() == 1u);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(the_end_of_looking)

namespace {
/// Loses its gateway and hears the same of all others, or nothing, until it gives up.
/// @return how many ms it has looked; after a minute it still does: 60000
int looks_for(User& u, const std::string& answer) {
  u.opened();
  for (auto& g : u.gateways) g.room = answer == "full" ? 0 : kFar;
  u.lose();
  int out = 0;
  for (; !u.talk.is_ended() && out < 60000; out += 50) {
    u.pass();
    if (answer != "full" && !answer.empty() && u.talk.place() != nullptr) u.refused({{"code", answer}});
  }
  return out;
}
}  // namespace

BOOST_AUTO_TEST_CASE(it_comes_when_the_time_is_over_whatever_gateways_say) {
  for (const std::string answer : {"full", "", "unavailable", "overloaded", "not_found"}) {
    BOOST_TEST_CONTEXT("answer '" << answer << "'") {
      User u;
      BOOST_TEST(looks_for(u, answer) == 10050);
      BOOST_TEST_REQUIRE(u.talk.failure().has_value());
      BOOST_TEST(u.talk.failure()->code == "unavailable");
      const auto told = u.talk.take();
      BOOST_TEST_REQUIRE(told.has_value());
      const auto fields = json::parse(std::get<Event>(*told).json);
      BOOST_TEST(fields["session_ended"] == true);
      const bool is_named = answer != "full" && !answer.empty();
      BOOST_TEST((fields["message"].get<std::string>().find(answer + ": not yet") != std::string::npos) == is_named);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_conversation_that_never_stood_is_not_looked_a_place_for_without_end_either) {
  User u;
  for (int n = 0; n < 600 && !u.talk.is_ended(); ++n) u.pass();  // nobody answers
  BOOST_TEST_REQUIRE(u.talk.failure().has_value());
  BOOST_TEST(u.talk.failure()->code == "unavailable");
}

BOOST_AUTO_TEST_CASE(each_loss_has_its_own_time) {
  User u;
  u.opened();
  for (int n = 0; n < 3; ++n) {
    u.lose();
    for (int ms = 0; ms < 9900; ms += 50) u.pass();
    u.resumed({{"input_samples", 0}});
    BOOST_TEST(u.talk.is_open());
    u.pass(5000);
  }
}

/// Until then its sessions are another's, as far as anybody knows: 30 s behind its silence, and a round of asking.
BOOST_AUTO_TEST_CASE(a_gateway_that_falls_silent_is_given_up_by_the_engine_before_the_conversation_is) {
  User u(ClientOptions{}.reconnect);
  u.opened();
  u.lose();
  for (int ms = 0; ms < 36000; ms += 50) {
    u.pass();
    if (u.talk.place() != nullptr) u.refused({{"code", "unavailable"}, {"retry_ms", 400}});
  }
  u.resumed({{"input_samples", 0}});
  BOOST_TEST(u.talk.is_open());
}

BOOST_AUTO_TEST_SUITE_END()
