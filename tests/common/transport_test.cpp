#define BOOST_TEST_MODULE transport
#include <boost/test/unit_test.hpp>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <zmq.hpp>

#include "common/base/random_id.hpp"
#include "common/transport/channels.hpp"
#include "common/transport/sim_transport.hpp"
#include "common/transport/zmq_transport.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::transport {
namespace {
using namespace protocol;

Message numbered(std::uint64_t n, SessionId session = {1, 2}, std::uint32_t stream = 3) {
  Message m;
  m.head.type = MessageType::audio, m.head.session = session, m.head.stream = stream;
  m.body = fmt::format(R"({{"n":{}}})", n);
  m.payload.assign(640, std::byte(n & 0xff));
  return m;
}

/// A peer that collects what arrives and lets a test wait for it.
struct Collector {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::pair<std::string, Message>> messages;
  std::deque<std::pair<Peer, bool>> peers;
  Handlers handlers() {
    return {[this](const std::string& from, Message m) {
              const std::lock_guard lock(mutex);
              messages.emplace_back(from, std::move(m));
              changed.notify_all();
            },
            [this](const Peer& p, bool up) {
              const std::lock_guard lock(mutex);
              peers.emplace_back(p, up);
              changed.notify_all();
            }};
  }
  template <class F>
  bool wait(F&& done) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(20), done);
  }
  Peer wait_peer(bool up) {
    BOOST_REQUIRE(wait([&] { return std::any_of(peers.begin(), peers.end(), [&](const auto& p) { return p.second == up; }); }));
    const std::lock_guard lock(mutex);
    const auto found = std::find_if(peers.begin(), peers.end(), [&](const auto& p) { return p.second == up; });
    const auto peer = found->first;
    peers.erase(found);
    return peer;
  }
  Message wait_message() {
    BOOST_REQUIRE(wait([&] { return !messages.empty(); }));
    const std::lock_guard lock(mutex);
    auto m = std::move(messages.front().second);
    messages.pop_front();
    return m;
  }
};

struct Pair {
  std::shared_ptr<ZmqContext> context = std::make_shared<ZmqContext>();
  Collector server_side, client_side;
  std::unique_ptr<ZmqTransport> server, client;
  std::string at;

