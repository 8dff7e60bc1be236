#define BOOST_TEST_MODULE mesh
#include "common/transport/mesh.hpp"

#include <boost/test/unit_test.hpp>
#include <set>

namespace parlando::transport {
namespace {
using namespace protocol;
using Route = Mesh::Route;

const Time kStart{std::chrono::hours(1)};

Envelope head_of(std::uint32_t stream, std::uint64_t epoch = 0, std::uint64_t session = 1) {
  Envelope e;
  e.session = {session, session};
  e.stream = {stream};
  e.epoch = {epoch};
  return e;
}
Message text(std::uint32_t stream, std::string words, std::uint64_t epoch = 0) {
  return pack(Say{std::move(words)}, head_of(stream, epoch));
}

/// A mesh on its own: what it says is kept, what it is told is made by hand.
struct Station {
  Mesh mesh;
  Time now = kStart;
  std::vector<std::pair<Route, Message>> said;
  std::vector<Mesh::Event> events;
  std::set<Route> full;
  int offered = 0;

  static MeshOptions options(std::string instance, std::string role) {
    MeshOptions o;
    o.instance = std::move(instance);
    o.role = std::move(role);
    o.seed = std::hash<std::string>()(o.instance) | 1;
    return o;
  }
  explicit Station(MeshOptions o) : mesh(std::move(o)) {}
  Station(std::string instance, std::string role) : mesh(options(std::move(instance), std::move(role))) {}

  void flush() {
    mesh.flush(now, [this](Route route, const Frames& f) {
      ++offered;
      if (full.contains(route)) return false;
      const auto body = std::as_bytes(std::span(f.body));
      const std::span<const std::byte> frames[] = {f.envelope, body, f.payload};
      auto d = decode(frames, now);
      BOOST_REQUIRE_MESSAGE(d.has_value(), (d ? std::string() : d.error().message));
      for (auto& m : d->messages) said.emplace_back(route, std::move(m));
      return true;
    });
    for (auto& e : mesh.take()) events.push_back(std::move(e));
  }
  void hear(Route route, const Message& message, std::string_view key_role = {}, std::string_view key_instance = {}) {
    const auto f = encode(message);
    const auto body = std::as_bytes(std::span(f.body));
    const std::span<const std::byte> frames[] = {f.envelope, body, f.payload};
    mesh.receive(route, frames, key_role, now, key_instance);
    flush();
  }
  void garbage(Route route) {
    const Bytes bytes(80, std::byte{7});
    const std::span<const std::byte> frames[] = {bytes, {}, {}};
    mesh.receive(route, frames, {}, now);
    flush();
  }
  template <class T>
  void hear(Route route, T body) {
    hear(route, pack(std::move(body)));
  }
  void pass(milliseconds time) {
    now += time;
    mesh.tick(now);
    flush();
  }
  /// The last message of a type on a route since `forget`; fails when there is none.
  template <class T>
  T last(Route route) {
    for (auto it = said.rbegin(); it != said.rend(); ++it)
      if (it->first == route && it->second.head.type == T::kType) {
        auto copy = it->second;
        auto out = read<T>(copy);
        BOOST_REQUIRE(out.has_value());
        return *out;
      }
    BOOST_FAIL("no " << to_string(T::kType) << " was said on route " << route);
    return {};
  }
  int count(MessageType type) const {
    return static_cast<int>(
        std::count_if(said.begin(), said.end(), [&](const auto& s) { return s.second.head.type == type; }));
  }
  std::string states() {
    std::string out;
    for (const auto& e : std::exchange(events, {}))
      if (e.peer) out += (out.empty() ? "" : " ") + std::string(to_string(e.peer->state)) + ":" + e.peer->peer.instance;
    return out;
  }
  std::string heard() {
    std::string out;
    for (auto& e : std::exchange(events, {})) {
      if (!e.delivery) continue;
      auto& m = e.delivery->message;
      std::string words(to_string(m.head.type));
      if (m.head.type == MessageType::say) words = read<Say>(m)->text;
      if (m.head.type == MessageType::error) words = "error " + read<ErrorMessage>(m)->code;
      out += (out.empty() ? "" : " ") + e.delivery->peer + ":" + words;
    }
    return out;
  }
};

Hello caller_hello(std::string instance, std::uint64_t incarnation, std::uint64_t attempt = 1) {
  Hello h;
  h.role = "controller";
  h.instance = std::move(instance);
  h.version_min = kVersionMin;
  h.version_max = kVersion;
  h.incarnation = incarnation;
  h.call = 77;
  h.attempt = attempt;
  return h;
}

/// A controller that calls a vad over connections that a test cuts and remakes by hand.
struct Two {
  Station a{"controller-1", "controller"}, b;
  Route near = 1, far = 101;
  bool open = true;
  explicit Two() : b("vad-1", "vad") { a.mesh.connected(near, "vad", a.now); }

