#define BOOST_TEST_MODULE curve
#include "common/transport/zmq/curve.hpp"

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <zmq.hpp>

#include "common/base/mapped_file.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::transport::curve {
namespace {

constexpr int kPatience = 20'000;  // ms; reached only when a test fails
constexpr int kRefused =
    ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;

KeyPair fresh() { return *KeyPair::generate(); }

/// What happens to a socket's connections.
class Monitor {
 public:
  Monitor(zmq::context_t& context, zmq::socket_t& socket, int events) : socket_(context, zmq::socket_type::pair) {
    static int count = 0;
    const auto at = fmt::format("inproc://monitor-{}", ++count);
    BOOST_REQUIRE(zmq_socket_monitor(socket.handle(), at.c_str(), events) == 0);
    socket_.set(zmq::sockopt::rcvtimeo, kPatience);
    socket_.set(zmq::sockopt::linger, 0);
    socket_.connect(at);
  }
  /// Waits for the next one. @return the event, 0 when none came
  int wait() {
    zmq::message_t event;
    zmq::message_t address;
    if (!socket_.recv(event)) return 0;
    (void)socket_.recv(address);
    std::uint16_t number = 0;
    std::memcpy(&number, event.data(), sizeof number);
    return number;
  }

 private:
  zmq::socket_t socket_;
};

/// A listening socket with a domain, as the transport makes it.
struct Service {
  KeyPair keys = fresh();
  zmq::socket_t socket;
  std::string endpoint;
  Service(zmq::context_t& context, const std::string& domain) : socket(context, zmq::socket_type::router) {
    socket.set(zmq::sockopt::linger, 0);
    socket.set(zmq::sockopt::rcvtimeo, kPatience);
    socket.set(zmq::sockopt::curve_server, 1);
    socket.set(zmq::sockopt::curve_secretkey, keys.secret_key);
    socket.set(zmq::sockopt::zap_domain, domain);
    const int one = 1;
    BOOST_REQUIRE(zmq_setsockopt(socket.handle(), kZapEnforceDomain, &one, sizeof one) == 0);
    socket.bind("tcp://127.0.0.1:*");
    endpoint = socket.get(zmq::sockopt::last_endpoint);
  }
  /// "text role instance key" of the next message
  std::string next() {
    zmq::message_t route;
    zmq::message_t text;
    if (!socket.recv(route) || !socket.recv(text)) return "nothing";
    return fmt::format("{} {} {} {}", text.to_string(), text.gets("User-Id"), text.gets("Instance"), text.gets("Key"));
  }
  bool idle() {
    zmq::message_t any;
    return !socket.recv(any, zmq::recv_flags::dontwait);
  }
};

struct Caller {
  zmq::socket_t socket;
  std::optional<Monitor> monitor;
  Caller(zmq::context_t& context, const Service& service, const std::optional<KeyPair>& keys, const std::string& text)
      : socket(context, zmq::socket_type::dealer) {
    socket.set(zmq::sockopt::linger, 0);
    if (keys) {
      socket.set(zmq::sockopt::curve_serverkey, service.keys.public_key);
      socket.set(zmq::sockopt::curve_publickey, keys->public_key);
      socket.set(zmq::sockopt::curve_secretkey, keys->secret_key);
    }
    monitor.emplace(context, socket, kRefused | ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    socket.connect(service.endpoint);
    socket.send(zmq::buffer(text));
  }
};

struct World {
  TemporaryDirectory folder;
  zmq::context_t context;
  ZapServer zap{context.handle()};
  std::shared_ptr<KeyTable> table(const std::string& text) {
    const auto file = folder.path() / fmt::format("keys-{}", ++files);
    std::ofstream(file) << text;
    auto out = KeyTable::open(file.string(), SteadyClock().now() - std::chrono::seconds(2));
    BOOST_REQUIRE_MESSAGE(out.has_value(), (out ? std::string() : out.error().message));
    return *out;
  }
  int files = 0;
};

std::string line(const KeyPair& keys, const std::string& rest) { return keys.public_key + " " + rest + "\n"; }

}  // namespace

BOOST_AUTO_TEST_CASE(a_key_is_read_from_its_file_and_nothing_else_is) {
  const TemporaryDirectory folder;
  const auto file = (folder.path() / "key").string();
  BOOST_TEST((read_key(file).error().code == Errc::not_found));
  const auto keys = fresh();
  BOOST_TEST(keys.public_key != keys.secret_key);
  std::ofstream(file) << keys.public_key << " \n";
  BOOST_TEST(*read_key(file) == keys.public_key);
  for (const auto& text : {std::string(), std::string(39, 'a'), std::string(41, 'a'), std::string(40, '\xff'),
                           std::string(40, ' '), std::string(40, '~'), std::string(40, '\x7f')}) {
    std::ofstream(file) << text;
    BOOST_TEST((read_key(file).error().code == Errc::bad_format), text);
  }
}

BOOST_AUTO_TEST_CASE(a_table_knows_roles_instances_and_comments) {
  const auto a = fresh();
  const auto b = fresh();
  const auto t = *KeyTable::of_text("# callers\n\n" + line(a, "controller # any") + "\t" + line(b, " gateway\tgw-1"));
  BOOST_TEST(t->size() == 2u);
  BOOST_TEST((t->who(a.public_key) == Identity{"controller", ""}));
  BOOST_TEST((t->who(b.public_key) == Identity{"gateway", "gw-1"}));
  BOOST_TEST(!t->who(fresh().public_key));
  BOOST_TEST(!t->who(""));
  // '#' is a digit of Z85.
  const auto sharp = "#" + std::string(19, '0') + "#" + std::string(19, '0');
  const auto inner = "0#" + std::string(38, '0');
  BOOST_TEST((*KeyTable::of_text(inner + " vad"))->size() == 1u);
  BOOST_TEST((*KeyTable::of_text(sharp + " vad"))->size() == 0u);
}

BOOST_AUTO_TEST_CASE(a_broken_table_names_its_line) {
  const auto a = fresh();
  for (const auto& bad :
       {a.public_key, a.public_key.substr(0, 39) + " vad", line(a, "vad one two"), line(a, "vad") + line(a, "tts"),
        line(a, std::string(41, 'r')), line(a, "vad " + std::string(101, 'i'))}) {
    const auto t = KeyTable::of_text("# first\n" + bad);
    BOOST_REQUIRE(!t);
    BOOST_TEST((t.error().code == Errc::bad_format));
    BOOST_TEST(t.error().message.find("keys:") == 0u);
  }
}

BOOST_AUTO_TEST_CASE(a_table_follows_its_file_once_a_second_and_keeps_the_old_one_if_it_is_broken) {
  const TemporaryDirectory folder;
  const auto file = (folder.path() / "keys").string();
  ManualClock clock;
  BOOST_TEST((KeyTable::open(file, clock.now()).error().code == Errc::not_found));
  const auto a = fresh();
  const auto b = fresh();
  std::ofstream(file) << line(a, "vad");
  const auto t = *KeyTable::open(file, clock.now());
  std::ofstream(file) << line(b, "tts");
  clock.advance(milliseconds(999));
  t->refresh(clock.now());
  BOOST_TEST(t->who(a.public_key).has_value());
  clock.advance(milliseconds(1));
  t->refresh(clock.now());
  BOOST_TEST(!t->who(a.public_key));
  BOOST_TEST(t->who(b.public_key).has_value());
  BOOST_TEST(t->version() == 2u);
  std::ofstream(file) << line(a, "vad") << "nonsense\n";
  for (int n = 0; n < 3; ++n) {
    clock.advance(milliseconds(1000));
    t->refresh(clock.now());
  }
  BOOST_TEST(t->who(b.public_key).has_value());
  BOOST_TEST(t->broken() == 1u);
  std::filesystem::remove(file);
  clock.advance(milliseconds(1000));
  t->refresh(clock.now());
  BOOST_TEST(t->who(b.public_key).has_value());
  BOOST_TEST(t->broken() == 2u);
  std::ofstream(file) << "# nobody\n";
  clock.advance(milliseconds(1000));
  t->refresh(clock.now());
  BOOST_TEST(t->size() == 0u);
  BOOST_TEST(t->version() == 3u);
}

BOOST_AUTO_TEST_CASE(two_services_of_one_process_each_admit_their_own_callers) {
  World w;
  const auto controller = fresh();
  const auto gateway = fresh();
  BOOST_REQUIRE(w.zap.register_domain("vad", w.table(line(controller, "controller c-1"))));
  BOOST_REQUIRE(w.zap.register_domain("controller", w.table(line(gateway, "gateway"))));
  Service vad(w.context, "vad");
  Service control(w.context, "controller");
  BOOST_TEST(vad.keys.public_key != control.keys.public_key);
  const Caller first(w.context, vad, controller, "hello");
  BOOST_TEST(vad.next() == "hello controller c-1 " + controller.public_key);
  const Caller second(w.context, control, gateway, "hi");
  BOOST_TEST(control.next() == "hi gateway  " + gateway.public_key);
  // A key of one service is none of the other.
  Caller third(w.context, vad, gateway, "let me in");
  BOOST_TEST((third.monitor->wait() & kRefused) != 0);
  BOOST_TEST(vad.idle());
  BOOST_TEST(w.zap.counters().accepted == 2u);
  BOOST_TEST(w.zap.counters().refused >= 1u);
  BOOST_TEST(w.zap.counters().malformed == 0u);
}

BOOST_AUTO_TEST_CASE(an_unlisted_key_is_refused) {
  World w;
  BOOST_REQUIRE(w.zap.register_domain("vad", w.table(line(fresh(), "controller"))));
  Service vad(w.context, "vad");
  Caller caller(w.context, vad, fresh(), "hello");
  BOOST_TEST(caller.monitor->wait() == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
  BOOST_TEST(vad.idle());
  BOOST_TEST(w.zap.counters().accepted == 0u);
}

BOOST_AUTO_TEST_CASE(a_caller_that_claims_another_role_shows_in_the_user_id) {
  World w;
  const auto tts = fresh();
  BOOST_REQUIRE(w.zap.register_domain("llm", w.table(line(tts, "tts"))));
  Service llm(w.context, "llm");
  Caller caller(w.context, llm, tts, "I am a controller");
  BOOST_TEST(llm.next() == "I am a controller tts  " + tts.public_key);
}

BOOST_AUTO_TEST_CASE(an_empty_table_admits_nobody) {
  World w;
  BOOST_REQUIRE(w.zap.register_domain("vad", w.table("# nobody yet\n")));
  Service vad(w.context, "vad");
  Caller caller(w.context, vad, fresh(), "hello");
  BOOST_TEST(caller.monitor->wait() == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
  BOOST_TEST(vad.idle());
}

BOOST_AUTO_TEST_CASE(a_caller_without_curve_or_with_the_wrong_server_key_is_refused) {
  World w;
  const auto controller = fresh();
  BOOST_REQUIRE(w.zap.register_domain("vad", w.table(line(controller, "controller"))));
  Service vad(w.context, "vad");
  Monitor seen(w.context, vad.socket, kRefused | ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
  const Caller plain(w.context, vad, std::nullopt, "hello");
  BOOST_TEST((seen.wait() & kRefused) != 0);
  Service other(w.context, "other");
  other.endpoint = vad.endpoint;
  const Caller deceived(w.context, other, controller, "hello");
  BOOST_TEST((seen.wait() & kRefused) != 0);
  BOOST_TEST(vad.idle());
  BOOST_TEST(w.zap.counters().accepted == 0u);
}

BOOST_AUTO_TEST_CASE(keys_change_when_the_file_is_written_anew) {
  World w;
  const auto before = fresh();
  const auto after = fresh();
  const auto file = w.folder.path() / "rotated";
  std::ofstream(file) << line(before, "controller");
  // Opened long ago: the next handshake may look at the file again.
  const auto table = *KeyTable::open(file.string(), SteadyClock().now() - std::chrono::hours(1));
  BOOST_REQUIRE(w.zap.register_domain("vad", table));
  Service vad(w.context, "vad");
  BOOST_REQUIRE(write_file(file, line(after, "controller")));
  const Caller fresh_one(w.context, vad, after, "new");
  BOOST_TEST(vad.next() == "new controller  " + after.public_key);
  Caller stale(w.context, vad, before, "old");
  BOOST_TEST(stale.monitor->wait() == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
  BOOST_TEST(vad.idle());
  BOOST_TEST(table->version() == 2u);
}

BOOST_AUTO_TEST_CASE(a_domain_nobody_registered_admits_nobody) {
  World w;
  const auto key = fresh();
  BOOST_REQUIRE(w.zap.register_domain("vad", w.table(line(key, "controller"))));
  Service other(w.context, "other");
  Caller first(w.context, other, key, "hello");
  BOOST_TEST(first.monitor->wait() == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
  Service vad(w.context, "vad");
  w.zap.unregister_domain("vad");
  Caller second(w.context, vad, key, "hello");
  BOOST_TEST(second.monitor->wait() == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
}

BOOST_AUTO_TEST_CASE(without_a_zap_server_an_enforced_domain_admits_nobody) {
  zmq::context_t context;
  Service vad(context, "vad");
  Caller caller(context, vad, fresh(), "hello");
  BOOST_TEST((caller.monitor->wait() & kRefused) != 0);
  BOOST_TEST(vad.idle());
}

BOOST_AUTO_TEST_CASE(a_domain_is_taken_once_and_a_context_has_one_server) {
  World w;
  const auto table = w.table("");
  BOOST_TEST(!w.zap.register_domain("", table));
  BOOST_TEST(!w.zap.register_domain("vad", nullptr));
  BOOST_REQUIRE(w.zap.register_domain("vad", table));
  BOOST_TEST((w.zap.register_domain("vad", table).error().code == Errc::invalid_argument));
  ZapServer second(w.context.handle());
  BOOST_TEST((second.register_domain("tts", table).error().code == Errc::io));
  w.zap.unregister_domain("vad");
  BOOST_TEST(w.zap.register_domain("vad", table).has_value());
}

BOOST_AUTO_TEST_CASE(a_request_that_is_no_curve_request_is_refused) {
  World w;
  BOOST_REQUIRE(w.zap.register_domain("vad", w.table("")));
  zmq::socket_t ask(w.context, zmq::socket_type::req);
  ask.set(zmq::sockopt::linger, 0);
  ask.set(zmq::sockopt::rcvtimeo, kPatience);
  ask.connect("inproc://zeromq.zap.01");
  const std::vector<std::vector<std::string>> requests = {
      {""},
      {"1.0", "7", "vad", "127.0.0.1", "", "NULL"},
      {"1.0", "7", "vad", "127.0.0.1", "", "CURVE", "short"},
      {"1.0", "7", "vad", "127.0.0.1", "", "CURVE", std::string(32, 'k'), "more", "and", "more"}};
  for (const auto& request : requests) {
    for (std::size_t n = 0; n < request.size(); ++n)
      ask.send(zmq::buffer(request[n]), n + 1 < request.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
    std::vector<std::string> reply;
    for (bool more = true; more;) {
      zmq::message_t part;
      BOOST_REQUIRE(ask.recv(part));
      reply.push_back(part.to_string());
      more = part.more();
    }
    BOOST_REQUIRE(reply.size() == 6u);
    BOOST_TEST(reply[2] == "400");
  }
  BOOST_TEST(w.zap.counters().malformed == 4u);
}

BOOST_AUTO_TEST_CASE(a_context_that_ends_first_ends_the_server) {
  auto context = std::make_unique<zmq::context_t>();
  ZapServer zap(context->handle());
  BOOST_REQUIRE(zap.register_domain("vad", *KeyTable::of_text("")));
  context.reset();
  BOOST_TEST(zap.counters().refused == 0u);
}

}  // namespace parlando::transport::curve