  std::unique_ptr<ZmqTransport> serve(const std::string& bind, const std::string& instance, std::optional<CurveKeys> curve = {}) {
    auto s = ZmqTransport::start(context, {.self = {instance, "vad"}, .bind = bind, .curve = std::move(curve)}, server_side.handlers());
    BOOST_REQUIRE_MESSAGE(s.has_value(), (s ? std::string() : s.error().message));
    return *std::move(s);
  }
  std::unique_ptr<ZmqTransport> call(const std::string& where, std::optional<CurveKeys> curve = {}, std::shared_ptr<ZmqContext> own = {}) {
    auto s = ZmqTransport::start(own ? own : context,
                                 {.self = {"controller-" + random_hex(4), "controller"}, .connect = {{"vad", where}}, .curve = std::move(curve)},
                                 client_side.handlers());
    BOOST_REQUIRE_MESSAGE(s.has_value(), (s ? std::string() : s.error().message));
    return *std::move(s);
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(messages_travel_both_ways_over_every_kind_of_endpoint) {
  const TemporaryDirectory folder;
  for (const auto& bind : {std::string("inproc://a"), "ipc://" + (folder.path() / "s").string(), std::string("tcp://127.0.0.1:*")}) {
    BOOST_TEST_CONTEXT(bind) {
      Pair p;
      p.server = p.serve(bind, "vad-1");
      p.client = p.call(p.server->endpoint());
      const auto seen = p.client_side.wait_peer(true);
      BOOST_TEST(seen.instance == "vad-1");
      BOOST_TEST(!seen.caller);
      const auto caller = p.server_side.wait_peer(true);
      BOOST_TEST(caller.role == "controller");
      BOOST_REQUIRE((p.client->send("vad-1", numbered(5))).has_value());
      const auto m = p.server_side.wait_message();
      BOOST_TEST(body_of(m)["n"] == 5);
      BOOST_TEST(m.payload.size() == 640u);
      BOOST_REQUIRE((p.server->send(caller.instance, numbered(6))).has_value());
      BOOST_TEST(body_of(p.client_side.wait_message())["n"] == 6);
      const auto nobody = p.client->send("vad-9", numbered(7));
      BOOST_REQUIRE(!nobody.has_value());
      BOOST_TEST((nobody.error().code == Errc::unavailable));
    }
  }
}

BOOST_AUTO_TEST_CASE(a_peer_that_dies_is_noticed_and_its_successor_is_found) {
  const TemporaryDirectory folder;
  Pair p;
  const auto bind = "ipc://" + (folder.path() / "s").string();
  p.server = p.serve(bind, "vad-1");
  p.client = p.call(bind);
  BOOST_TEST(p.client_side.wait_peer(true).instance == "vad-1");
  p.server.reset();
  BOOST_TEST(p.client_side.wait_peer(false).instance == "vad-1");
  p.server = p.serve(bind, "vad-2");
  BOOST_TEST(p.client_side.wait_peer(true).instance == "vad-2");
  BOOST_REQUIRE((p.client->send("vad-2", numbered(1))).has_value());
  BOOST_TEST(body_of(p.server_side.wait_message())["n"] == 1);
}

BOOST_AUTO_TEST_CASE(a_peer_whose_work_hangs_is_given_up_though_its_sockets_live) {
  Pair p;
  auto progress = std::make_shared<Progress>();
  progress->busy = true, progress->step_limit_ms = 200;  // busy, and the counter never moves
  auto s = ZmqTransport::start(p.context, {.self = {"vad-1", "vad"}, .bind = "inproc://hung", .progress = progress}, p.server_side.handlers());
  BOOST_REQUIRE(s.has_value());
  p.client = p.call("inproc://hung");
  BOOST_TEST(p.client_side.wait_peer(true).instance == "vad-1");
  BOOST_TEST(p.client_side.wait_peer(false).instance == "vad-1");
  BOOST_TEST(p.client->counters().peers_hung >= 1u);
}

BOOST_AUTO_TEST_CASE(only_listed_keys_are_let_in) {
  const auto server = CurveKeys::generate(), friendly = CurveKeys::generate(), stranger = CurveKeys::generate();
  BOOST_REQUIRE(server.has_value());
  Pair p;
  auto serving = *server;
  serving.allowed = {friendly->public_key};
  p.server = p.serve("tcp://127.0.0.1:*", "vad-1", serving);
  auto knows = [&](CurveKeys k) {
    k.server_key = server->public_key;
    return k;
  };
  const auto unwanted = p.call(p.server->endpoint(), knows(*stranger), std::make_shared<ZmqContext>());
  p.client = p.call(p.server->endpoint(), knows(*friendly), std::make_shared<ZmqContext>());
  BOOST_TEST(p.client_side.wait_peer(true).instance == "vad-1");
  BOOST_REQUIRE((p.client->send("vad-1", numbered(4))).has_value());
  BOOST_TEST(body_of(p.server_side.wait_message())["n"] == 4);
  BOOST_TEST(p.server_side.wait([&] { return p.server->counters().keys_refused >= 1; }));
  BOOST_TEST((!unwanted->send("vad-1", numbered(4)).has_value()));
}

BOOST_AUTO_TEST_CASE(foreign_bytes_are_answered_or_counted_and_never_end_the_service) {
  Pair p;
  p.server = p.serve("tcp://127.0.0.1:*", "vad-1");
  zmq::context_t context(1);
  zmq::socket_t raw(context, zmq::socket_type::dealer);
  raw.set(zmq::sockopt::linger, 0);
  raw.set(zmq::sockopt::rcvtimeo, 10000);
  raw.connect(p.server->endpoint());
  auto say = [&](const std::vector<std::string>& frames) {
    for (std::size_t i = 0; i < frames.size(); ++i) raw.send(zmq::buffer(frames[i]), i + 1 < frames.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
  };
  auto answer = [&] {
    zmq::message_t parts[3];
    for (auto& part : parts)
      if (!raw.recv(part)) return std::string("nothing");
    return nlohmann::json::parse(std::string(parts[1].data<char>(), parts[1].size())).value("code", "hello");
  };
  auto frames_of = [&](Message m) {
    const auto f = *encode(std::move(m));
    return std::vector<std::string>{std::string(reinterpret_cast<const char*>(f.envelope.data()), f.envelope.size()), f.body,
                                    std::string(reinterpret_cast<const char*>(f.payload.data()), f.payload.size())};
  };
  const auto good = frames_of(numbered(1));
  say({"x"});
  BOOST_TEST(answer() == "bad_frame");
  say({good[0].substr(0, 40), good[1], good[2]});
  BOOST_TEST(answer() == "bad_frame");
  say({good[0], good[1], good[2] + "x"});
  BOOST_TEST(answer() == "bad_frame");
  say({good[0], good[1], good[2], "more"});
  BOOST_TEST(answer() == "bad_frame");
  say({"JUNK" + good[0].substr(4), good[1], good[2]});
  BOOST_TEST(answer() == "bad_magic");
  auto future = good[0];
  future[4] = 9;
  say({future, good[1], good[2]});
  BOOST_TEST(answer() == "bad_version");
  say(good);  // HELLO comes first
  BOOST_TEST(answer() == "not_ready");
  Message hello;
  hello.head.type = MessageType::hello;
  hello.body = R"({"role":"controller","instance":"raw","version_min":7,"version_max":9})";
  say(frames_of(hello));
  BOOST_TEST(answer() == "bad_version");
  hello.body = R"({"role":"controller"})";
  say(frames_of(hello));
  BOOST_TEST(answer() == "bad_json");
  hello.body = R"({"role":"controller","instance":"raw","version_min":1,"version_max":1})";
  say(frames_of(hello));
  BOOST_TEST(answer() == "hello");
  say(good);
  BOOST_TEST(body_of(p.server_side.wait_message())["n"] == 1);
  BOOST_TEST(p.server->counters().malformed == 5u);
  BOOST_TEST(p.server->counters().version_refused == 2u);
}

BOOST_AUTO_TEST_CASE(a_peer_that_answers_with_fields_of_the_wrong_type_ends_nothing) {
  const TemporaryDirectory folder;
  Pair p;
  const auto bind = "ipc://" + (folder.path() / "s").string();
  zmq::context_t context;
  zmq::socket_t strange(context, zmq::socket_type::router);
  strange.set(zmq::sockopt::linger, 0);
  strange.set(zmq::sockopt::rcvtimeo, 10000);
  strange.bind(bind);
  p.client = p.call(bind);
  auto control = [](MessageType type, std::string body) {
    Message m;
    m.head.type = type, m.body = std::move(body);
    return m;
  };
  int heartbeats = 0;
  for (int messages = 0; messages < 200 && heartbeats < 3; ++messages) {
    zmq::message_t who, parts[3];
    BOOST_REQUIRE((strange.recv(who).has_value()));
    for (auto& part : parts) BOOST_REQUIRE((strange.recv(part).has_value()));
    std::vector<std::span<const std::byte>> frames;
    for (auto& part : parts) frames.emplace_back(part.data<std::byte>(), part.size());
    const auto m = decode(frames);
    BOOST_REQUIRE(m.has_value());
    heartbeats += m->head.type == MessageType::heartbeat;
    const auto f =
        *encode(m->head.type == MessageType::hello ? control(MessageType::hello, R"({"role":"vad","instance":"strange","version_min":1,"version_max":1})")
                                                   : control(MessageType::heartbeat_reply, R"({"progress":"x","busy":[1],"step_limit_ms":{},"load":null})"));
    strange.send(who, zmq::send_flags::sndmore);
    strange.send(zmq::buffer(f.envelope.data(), f.envelope.size()), zmq::send_flags::sndmore);
    strange.send(zmq::buffer(f.body), zmq::send_flags::sndmore);
    strange.send(zmq::buffer(f.payload.data(), f.payload.size()), zmq::send_flags::none);
  }
  BOOST_TEST(heartbeats == 3);  // the third came after two strange answers: the socket thread lives
  BOOST_TEST(p.client_side.wait_peer(true).instance == "strange");
}

BOOST_AUTO_TEST_CASE(channels_over_a_bad_network_deliver_everything_once_and_in_order) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      SimNetwork network(seed, {.loss = 0.2, .duplication = 0.15, .delay_min = milliseconds(1), .delay_max = milliseconds(60)});
      Channels a({.window_messages = 16}), b({.window_messages = 16});
      std::vector<std::uint64_t> got;
      std::unique_ptr<Transport> at, bt;
      bt = network.join({"b", "vad"}, {},
                        {[&](const std::string& from, Message m) {
                           if (auto taken = b.receive(from, std::move(m), network.clock().now())) {
                             got.push_back(body_of(*taken)["n"].get<std::uint64_t>());
                             b.handled(from, taken->head);
                           }
                         },
                         [](const Peer&, bool) {}});
      at = network.join({"a", "controller"}, {"vad"},
                        {[&](const std::string& from, Message m) { (void)a.receive(from, std::move(m), network.clock().now()); }, [](const Peer&, bool) {}});
      constexpr std::uint64_t kMessages = 120;
      std::uint64_t next = 0;
      for (int ms = 0; ms < 60000 && got.size() < kMessages; ms += 10) {
        while (next < kMessages && next < static_cast<std::uint64_t>(ms / 4)) BOOST_REQUIRE((a.send("b", numbered(next++), network.clock().now())).has_value());
        for (auto& d : a.due(network.clock().now())) (void)at->send(d.peer, std::move(d.message));
        for (auto& d : b.due(network.clock().now())) (void)bt->send(d.peer, std::move(d.message));
        network.advance(milliseconds(10));
      }
      BOOST_REQUIRE(got.size() == kMessages);
      for (std::uint64_t n = 0; n < kMessages; ++n) BOOST_REQUIRE(got[n] == n);
      BOOST_TEST(network.lost() > 0u);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_sender_whose_receiver_does_not_work_stops_at_the_window_and_then_refuses) {
  Channels a({.window_messages = 4, .unacknowledged_bytes_max = 10000});
  const Time now{};
  std::size_t sent = 0, refused = 0;
  for (int n = 0; n < 40; ++n) (a.send("b", numbered(static_cast<std::uint64_t>(n)), now) ? sent : refused) += 1;
  BOOST_TEST(a.due(now).size() == 4u);
  BOOST_TEST(refused > 0u);
  BOOST_TEST(sent * 640 < 10000u);
  BOOST_TEST(a.counters().refused == refused);
}

}  // namespace parlando::transport