  void carry(Station& from, Station& to, Route to_route) {
    from.flush();
    for (auto& [route, message] : std::exchange(from.said, {})) {
      if (!open || (&from == &a ? route != near : route != far)) continue;
      to.hear(to_route, message);
    }
  }
  /// @param each  time between two exchanges
  void run(milliseconds time, milliseconds each = milliseconds(10)) {
    for (milliseconds passed{0}; passed <= time; passed += each) {
      a.now += each;
      b.now += each;
      a.mesh.tick(a.now);
      b.mesh.tick(b.now);
      for (int i = 0; i < 4; ++i) {
        carry(a, b, far);
        carry(b, a, near);
      }
      for (const auto old : a.mesh.take_reconnects()) {
        BOOST_TEST(old == near);
        a.mesh.reconnected(old, ++near, a.now);
        ++far;
      }
    }
  }
  void link() {
    run(milliseconds(50));
    BOOST_REQUIRE(a.states() == "up:vad-1");
    BOOST_REQUIRE(b.states() == "up:controller-1");
  }
};

}  // namespace

// ------------------------------------------------------------------------------------------------ places

/// Of every place that is taken or given back nobody wants to hear, but of much more or less, and of all and none.
BOOST_AUTO_TEST_CASE(places_are_told_when_they_have_halved_or_doubled_and_when_none_is_left) {
  Two t;
  t.b.mesh.set_status({.slots = 16});
  t.link();
  const auto says = [&](std::int64_t slots) {
    t.b.mesh.set_status({.slots = slots});
    t.run(milliseconds(500));
    return !t.a.states().empty();
  };
  const auto first = t.a.mesh.peers().at(0).slots;
  BOOST_TEST(first == 16);
  BOOST_TEST(!says(15));
  BOOST_TEST(!says(8));
  BOOST_TEST(says(7));
  BOOST_TEST(!says(8));
  BOOST_TEST(!says(14));
  BOOST_TEST(says(15));
  BOOST_TEST(says(1));
  BOOST_TEST(says(0));
  BOOST_TEST(says(1));
  BOOST_TEST(!says(2));
  BOOST_TEST(says(3));
}

// ------------------------------------------------------------------------------------------------ named no more

BOOST_AUTO_TEST_CASE(a_call_that_is_named_no_more_drains_and_ends_with_its_last_stream) {
  Two t;
  t.link();
  (void)t.a.mesh.send("vad-1", text(2, "x"));
  t.run(milliseconds(50));
  t.a.mesh.retire(t.near, t.a.now);
  t.run(milliseconds(500));
  BOOST_TEST(t.a.mesh.peers().at(0).draining);  // though its heartbeats say otherwise
  BOOST_TEST(t.a.states() == "changed:vad-1");
  BOOST_TEST(t.a.mesh.take_finished().empty());
  BOOST_REQUIRE(t.a.mesh.send("vad-1", text(2, "y")).has_value());
  t.run(milliseconds(50));
  t.b.events.clear();
  (void)t.a.mesh.send("vad-1", pack(Close{}, head_of(2)));
  t.run(milliseconds(20));
  for (auto& e : std::exchange(t.b.events, {}))
    if (e.delivery) t.b.mesh.handled("controller-1", e.delivery->message.head);
  t.run(milliseconds(300));
  BOOST_TEST(t.a.states() == "down:vad-1");
  BOOST_TEST(t.a.mesh.take_finished() == std::vector<Route>{t.near}, boost::test_tools::per_element());
  BOOST_TEST(!t.a.mesh.knows(t.near));
}

BOOST_AUTO_TEST_CASE(a_call_that_is_named_no_more_drains_under_a_new_link_too) {
  Station s("controller-1", "controller");
  s.mesh.connected(1, "vad", s.now);
  s.flush();
  const auto answer = [&](Route route, const std::string& instance) {
    auto h = s.last<Hello>(route);
    h.role = "vad";
    h.instance = instance;
    h.answer = true;
    h.fresh = true;
    s.hear(route, h);
  };
  answer(1, "vad-1");
  BOOST_REQUIRE(s.states() == "up:vad-1");
  (void)s.mesh.send("vad-1", text(2, "x"));
  s.mesh.retire(1, s.now);
  // Another process stands behind the endpoint.
  s.mesh.reconnected(1, 2, s.now);
  s.flush();
  answer(2, "vad-2");
  answer(2, "vad-2");
  BOOST_REQUIRE(s.mesh.is_up("vad-2"));
  BOOST_TEST(s.mesh.peers().at(0).draining);
}

BOOST_AUTO_TEST_CASE(whoever_begins_a_stream_within_a_beat_of_the_end_of_a_name_may_finish_it) {
  Two t;
  t.link();
  t.a.mesh.retire(t.near, t.a.now);
  t.run(milliseconds(50));
  BOOST_TEST(t.a.mesh.take_finished().empty());
  (void)t.a.mesh.send("vad-1", text(2, "x"));
  t.run(milliseconds(500));
  BOOST_TEST(t.a.mesh.take_finished().empty());
  BOOST_TEST(t.a.mesh.is_up("vad-1"));
}

BOOST_AUTO_TEST_CASE(a_call_that_is_named_again_goes_on) {
  Two t;
  t.link();
  t.a.mesh.retire(t.near, t.a.now);
  t.a.mesh.reinstate(t.near);
  t.run(milliseconds(500));
  BOOST_TEST(t.a.states() == "changed:vad-1 changed:vad-1");
  BOOST_TEST(!t.a.mesh.peers().at(0).draining);
  BOOST_TEST(t.a.mesh.take_finished().empty());
}

BOOST_AUTO_TEST_CASE(a_call_that_is_named_no_more_is_not_waited_for_when_it_falls_silent) {
  Two t;
  t.link();
  (void)t.a.mesh.send("vad-1", text(2, "x"));
  t.run(milliseconds(50));
  t.a.mesh.retire(t.near, t.a.now);
  t.open = false;
  t.run(milliseconds(1200));
  BOOST_TEST(t.a.mesh.take_finished().empty());
  t.run(milliseconds(800));
  BOOST_TEST(t.a.states() == "changed:vad-1 suspect:vad-1 down:vad-1");
  BOOST_TEST(t.a.mesh.take_finished().size() == 1u);
  // One that never answered is over at once.
  t.a.mesh.connected(500, "vad", t.a.now);
  t.a.mesh.retire(500, t.a.now);
  t.run(milliseconds(100));
  BOOST_TEST(t.a.mesh.take_finished() == std::vector<Route>{500}, boost::test_tools::per_element());
}

// ------------------------------------------------------------------------------------------------ HELLO, at the callee

BOOST_AUTO_TEST_CASE(a_fresh_caller_is_up_and_answered_under_its_incarnation) {
  Station s("vad-1", "vad");
  s.hear(1, caller_hello("controller-1", 5));
  BOOST_TEST(s.states() == "up:controller-1");
  const auto answer = s.last<Hello>(1);
  BOOST_TEST(answer.incarnation == 5u);
  BOOST_TEST(answer.answer);
  BOOST_TEST(answer.call == 77u);
  BOOST_TEST(answer.attempt == 1u);
  BOOST_TEST(answer.instance == "vad-1");
  const auto peers = s.mesh.peers();
  BOOST_REQUIRE(peers.size() == 1u);
  BOOST_TEST(peers[0].caller);
  BOOST_TEST(peers[0].role == "controller");
}

BOOST_AUTO_TEST_CASE(a_repeated_hello_is_answered_again_and_changes_nothing) {
  Station s("vad-1", "vad");
  s.hear(1, caller_hello("controller-1", 5));
  s.said.clear();
  s.hear(1, caller_hello("controller-1", 5, 2));
  BOOST_TEST(s.last<Hello>(1).attempt == 2u);
  BOOST_TEST(s.states() == "up:controller-1");
  BOOST_TEST(s.mesh.counters().resets == 0u);
}

BOOST_AUTO_TEST_CASE(a_hello_from_before_the_latest_is_ignored) {
  Station s("vad-1", "vad");
  s.hear(1, caller_hello("controller-1", 5, 1));
  s.hear(2, caller_hello("controller-1", 5, 3));
  s.said.clear();
  s.hear(1, caller_hello("controller-1", 5, 2));
  BOOST_TEST(s.said.empty());
  BOOST_TEST(s.mesh.counters().hello_late == 1u);
  BOOST_REQUIRE(s.mesh.send("controller-1", text(1, "x")).error().code == Errc::cancelled);  // still linked
}

BOOST_AUTO_TEST_CASE(one_that_remembers_what_we_do_not_begins_anew) {
  Station s("vad-1", "vad");
  auto h = caller_hello("controller-1", 5);
  h.fresh = false;
  h.received = 9;
  s.hear(1, h);
  BOOST_TEST(s.last<Hello>(1).incarnation == 0u);
  BOOST_TEST(s.states().empty());
}

BOOST_AUTO_TEST_CASE(another_incarnation_is_down_and_up) {
  Station s("vad-1", "vad");
  s.hear(1, caller_hello("controller-1", 5));
  s.hear(1, caller_hello("controller-1", 6, 2));
  BOOST_TEST(s.states() == "up:controller-1 down:controller-1 up:controller-1");
  BOOST_TEST(s.mesh.counters().resets == 1u);
}

BOOST_AUTO_TEST_CASE(a_caller_that_claims_more_than_was_sent_begins_anew) {
  Station s("vad-1", "vad");
  s.hear(1, caller_hello("controller-1", 5));
  auto h = caller_hello("controller-1", 5, 2);
  h.fresh = false;
  h.received = 3;
  s.hear(1, h);
  BOOST_TEST(s.states() == "up:controller-1 down:controller-1");
  BOOST_TEST(s.last<Hello>(1).incarnation == 0u);
}

BOOST_AUTO_TEST_CASE(a_second_call_of_one_instance_waits_until_the_first_is_silent) {
  Station s("vad-1", "vad");
  s.hear(1, caller_hello("controller-1", 5));
  auto second = caller_hello("controller-1", 6);
  second.call = 78;
  s.hear(2, second);
  BOOST_TEST(s.last<Refused>(2).code == "invalid_argument");
  BOOST_TEST(s.states() == "up:controller-1");
  for (int i = 0; i < 10; ++i) s.pass(milliseconds(100));
  BOOST_TEST(s.states() == "suspect:controller-1");
  second.attempt = 2;
  s.hear(2, second);
  BOOST_TEST(s.states() == "down:controller-1 up:controller-1");
  s.hear(1, Heartbeat{});  // the first connection is nobody's now
  BOOST_TEST(s.last<Refused>(1).code == "not_ready");
}

BOOST_AUTO_TEST_CASE(a_key_admits_the_processes_of_its_name_only) {
  Station s("vad-1", "vad");
  Route route = 1;
  for (const char* instance : {"a-1-0a1b2c3d", "a-1", "a-0a1b2c3", "a-0a1b2c3g", "a-0a1b2c3d-", "ab-0a1b2c3d"}) {
    s.hear(route, pack(caller_hello(instance, 5)), "controller", "a");
    BOOST_TEST(s.last<Refused>(route++).code == "invalid_argument");
  }
  s.hear(route, pack(caller_hello("a-0a1b2c3d", 5)), "controller", "a");
  BOOST_TEST(s.states() == "up:a-0a1b2c3d");
}

BOOST_AUTO_TEST_CASE(hellos_that_cannot_be_are_refused_with_the_reason) {
  Station s("vad-1", "vad");
  auto h = caller_hello("controller-1", 5);
  h.version_min = h.version_max = 9;
  s.hear(1, h);
  BOOST_TEST(s.last<Refused>(1).code == "bad_version");
  s.hear(1, pack(caller_hello("controller-1", 5)), "gateway");
  BOOST_TEST(s.last<Refused>(1).code == "invalid_argument");
  s.hear(1, caller_hello("", 5));
  BOOST_TEST(s.last<Refused>(1).code == "bad_json");
  s.hear(1, caller_hello(std::string(99, 'a') + "\xc3\xa9", 5));  // the letter that ended a service, review C1
  BOOST_TEST(s.last<Refused>(1).code == "invalid_argument");
  BOOST_TEST(s.states().empty());
  BOOST_TEST(s.mesh.counters().hello_refused == 4u);
  s.hear(1, pack(caller_hello("controller-1", 5)), "controller");
  BOOST_TEST(s.states() == "up:controller-1");
}

BOOST_AUTO_TEST_CASE(a_wider_range_of_versions_is_met_at_the_highest_that_both_know) {
  Station s("vad-1", "vad");
  auto h = caller_hello("controller-1", 5);
  h.version_min = 0;
  h.version_max = 40;
  s.hear(1, h);
  BOOST_REQUIRE(s.mesh.peers().size() == 1u);
  BOOST_TEST(s.mesh.peers()[0].version == kVersion);
}

BOOST_AUTO_TEST_CASE(callers_above_the_limit_are_refused) {
  auto o = Station::options("vad-1", "vad");
  o.peers_max = 2;
  Station s(o);
  for (Route r = 1; r <= 3; ++r) s.hear(r, caller_hello("controller-" + std::to_string(r), r));
  BOOST_TEST(s.last<Refused>(3).code == "overloaded");
  BOOST_TEST(s.mesh.peers().size() == 2u);
}

BOOST_AUTO_TEST_CASE(a_connection_speaks_for_one_instance) {
  Station s("vad-1", "vad");
  s.hear(1, caller_hello("controller-1", 5));
  s.hear(1, caller_hello("controller-2", 6));
  BOOST_TEST(s.states() == "up:controller-1 up:controller-2");
  for (int i = 0; i < 5; ++i) {
    s.hear(1, Heartbeat{true, false, 1});
    s.pass(milliseconds(100));
  }
  BOOST_TEST(s.states() == "suspect:controller-1");
}

BOOST_AUTO_TEST_CASE(before_hello_everything_is_refused_once_a_flush) {
  Station s("vad-1", "vad");
  const auto f = encode(text(1, "x"));
  const auto body = std::as_bytes(std::span(f.body));
  const std::span<const std::byte> frames[] = {f.envelope, body, f.payload};
  for (int i = 0; i < 100; ++i) s.mesh.receive(1, frames, {}, s.now);
  s.flush();
  BOOST_TEST(s.count(MessageType::refused) == 1);
  BOOST_TEST(s.last<Refused>(1).code == "not_ready");
  s.said.clear();
  s.hear(1, Refused{"not_ready", "no, you"});
  auto late = caller_hello("vad-7", 5);
  late.answer = true;
  s.hear(1, late);
  BOOST_TEST(s.said.empty());  // an answer on a connection that was given up makes no caller
  BOOST_TEST(s.states().empty());
}

// ------------------------------------------------------------------------------------------------ HELLO, at the caller

BOOST_AUTO_TEST_CASE(a_call_is_up_when_the_answer_has_its_incarnation) {
  Two t;
  t.link();
  BOOST_TEST(t.a.mesh.is_up("vad-1"));
  BOOST_TEST(!t.a.mesh.is_up("vad-2"));
  BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, "hello")).has_value());
  t.run(milliseconds(20));
  BOOST_TEST(t.b.heard() == "controller-1:hello");
  const auto nobody = t.a.mesh.send("vad-2", text(1, "hello"));
  BOOST_REQUIRE(!nobody.has_value());
  BOOST_TEST((nobody.error().code == Errc::unavailable));
}

