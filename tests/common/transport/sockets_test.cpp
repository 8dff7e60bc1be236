#define BOOST_TEST_MODULE sockets
#include "common/transport/zmq/sockets.hpp"

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <functional>
#include <zmq.hpp>

#include "tests/support/temporary_directory.hpp"

namespace parlando::transport {
namespace {
using namespace protocol;

constexpr SessionId kSession{1, 2};

Envelope stream(std::uint32_t number) {
  Envelope head;
  head.session = kSession;
  head.stream = {number};
  return head;
}

/// A mesh on real sockets, turned by hand.
struct End {
  End(const std::shared_ptr<ZmqContext>& context, const std::string& role, SocketOptions options,
      const std::string& instance = {}) {
    MeshOptions o;
    o.role = role;
    o.instance = instance.empty() ? role + "-1" : instance;
    mesh = std::make_unique<Mesh>(o);
    auto opened = Sockets::open(context, std::move(options), *mesh, clock.now());
    BOOST_REQUIRE_MESSAGE(opened.has_value(), (opened ? std::string() : opened.error().message));
    sockets = *std::move(opened);
  }
  void step() {
    const auto now = clock.now();
    sockets->read(now);
    for (auto& e : mesh->take()) {
      if (e.peer) states.emplace_back(e.peer->peer.instance, e.peer->state);
      if (!e.delivery) continue;
      const auto head = e.delivery->message.head;
      if (answers && head.type == MessageType::audio) {
        auto audio = *read<Audio>(e.delivery->message);
        (void)mesh->send(e.delivery->peer,
                         pack(Speech{0, audio.first_sample, 22050, false, std::move(audio.payload)}, head));
      }
      mesh->handled(e.delivery->peer, head);
      got.push_back(std::move(e.delivery->message));
    }
    mesh->tick(now);
    sockets->flush(now);
  }
  /// What is polled between two steps.
  std::vector<pollfd> descriptors() {
    const auto d = sockets->descriptors();
    return {d.begin(), d.end()};
  }
  bool saw(PeerState state) const {
    return std::any_of(states.begin(), states.end(), [&](const auto& s) { return s.second == state; });
  }
  SteadyClock clock;
  std::unique_ptr<Mesh> mesh;
  std::unique_ptr<Sockets> sockets;
  std::vector<Message> got;
  std::vector<std::pair<std::string, PeerState>> states;
  bool answers = false;
};

/// Turns the ends until it is so; false after ten seconds. Waits in poll, at most a millisecond at a time.
bool until(const std::vector<End*>& ends, const std::function<bool()>& so) {
  SteadyClock clock;
  const auto end = clock.now() + std::chrono::seconds(10);
  while (!so()) {
    if (clock.now() > end) return false;
    std::vector<pollfd> all;
    for (auto* e : ends) {
      e->step();
      const auto d = e->descriptors();
      all.insert(all.end(), d.begin(), d.end());
    }
    ::poll(all.data(), all.size(), 1);
    for (auto* e : ends) {
      auto d = e->descriptors();
      for (auto& p : d) p.revents = POLLIN;  // ask them all: this loop need not be frugal
      e->sockets->readable(d);
    }
  }
  return true;
}

SocketOptions listening(const std::string& bind) {
  SocketOptions o;
  o.bind = bind;
  o.plain_tcp = true;
  return o;
}
SocketOptions calling(const std::string& role, const std::string& source) {
  SocketOptions o;
  o.connect[role] = {source};
  o.plain_tcp = true;
  return o;
}
Message frame(std::int64_t n, std::uint32_t number = 2) {
  return pack(Audio{n * 320, Bytes(640, static_cast<std::byte>(n & 0xff))}, stream(number));
}

}  // namespace

BOOST_AUTO_TEST_CASE(messages_arrive_once_and_in_order_over_every_kind_of_endpoint) {
  const TemporaryDirectory folder;
  for (const std::string& bind :
       {std::string("inproc://vad"), "ipc://" + (folder.path() / "vad").string(), std::string("tcp://127.0.0.1:*")}) {
    BOOST_TEST_CONTEXT(bind) {
      const auto context = std::make_shared<ZmqContext>();
      End vad(context, "vad", listening(bind));
      vad.answers = true;
      End controller(context, "controller", calling("vad", vad.sockets->endpoint()));
      BOOST_REQUIRE(
          (until({&vad, &controller}, [&] { return controller.saw(PeerState::up) && vad.saw(PeerState::up); })));
      constexpr std::int64_t kFrames = 2000;
      std::int64_t sent = 0;
      BOOST_REQUIRE((until({&vad, &controller}, [&] {
        while (sent < kFrames && sent < static_cast<std::int64_t>(controller.got.size()) + 200)
          BOOST_REQUIRE((controller.mesh->send("vad-1", frame(sent++)).has_value()));
        return controller.got.size() == kFrames;
      })));
      for (std::int64_t n = 0; n < kFrames; ++n) {
        BOOST_REQUIRE((read<Audio>(vad.got[static_cast<std::size_t>(n)])->first_sample == n * 320));
        BOOST_REQUIRE((read<Speech>(controller.got[static_cast<std::size_t>(n)])->first_sample == n * 320));
      }
      BOOST_TEST(controller.sockets->counters().errors == 0u);
      BOOST_TEST(vad.mesh->counters().frames_in < kFrames);  // frames travelled together
    }
  }
}

BOOST_AUTO_TEST_CASE(a_full_connection_waits_and_loses_nothing) {
  const TemporaryDirectory folder;
  const auto context = std::make_shared<ZmqContext>();
  auto options = listening("ipc://" + (folder.path() / "s").string());
  options.high_water_messages = 4;
  End server(context, "vad", options);
  auto call = calling("vad", options.bind);
  call.high_water_messages = 4;
  End client(context, "controller", call);
  BOOST_REQUIRE((until({&server, &client}, [&] { return client.saw(PeerState::up); })));
  // Large messages fill what the system keeps of a connection while the server does not read; flush keeps trying.
  constexpr int kMessages = 200;
  for (int n = 0; n < kMessages; ++n) {
    auto m =
        pack(Tokenize{16000, Bytes(200'000, static_cast<std::byte>(n))}, stream(2 + static_cast<std::uint32_t>(n)));
    BOOST_REQUIRE((client.mesh->send("vad-1", std::move(m)).has_value()));
    client.step();
  }
  BOOST_TEST(client.sockets->counters().full > 0u);
  BOOST_REQUIRE((until({&server, &client}, [&] { return server.got.size() == kMessages; })));
  for (int n = 0; n < kMessages; ++n)
    BOOST_TEST((server.got[static_cast<std::size_t>(n)].payload[0] == static_cast<std::byte>(n)));
}

BOOST_AUTO_TEST_CASE(a_side_that_stands_still_is_suspect_and_both_go_on_where_they_were) {
  const TemporaryDirectory folder;
  const auto context = std::make_shared<ZmqContext>();
  End server(context, "vad", listening("ipc://" + (folder.path() / "s").string()));
  server.answers = true;
  End client(context, "controller", calling("vad", server.sockets->endpoint()));
  BOOST_REQUIRE((until({&server, &client}, [&] { return client.saw(PeerState::up); })));
  std::int64_t sent = 0;
  for (; sent < 50; ++sent) BOOST_REQUIRE((client.mesh->send("vad-1", frame(sent)).has_value()));
  // The server stands still for longer than a connection is kept: the client suspects it and connects anew.
  BOOST_REQUIRE((until({&client}, [&] { return client.sockets->counters().connections >= 2; })));
  BOOST_TEST(client.saw(PeerState::suspect));
  for (; sent < 100; ++sent) BOOST_REQUIRE((client.mesh->send("vad-1", frame(sent)).has_value()));
  BOOST_REQUIRE((until({&server, &client}, [&] { return client.got.size() == 100; })));
  BOOST_TEST(!client.saw(PeerState::down));
  BOOST_TEST(!server.saw(PeerState::down));
  for (std::int64_t n = 0; n < 100; ++n)
    BOOST_REQUIRE((read<Speech>(client.got[static_cast<std::size_t>(n)])->first_sample == n * 320));
}

BOOST_AUTO_TEST_CASE(another_process_behind_the_endpoint_is_another_peer) {
  const TemporaryDirectory folder;
  const auto context = std::make_shared<ZmqContext>();
  const auto bind = "ipc://" + (folder.path() / "s").string();
  auto first = std::make_unique<End>(context, "vad", listening(bind), "vad-first");
  End client(context, "controller", calling("vad", bind));
  BOOST_REQUIRE((until({first.get(), &client}, [&] { return client.saw(PeerState::up); })));
  BOOST_REQUIRE((client.mesh->send("vad-first", frame(0)).has_value()));
  first.reset();
  End second(context, "vad", listening(bind), "vad-second");
  BOOST_REQUIRE((until({&second, &client}, [&] { return client.mesh->is_up("vad-second"); })));
  BOOST_TEST(client.saw(PeerState::down));
  BOOST_TEST(!client.mesh->send("vad-first", frame(1)).has_value());
  BOOST_REQUIRE((client.mesh->send("vad-second", frame(2)).has_value()));
  BOOST_REQUIRE((until({&second, &client}, [&] { return !second.got.empty(); })));
  BOOST_TEST(second.got.size() == 1u);  // nothing of the first link came along
}

BOOST_AUTO_TEST_CASE(a_caller_that_died_is_down_long_before_one_that_stands_still) {
  const TemporaryDirectory folder;
  for (const bool died : {true, false}) {
    BOOST_TEST_CONTEXT((died ? "died" : "stands still")) {
      const auto context = std::make_shared<ZmqContext>();
      End server(context, "vad", listening("ipc://" + (folder.path() / "s").string()));
      auto client = std::make_unique<End>(context, "controller", calling("vad", server.sockets->endpoint()));
      BOOST_REQUIRE(
          (until({&server, client.get()}, [&] { return server.saw(PeerState::up) && client->saw(PeerState::up); })));
      BOOST_REQUIRE((client->mesh->send("vad-1", frame(0)).has_value()));
      BOOST_REQUIRE((until({&server, client.get()}, [&] { return server.mesh->streams() == 1; })));
      const auto start = server.clock.now();
      if (died) client.reset();
      if (died)
        BOOST_TEST((until({&server}, [&] { return server.saw(PeerState::down); })));
      else
        BOOST_TEST((until({&server}, [&] { return server.clock.now() - start > milliseconds(2500); })));
      BOOST_TEST(server.saw(PeerState::suspect));
      BOOST_TEST(server.saw(PeerState::down) == died);
      BOOST_TEST(server.mesh->streams() == (died ? 0u : 1u));
      if (died) BOOST_TEST((server.clock.now() - start < milliseconds(2500)));
    }
  }
}

BOOST_AUTO_TEST_CASE(what_is_no_message_is_refused_with_a_reason_and_ends_nothing) {
  const TemporaryDirectory folder;
  const auto context = std::make_shared<ZmqContext>();
  const auto bind = "ipc://" + (folder.path() / "s").string();
  End server(context, "vad", listening(bind));
  zmq::context_t other;
  zmq::socket_t raw(other, zmq::socket_type::dealer);
  raw.set(zmq::sockopt::linger, 0);
  raw.connect(bind);
  const auto ask = [&](const std::vector<std::string>& frames) {
    for (std::size_t i = 0; i < frames.size(); ++i)
      raw.send(zmq::buffer(frames[i]), i + 1 < frames.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
    std::string code = "nothing";
    until({&server}, [&] {
      zmq::message_t parts[3];
      if (!raw.recv(parts[0], zmq::recv_flags::dontwait)) return false;
      for (int i = 1; i < 3; ++i) (void)raw.recv(parts[i], zmq::recv_flags::dontwait);
      std::vector<std::span<const std::byte>> spans;
      for (auto& p : parts) spans.emplace_back(p.data<std::byte>(), p.size());
      auto decoded = decode(spans);
      BOOST_REQUIRE(decoded.has_value());
      auto& m = decoded->messages.front();
      code = m.head.type == MessageType::refused ? read<Refused>(m)->code : std::string(to_string(m.head.type));
      return true;
    });
    return code;
  };
  const auto frames_of = [](const Message& m) {
    const auto f = encode(m);
    return std::vector<std::string>{std::string(reinterpret_cast<const char*>(f.envelope.data()), f.envelope.size()),
                                    f.body,
                                    std::string(reinterpret_cast<const char*>(f.payload.data()), f.payload.size())};
  };
  const auto good = frames_of(frame(0));
  BOOST_TEST(ask({"x"}) == "bad_frame");
  BOOST_TEST(ask({good[0].substr(0, 40), good[1], good[2]}) == "bad_frame");
  BOOST_TEST(ask({good[0], good[1], good[2] + "x"}) == "bad_frame");
  BOOST_TEST(ask({good[0], good[1], good[2], "more"}) == "bad_frame");
  BOOST_TEST(ask({"JUNK" + good[0].substr(4), good[1], good[2]}) == "bad_magic");
  auto future = good[0];
  future[4] = 9;
  BOOST_TEST(ask({future, good[1], good[2]}) == "bad_version");
  BOOST_TEST(ask(good) == "not_ready");  // HELLO comes first
  Hello hello;
  hello.role = "controller";
  hello.instance = std::string(99, 'a') + "é";  // a character across the hundredth byte
  hello.version_min = hello.version_max = 1;
  BOOST_TEST(ask(frames_of(pack(hello))) == "invalid_argument");
  hello.instance = "raw";
  hello.version_min = 7;
  hello.version_max = 9;
  BOOST_TEST(ask(frames_of(pack(hello))) == "bad_version");
  hello.version_min = 1;
  BOOST_TEST(ask(frames_of(pack(hello))) == "hello");
  End client(context, "controller", calling("vad", bind));
  BOOST_REQUIRE((until({&server, &client}, [&] { return client.saw(PeerState::up); })));
}

BOOST_AUTO_TEST_CASE(replicas_come_and_go_with_a_watched_file) {
  const TemporaryDirectory folder;
  const auto context = std::make_shared<ZmqContext>();
  const auto one = "ipc://" + (folder.path() / "one").string(), two = "ipc://" + (folder.path() / "two").string();
  const auto file = folder.path() / "replicas";
  std::ofstream(file) << one << "\n";
  End first(context, "vad", listening(one), "vad-one"), second(context, "vad", listening(two), "vad-two");
  End client(context, "controller", calling("vad", "file:" + file.string()));
  BOOST_REQUIRE((until({&first, &second, &client}, [&] { return client.mesh->is_up("vad-one"); })));
  BOOST_TEST(!client.mesh->is_up("vad-two"));
  std::ofstream(file) << one << "\n" << two << "\n";
  BOOST_REQUIRE((until({&first, &second, &client}, [&] { return client.mesh->is_up("vad-two"); })));
  // What is named no more finishes its streams first, and may be named again meanwhile.
  (void)client.mesh->send("vad-one", frame(0));
  const auto last_of = [&](PeerState state) {
    const auto last =
        std::find_if(client.states.rbegin(), client.states.rend(), [](const auto& s) { return s.first == "vad-one"; });
    return last != client.states.rend() && last->second == state;
  };
  client.states.clear();
  const auto draining = [&](bool wanted) {
    const auto peers = client.mesh->peers();
    return std::any_of(peers.begin(), peers.end(),
                       [&](const Peer& p) { return p.instance == "vad-one" && p.draining == wanted; });
  };
  std::ofstream(file) << two << "\n";
  BOOST_REQUIRE((until({&first, &second, &client}, [&] { return draining(true); })));
  std::ofstream(file) << one << "\n" << two << "\n";
  BOOST_REQUIRE((until({&first, &second, &client}, [&] { return draining(false); })));
  std::ofstream(file) << two << "\n";
  BOOST_REQUIRE((until({&first, &second, &client}, [&] { return draining(true); })));
  BOOST_TEST(last_of(PeerState::changed));
  BOOST_REQUIRE(client.mesh->send("vad-one", frame(1)).has_value());
  BOOST_REQUIRE((until({&first, &second, &client}, [&] { return first.got.size() == 2; })));
  BOOST_REQUIRE(client.mesh->send("vad-one", pack(Close{}, stream(2))).has_value());
  BOOST_REQUIRE((until({&first, &second, &client}, [&] { return last_of(PeerState::down); })));
  BOOST_TEST(client.mesh->is_up("vad-two"));
  BOOST_TEST(client.descriptors().size() == 1u);
  // A process at an endpoint that nobody names is not asked for again.
  const auto connections = client.sockets->counters().connections;
  std::ofstream(file) << one << "\n" << two << "\n";
  BOOST_REQUIRE((until({&first, &second, &client}, [&] { return client.mesh->is_up("vad-one"); })));
  BOOST_TEST(client.sockets->counters().connections == connections + 1);
}

BOOST_AUTO_TEST_CASE(a_send_that_fails_does_not_swallow_what_has_come) {
  const auto context = std::make_shared<ZmqContext>();
  End tts(context, "tts", listening("inproc://tts-that-is-left"));
  auto gone = std::make_unique<End>(context, "controller", calling("tts", tts.sockets->endpoint()), "controller-a");
  BOOST_REQUIRE((until({&tts, gone.get()}, [&] { return gone->saw(PeerState::up); })));
  (void)gone->mesh->send("tts-1", frame(0));
  BOOST_REQUIRE((until({&tts, gone.get()}, [&] { return tts.got.size() == 1; })));
  const auto head = tts.got[0].head;
  gone.reset();
  bool failed = false;
  BOOST_REQUIRE((until({&tts}, [&] {
    // Nothing is left to be read; then a send fails.
    while (!tts.sockets->idle()) tts.sockets->read(tts.clock.now());
    const auto before = tts.sockets->counters().unroutable;
    (void)tts.mesh->send("controller-a", pack(Speech{0, 0, 22050, false, Bytes(64)}, head));
    tts.sockets->flush(tts.clock.now());
    failed = tts.sockets->counters().unroutable > before;
    return failed;
  })));
  BOOST_TEST(!tts.sockets->idle());
}

/// A service between a caller and two services that it calls, all at rest; what one of these answers while the service
/// writes to its caller.
BOOST_AUTO_TEST_CASE(what_poll_said_reaches_the_socket_it_was_said_of) {
  const auto context = std::make_shared<ZmqContext>();
  End one(context, "vad", listening("inproc://poll-one"), "vad-one");
  End two(context, "vad", listening("inproc://poll-two"), "vad-two");
  auto both = calling("vad", "inproc://poll-one");
  both.connect["vad"].push_back("inproc://poll-two");
  both.bind = "inproc://poll-middle";
  End middle(context, "controller", both);
  End gateway(context, "gateway", calling("controller", "inproc://poll-middle"));
  const std::vector<End*> all{&one, &two, &middle, &gateway};
  BOOST_REQUIRE((until(all, [&] {
    return middle.mesh->is_up("vad-one") && middle.mesh->is_up("vad-two") && gateway.saw(PeerState::up);
  })));
  (void)gateway.mesh->send("controller-1", frame(0));
  (void)middle.mesh->send("vad-one", frame(0, 3));
  (void)middle.mesh->send("vad-two", frame(0, 4));
  BOOST_REQUIRE((until(all, [&] { return middle.got.size() == 1 && one.got.size() == 1 && two.got.size() == 1; })));
  const auto answer = [] { return pack(Speech{0, 0, 22050, false, Bytes(64)}); };
  for (const bool looks_again : {false, true})
    for (auto* vad : {&one, &two}) {
      const auto now = middle.clock.now();
      while (!middle.sockets->idle()) middle.sockets->read(now);
      const auto before = middle.mesh->counters().frames_in;
      auto to = answer();
      to.head = vad->got[0].head;
      to.head.type = MessageType::speech;
      BOOST_REQUIRE(vad->mesh->send("controller-1", std::move(to)).has_value());
      vad->sockets->flush(now);
      to = answer();
      to.head = middle.got[0].head;
      to.head.type = MessageType::speech;
      BOOST_REQUIRE(middle.mesh->send("gateway-1", std::move(to)).has_value());
      middle.sockets->flush(now);
      BOOST_TEST(!middle.sockets->idle());
      if (looks_again) {
        // Only the socket that was written to is asked; the other one's news are poll's.
        BOOST_TEST(!middle.sockets->look_again(now));
        BOOST_TEST(middle.sockets->idle());
      }
      auto d = middle.descriptors();
      ::poll(d.data(), d.size(), 100);
      middle.sockets->readable(d);
      middle.sockets->read(now);
      BOOST_TEST(middle.mesh->counters().frames_in == before + 1);
    }
  // An answer on the socket that was written to is seen without a poll.
  while (!middle.sockets->idle()) middle.sockets->read(middle.clock.now());
  BOOST_REQUIRE(gateway.mesh->send("controller-1", frame(1)).has_value());
  gateway.sockets->flush(gateway.clock.now());
  auto to = answer();
  to.head = middle.got[0].head;
  to.head.type = MessageType::speech;
  BOOST_REQUIRE(middle.mesh->send("gateway-1", std::move(to)).has_value());
  middle.sockets->flush(middle.clock.now());
  BOOST_TEST(middle.sockets->look_again(middle.clock.now()));
}

BOOST_AUTO_TEST_CASE(a_caller_that_takes_nothing_does_not_keep_the_loop_awake) {
  const auto context = std::make_shared<ZmqContext>();
  End tts(context, "tts", listening("tcp://127.0.0.1:*"));
  tts.answers = false;
  End a(context, "controller", calling("tts", tts.sockets->endpoint()), "controller-a");
  End b(context, "controller", calling("tts", tts.sockets->endpoint()), "controller-b");
  BOOST_REQUIRE((until({&tts, &a, &b}, [&] { return a.saw(PeerState::up) && b.saw(PeerState::up); })));
  // Both open a stream; then b stands still while tts speaks to it.
  (void)a.mesh->send("tts-1", frame(0));
  (void)b.mesh->send("tts-1", frame(0));
  BOOST_REQUIRE((until({&tts, &a, &b}, [&] { return tts.got.size() >= 2; })));
  for (int i = 0; i < 250; ++i)
    (void)tts.mesh->send("controller-b", pack(Speech{0, 0, 22050, false, Bytes(32768)}, stream(2)));
  std::size_t awake = 0;
  SteadyClock clock;
  const auto begin = clock.now();
  while (clock.now() - begin < std::chrono::seconds(3)) {
    a.step();
    tts.step();
    const bool busy = !tts.sockets->idle();
    awake += busy;
    auto d = tts.descriptors();
    ::poll(d.data(), d.size(), busy ? 0 : 20);
    tts.sockets->readable(d);
    auto da = a.descriptors();
    for (auto& p : da) p.revents = POLLIN;
    a.sockets->readable(da);
  }
  BOOST_TEST(awake < 600u);
}

BOOST_AUTO_TEST_CASE(keys_admit_who_is_listed_in_the_role_it_is_listed_for) {
  const auto context = std::make_shared<ZmqContext>();
  const auto server_keys = *curve::KeyPair::generate(), good = *curve::KeyPair::generate(),
             other = *curve::KeyPair::generate();
  auto options = listening("tcp://127.0.0.1:*");
  options.plain_tcp = false;
  options.keys = SocketKeys{server_keys, *curve::KeyTable::of_text(good.public_key + " controller\n"), {}};
  End server(context, "vad", options);
  const auto call = [&](const std::string& role, const curve::KeyPair& keys, const std::string& instance) {
    auto o = calling("vad", server.sockets->endpoint());
    o.plain_tcp = false;
    o.keys = SocketKeys{keys, nullptr, {{"vad", server_keys.public_key}}};
    return std::make_unique<End>(context, role, o, instance);
  };
  const auto listed = call("controller", good, "controller-listed");
  BOOST_REQUIRE((until({&server, listed.get()}, [&] { return listed->mesh->is_up("vad-1"); })));
  const auto unlisted = call("controller", other, "controller-unlisted");
  const auto pretender = call("gateway", good, "gateway-pretender");
  BOOST_REQUIRE((until({&server, unlisted.get(), pretender.get(), listed.get()}, [&] {
    return server.mesh->counters().hello_refused > 0 && context->zap().counters().refused > 0;
  })));
  BOOST_TEST(!unlisted->mesh->is_up("vad-1"));
  BOOST_TEST(!pretender->mesh->is_up("vad-1"));
  BOOST_TEST(server.mesh->peers().size() == 1u);
}

BOOST_AUTO_TEST_CASE(a_key_that_is_bound_to_an_instance_speaks_for_no_other) {
  const auto context = std::make_shared<ZmqContext>();
  const auto server_keys = *curve::KeyPair::generate(), mine = *curve::KeyPair::generate();
  auto options = listening("tcp://127.0.0.1:*");
  options.plain_tcp = false;
  options.keys = SocketKeys{server_keys, *curve::KeyTable::of_text(mine.public_key + " controller controller-a\n"), {}};
  End server(context, "vad", options);
  const auto call = [&](const std::string& instance) {
    auto o = calling("vad", server.sockets->endpoint());
    o.plain_tcp = false;
    o.keys = SocketKeys{mine, nullptr, {{"vad", server_keys.public_key}}};
    return std::make_unique<End>(context, "controller", o, instance);
  };
  const auto other = call("controller-b-00000123");
  BOOST_REQUIRE((until({&server, other.get()}, [&] { return server.mesh->counters().hello_refused > 0; })));
  const auto own = call("controller-a-00000123");
  BOOST_REQUIRE((until({&server, other.get(), own.get()}, [&] { return own->mesh->is_up("vad-1"); })));
  BOOST_TEST(!other->mesh->is_up("vad-1"));
}

}  // namespace parlando::transport