BOOST_AUTO_TEST_CASE(a_callee_of_another_role_is_not_linked_and_not_asked_in_haste) {
  Station s("controller-1", "controller");
  s.mesh.connected(1, "tts", s.now);
  s.flush();
  auto h = s.last<Hello>(1);
  h.role = "vad";
  h.instance = "vad-1";
  h.answer = true;
  s.hear(1, h);
  s.said.clear();
  BOOST_TEST(s.states().empty());
  for (int i = 0; i < 4; ++i) s.pass(milliseconds(100));
  BOOST_TEST(s.count(MessageType::hello) == 0);
  for (int i = 0; i < 3; ++i) s.pass(milliseconds(100));
  BOOST_TEST(s.count(MessageType::hello) >= 1);
}

BOOST_AUTO_TEST_CASE(another_process_behind_the_same_endpoint_is_down_and_up_at_both) {
  Two t;
  t.link();
  BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, "for the first")).has_value());
  // The process is replaced; the connection is made anew below, by the transport itself.
  Station second("vad-2", "vad");
  second.now = t.a.now;
  t.a.pass(milliseconds(100));
  for (auto& [route, m] : std::exchange(t.a.said, {})) second.hear(500, m);
  BOOST_TEST(second.last<Refused>(500).code == "not_ready");
  for (int i = 0; i < 4; ++i) {
    for (auto& [route, m] : std::exchange(second.said, {})) t.a.hear(1, m);
    for (auto& [route, m] : std::exchange(t.a.said, {})) second.hear(500, m);
  }
  BOOST_TEST(t.a.states() == "down:vad-1 up:vad-2");
  BOOST_TEST(second.states() == "up:controller-1");
  BOOST_TEST(t.a.mesh.streams() == 0u);
  BOOST_TEST(second.heard().empty());  // nothing meant for the first
}

BOOST_AUTO_TEST_CASE(answers_to_earlier_hellos_are_late) {
  Station s("controller-1", "controller");
  s.mesh.connected(1, "vad", s.now);
  s.flush();
  auto h = s.last<Hello>(1);
  h.role = "vad";
  h.instance = "vad-1";
  h.answer = true;
  s.mesh.reconnected(1, 2, s.now);
  s.hear(2, h);
  BOOST_TEST(s.states().empty());
  BOOST_TEST(s.mesh.counters().hello_late == 1u);
  h.attempt = s.last<Hello>(2).attempt;
  s.hear(2, h);
  BOOST_TEST(s.states() == "up:vad-1");
  s.hear(2, h);
  BOOST_TEST(s.states().empty());
}

BOOST_AUTO_TEST_CASE(two_endpoints_that_lead_to_one_instance_make_one_link) {
  Station a("controller-1", "controller");
  Station b("vad-1", "vad");
  a.mesh.connected(1, "vad", a.now);
  a.mesh.connected(2, "vad", a.now);
  for (int i = 0; i < 300; ++i) {
    a.pass(milliseconds(10));
    b.pass(milliseconds(10));
    for (auto& [route, m] : std::exchange(a.said, {})) b.hear(route + 100, m);
    for (auto& [route, m] : std::exchange(b.said, {})) a.hear(route - 100, m);
    a.mesh.take_reconnects();
  }
  BOOST_TEST(a.states() == "up:vad-1");
  BOOST_TEST(b.states() == "up:controller-1");
  // The first is not wanted any more: the second takes its place.
  a.mesh.disconnected(1);
  for (int i = 0; i < 300; ++i) {
    a.pass(milliseconds(10));
    b.pass(milliseconds(10));
    for (auto& [route, m] : std::exchange(a.said, {})) b.hear(route + 100, m);
    for (auto& [route, m] : std::exchange(b.said, {})) a.hear(route - 100, m);
  }
  BOOST_TEST(a.states() == "down:vad-1 up:vad-1");
  BOOST_TEST(b.states() == "suspect:controller-1 down:controller-1 up:controller-1");
}

BOOST_AUTO_TEST_CASE(a_callee_that_never_agrees_is_not_asked_in_a_circle) {
  Station s("controller-1", "controller");
  s.mesh.connected(1, "vad", s.now);
  s.flush();
  for (int i = 0; i < 50; ++i) {
    auto h = s.last<Hello>(1);
    h.role = "vad";
    h.instance = "vad-1";
    h.answer = true;
    h.incarnation = 0;
    s.hear(1, h);
  }
  BOOST_TEST(s.count(MessageType::hello) < 4);
}

// ------------------------------------------------------------------------------------------------ liveness

BOOST_AUTO_TEST_CASE(a_silent_peer_is_suspect_and_goes_on_where_it_was) {
  Two t;
  t.link();
  t.open = false;
  t.run(milliseconds(300));
  BOOST_TEST(t.a.states().empty());
  t.run(milliseconds(200));
  BOOST_TEST(t.a.states() == "suspect:vad-1");
  BOOST_TEST(t.b.states() == "suspect:controller-1");
  BOOST_TEST(!t.a.mesh.is_up("vad-1"));
  BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, "kept")).has_value());
  t.run(milliseconds(3000));
  t.open = true;
  t.run(milliseconds(1500));
  BOOST_TEST(t.a.states() == "up:vad-1");
  BOOST_TEST(t.b.states() == "up:controller-1");
  BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, "more")).has_value());
  t.run(milliseconds(50));
  BOOST_TEST(t.b.heard() == "controller-1:more");  // states() has taken the first
  BOOST_TEST(t.b.mesh.counters().links.received == 2u);
}

BOOST_AUTO_TEST_CASE(a_peer_that_stays_away_is_down_at_both_and_is_dialled_for_ever) {
  Two t;
  t.link();
  BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, "x")).has_value());
  t.run(milliseconds(50));
  t.open = false;
  t.run(milliseconds(31500), milliseconds(50));
  BOOST_TEST(t.a.states() == "suspect:vad-1 down:vad-1");
  BOOST_TEST(t.a.mesh.streams() == 0u);
  BOOST_TEST(t.b.mesh.streams() == 0u);
  BOOST_TEST(t.b.mesh.peers().empty());
  const auto before = t.near;
  t.run(milliseconds(5000), milliseconds(50));
  BOOST_TEST(t.near > before + 2);
  t.open = true;
  t.run(milliseconds(1500));
  BOOST_TEST(t.a.states() == "up:vad-1");
}

BOOST_AUTO_TEST_CASE(a_suspect_peer_that_answers_on_the_old_connection_is_up) {
  Two t;
  t.link();
  t.open = false;
  t.run(milliseconds(500));
  t.open = true;
  t.run(milliseconds(150));
  BOOST_TEST(t.near == 1u);
  BOOST_TEST(t.a.states() == "suspect:vad-1 up:vad-1");
}

BOOST_AUTO_TEST_CASE(a_hung_peer_is_suspect_though_it_answers_and_is_not_dialled_again) {
  Two t;
  t.link();
  Status s;
  s.busy = true;
  s.progress = 7;
  s.step_limit = milliseconds(300);
  t.b.mesh.set_status(s);
  t.run(milliseconds(1000));
  BOOST_TEST(t.a.states() == "suspect:vad-1");
  BOOST_TEST(t.a.mesh.counters().peers_hung == 1u);
  t.run(milliseconds(5000));
  BOOST_TEST(t.near == 1u);
  s.progress = 8;
  t.b.mesh.set_status(s);
  t.run(milliseconds(250));
  BOOST_TEST(t.a.states() == "up:vad-1");
  BOOST_TEST(t.b.states().empty());
}

BOOST_AUTO_TEST_CASE(an_idle_peer_never_hangs) {
  Two t;
  t.link();
  Status s;
  s.step_limit = milliseconds(100);
  t.b.mesh.set_status(s);
  t.run(milliseconds(5000));
  BOOST_TEST(t.a.states().empty());
  // Its first step after a long rest has as long as any other.
  s.busy = true;
  s.step_limit = milliseconds(600);
  t.b.mesh.set_status(s);
  t.run(milliseconds(400));
  BOOST_TEST(t.a.states().empty());
  t.run(milliseconds(500));
  BOOST_TEST(t.a.states() == "suspect:vad-1");
}

BOOST_AUTO_TEST_CASE(our_own_stall_is_not_blamed_on_others) {
  Two t;
  t.link();
  t.a.now += milliseconds(5000);  // stopped; nothing of the peer's has been read yet
  t.a.mesh.tick(t.a.now);
  t.a.flush();
  BOOST_TEST(t.a.states().empty());
  BOOST_TEST(t.a.mesh.is_up("vad-1"));
}

BOOST_AUTO_TEST_CASE(status_is_told_at_once_when_it_matters) {
  Two t;
  t.link();
  t.b.said.clear();
  Status s;
  s.load = 5;
  t.b.mesh.set_status(s);
  t.b.flush();
  BOOST_TEST(t.b.said.empty());  // with the next heartbeat
  s.draining = true;
  t.b.mesh.set_status(s);
  t.carry(t.b, t.a, t.near);
  BOOST_TEST(t.a.states() == "changed:vad-1");
  BOOST_TEST(t.a.mesh.peers()[0].draining);
  s.slots = 0;
  t.b.mesh.set_status(s);
  t.carry(t.b, t.a, t.near);
  BOOST_TEST(t.a.states() == "changed:vad-1");
  s.ready = false;
  t.b.mesh.set_status(s);
  t.carry(t.b, t.a, t.near);
  BOOST_TEST(t.a.states() == "changed:vad-1");
  BOOST_TEST(!t.a.mesh.peers()[0].ready);
}

// ------------------------------------------------------------------------------------------------ losses

BOOST_AUTO_TEST_CASE(a_gap_is_asked_for_once_and_filled) {
  Two t;
  t.link();
  for (const auto* words : {"a", "b", "c"}) {
    BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, words)).has_value());
    t.a.flush();
  }
  t.a.said.erase(t.a.said.begin());
  t.run(milliseconds(50));
  BOOST_TEST(t.b.heard() == "controller-1:a controller-1:b controller-1:c");
  BOOST_TEST(t.b.mesh.counters().resyncs == 1u);
  BOOST_TEST(t.a.states().empty());
}

BOOST_AUTO_TEST_CASE(a_lost_last_message_is_noticed_by_the_next_heartbeat) {
  for (const bool to_callee : {true, false}) {
    Two t;
    t.link();
    BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, "ask")).has_value());
    t.run(milliseconds(20));
    t.b.heard();
    auto& from = to_callee ? t.a : t.b;
    BOOST_REQUIRE(from.mesh.send(to_callee ? "vad-1" : "controller-1", text(1, "the end")).has_value());
    from.flush();
    from.said.clear();  // nothing follows that would show a gap
    t.run(milliseconds(250));
    BOOST_TEST((to_callee ? t.b : t.a).heard() == (to_callee ? "controller-1:the end" : "vad-1:the end"));
  }
}

BOOST_AUTO_TEST_CASE(frames_that_cannot_be_read_are_answered_and_make_both_agree_again) {
  Two t;
  t.link();
  t.b.said.clear();
  t.b.garbage(t.far);
  BOOST_TEST(t.b.last<Refused>(t.far).code == "bad_magic");
  BOOST_TEST(t.b.count(MessageType::resync) == 1);
  t.b.garbage(t.far);
  BOOST_TEST(t.b.count(MessageType::resync) == 1);  // not for each
  t.a.said.clear();
  t.a.garbage(t.near);
  BOOST_TEST(t.a.count(MessageType::hello) == 1);
  t.run(milliseconds(300));
  BOOST_TEST(t.a.states().empty());
  BOOST_TEST(t.a.mesh.is_up("vad-1"));
}

BOOST_AUTO_TEST_CASE(a_resync_that_could_not_be_said_is_said_with_the_next_beat) {
  Two t;
  t.link();
  t.b.said.clear();
  t.b.full.insert(t.far);
  t.b.garbage(t.far);
  t.b.full.clear();
  BOOST_TEST(t.b.count(MessageType::resync) == 0);
  t.b.pass(milliseconds(100));
  BOOST_TEST(t.b.count(MessageType::resync) == 1);
}

BOOST_AUTO_TEST_CASE(a_later_version_s_link_word_is_counted_and_not_argued_with) {
  Station s("vad-1", "vad");
  s.hear(1, caller_hello("controller-1", 5));
  s.said.clear();
  Message m;
  m.head.type = static_cast<MessageType>(12);
  s.hear(1, m);
  BOOST_TEST(s.said.empty());
  BOOST_TEST(s.mesh.counters().unknown_words == 1u);
}

BOOST_AUTO_TEST_CASE(what_a_full_connection_does_not_take_leaves_when_it_can) {
  Two t;
  t.link();
  t.a.full.insert(t.near);
  BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, "a")).has_value());
  BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, "b")).has_value());
  t.a.flush();
  const auto offered = t.a.offered;
  t.a.flush();
  BOOST_TEST(t.a.offered == offered);  // blocked: not tried again by itself
  t.a.full.clear();
  t.a.mesh.writable(t.near);
  t.run(milliseconds(10));
  BOOST_TEST(t.b.heard() == "controller-1:a controller-1:b");
}

BOOST_AUTO_TEST_CASE(a_peer_that_goes_while_something_waits_to_leave_is_forgotten_wholly) {
  Two t;
  t.link();
  t.a.said.clear();
  BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, "a")).has_value());
  t.a.mesh.disconnected(t.near);
  t.a.flush();  // a sanitizer sees what the mesh still holds of it
  BOOST_TEST(t.a.count(MessageType::say) == 0);
  BOOST_TEST(t.a.mesh.kept_bytes() == 0u);
}

BOOST_AUTO_TEST_CASE(a_reset_while_a_connection_is_full_does_no_harm) {
  Two t;
  t.link();
  t.a.full.insert(t.near);
  BOOST_REQUIRE(t.a.mesh.send("vad-1", text(1, "a")).has_value());
  t.a.flush();
  t.a.mesh.disconnected(t.near);
  t.a.flush();
  t.a.mesh.writable(t.near);
  t.a.flush();
  BOOST_TEST(t.a.states() == "down:vad-1");
  t.b.full.insert(t.far);
  t.b.hear(t.far, caller_hello("controller-1", 99, 50));
  t.b.full.clear();
  t.b.mesh.writable(t.far);
  t.b.flush();
  BOOST_TEST(t.b.mesh.streams() == 0u);
}

// ------------------------------------------------------------------------------------------------ ownership

BOOST_AUTO_TEST_CASE(the_former_owner_s_streams_are_closed_when_a_session_goes_to_another) {
  Station s("vad-1", "vad");
  s.hear(1, caller_hello("controller-1", 5));
  s.hear(2, caller_hello("controller-2", 6));
  const auto numbered = [](Message m, std::uint64_t n) {
    m.head.sequence = n;
    return m;
  };
  s.hear(1, numbered(text(1, "old", 1), 1));
  BOOST_TEST(s.heard() == "controller-1:old");
  s.hear(2, numbered(text(1, "new", 2), 1));
  BOOST_REQUIRE(s.events.size() == 2u);
  const auto closing = s.events[0].delivery->message.head;
  BOOST_TEST(s.heard() == "controller-1:close controller-2:new");
  BOOST_TEST(s.last<ErrorMessage>(1).code == "stale_epoch");
  s.mesh.handled("controller-1", closing);
  s.said.clear();
  s.flush();
  BOOST_TEST(s.count(MessageType::close) == 1);
  // It wakes and goes on: nothing of it is heard.
  s.hear(1, numbered(text(1, "still there", 1), 2));
  s.hear(1, numbered(text(9, "another stream", 1), 3));
  BOOST_TEST(s.heard().empty());
  BOOST_TEST(s.last<ErrorMessage>(1).code == "stale_epoch");
  s.hear(1, numbered(pack(Close{}, head_of(1)), 4));
  BOOST_TEST(s.heard().empty());
  s.hear(2, numbered(text(1, "mine", 2), 2));
  BOOST_TEST(s.heard() == "controller-2:mine");
}

BOOST_AUTO_TEST_CASE(answers_to_a_request_of_an_earlier_link_stay_behind) {
  Station s("vad-1", "vad");
  s.hear(1, caller_hello("controller-1", 5));
  auto ask = text(1, "ask");
  ask.head.sequence = 1;
  s.hear(1, ask);
  const auto old = s.events.back().delivery->message.head;
  s.hear(1, caller_hello("controller-1", 6, 2));
  s.hear(1, ask);
  const auto present = s.events.back().delivery->message.head;
  s.mesh.handled("controller-1", old);
  s.said.clear();
  const auto stale = s.mesh.send("controller-1", pack(Text{.text = "to the former"}, old));
  BOOST_REQUIRE(!stale.has_value());
  BOOST_TEST((stale.error().code == Errc::cancelled));
  BOOST_TEST(s.mesh.send("controller-1", pack(Text{.text = "to this"}, present)).has_value());
  auto copied = present;
  copied.link = 0x1234500000001;  // of another peer's link: an envelope that was passed on
  BOOST_TEST(s.mesh.send("controller-1", pack(Text{.text = "to this"}, copied)).has_value());
}

// ------------------------------------------------------------------------------------------------ cost

BOOST_AUTO_TEST_CASE(an_idle_mesh_sleeps) {
  Two t;
  t.link();
  t.run(milliseconds(200));
  for (int i = 0; i < 50; ++i) {
    t.a.mesh.tick(t.a.now);
    t.a.flush();
    BOOST_TEST((t.a.mesh.due(t.a.now) > t.a.now));
    t.a.now += milliseconds(7);
  }
  const auto offered = t.a.offered;
  for (int i = 0; i < 100; ++i) t.a.flush();
  BOOST_TEST(t.a.offered == offered);
}

BOOST_AUTO_TEST_CASE(few_frames_leave_at_once_many_travel_together_within_the_batch_time) {
  Two t;
  t.link();
  t.run(milliseconds(100));
  t.a.said.clear();
  const auto say = [&t](int n) {
    BOOST_REQUIRE(t.a.mesh.send("vad-1", pack(Audio{n * 320, Bytes(640)}, head_of(1))).has_value());
    t.a.flush();
  };
  // One conversation waits for nobody: its frames leave at once, 20 ms apart.
  int sent = 0;
  for (; sent < 100; ++sent) {
    say(sent);
    BOOST_REQUIRE(t.a.count(MessageType::audio) == sent + 1);
    t.a.now += milliseconds(20);
  }
  t.a.mesh.tick(t.a.now);
  t.a.flush();
  // A flood of them in no time does not.
  const auto alone = sent;
  while (t.a.count(MessageType::audio) == sent) say(sent++);
  BOOST_TEST(sent - alone > 16);
  BOOST_TEST(sent - alone < 64);
  for (int more = 0; more < 10; ++more) say(sent++);
  BOOST_TEST(t.a.count(MessageType::audio) < sent - 10);
  BOOST_TEST((t.a.mesh.due(t.a.now) <= t.a.now + milliseconds(5)));
  t.a.now += milliseconds(5);
  const auto offered = t.a.offered;
  t.a.flush();
  BOOST_TEST(t.a.count(MessageType::audio) == sent);
  BOOST_TEST(t.a.offered == offered + 1);  // all that waited in one
}

BOOST_AUTO_TEST_CASE(windows_are_told_within_a_tick) {
  Two t;
  t.link();
  t.run(milliseconds(100));
  BOOST_REQUIRE(t.a.mesh.send("vad-1", pack(Audio{0, Bytes(640)}, head_of(1))).has_value());
  t.a.said.clear();
  t.a.flush();
  t.carry(t.a, t.b, t.far);
  BOOST_REQUIRE(t.b.events.size() == 1u);
  t.b.mesh.handled("controller-1", t.b.events[0].delivery->message.head);
  t.b.said.clear();
  t.b.flush();
  BOOST_TEST(t.b.count(MessageType::window) == 0);
  BOOST_TEST((t.b.mesh.due(t.b.now) > t.b.now));
  t.b.now += milliseconds(20);
  t.b.flush();
  BOOST_TEST(t.b.count(MessageType::window) == 1);
  BOOST_TEST((t.b.mesh.due(t.b.now) > t.b.now));
}

BOOST_AUTO_TEST_CASE(a_caller_that_opens_more_than_is_served_is_reset) {
  auto o = Station::options("vad-1", "vad");
  o.link.streams_max = 2;
  Station s(o);
  s.hear(1, caller_hello("controller-1", 5));
  for (std::uint32_t i = 1; i <= 5; ++i) {
    auto m = text(i, "x");
    m.head.sequence = i;
    s.hear(1, m);
  }
  BOOST_TEST(s.mesh.counters().resets == 1u);
  BOOST_TEST(s.mesh.peers().empty());
  BOOST_TEST(s.last<Refused>(1).code == "not_ready");
}

BOOST_AUTO_TEST_CASE(arbitrary_bytes_on_arbitrary_routes_do_no_harm) {
  Two t;
  t.link();
  std::mt19937 random(3);
  for (int i = 0; i < 3000; ++i) {
    auto f = encode(i % 3 == 0 ? pack(caller_hello("x", 1)) : i % 3 == 1 ? text(1, "x") : pack(Window{5}));
    auto body = f.body;
    if (!body.empty()) body[random() % body.size()] = static_cast<char>(random());
    f.envelope[random() % f.envelope.size()] = std::byte(random());
    const std::span<const std::byte> frames[] = {f.envelope, std::as_bytes(std::span(body)), f.payload};
    t.a.mesh.receive(random() % 4, std::span(frames).first(random() % 8 ? 3 : random() % 4), {}, t.a.now);
    t.a.flush();
  }
  t.a.said.clear();
  BOOST_TEST(t.a.mesh.counters().malformed > 2000u);
}

}  // namespace parlando::transport
