#define BOOST_TEST_MODULE http
#include "common/http/server.hpp"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <boost/test/unit_test.hpp>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "tests/common/http/tls_client.hpp"
#include "tests/support/certificate.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::http {
namespace {
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

/// A server driven by the test, and what it reported.
struct World {
  explicit World(Limits limits = {}, const std::string& address = "127.0.0.1:0") {
    SocketHandlers handlers;
    handlers.paths = {{"/ws"}, {"/large", 1 << 20, 4 << 20, "spoken"}};
    handlers.opened = [this](std::uint64_t id, const Upgrade& upgrade) {
      log[id] += "opened;";
      upgrades[id] = upgrade;
      ids.push_back(id);
      if (on_opened) on_opened(id);
    };
    handlers.closed = [this](std::uint64_t id) { log[id] += "closed;"; };
    handlers.lost = [this](std::uint64_t id) { lost.insert(id); };
    handlers.message = [this](std::uint64_t id, std::string_view data, bool binary) {
      if (log_messages) log[id] += (binary ? "b:" : "t:") + std::string(data) + ";";
      ++received[id];
      if (on_message) on_message(id, data);
    };
    handlers.slow = [this](std::uint64_t id, bool slow) { log[id] += slow ? "slow;" : "quick;"; };
    auto started = Server::start(
        address,
        [this](const Request& r) {
          return on_request ? on_request(r) : Response{200, "text/plain", r.method + " " + r.target};
        },
        std::move(handlers), std::move(limits));
    BOOST_REQUIRE_MESSAGE(started, (started ? "" : started.error().message));
    server = std::move(*started);
  }
  /// Drives the server until `done`. @return whether it came true in time
  template <class F>
  bool until(F&& done, std::chrono::milliseconds limit = 5s) {
    const auto end = Clock::now() + limit;
    while (!done()) {
      if (Clock::now() > end) return false;
      server->wait({}, 2ms);
    }
    return true;
  }
  /// Drives the server for a time in which something must not happen.
  void run(std::chrono::milliseconds time) {
    until([] { return false; }, time);
  }
  /// A client with its handshake done. @param id  receives its number
  Client join(std::uint64_t* id = nullptr, Client client = {}) {
    const auto before = ids.size();
    client.connect(server->port());
    client.send(Client::upgrade(server->port()));
    BOOST_REQUIRE(until([&] { return client.pump().in.find("\r\n\r\n") != std::string::npos && ids.size() > before; }));
    BOOST_REQUIRE(client.in.starts_with("HTTP/1.1 101"));
    client.in.erase(0, client.in.find("\r\n\r\n") + 4);
    if (id) *id = ids.back();
    return client;
  }
  Client::Frame frame(Client& client) {
    std::optional<Client::Frame> out;
    BOOST_REQUIRE(until([&] { return (out = client.frame()).has_value(); }));
    return *out;
  }
  /// Everything the server answers until it ends the connection.
  std::string ask(const std::string& text, const char* from = nullptr) {
    Client client(server->port(), from);
    client.send(text);
    BOOST_REQUIRE(until([&] { return client.pump().ended; }));
    return client.in;
  }
  std::string get(const std::string& more = "Connection: close\r\n", const std::string& line = "GET /x HTTP/1.1") {
    return ask(line + "\r\nHost: 127.0.0.1:" + std::to_string(server->port()) + "\r\n" + more + "\r\n");
  }

  std::map<std::uint64_t, std::string> log;
  std::map<std::uint64_t, Upgrade> upgrades;
  std::set<std::uint64_t> lost;  ///< told so by the server
  std::map<std::uint64_t, int> received;
  std::vector<std::uint64_t> ids;
  bool log_messages = true;
  std::function<void(std::uint64_t)> on_opened;
  std::function<void(std::uint64_t, std::string_view)> on_message;
  std::function<Response(const Request&)> on_request;
  std::unique_ptr<Server> server;  // last: ends first
};

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

double thread_cpu_seconds() {
  rusage used{};
  getrusage(RUSAGE_THREAD, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

struct Event {
  int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  ~Event() { ::close(fd); }
  void set() const { eventfd_write(fd, 1); }
  void take() const {
    eventfd_t value;
    eventfd_read(fd, &value);
  }
};

/// A server whose requests are answered later, and what became of them.
struct LateWorld : World {
  explicit LateWorld(Limits limits = {}) : World(std::move(limits)) {
    on_request = [this](const Request& r) {
      asked.push_back(r);
      if (!keeps_bodies) asked.back().counted.reset();
      return Response::given_later();
    };
    RequestHandlers handlers;
    handlers.gone = [this](std::uint64_t id) { gone.push_back(id); };
    handlers.admit = [this](const Request& r, Admission& admission) -> std::optional<Response> {
      return on_admit ? on_admit(r, admission) : std::nullopt;
    };
    handlers.shape = [](const Request& r, Response given) {
      given.body = "shaped " + std::string(r.path()) + ": " + given.body;
      return given;
    };
    server->set_requests(std::move(handlers));
  }
  std::string line(const std::string& what, const std::string& more = {}) const {
    return what + " HTTP/1.1\r\nHost: localhost:" + std::to_string(server->port()) + "\r\n" + more + "\r\n";
  }
  /// A client whose request has come to the handler.
  Client request(const std::string& text) {
    const auto before = asked.size();
    Client client(server->port());
    client.send(text);
    BOOST_REQUIRE(until([&] { return asked.size() > before; }));
    return client;
  }
  std::vector<Request> asked;
  std::vector<std::uint64_t> gone;
  bool keeps_bodies = false;
  std::function<std::optional<Response>(const Request&, Admission&)> on_admit;
};

BOOST_AUTO_TEST_SUITE(later_answers)

BOOST_AUTO_TEST_CASE(an_answer_given_later_keeps_the_connection) {
  LateWorld world;
  auto client = world.request(world.line("POST /a?b=1", "X-Name: one\r\nContent-Length: 4\r\n") + "body");
  BOOST_TEST(world.asked[0].path() == "/a");
  BOOST_TEST(world.asked[0].header("x-NAME") == "one");
  BOOST_TEST(world.asked[0].header("other") == "");
  BOOST_TEST(world.asked[0].body == "body");
  BOOST_TEST(world.server->requests() == 1u);
  world.run(20ms);
  BOOST_TEST(client.pump().in == "");
  BOOST_TEST(world.server->respond(world.asked[0].id, {201, "text/plain", "late"}));
  BOOST_TEST(!world.server->respond(world.asked[0].id, {200, "text/plain", "twice"}));
  BOOST_REQUIRE(world.until([&] { return has(client.pump().in, "late"); }));
  BOOST_TEST(world.until([&] { return world.server->requests() == 0; }));
  client.send(world.line("GET /again"));
  BOOST_REQUIRE(world.until([&] { return world.asked.size() == 2; }));
  BOOST_TEST((world.asked[0].id != world.asked[1].id));
  BOOST_TEST(world.gone.empty());
}

BOOST_AUTO_TEST_CASE(an_answer_leaves_in_chunks_as_it_is_made) {
  LateWorld world;
  auto client = world.request(world.line("GET /"));
  const auto id = world.asked[0].id;
  BOOST_TEST(!world.server->write(id, "before the head"));
  BOOST_TEST(world.server->begin(id, {200, "text/event-stream", ""}));
  BOOST_TEST(!world.server->begin(id, {200, "text/event-stream", ""}));
  BOOST_REQUIRE(world.until([&] { return has(client.pump().in, "\r\n\r\n"); }));
  BOOST_TEST(has(client.in, "Transfer-Encoding: chunked\r\n"));
  BOOST_TEST(!has(client.in, "Content-Length"));
  client.in.clear();
  world.server->write(id, "one");
  world.server->write(id, "");  // would be the end
  BOOST_REQUIRE(world.until([&] { return client.pump().in == "3\r\none\r\n"; }));
  world.server->write(id, std::string(40000, 'x'));
  BOOST_TEST(world.server->finish(id));
  BOOST_TEST(!world.server->write(id, "too late"));
  BOOST_REQUIRE(world.until([&] { return client.pump().in.ends_with("\r\n0\r\n\r\n"); }));
  BOOST_TEST(has(client.in, "8000\r\nx"));
  BOOST_TEST(world.until([&] { return world.server->requests() == 0; }));
  client.send(world.line("GET /next"));
  BOOST_REQUIRE(world.until([&] { return world.asked.size() == 2; }));
}

BOOST_AUTO_TEST_CASE(an_old_client_gets_no_chunks) {
  LateWorld world;
  auto client = world.request("GET / HTTP/1.0\r\n\r\n");
  world.server->begin(world.asked[0].id, {200, "text/plain", "first;"});
  world.server->write(world.asked[0].id, "second");
  world.server->finish(world.asked[0].id);
  BOOST_REQUIRE(world.until([&] { return client.pump().ended; }));
  BOOST_TEST(client.in.ends_with("\r\n\r\nfirst;second"));
}

BOOST_AUTO_TEST_CASE(answers_from_within_the_handler_are_sent) {
  LateWorld world;
  int turn = 0;
  world.on_request = [&](const Request& r) {
    if (turn++ == 0) {
      world.server->respond(r.id, {200, "text/plain", "whole"});
    } else {
      world.server->begin(r.id, {200, "text/plain", "part"});
      world.server->finish(r.id);
    }
    return Response::given_later();
  };
  Client client(world.server->port());
  client.send(world.line("GET /1"));
  BOOST_REQUIRE(world.until([&] { return has(client.pump().in, "whole"); }));
  client.send(world.line("GET /2"));
  BOOST_REQUIRE(world.until([&] { return has(client.pump().in, "part\r\n0\r\n\r\n"); }));
  BOOST_TEST(world.until([&] { return world.server->requests() == 0; }));
}

BOOST_AUTO_TEST_CASE(who_goes_before_the_end_of_the_answer_is_reported_once) {
  for (const bool begun : {false, true})
    for (const bool hard : {false, true}) {
      LateWorld world;
      auto client = world.request(world.line("GET /"));
      const auto id = world.asked[0].id;
      if (begun) world.server->begin(id, {200, "text/plain", "part"});
      world.run(5ms);
      hard ? client.reset() : client.close();
      BOOST_REQUIRE(world.until([&] { return !world.gone.empty(); }));
      BOOST_TEST((world.gone == std::vector<std::uint64_t>{id}));
      BOOST_TEST(!world.server->write(id, "more"));
      BOOST_TEST(!world.server->respond(id, {}));
      BOOST_TEST(world.until([&] { return world.server->requests() == 0; }));
      world.run(10ms);
      BOOST_TEST(world.gone.size() == 1u);
    }
}

/// Its goodbye would stand behind what nobody reads.
BOOST_AUTO_TEST_CASE(who_sends_much_behind_a_request_and_goes_is_noticed) {
  LateWorld world;
  auto client = world.request(world.line("GET /"));
  const std::string more = world.line("GET /next", "X: " + std::string(5000, 'x') + "\r\n");
  for (int i = 0; i < 2000; ++i) client.send(more);
  client.close();
  BOOST_REQUIRE(world.until([&] { return world.gone.size() == 1; }));
  BOOST_TEST(world.server->requests() == 0u);
}

BOOST_AUTO_TEST_CASE(a_reader_that_takes_nothing_is_cut) {
  Limits limits;
  limits.stall_time_max = 50ms;
  LateWorld world(limits);
  Client client;
  client.receive_buffer(4096);
  client.connect(world.server->port());
  client.send(world.line("GET /"));
  BOOST_REQUIRE(world.until([&] { return world.asked.size() == 1; }));
  const auto id = world.asked[0].id;
  world.server->begin(id, {200, "text/plain", ""});
  for (int i = 0; i < 8; ++i) world.server->write(id, std::string(1 << 20, 'x'));
  BOOST_TEST(world.server->unsent_answer_bytes(id) > 1u << 20);
  BOOST_REQUIRE(world.until([&] { return !world.gone.empty(); }));
  BOOST_TEST(world.server->counters().closed_idle.value() == 1u);
}

BOOST_AUTO_TEST_CASE(more_than_may_wait_cuts_the_answer) {
  Limits limits;
  limits.stream_unsent_bytes_max = 1 << 20;
  LateWorld world(limits);
  auto client = world.request(world.line("GET /"));
  const auto id = world.asked[0].id;
  world.server->begin(id, {200, "text/plain", ""});
  bool taken = true;
  for (int i = 0; i < 64 && taken; ++i) taken = world.server->write(id, std::string(1 << 20, 'x'));
  BOOST_TEST(!taken);
  BOOST_TEST(world.gone.empty());  // not from within `write`
  BOOST_REQUIRE(world.until([&] { return world.gone.size() == 1; }));
  BOOST_TEST(world.server->counters().cut_streams.value() >= 1u);
}

BOOST_AUTO_TEST_CASE(an_aborted_answer_has_no_end) {
  LateWorld world;
  auto client = world.request(world.line("GET /"));
  world.server->begin(world.asked[0].id, {200, "text/plain", "part"});
  world.server->abort(world.asked[0].id);
  BOOST_REQUIRE(world.until([&] { return client.pump().ended; }));
  BOOST_TEST(has(client.in, "4\r\npart\r\n"));
  BOOST_TEST(!has(client.in, "\r\n0\r\n"));
  BOOST_TEST(world.gone.empty());
  BOOST_TEST(world.until([&] { return world.server->requests() == 0; }));
}

BOOST_AUTO_TEST_CASE(a_request_is_refused_by_its_header_alone) {
  Limits limits;
  limits.body_bytes_max = 1000;
  LateWorld world(limits);
  world.on_admit = [](const Request& r, Admission& admission) -> std::optional<Response> {
    if (r.path() == "/no") return Response{401, "text/plain", "who are you"};
    if (r.path() == "/small") admission.body_bytes_max = 10;
    return {};
  };
  const auto refused = world.ask(world.line("POST /no", "Content-Length: 500\r\n"));
  BOOST_TEST(has(refused, "401 "));
  BOOST_TEST(has(refused, "who are you"));
  const auto large = world.ask(world.line("POST /small", "Content-Length: 11\r\n"));
  BOOST_TEST(has(large, "413 "));
  BOOST_TEST(has(large, "shaped /small: the body of the request has 11 bytes, at most 10"));
  BOOST_TEST(has(world.ask(world.line("POST /x", "Content-Length: 1001\r\n")), "413 "));
  const auto chunked =
      world.line("POST /small", "Transfer-Encoding: chunked\r\n") + "14\r\n01234567890123456789\r\n0\r\n\r\n";
  BOOST_TEST(has(world.ask(chunked), "413 "));
  // A WebSocket, too, before it is one.
  auto upgrade = Client::upgrade(world.server->port(), {}, "/no");
  BOOST_TEST(has(world.ask(upgrade), "401 "));
  BOOST_TEST(world.asked.empty());
  // Without a body the connection goes on.
  Client client(world.server->port());
  client.send(world.line("GET /no"));
  BOOST_REQUIRE(world.until([&] { return has(client.pump().in, "who are you"); }));
  client.send(world.line("GET /yes"));
  BOOST_REQUIRE(world.until([&] { return world.asked.size() == 1; }));
}

BOOST_AUTO_TEST_CASE(all_bodies_together_have_a_limit) {
  Limits limits;
  limits.bodies_bytes_max = 150'000;
  LateWorld world(limits);
  auto first = world.request(world.line("POST /", "Content-Length: 100000\r\n") + std::string(100'000, 'x'));
  const auto refused = world.ask(world.line("POST /", "Content-Length: 100000\r\n"));
  BOOST_TEST(has(refused, "503 "));
  BOOST_TEST(has(refused, "Retry-After: 1\r\n"));
  world.server->respond(world.asked[0].id, {200, "text/plain", "done"});
  BOOST_REQUIRE(world.until([&] { return has(first.pump().in, "done"); }));
  first.close();
  auto second = world.request(world.line("POST /", "Content-Length: 100000\r\n") + std::string(100'000, 'x'));
  second.close();
  BOOST_REQUIRE(world.until([&] { return world.gone.size() == 1; }));
  auto third = world.request(world.line("POST /", "Content-Length: 100000\r\n") + std::string(100'000, 'x'));
}

BOOST_AUTO_TEST_CASE(a_body_counts_as_long_as_somebody_keeps_it) {
  LateWorld world;
  world.keeps_bodies = true;
  auto client = world.request(world.line("POST /", "Content-Length: 100000\r\n") + std::string(100'000, 'x'));
  client.close();
  BOOST_REQUIRE(world.until([&] { return world.gone.size() == 1; }));
  BOOST_TEST(world.server->reserved_bytes() == 100'000u);
  world.asked.clear();
  BOOST_TEST(world.server->reserved_bytes() == 0u);
}

BOOST_AUTO_TEST_CASE(one_client_has_a_share_of_all_bodies) {
  Limits limits;
  limits.bodies_bytes_max = 1'000'000;
  limits.bodies_bytes_per_client_max = 150'000;
  LateWorld world(limits);
  world.on_admit = [](const Request& r, Admission& admission) -> std::optional<Response> {
    if (const auto key = r.header("x-key"); !key.empty()) admission.share = key;
    return {};
  };
  const auto post = [&](const std::string& key) {
    return world.line("POST /", "Content-Length: 100000\r\n" + key) + std::string(100'000, 'x');
  };
  const std::string anna = "X-Key: anna\r\n", ben = "X-Key: ben\r\n";
  auto first = world.request(post(anna));
  BOOST_TEST(has(world.ask(world.line("POST /", "Content-Length: 100000\r\n" + anna)), "503 "));
  auto other = world.request(post(ben));
  auto nobody = world.request(post({}));  // its address has a share
  BOOST_TEST(has(world.ask(world.line("POST /", "Content-Length: 100000\r\n")), "503 "));
  BOOST_TEST(world.server->reserved_bytes() == 300'000u);
  first.close();
  BOOST_REQUIRE(world.until([&] { return world.gone.size() == 1; }));
  auto again = world.request(post(anna));
}

BOOST_AUTO_TEST_CASE(an_admitted_upgrade_that_never_opens_is_told) {
  LateWorld world;
  std::vector<std::uint64_t> admitted;
  world.on_admit = [&](const Request& r, Admission&) -> std::optional<Response> {
    admitted.push_back(r.id);
    return {};
  };
  const auto port = world.server->port();
  auto without_key = Client::upgrade(port);
  without_key.erase(without_key.find("Sec-WebSocket-Key"),
                    std::string("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n").size());
  world.ask(without_key);
  world.ask(Client::upgrade(port, "Origin: https://elsewhere.example\r\n"));
  world.ask(Client::upgrade(port, "Origin: http://localhost\r\nOrigin: http://localhost\r\n"));
  world.ask(Client::upgrade(port, {}, "/no_socket"));
  BOOST_REQUIRE(admitted.size() == 4u);
  BOOST_TEST(world.gone == admitted);
  auto good = world.join();
  good.close();
  BOOST_REQUIRE(world.until([&] { return world.server->sockets() == 0; }));
  BOOST_TEST(world.gone.size() == 4u);
}

BOOST_AUTO_TEST_CASE(who_asks_before_sending_a_body_is_told_to) {
  LateWorld world;
  Client client(world.server->port());
  client.send(world.line("POST /", "Content-Length: 4\r\nExpect: 100-continue\r\n"));
  BOOST_REQUIRE(world.until([&] { return client.pump().in == "HTTP/1.1 100 Continue\r\n\r\n"; }));
  client.send("body");
  BOOST_REQUIRE(world.until([&] { return world.asked.size() == 1; }));
  BOOST_TEST(world.asked[0].body == "body");
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(http_requests)

BOOST_AUTO_TEST_CASE(an_address_that_cannot_be_listened_on_is_named) {
  for (const std::string address : {"127.0.0.1:65536", "127.0.0.1", "nowhere:80"}) {
    const auto got = Server::start(address, nullptr, {}, {});
    BOOST_REQUIRE(!got);
    BOOST_TEST((got.error().code == Errc::invalid_argument));
    BOOST_TEST(has(got.error().message, address));
  }
  World world;
  const auto taken = "127.0.0.1:" + std::to_string(world.server->port());
  const auto got = Server::start(taken, nullptr, {}, {});
  BOOST_REQUIRE(!got);
  BOOST_TEST((got.error().code == Errc::io));
  BOOST_TEST(has(got.error().message, taken));
}

BOOST_AUTO_TEST_CASE(two_addresses_serve_the_same) {
  World world;
  const auto port = world.server->also_listen("127.0.0.1:0");
  BOOST_REQUIRE(port);
  BOOST_TEST(*port != world.server->port());
  for (const int at : {*port, world.server->port()}) {
    Client client(at);
    client.send("GET /x HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(at) + "\r\nConnection: close\r\n\r\n");
    BOOST_REQUIRE(world.until([&] { return client.pump().ended; }));
    BOOST_TEST(has(client.in, "GET /x"));
  }
  BOOST_TEST(!world.server->also_listen("127.0.0.1:" + std::to_string(*port)));
  world.server->stop_accepting();
  Client late(*port);
  world.run(5ms);
  BOOST_TEST(late.pump().ended);
}

BOOST_AUTO_TEST_CASE(an_ipv6_address_serves) {
  auto got = Server::start("[::1]:0", [](const Request&) { return Response{200, "text/plain", "six"}; }, {}, {});
  if (!got) {
    BOOST_TEST_MESSAGE("skipped: " + got.error().message);
    return;
  }
  const int fd = ::socket(AF_INET6, SOCK_STREAM, 0);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  address.sin6_port = htons(static_cast<std::uint16_t>((*got)->port()));
  BOOST_REQUIRE(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  const auto text = fmt::format("GET / HTTP/1.1\r\nHost: [::1]:{}\r\nConnection: close\r\n\r\n", (*got)->port());
  BOOST_REQUIRE(::send(fd, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
  std::string in;
  for (int turn = 0; turn < 1000 && !has(in, "six"); ++turn) {
    (*got)->wait({}, 2ms);
    char part[4096];
    const auto n = ::recv(fd, part, sizeof(part), MSG_DONTWAIT);
    if (n > 0) in.append(part, static_cast<std::size_t>(n));
  }
  ::close(fd);
  BOOST_TEST(has(in, "200 OK"));
}

BOOST_AUTO_TEST_CASE(get_and_head_answer_the_same_header) {
  World world;
  const auto get = world.get();
  const auto head = world.get("Connection: close\r\n", "HEAD /x HTTP/1.1");
  const auto border = get.find("\r\n\r\n") + 4;
  BOOST_TEST(get.substr(border) == "GET /x");
  BOOST_TEST(head == get.substr(0, border));
  BOOST_TEST(has(head, "Content-Length: 6\r\n"));
}

BOOST_AUTO_TEST_CASE(a_wrong_method_is_told_the_right_ones) {
  World world;
  world.on_request = [](const Request& r) { return Response{405, "text/plain", r.method + " " + r.body}; };
  const auto answer = world.get("Connection: close\r\nContent-Length: 4\r\n\r\nbody", "POST / HTTP/1.1");
  BOOST_TEST(has(answer, "405"));
  BOOST_TEST(has(answer, "Allow: GET, HEAD\r\n"));
  BOOST_TEST(has(answer, "POST body"));
  world.on_request = [](const Request&) {
    return Response{.status = 405, .headers = {{"Allow", "POST"}, {"X-Other", "1"}}};
  };
  const auto own = world.get();
  BOOST_TEST(has(own, "Allow: POST\r\n"));
  BOOST_TEST(has(own, "X-Other: 1\r\n"));
}

BOOST_AUTO_TEST_CASE(requests_of_one_connection_are_answered_in_order) {
  World world;
  const auto host = " HTTP/1.1\r\nHost: localhost:" + std::to_string(world.server->port()) + "\r\n";
  const auto answers =
      world.ask("GET /1" + host + "\r\nGET /2" + host + "\r\nGET /3" + host + "Connection: close\r\n\r\n");
  BOOST_TEST(answers.find("GET /1") < answers.find("GET /2"));
  BOOST_TEST(answers.find("GET /2") < answers.find("GET /3"));
  BOOST_TEST(has(answers, "GET /3"));
}

BOOST_AUTO_TEST_CASE(a_large_shared_body_is_sent_without_a_copy) {
  World world;
  auto body = std::make_shared<std::string>(8 << 20, 'x');
  for (std::size_t i = 0; i < body->size(); i += 4096) (*body)[i] = static_cast<char>('a' + i / 4096 % 26);
  world.on_request = [&](const Request&) { return Response{.shared_body = body}; };
  Client client(world.server->port());
  client.send("GET / HTTP/1.1\r\nHost: localhost:" + std::to_string(world.server->port()) +
              "\r\nConnection: close\r\n\r\n");
  BOOST_TEST(world.until([&] { return body.use_count() == 2; }));  // ours, and the one being sent
  BOOST_REQUIRE(world.until([&] { return client.pump().ended; }));
  BOOST_TEST((client.in.substr(client.in.find("\r\n\r\n") + 4) == *body));
  world.on_request = nullptr;
  BOOST_TEST(body.use_count() == 1);
}

BOOST_AUTO_TEST_CASE(requests_that_are_too_large_or_malformed_are_refused) {
  World world({.header_bytes_max = 1000, .body_bytes_max = 100});
  BOOST_TEST(has(world.get("Content-Length: 101\r\n", "POST / HTTP/1.1"), "413 "));
  BOOST_TEST(has(world.get("X: " + std::string(2000, 'x') + "\r\n"), "431 "));
  BOOST_TEST(has(world.ask("nonsense\r\n\r\n"), "400 "));
  BOOST_TEST(world.server->counters().protocol_errors.value() == 3u);
  BOOST_TEST(has(world.get(), "200 OK"));
}

BOOST_AUTO_TEST_CASE(a_host_that_is_not_served_is_refused) {
  World world;
  const auto answer =
      world.ask("GET / HTTP/1.1\r\nHost: evil.example:" + std::to_string(world.server->port()) + "\r\n\r\n");
  BOOST_TEST(has(answer, "403 Forbidden"));
  BOOST_TEST(has(answer, "evil.example"));
  BOOST_TEST(has(world.ask("GET / HTTP/1.1\r\n\r\n"), "400 "));
  BOOST_TEST(has(world.get("Host: evil.example\r\n"), "400 "));
  const auto upgrade = Client::upgrade(world.server->port());
  BOOST_TEST(
      has(world.ask(upgrade.substr(0, upgrade.find("127.0.0.1")) + "evil.example" + upgrade.substr(upgrade.find(":"))),
          "40"));
  BOOST_TEST(world.server->counters().refused_host.value() == 4u);
  BOOST_TEST(world.ids.empty());
  World open({.hosts = {"*"}});
  BOOST_TEST(has(open.ask("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"), "200 OK"));
}

BOOST_AUTO_TEST_CASE(a_page_of_another_origin_may_not_open_a_socket) {
  World world({.origins = {"https://app.example"}});
  const auto port = world.server->port();
  const auto answer = world.ask(Client::upgrade(port, "Origin: http://evil.example\r\n"));
  BOOST_TEST(has(answer, "403 Forbidden"));
  BOOST_TEST(has(answer, "http://evil.example"));
  BOOST_TEST(world.server->counters().refused_origin.value() == 1u);
  for (const auto& origin : {"Origin: https://app.example\r\n", "Origin: http://127.0.0.1:{}\r\n"}) {
    Client client(port);
    client.send(Client::upgrade(port, fmt::format(fmt::runtime(origin), port)));
    BOOST_TEST(world.until([&] { return client.pump().in.starts_with("HTTP/1.1 101"); }));
  }
}

BOOST_AUTO_TEST_CASE(an_upgrade_elsewhere_is_refused) {
  World world;
  BOOST_TEST(has(world.ask(Client::upgrade(world.server->port(), "", "/other")), "404 "));
  Client client(world.server->port());
  client.send(Client::upgrade(world.server->port(), "", "/ws?token=1"));
  BOOST_TEST(world.until([&] { return client.pump().in.starts_with("HTTP/1.1 101"); }));
}

BOOST_AUTO_TEST_CASE(a_path_has_limits_and_a_protocol_of_its_own) {
  World world;
  const auto port = world.server->port();
  Client client(port);
  client.send(Client::upgrade(port, "Sec-WebSocket-Protocol: other, spoken\r\nX-Client: 7\r\n", "/large?model=a"));
  BOOST_REQUIRE(world.until([&] { return client.pump().in.find("\r\n\r\n") != std::string::npos; }));
  BOOST_TEST(client.in.starts_with("HTTP/1.1 101"));
  BOOST_TEST(has(client.in, "Sec-WebSocket-Protocol: spoken\r\n"));
  const auto& upgrade = world.upgrades[world.ids[0]];
  BOOST_TEST(upgrade.path == "/large");
  BOOST_TEST(upgrade.target == "/large?model=a");
  using Header = std::pair<std::string, std::string>;
  BOOST_TEST((std::count(upgrade.headers.begin(), upgrade.headers.end(), Header{"X-Client", "7"}) == 1));
  // Larger than the limit of the other paths, and smaller than its own.
  client.in.clear();
  world.log_messages = false;
  std::size_t heard = 0;
  world.on_message = [&](std::uint64_t, std::string_view data) { heard = data.size(); };
  const auto frame = Client::encode(2, std::string(200 << 10, 'x'));
  std::size_t sent = 0;
  BOOST_TEST(world.until([&] {
    sent += client.send(std::string_view(frame).substr(sent));
    return heard == 200 << 10;
  }));
  const std::string above(2 << 20, 'x');
  client.send(Client::encode(2, above).substr(0, 100));
  BOOST_TEST(world.frame(client).code() == 1009);
  // A client that offers none, or another, is answered with none.
  Client plain(port);
  plain.send(Client::upgrade(port, "Sec-WebSocket-Protocol: other\r\n", "/large"));
  BOOST_REQUIRE(world.until([&] { return plain.pump().in.find("\r\n\r\n") != std::string::npos; }));
  BOOST_TEST(!has(plain.in, "Sec-WebSocket-Protocol"), plain.in);
}

BOOST_AUTO_TEST_CASE(a_throwing_handler_answers_500_and_the_server_lives) {
  World world;
  world.on_request = [](const Request&) -> Response { throw Failure{}; };
  BOOST_TEST(has(world.get(""), "500 "));  // and it ends the connection
  BOOST_TEST(world.server->counters().callback_errors.value() == 1u);
  world.on_request = nullptr;
  BOOST_TEST(has(world.get(), "200 OK"));
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(connection_limits)

BOOST_AUTO_TEST_CASE(connections_above_the_limit_are_told_and_closed) {
  World world({.connections_max = 2});
  Client first(world.server->port()), second(world.server->port());
  BOOST_REQUIRE(world.until([&] { return world.server->counters().accepted.value() == 2; }));
  const auto refused = world.ask("");
  BOOST_TEST(has(refused, "503 "));
  BOOST_TEST(has(refused, "Content-Type: application/json"));
  BOOST_TEST(has(refused, "Retry-After: 1"));
  BOOST_TEST(has(refused, R"({"error":{"message":"too many connections; try again later","type":"server_error",)"));
  BOOST_TEST(world.server->counters().refused_full.value() == 1u);
  first.close();
  BOOST_TEST(world.until([&] { return has(world.get(), "200 OK"); }));  // the place is free again
}

BOOST_AUTO_TEST_CASE(one_address_cannot_take_all_connections) {
  World world({.connections_per_address_max = 2});
  std::vector<Client> clients;
  for (int i = 0; i < 2; ++i) clients.push_back(world.join());
  BOOST_TEST(has(world.ask(""), "429 "));
  BOOST_TEST(has(world.ask("GET / HTTP/1.1\r\nHost: localhost:" + std::to_string(world.server->port()) +
                               "\r\nConnection: close\r\n\r\n",
                           "127.0.0.2"),
                 "200 OK"));
  BOOST_TEST(world.server->counters().refused_address.value() == 1u);
  clients.pop_back();
  BOOST_REQUIRE(world.until([&] { return world.server->sockets() == 1; }));
  world.join();
}

BOOST_AUTO_TEST_CASE(without_descriptors_accepting_backs_off_and_goes_on) {
  World world({.accept_retry_time = 20ms});
  Client waiting, later;
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  const int next = ::dup(0);
  ::close(next);
  rlimit none = before;
  none.rlim_cur = static_cast<rlim_t>(next);
  BOOST_REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
  waiting.connect(world.server->port());
  const auto start = Clock::now();
  const auto cpu = thread_cpu_seconds();
  BOOST_TEST(world.until([&] { return world.server->counters().accept_backoffs.value() >= 3; }));
  world.run(100ms);
  const auto used = thread_cpu_seconds() - cpu;
  const auto backoffs = world.server->counters().accept_backoffs.value();
  setrlimit(RLIMIT_NOFILE, &before);
  BOOST_TEST(world.server->counters().accepted.value() == 0u);
  BOOST_TEST(static_cast<double>(backoffs) <= 1 + std::chrono::duration<double>(Clock::now() - start) / 20ms);
  BOOST_TEST(used < 0.1);
  BOOST_TEST(world.until([&] { return world.server->counters().accepted.value() == 1; }));
}

BOOST_AUTO_TEST_CASE(headers_bodies_and_idle_connections_have_their_time) {
  World world({.header_time_max = 150ms, .body_time_max = 150ms});
  const auto port = std::to_string(world.server->port());
  const auto post = "POST / HTTP/1.1\r\nHost: localhost:" + port + "\r\nContent-Length: 9\r\n\r\n";
  for (const auto& text : {std::string(), std::string("GET / HT"), post}) BOOST_TEST(world.ask(text).empty());
  // A later request that starts and does not go on has the time of a header, not that of an idle connection.
  Client begun(world.server->port());
  begun.send("GET / HTTP/1.1\r\nHost: localhost:" + port + "\r\n\r\n");
  BOOST_REQUIRE(world.until([&] { return has(begun.pump().in, "200 OK"); }));
  begun.send("GET");
  BOOST_REQUIRE(world.until([&] { return begun.pump().ended; }));
  BOOST_TEST(world.server->counters().closed_idle.value() == 4u);
  World other({.header_time_max = 10ms, .idle_time_max = 300ms});
  Client idle(other.server->port());
  const auto start = Clock::now();
  idle.send("GET / HTTP/1.1\r\nHost: localhost:" + std::to_string(other.server->port()) + "\r\n\r\n");
  BOOST_REQUIRE(other.until([&] { return has(idle.pump().in, "200 OK"); }));
  BOOST_REQUIRE(other.until([&] { return idle.pump().ended; }));
  BOOST_TEST((Clock::now() - start >= 290ms));
}

BOOST_AUTO_TEST_CASE(a_silent_socket_is_pinged_and_then_cut) {
  World world({.idle_time_max = 800ms});
  std::uint64_t silent = 0, alive = 0;
  auto mute = world.join(&silent);
  auto client = world.join(&alive);
  int pings = 0;
  BOOST_REQUIRE(world.until([&] {
    if (const auto frame = client.frame(); frame && frame->opcode == 9) {
      ++pings;
      client.send(Client::encode(10, frame->data));
    }
    return pings >= 2 && world.server->sockets() == 1;
  }));
  BOOST_TEST(world.log[silent] == "opened;closed;");
  BOOST_TEST(world.log[alive] == "opened;");
  BOOST_TEST(world.frame(mute).opcode == 9);
  BOOST_TEST(world.server->counters().closed_idle.value() == 1u);
}

BOOST_AUTO_TEST_CASE(a_message_may_come_slowly_but_not_in_drops) {
  World world({.idle_time_max = 400ms});
  std::uint64_t slow = 0, drops = 0;
  auto steady = world.join(&slow);
  auto trickle = world.join(&drops);
  const std::string half(20'000, 'x');  // 1.2 s at the slowest rate that is taken
  const auto frame = Client::encode(1, half + half);
  trickle.send(frame.substr(0, 20));
  for (std::size_t at = 0; at < frame.size(); at += frame.size() / 40) {
    steady.send(std::string_view(frame).substr(at, frame.size() / 40));
    trickle.send("y");
    world.run(20ms);  // 0.8 s in all: twice the time that a socket may be idle
  }
  BOOST_TEST(world.until([&] { return world.received[slow] == 1; }));
  BOOST_TEST(!has(world.log[slow], "closed"));
  BOOST_TEST(world.until([&] { return has(world.log[drops], "closed"); }));
  BOOST_TEST(world.server->counters().closed_idle.value() == 1u);
}

/// Sends all of it, as the server takes it.
void send_all(World& world, Client& client, std::string_view bytes) {
  BOOST_REQUIRE(world.until([&] {
    bytes.remove_prefix(client.send(bytes.substr(0, 32 << 10)));
    return bytes.empty() || client.pump().ended;
  }));
}

BOOST_AUTO_TEST_CASE(a_message_of_which_no_more_comes_is_cut_though_its_client_lives) {
  World world({.message_bytes_max = 2 << 20, .body_time_max = 200ms, .idle_time_max = 60s});
  std::uint64_t id = 0;
  auto client = world.join(&id);
  const auto frame = Client::encode(2, std::string(1'500'000, 'x'), false);
  send_all(world, client, frame);
  BOOST_TEST(world.until([&] {
    if (!client.ended) client.send(Client::encode(10, "alive"));
    return has(world.log[id], "closed");
  }));
  BOOST_TEST(world.server->counters().closed_idle.value() == 1u);
  BOOST_TEST(world.until([&] { return world.server->reserved_bytes() == 0; }));
}

BOOST_AUTO_TEST_CASE(what_came_quickly_earns_no_time_for_drops) {
  World world({.message_bytes_max = 2 << 20, .body_time_max = 60s, .idle_time_max = 300ms});
  std::uint64_t id = 0;
  auto client = world.join(&id);
  const auto frame = Client::encode(2, std::string(1'500'000, 'x'));  // a minute and a half at the slowest rate
  const auto most = std::string_view(frame).substr(0, frame.size() - 1000);
  send_all(world, client, most);
  std::size_t at = most.size();
  BOOST_TEST(world.until([&] {
    if (!client.ended && at + 1 < frame.size()) client.send(std::string_view(frame).substr(at++, 1));
    return has(world.log[id], "closed");
  }));
  BOOST_TEST(world.server->counters().closed_idle.value() == 1u);
}

BOOST_AUTO_TEST_CASE(large_messages_of_all_sockets_have_one_budget) {
  // A message's buffer has its size or up to twice as much, as it came: one fits whatever it has, two never do.
  constexpr std::size_t kBudget = 2'040'000;
  World world({.bodies_bytes_max = kBudget, .message_bytes_max = 1 << 20});
  std::uint64_t a = 0, b = 0;
  auto first = world.join(&a), second = world.join(&b);
  world.log_messages = false;
  const auto send = [&](Client& client, std::string_view bytes) {
    world.until([&] {
      bytes.remove_prefix(client.send(bytes.substr(0, 32 << 10)));
      return bytes.empty() || client.pump().ended;
    });
  };
  const auto frame = Client::encode(2, std::string(1'000'000, 'x'));
  send(first, std::string_view(frame).substr(0, frame.size() - 1));
  BOOST_REQUIRE(world.until([&] { return world.server->reserved_bytes() >= 900'000; }));
  send(second, Client::encode(2, std::string(1'048'000, 'x')));
  Client::Frame closing{};
  BOOST_REQUIRE(world.until([&] {
    if (const auto next = second.frame()) closing = *next;
    return closing.opcode == 8;
  }));
  BOOST_TEST(closing.code() == 1013);
  BOOST_TEST(world.server->counters().refused_bodies.value() == 1u);
  BOOST_TEST(world.server->reserved_bytes() <= kBudget);
  send(first, std::string_view(frame).substr(frame.size() - 1));
  BOOST_TEST(world.until([&] { return world.received[a] == 1; }));
  BOOST_TEST(world.received[b] == 0);
  second.close();
  BOOST_TEST(world.until([&] { return world.server->reserved_bytes() == 0; }));
}

BOOST_AUTO_TEST_CASE(large_messages_of_one_client_have_its_share) {
  World world({.bodies_bytes_max = 8 << 20, .bodies_bytes_per_client_max = 2'040'000, .message_bytes_max = 1 << 20});
  std::uint64_t a = 0, b = 0;
  auto first = world.join(&a), second = world.join(&b);
  world.log_messages = false;
  const auto frame = Client::encode(2, std::string(1'000'000, 'x'));
  send_all(world, first, std::string_view(frame).substr(0, frame.size() - 1));
  BOOST_REQUIRE(world.until([&] { return world.server->reserved_bytes() >= 900'000; }));
  BOOST_TEST(world.upgrades[a].share == world.upgrades[b].share);
  BOOST_TEST(!world.server->reserve(1'200'000, world.upgrades[a].share));
  BOOST_TEST(world.server->reserve(1'200'000, "somebody else"));
  send_all(world, second, Client::encode(2, std::string(1'048'000, 'x')));
  Client::Frame closing{};
  BOOST_REQUIRE(world.until([&] {
    if (const auto next = second.frame()) closing = *next;
    return closing.opcode == 8;
  }));
  BOOST_TEST(closing.code() == 1013);
}

BOOST_AUTO_TEST_CASE(what_the_caller_keeps_counts_with_the_bodies) {
  World world({.bodies_bytes_max = 100'000});
  BOOST_TEST(world.server->reserve(60'000));
  BOOST_TEST(!world.server->reserve(60'000));
  world.server->release(60'000);
  BOOST_TEST(world.server->reserve(60'000));
}

BOOST_AUTO_TEST_CASE(draining_refuses_new_connections_and_keeps_the_old) {
  World world;
  std::uint64_t id = 0;
  auto old = world.join(&id);
  Client kept(world.server->port());
  BOOST_REQUIRE(world.until([&] { return world.server->counters().accepted.value() == 2; }));
  world.server->stop_accepting();
  world.run(5ms);
  Client refused(world.server->port());
  BOOST_TEST(world.until([&] { return refused.pump().ended; }));
  old.send(Client::encode(1, "still here"));
  BOOST_TEST(world.until([&] { return world.received[id] == 1; }));
  kept.send("GET / HTTP/1.1\r\nHost: localhost:" + std::to_string(world.server->port()) + "\r\n\r\n");
  BOOST_TEST(world.until([&] { return kept.pump().ended; }));  // although it did not ask for it
  BOOST_TEST(has(kept.in, "Connection: close"));
  world.server->close(id, CloseCode::going_away, "draining");
  const auto frame = world.frame(old);
  BOOST_TEST(frame.code() == 1001);
  BOOST_TEST(frame.reason() == "draining");
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(sockets)

BOOST_AUTO_TEST_CASE(messages_come_in_order_between_opened_and_closed) {
  World world;
  std::uint64_t id = 0;
  auto client = world.join(&id);
  client.send(Client::encode(1, "a") + Client::encode(2, "b") + Client::encode(2, "c", false) +
              Client::encode(9, "ping") + Client::encode(0, "d") + Client::encode(1, "") +
              Client::encode(8, "\x03\xe8"));
  BOOST_TEST(world.frame(client).opcode == 10);
  const auto frame = world.frame(client);
  BOOST_TEST(frame.opcode == 8);
  BOOST_TEST(frame.code() == 1000);
  BOOST_TEST(world.until([&] { return client.pump().ended; }));
  client.close();
  BOOST_TEST(world.until([&] { return world.server->sockets() == 0; }));
  world.run(10ms);
  BOOST_TEST(world.log[id] == "opened;t:a;b:b;b:cd;t:;closed;");
  BOOST_TEST(world.server->counters().protocol_errors.value() == 0u);
}

BOOST_AUTO_TEST_CASE(frames_sent_with_the_upgrade_request_are_not_lost) {
  World world;
  Client client(world.server->port());
  const std::string large(6000, 'x');  // more than Beast takes in one read
  client.send(Client::upgrade(world.server->port()) + Client::encode(1, "early") + Client::encode(2, large) +
              Client::encode(1, "late"));
  BOOST_REQUIRE(world.until([&] { return world.ids.size() == 1 && world.received[world.ids[0]] == 3; }));
  BOOST_TEST((world.log[world.ids[0]] == "opened;t:early;b:" + large + ";t:late;"));
}

/// A close frame says goodbye even when its sender does not stay for the answer.
BOOST_AUTO_TEST_CASE(a_peer_is_lost_only_without_a_close_frame) {
  World world;
  std::uint64_t silent = 0, broken = 0, polite = 0, plain = 0;
  auto first = world.join(&silent), second = world.join(&broken), third = world.join(&polite),
       fourth = world.join(&plain);
  first.close();
  second.reset();
  third.send(Client::encode(8, "\x03\xe8"));
  third.reset();
  fourth.send(Client::encode(8, ""));
  fourth.reset();
  const auto ended = [&](std::uint64_t id) { return world.log[id] == "opened;closed;"; };
  BOOST_REQUIRE(world.until([&] { return ended(silent) && ended(broken) && ended(polite) && ended(plain); }));
  BOOST_TEST(world.lost.contains(silent));
  BOOST_TEST(world.lost.contains(broken));
  BOOST_TEST(!world.lost.contains(polite));
  BOOST_TEST(!world.lost.contains(plain));
}

BOOST_AUTO_TEST_CASE(what_is_sent_arrives_in_order) {
  World world;
  std::uint64_t id = 0;
  auto client = world.join(&id);
  for (int i = 0; i < 500; ++i)
    BOOST_TEST(world.server->send(id, std::string(i * 7, static_cast<char>('a' + i % 26)), i % 2));
  for (int i = 0; i < 500; ++i) {
    const auto frame = world.frame(client);
    BOOST_TEST(frame.opcode == 1 + i % 2);
    BOOST_TEST((frame.data == std::string(i * 7, static_cast<char>('a' + i % 26))));
  }
  BOOST_TEST(world.until([&] { return world.server->unsent_bytes(id) == 0; }));
  BOOST_TEST(!world.server->send(id + 1, "x", false));
  BOOST_TEST(world.server->unsent_bytes(id + 1) == 0u);
}

BOOST_AUTO_TEST_CASE(a_paused_socket_fills_the_window_and_loses_nothing) {
  World world;
  world.log_messages = false;
  std::uint64_t id = 0;
  auto client = world.join(&id);
  world.server->pause(id);
  int next = 0;
  bool in_order = true;
  world.on_message = [&](std::uint64_t, std::string_view data) {
    in_order = in_order && data.starts_with(std::to_string(next++) + ",");
  };
  // Sends until the system has taken nothing for a while.
  std::string rest;
  int sent = 0;
  auto last = Clock::now();
  while (Clock::now() - last < 50ms) {
    if (rest.empty()) rest = Client::encode(2, std::to_string(sent++) + "," + std::string(2000, 'x'));
    const auto taken = client.send(rest);
    rest.erase(0, taken);
    if (taken > 0) last = Clock::now();
    world.server->wait({}, 0ms);
  }
  BOOST_TEST(sent > 50);
  BOOST_TEST(next <= 1);
  world.server->resume(id);
  BOOST_TEST(world.until([&] {
    rest.erase(0, client.send(rest));
    return next == sent;
  }));
  BOOST_TEST(in_order);
  // And again from inside a callback.
  world.on_message = [&](std::uint64_t who, std::string_view) { world.server->pause(who); };
  client.send(Client::encode(1, "1") + Client::encode(1, "2") + Client::encode(1, "3"));
  BOOST_TEST(world.until([&] { return world.received[id] > sent; }));
  world.run(10ms);
  BOOST_TEST(world.received[id] == sent + 1);
  world.server->resume(id);
  BOOST_TEST(world.until([&] { return world.received[id] > sent + 1; }));
  world.run(10ms);
  BOOST_TEST(world.received[id] == sent + 2);
  world.on_message = [&](std::uint64_t who, std::string_view) {
    world.server->pause(who);
    world.server->resume(who);
  };
  world.server->resume(id);
  BOOST_TEST(world.until([&] { return world.received[id] == sent + 3; }));
}

BOOST_AUTO_TEST_CASE(a_peer_that_vanishes_while_paused_is_noticed) {
  World world({.close_time_max = 100ms, .gone_time_max = 60s});
  world.on_opened = [&](std::uint64_t id) { world.server->pause(id); };
  std::uint64_t reset = 0, resumed = 0, ended = 0;
  auto first = world.join(&reset), second = world.join(&resumed);
  first.reset();
  second.send(Client::encode(1, "last words"));
  second.close();
  BOOST_TEST(world.until([&] { return world.log[reset] == "opened;closed;"; }));
  world.run(100ms);
  BOOST_TEST(world.log[resumed] == "opened;");
  world.server->resume(resumed);
  BOOST_TEST(world.until([&] { return world.log[resumed] == "opened;t:last words;closed;"; }));
  World other({.gone_time_max = 300ms});
  other.on_opened = [&](std::uint64_t id) { other.server->pause(id); };
  auto third = other.join(&ended);
  const auto start = Clock::now();
  third.send(Client::encode(1, "x"));
  third.close();
  BOOST_TEST(other.until([&] { return other.log[ended] == "opened;closed;"; }));  // nobody resumed it
  BOOST_TEST((Clock::now() - start >= 290ms));
  other.run(50ms);
  BOOST_TEST(other.log[ended] == "opened;closed;");
}

BOOST_AUTO_TEST_CASE(a_flooding_client_does_not_starve_the_others) {
  World world;
  world.log_messages = false;
  std::uint64_t flood = 0;
  auto flooder = world.join(&flood);
  std::vector<Client> quiet;
  for (int i = 0; i < 49; ++i) quiet.push_back(world.join());
  std::string batch, rest;
  for (int i = 0; i < 1000; ++i) batch += Client::encode(2, "");
  int worst = 0;
  for (int round = 0; round < 10; ++round) {
    // Everything has arrived before the server runs: as much as the system takes of the flood, and one frame of each
    // other client.
    const auto until = Clock::now() + 20ms;
    while (Clock::now() < until) {
      if (rest.empty()) rest = batch;
      rest.erase(0, flooder.send(rest));
    }
    for (auto& client : quiet) client.send(Client::encode(2, std::string(640, 'x')));
    while (Clock::now() < until + 10ms) std::this_thread::yield();
    int served = 0, before = 0;
    world.on_message = [&](std::uint64_t id, std::string_view) {
      if (id != flood) {
        ++served;
      } else if (served < 49) {
        ++before;
      }
    };
    BOOST_REQUIRE(world.until([&] { return served == 49; }));
    worst = std::max(worst, before);
  }
  BOOST_TEST_MESSAGE("messages of the flooding client until 49 others were served: at most " << worst);
  BOOST_TEST(world.received[flood] > 100);
  BOOST_TEST(worst < 100);
}

BOOST_AUTO_TEST_CASE(a_slow_reader_is_reported_and_then_closed_with_1013) {
  World world({.close_time_max = 20s, .unsent_bytes_soft = 100'000, .unsent_bytes_max = 400'000});
  Client small;
  small.receive_buffer(4096);
  std::uint64_t id = 0;
  auto client = world.join(&id, std::move(small));
  world.run(5ms);
  while (world.server->unsent_bytes(id) < 150'000) {
    world.server->send(id, std::string(10'000, 'x'), true);
    world.server->wait({}, 0ms);
  }
  BOOST_TEST(world.until([&] { return world.log[id] == "opened;slow;"; }));
  std::size_t read = 0;
  BOOST_TEST(world.until([&] {
    while (const auto frame = client.frame()) read += frame->data.size();
    return world.server->unsent_bytes(id) == 0;
  }));
  BOOST_TEST(world.log[id] == "opened;slow;quick;");
  bool taken = true;
  for (int i = 0; i < 10'000 && taken; ++i) {
    taken = world.server->send(id, std::string(10'000, 'x'), true);
    world.server->wait({}, 0ms);
  }
  BOOST_TEST(!taken);
  BOOST_TEST(world.server->counters().closed_slow.value() == 1u);
  BOOST_TEST(!world.server->send(id, "x", true));
  // It reads at last, in time: the frame that was being written, then the reason.
  Client::Frame frame{};
  BOOST_TEST(world.until([&] {
    if (const auto next = client.frame()) frame = *next;
    return frame.opcode == 8;
  }));
  BOOST_TEST(frame.code() == 1013);
  client.send(Client::encode(8, frame.data));
  BOOST_TEST(world.until([&] { return client.pump().ended; }));
  client.close();
  BOOST_TEST(world.until([&] { return has(world.log[id], "closed;"); }));
  BOOST_TEST(world.server->counters().closed_forced.value() == 0u);
}

BOOST_AUTO_TEST_CASE(a_reader_that_never_reads_is_cut) {
  World world({.close_time_max = 100ms, .unsent_bytes_max = 400'000});
  std::uint64_t id = 0;
  auto client = world.join(&id);
  while (world.server->send(id, std::string(10'000, 'x'), true)) world.server->wait({}, 0ms);
  BOOST_TEST(world.until([&] { return world.server->sockets() == 0; }));
  BOOST_TEST(world.server->counters().closed_forced.value() == 1u);
  BOOST_TEST(has(world.log[id], "closed;"));
}

BOOST_AUTO_TEST_CASE(a_reader_that_stops_is_cut_as_one_that_is_lost) {
  World world({.close_time_max = 20s, .socket_stall_time_max = 100ms});
  std::uint64_t id = 0;
  auto client = world.join(&id);
  while (world.server->unsent_bytes(id) < 200'000) world.server->send(id, std::string(10'000, 'x'), true);
  BOOST_TEST(world.until([&] { return world.server->sockets() == 0; }));
  BOOST_TEST(world.lost.contains(id));
  BOOST_TEST(world.server->counters().closed_slow.value() == 1u);
}

BOOST_AUTO_TEST_CASE(late_sound_is_dropped_and_control_is_not) {
  World world;
  std::uint64_t id = 0;
  Client small;
  small.receive_buffer(4096);
  auto client = world.join(&id, std::move(small));
  const auto due = Due{Clock::now() + 50ms, true};
  const auto lasting = Due{Clock::now() + 1h, true};
  for (int i = 0; i < 30; ++i) {
    world.server->send(id, "sound " + std::string(10'000, 'x'), false, 0, due);
    world.server->send(id, "control " + std::to_string(i), false);
    world.server->wait({}, 0ms);
  }
  world.server->send(id, "later " + std::string(10'000, 'x'), false, 0, lasting);
  BOOST_REQUIRE(world.until([&] { return world.server->counters().dropped_late.value() >= 20; }));
  int sounds = 0, controls = 0;
  bool later = false;
  BOOST_TEST(world.until([&] {
    while (const auto next = client.frame()) {
      sounds += next->data.starts_with("sound");
      if (next->data.starts_with("control")) BOOST_TEST(next->data == "control " + std::to_string(controls++));
      later = later || next->data.starts_with("later");
    }
    return later;
  }));
  BOOST_TEST(controls == 30);
  BOOST_TEST(sounds + static_cast<int>(world.server->counters().dropped_late.value()) == 30);
  BOOST_TEST(world.log[id] == "opened;slow;quick;");
}

BOOST_AUTO_TEST_CASE(the_oldest_sound_makes_room) {
  World world({.unsent_bytes_max = 200'000});
  std::uint64_t id = 0;
  Client small;
  small.receive_buffer(4096);
  auto client = world.join(&id, std::move(small));
  for (int i = 0; i < 100; ++i)
    BOOST_TEST(
        world.server->send(id, std::to_string(i) + std::string(10'000, 'x'), true, 0, Due{Clock::now() + 1h, true}));
  BOOST_TEST(world.server->unsent_bytes(id) <= 200'000u);
  std::string last;
  BOOST_TEST(world.until([&] {
    if (auto next = client.frame()) last = next->data;
    return last.starts_with("99x");
  }));
  BOOST_TEST(world.server->counters().closed_slow.value() == 0u);
}

BOOST_AUTO_TEST_CASE(late_sound_that_both_ends_count_closes_the_socket) {
  World world({.close_time_max = 100ms});
  std::uint64_t id = 0;
  auto client = world.join(&id);
  while (world.server->unsent_bytes(id) < 200'000)
    world.server->send(id, std::string(10'000, 'x'), true, 1, Due{Clock::now() + 50ms, false});
  BOOST_TEST(world.until([&] { return has(world.log[id], "closed"); }));
  BOOST_TEST(world.server->counters().closed_slow.value() == 1u);
  BOOST_TEST(world.server->counters().dropped_late.value() == 0u);
}

BOOST_AUTO_TEST_CASE(queued_frames_can_be_dropped_by_tag) {
  World world;
  std::uint64_t id = 0;
  Client small;
  small.receive_buffer(4096);
  auto client = world.join(&id, std::move(small));
  int sent = 0;
  while (world.server->unsent_bytes(id) < 200'000) {
    world.server->send(id, std::to_string(sent++) + std::string(10'000, 'x'), true, 7);
    world.server->wait({}, 0ms);
  }
  world.server->send(id, "text", false, 7);
  world.server->send(id, "other", true, 8);
  const auto dropped = world.server->drop_queued(id, [](std::uint32_t tag) { return tag == 7; });
  BOOST_TEST(dropped >= 18u);
  BOOST_TEST(world.server->unsent_bytes(id) < 10'100u);
  BOOST_TEST(world.server->drop_queued(id, [](std::uint32_t tag) { return tag == 7; }) == 0u);
  world.server->send(id, "last", true, 7);
  std::vector<std::string> frames;
  BOOST_TEST(world.until([&] {
    if (auto next = client.frame()) frames.push_back(next->data);
    return !frames.empty() && frames.back() == "last";
  }));
  BOOST_TEST(frames.size() == sent - dropped + 3);
  for (std::size_t i = 0; i + 3 < frames.size(); ++i) BOOST_TEST(frames[i].starts_with(std::to_string(i) + "x"));
  BOOST_TEST(frames[frames.size() - 3] == "text");
  BOOST_TEST(frames[frames.size() - 2] == "other");
  // What an interruption cannot take back any more is small: two socket buffers and one frame, not megabytes.
  BOOST_TEST(frames.size() < 20u);
}

BOOST_AUTO_TEST_CASE(a_close_says_why_and_ends_in_a_handshake) {
  World world;
  for (const auto code :
       {CloseCode::normal, CloseCode::going_away, CloseCode::policy, CloseCode::internal, CloseCode::try_later}) {
    std::uint64_t id = 0;
    auto client = world.join(&id);
    world.server->close(
        id, code, std::string(60, 'r') + std::string(100, '\xc3'));  // too long, and cut anywhere it would be wrong
    const auto frame = world.frame(client);
    BOOST_TEST(frame.opcode == 8);
    BOOST_TEST(frame.code() == static_cast<int>(code));
    BOOST_TEST(frame.reason().size() <= 123u);
    BOOST_TEST(world.log[id] == "opened;");
    client.send(Client::encode(8, frame.data));
    BOOST_TEST(world.until([&] { return client.pump().ended; }));
    client.close();
    BOOST_TEST(world.until([&] { return world.log[id] == "opened;closed;"; }));
  }
  BOOST_TEST(world.server->counters().closed_forced.value() == 0u);
}

BOOST_AUTO_TEST_CASE(a_reason_is_cut_between_characters) {
  World world;
  std::uint64_t id = 0;
  auto client = world.join(&id);
  std::string reason = "a";
  for (int i = 0; i < 100; ++i) reason += "é";
  world.server->close(id, CloseCode::policy, reason);
  BOOST_TEST(world.frame(client).reason() == reason.substr(0, 123));
}

BOOST_AUTO_TEST_CASE(after_close_no_message_is_delivered) {
  World world;
  std::uint64_t id = 0;
  auto client = world.join(&id);
  world.on_message = [&](std::uint64_t who, std::string_view) {
    world.server->close(who, CloseCode::policy, "enough");
  };
  client.send(Client::encode(1, "1") + Client::encode(1, "2") + Client::encode(1, "3"));
  const auto frame = world.frame(client);
  BOOST_TEST(frame.code() == 1008);
  client.send(Client::encode(1, "4") + Client::encode(8, frame.data));
  BOOST_TEST(world.until([&] { return world.log[id] == "opened;t:1;closed;"; }));
}

BOOST_AUTO_TEST_CASE(a_flush_sends_what_is_queued_and_now_does_not) {
  World world({.close_time_max = 20s, .flush_time_max = 60s});
  std::uint64_t flushed = 0, dropped = 0;
  Client one, two;
  one.receive_buffer(4096);
  two.receive_buffer(4096);
  auto first = world.join(&flushed, std::move(one)), second = world.join(&dropped, std::move(two));
  for (const auto id : {flushed, dropped})
    for (int i = 0; i < 40; ++i) world.server->send(id, std::string(10'000, 'x'), true);
  world.run(5ms);
  world.server->close(flushed, CloseCode::normal, "", CloseMode::flush);
  world.server->close(dropped, CloseCode::normal, "", CloseMode::now);
  BOOST_TEST(!world.server->send(flushed, "late", true));
  BOOST_TEST(world.server->unsent_bytes(dropped) <= 10'000u);  // the frame that is being written
  first.send(Client::encode(1, "too late"));
  const auto count = [&](Client& client) {
    int frames = 0;
    for (;; ++frames)
      if (world.frame(client).opcode == 8) return frames;
  };
  BOOST_TEST(count(second) < 20);
  BOOST_TEST(count(first) == 40);
  BOOST_TEST(!has(world.log[flushed], "too late"));
}

BOOST_AUTO_TEST_CASE(a_close_that_the_peer_ignores_is_cut_in_time) {
  World world({.close_time_max = 150ms});
  std::uint64_t id = 0;
  auto client = world.join(&id);
  const auto start = Clock::now();
  world.server->close(id, CloseCode::going_away);
  BOOST_TEST(world.until([&] { return world.log[id] == "opened;closed;"; }));
  BOOST_TEST((Clock::now() - start >= 140ms));
  BOOST_TEST(world.server->counters().closed_forced.value() == 1u);
  // Likewise a peer that starts the handshake itself and then stays, and one whose flush does not end.
  auto other = world.join(&id);
  other.send(Client::encode(8, "\x03\xe8"));
  BOOST_TEST(world.frame(other).opcode == 8);
  world.server->close(id);  // crosses the peer's
  BOOST_TEST(world.until([&] { return world.log[id] == "opened;closed;"; }));
  World stuck({.flush_time_max = 100ms});
  auto reader = stuck.join(&id);
  while (stuck.server->unsent_bytes(id) < 1'000'000) {
    stuck.server->send(id, std::string(50'000, 'x'), true);
    stuck.server->wait({}, 0ms);
  }
  stuck.server->close(id);
  BOOST_TEST(stuck.until([&] { return has(stuck.log[id], "closed;"); }));
}

BOOST_AUTO_TEST_CASE(closes_may_cross_in_every_order) {
  World world({.close_time_max = 100ms});
  for (int order = 0; order < 6; ++order) {
    std::uint64_t id = 0;
    auto client = world.join(&id);
    if (order & 1) world.server->pause(id);
    if (order & 2) world.server->send(id, std::string(1'000'000, 'x'), true);
    client.send(Client::encode(1, "x") + Client::encode(8, "\x03\xe8") + Client::encode(9, "p"));
    if (order & 4) world.server->wait({}, 0ms);
    world.server->close(id, CloseCode::normal, "", CloseMode::now);
    world.server->close(id, CloseCode::normal, "", CloseMode::now);
    BOOST_TEST(world.until([&] { return has(world.log[id], "closed;"); }));
  }
  BOOST_TEST(world.server->sockets() == 0u);
}

BOOST_AUTO_TEST_CASE(a_peer_that_breaks_the_rules_is_told_its_code) {
  World world({.message_bytes_max = 1000, .close_time_max = 100ms});
  for (const auto& [bytes, code] :
       {std::pair(Client::encode(2, std::string(1001, 'x')), 1009), std::pair(Client::encode(3, "x"), 1002),
        std::pair(Client::encode(1, "\xff\xfe"), 1007)}) {
    std::uint64_t id = 0;
    auto client = world.join(&id);
    client.send(bytes);
    BOOST_TEST(world.frame(client).code() == code);
    BOOST_TEST(world.until([&] { return world.log[id] == "opened;closed;"; }));  // although the client stays
  }
}

BOOST_AUTO_TEST_CASE(a_throwing_callback_ends_its_socket_with_1011) {
  World world;
  std::uint64_t id = 0, other = 0;
  auto client = world.join(&id), quiet = world.join(&other);
  world.on_message = [&](std::uint64_t, std::string_view data) {
    if (data == "bad") throw std::runtime_error("bad");
  };
  client.send(Client::encode(1, "bad") + Client::encode(1, "more"));
  const auto frame = world.frame(client);
  BOOST_TEST(frame.code() == 1011);
  client.send(Client::encode(8, frame.data));
  BOOST_TEST(world.until([&] { return world.log[id] == "opened;t:bad;closed;"; }));
  quiet.send(Client::encode(1, "good"));
  BOOST_TEST(world.until([&] { return world.received[other] == 1; }));
  world.on_opened = [](std::uint64_t) { throw 7; };
  auto third = world.join();
  BOOST_TEST(world.frame(third).code() == 1011);
  BOOST_TEST(world.server->counters().callback_errors.value() == 2u);
}

BOOST_AUTO_TEST_CASE(a_server_may_end_in_the_middle_of_everything) {
  World world;
  std::uint64_t closing = 0, sending = 0, paused = 0;
  auto first = world.join(&closing), second = world.join(&sending), third = world.join(&paused);
  Client half(world.server->port()), fresh(world.server->port());
  half.send("GET / HT");
  world.run(5ms);
  world.server->close(closing);
  world.server->send(sending, std::string(1'500'000, 'x'), true);
  world.server->pause(paused);
  third.send(Client::encode(1, "x"));
  world.server.reset();
  BOOST_TEST(world.log[closing] == "opened;");  // the owner knows that it ended the server
  const auto ended = [](Client& client) {
    for (int i = 0; i < 1000 && !client.pump().ended; ++i) std::this_thread::yield();
    return client.ended;
  };
  BOOST_TEST(ended(first));
  BOOST_TEST(ended(second));
  BOOST_TEST(ended(half));
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(waiting)

BOOST_AUTO_TEST_CASE(a_wait_ends_when_its_time_is_over) {
  World world;
  const auto start = Clock::now();
  BOOST_TEST(world.server->wait({}, 30ms) == 0);
  BOOST_TEST((Clock::now() - start >= 29ms));
  BOOST_TEST((Clock::now() - start < 2s));
  Event event;
  pollfd fds[] = {{event.fd, POLLIN, 0}};
  BOOST_TEST(world.server->wait(fds, 30ms) == 0);
  BOOST_TEST(world.server->wait(fds, 0ms) == 0);
  BOOST_TEST((Clock::now() - start >= 59ms));
}

BOOST_AUTO_TEST_CASE(a_ready_descriptor_ends_the_wait_until_it_is_drained) {
  World world;
  Event one, two;
  pollfd fds[] = {{one.fd, POLLIN, 0}, {two.fd, POLLIN, 0}};
  two.set();  // before the wait
  for (int i = 0; i < 3; ++i) {
    BOOST_TEST(world.server->wait(fds, 5s) == 1);
    BOOST_TEST(fds[0].revents == 0);
    BOOST_TEST(fds[1].revents == POLLIN);
  }
  two.take();
  BOOST_TEST(world.server->wait(fds, 10ms) == 0);
  BOOST_TEST(fds[1].revents == 0);
  for (int i = 0; i < 100; ++i) {  // during the wait, over and over on the cached set
    std::thread later([&] { one.set(); });
    BOOST_TEST(world.server->wait(fds, 5s) == 1);
    BOOST_TEST(fds[0].revents == POLLIN);
    later.join();
    one.take();
  }
  one.set();
  two.set();
  BOOST_TEST(world.server->wait(fds, 5s) == 2);
}

BOOST_AUTO_TEST_CASE(a_change_of_the_descriptors_is_noticed) {
  World world;
  Event one;
  auto two = std::make_unique<Event>();
  pollfd fds[] = {{one.fd, POLLIN, 0}, {two->fd, POLLIN, 0}};
  BOOST_TEST(world.server->wait(fds, 5ms) == 0);
  one.set();
  BOOST_TEST(world.server->wait(std::span(fds).subspan(1), 20ms) == 0);  // nobody asks for the first one any more
  one.take();
  const int number = two->fd;
  two.reset();
  two = std::make_unique<Event>();
  BOOST_REQUIRE(two->fd == number);  // another file under the same number
  std::thread later([&] { two->set(); });
  BOOST_TEST(world.server->wait(fds, 5s) == 1);
  later.join();
  BOOST_TEST(fds[1].revents == POLLIN);
  two->take();
  pollfd ignored[] = {{-1, POLLIN, 0}, {one.fd, POLLIN, 0}};
  BOOST_TEST(world.server->wait(ignored, 5ms) == 0);
}

BOOST_AUTO_TEST_CASE(a_callback_can_end_the_wait) {
  World world;
  std::uint64_t id = 0;
  auto client = world.join(&id);
  world.on_message = [&](std::uint64_t, std::string_view) { world.server->stop_waiting(); };
  client.send(Client::encode(1, "1"));
  const auto start = Clock::now();
  BOOST_TEST(world.server->wait({}, 5s) == 0);
  BOOST_TEST(world.received[id] == 1);
  client.send(Client::encode(1, "2") + Client::encode(1, "3"));
  BOOST_TEST(world.server->wait({}, 5s) == 0);
  BOOST_TEST(world.received[id] == 2);  // after the current callback
  BOOST_TEST(world.server->wait({}, 5s) == 0);
  BOOST_TEST(world.received[id] == 3);
  world.server->stop_waiting();  // before a wait: that one
  BOOST_TEST(world.server->wait({}, 5s) == 0);
  BOOST_TEST((Clock::now() - start < 4s));
}

BOOST_AUTO_TEST_CASE(sockets_are_served_while_a_descriptor_is_always_ready_and_the_other_way_round) {
  World world;
  world.log_messages = false;
  std::uint64_t id = 0;
  auto client = world.join(&id);
  Event event;
  event.set();
  pollfd fds[] = {{event.fd, POLLIN, 0}};
  client.send(Client::encode(1, "x"));
  for (int i = 0; i < 10'000 && world.received[id] == 0; ++i) BOOST_TEST(world.server->wait(fds, 5s) == 1);
  BOOST_TEST(world.received[id] == 1);
  event.take();
  std::atomic<bool> stop{false};
  std::thread flooder([&] {
    std::string batch, rest;
    for (int i = 0; i < 400; ++i) batch += Client::encode(2, "");
    while (!stop) {
      if (rest.empty()) rest = batch;
      rest.erase(0, client.send(rest));
    }
  });
  int worst = 0;
  for (int i = 0; i < 50; ++i) {
    int before = 0;
    world.on_message = [&](std::uint64_t, std::string_view) {
      if (++before == 1) event.set();
    };
    BOOST_TEST(world.server->wait(fds, 5s) == 1);
    worst = std::max(worst, before);
    event.take();
    world.on_message = nullptr;
    BOOST_TEST(world.server->wait(fds, 1ms) == 0);  // time ends a wait under the flood, too
  }
  stop = true;
  flooder.join();
  BOOST_TEST_MESSAGE("messages between a descriptor's readiness and the return of wait: at most " << worst);
  BOOST_TEST(worst <= 256);
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(own_thread)

BOOST_AUTO_TEST_CASE(a_server_with_a_thread_is_used_from_others) {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::uint64_t> ids;
  int received = 0, closed = 0;
  SocketHandlers handlers{.paths = {{"/ws"}}};
  handlers.opened = [&](std::uint64_t id, const Upgrade&) {
    const std::lock_guard lock(mutex);
    ids.push_back(id);
    changed.notify_all();
  };
  handlers.message = [&](std::uint64_t, std::string_view, bool) {
    const std::lock_guard lock(mutex);
    ++received;
    changed.notify_all();
  };
  handlers.closed = [&](std::uint64_t) {
    const std::lock_guard lock(mutex);
    ++closed;
    changed.notify_all();
  };
  auto server = std::move(*Server::start("127.0.0.1:0", [](const Request&) { return Response{}; }, handlers, {}));
  server->run_thread();
  const auto until = [&](auto&& done) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, 5s, done);
  };
  const auto next = [](Client& client) {
    for (const auto end = Clock::now() + 5s; Clock::now() < end; std::this_thread::yield())
      if (auto frame = client.frame()) return *frame;
    return Client::Frame{};
  };
  Client client(server->port());
  client.send(Client::upgrade(server->port()));
  BOOST_REQUIRE(until([&] { return ids.size() == 1; }));
  const auto id = ids[0];
  while (!has(client.pump().in, "\r\n\r\n")) std::this_thread::yield();
  client.in.erase(0, client.in.find("\r\n\r\n") + 4);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        server->send(id, "x", false);
        server->pause(id);
        server->resume(id);
      }
    });
  for (auto& thread : threads) thread.join();
  for (int i = 0; i < 400; ++i) BOOST_TEST(next(client).data == "x");
  client.send(Client::encode(1, "hello"));
  BOOST_TEST(until([&] { return received == 1; }));
  BOOST_TEST(server->counters().accepted.value() == 1u);
  server->close(id, CloseCode::going_away);
  const auto frame = next(client);
  BOOST_TEST(frame.code() == 1001);
  client.send(Client::encode(8, frame.data));
  BOOST_TEST(until([&] { return closed == 1; }));
  Client last(server->port());
  server.reset();
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(tls)

struct SecureWorld : World {
  explicit SecureWorld(Limits limits = {}) : World(std::move(limits)) {
    make_certificate(certificate, key);
    const auto used = server->use_tls(certificate, key);
    BOOST_REQUIRE_MESSAGE(used, (used ? "" : used.error().message));
  }
  TemporaryDirectory folder;
  std::string certificate = folder.path() / "certificate.pem", key = folder.path() / "key.pem";
};

BOOST_AUTO_TEST_CASE(requests_and_sockets_are_served_in_tls) {
  SecureWorld world;
  TlsClient client(world.server->port());
  client.send("GET /x HTTP/1.1\r\nHost: localhost:" + std::to_string(world.server->port()) + "\r\n\r\n");
  BOOST_REQUIRE(world.until([&] { return has(client.pump().in, "GET /x"); }));
  client.in.clear();
  client.send(Client::upgrade(world.server->port()) + Client::encode(1, "early"));
  BOOST_REQUIRE(world.until([&] { return has(client.pump().in, "\r\n\r\n") && !world.ids.empty(); }));
  BOOST_TEST(client.in.starts_with("HTTP/1.1 101"));
  client.send(Client::encode(2, std::string(60'000, 'y')));
  BOOST_TEST(world.until([&] { return client.pump(), world.received[world.ids[0]] == 2; }));
  client.in.clear();
  world.server->send(world.ids[0], std::string(50'000, 'z'), true);
  BOOST_TEST(world.until([&] { return client.pump().in.size() >= 50'004; }));
  client.close();
  BOOST_TEST(world.until([&] { return has(world.log[world.ids[0]], "closed;"); }));
}

BOOST_AUTO_TEST_CASE(the_end_of_a_connection_is_told_in_tls) {
  SecureWorld world;
  TlsClient client(world.server->port());
  client.send("GET /x HTTP/1.1\r\nHost: localhost:" + std::to_string(world.server->port()) +
              "\r\nConnection: close\r\n\r\n");
  BOOST_TEST(world.until([&] { return client.pump().said_goodbye; }));
  BOOST_TEST(has(client.in, "GET /x"));
}

BOOST_AUTO_TEST_CASE(who_leaves_in_tls_while_an_answer_is_made_is_noticed) {
  SecureWorld world;
  std::vector<std::uint64_t> gone;
  RequestHandlers requests;
  requests.gone = [&](std::uint64_t id) { gone.push_back(id); };
  world.server->set_requests(std::move(requests));
  int asked = 0;
  world.on_request = [&](const Request&) {
    ++asked;
    return Response::given_later();
  };
  TlsClient client(world.server->port());
  client.send("GET /x HTTP/1.1\r\nHost: localhost:" + std::to_string(world.server->port()) + "\r\n\r\n");
  BOOST_REQUIRE(world.until([&] { return client.pump(), asked == 1; }));
  client.close();
  BOOST_TEST(world.until([&] { return gone.size() == 1; }));
}

BOOST_AUTO_TEST_CASE(a_request_that_came_together_with_the_former_is_answered_in_tls) {
  SecureWorld world;
  TlsClient client(world.server->port());
  BOOST_REQUIRE(world.until([&] { return client.pump().is_secure(); }));
  const auto get = [&](const std::string& path) {
    return "GET " + path + " HTTP/1.1\r\nHost: localhost:" + std::to_string(world.server->port()) + "\r\n\r\n";
  };
  client.send_records({get("/one"), get("/two")});
  BOOST_TEST(world.until([&] { return has(client.pump().in, "GET /two"); }));
  // And one that takes its time.
  client.send(get("/three"));
  BOOST_TEST(world.until([&] { return has(client.pump().in, "GET /three"); }));
}

/// A read that has an alert to send waits behind a write that nobody takes, and outlives its connection.
BOOST_AUTO_TEST_CASE(operations_of_a_cut_tls_socket_end_without_its_stream) {
  SecureWorld world({.socket_stall_time_max = 1s, .unsent_bytes_max = 32 << 20});
  TlsClient client(world.server->port());
  client.send(Client::upgrade(world.server->port()));
  BOOST_REQUIRE(world.until([&] { return has(client.pump().in, "101 "); }));
  const auto id = world.ids.at(0);
  for (int i = 0; i < 64; ++i) BOOST_REQUIRE(world.server->send(id, std::string(256 << 10, 'x'), true));
  // Until the system takes no more.
  std::size_t left = 0;
  int same = 0;
  BOOST_REQUIRE(world.until([&] {
    const auto now = world.server->unsent_bytes(id);
    same = now == left ? same + 1 : 0;
    left = now;
    return same > 30;
  }));
  const std::string bad_record = std::string("\x17\x03\x03\x00\x20", 5) + std::string(32, 'x');
  client.raw().send(bad_record);
  BOOST_REQUIRE(world.until([&] { return has(world.log[id], "closed"); }));
  BOOST_TEST(world.server->counters().closed_slow.value() == 1u);  // the read had not ended by itself
  world.run(20ms);                                                 // what was cancelled is called
  BOOST_TEST(world.server->sockets() == 0u);
}

BOOST_AUTO_TEST_CASE(who_does_not_speak_tls_is_cut) {
  SecureWorld world({.header_time_max = 200ms});
  const auto answer = world.get();
  BOOST_TEST(!has(answer, "HTTP"));
  BOOST_TEST(world.server->counters().protocol_errors.value() == 1u);
  Client silent(world.server->port());
  BOOST_TEST(world.until([&] { return silent.pump().ended; }));
  BOOST_TEST(world.server->counters().closed_idle.value() == 1u);
}

BOOST_AUTO_TEST_CASE(files_that_are_no_certificate_are_named_and_the_old_ones_stay) {
  SecureWorld world;
  const auto missing = world.server->use_tls(world.folder.path() / "none.pem", world.key);
  BOOST_REQUIRE(!missing);
  BOOST_TEST(has(missing.error().message, "none.pem"));
  const auto swapped = world.server->use_tls(world.key, world.certificate);
  BOOST_REQUIRE(!swapped);
  BOOST_TEST(has(swapped.error().message, "key.pem"));
  TlsClient client(world.server->port());
  BOOST_TEST(world.until([&] { return client.pump().is_secure(); }));
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(bench)

/// 200 clients in a process of their own send frames of 640 bytes, 50 a second each; measured is the CPU time of the
/// server's thread.
BOOST_AUTO_TEST_CASE(receiving_ten_thousand_frames_a_second) {
  constexpr int kClients = 200, kFrames = 50;
  World world({.connections_per_address_max = 0});
  world.log_messages = false;
  const auto port = world.server->port();
  const auto child = fork();
  BOOST_REQUIRE(child >= 0);
  if (child == 0) {
    std::deque<Client> clients;
    for (int i = 0; i < kClients; ++i) {
      auto& client = clients.emplace_back(port);
      client.send(Client::upgrade(port));
      for (const auto end = Clock::now() + 5s; !has(client.pump().in, "\r\n\r\n") && Clock::now() < end;) ::usleep(200);
    }
    const auto frame = Client::encode(2, std::string(640, 'x'));
    const auto start = Clock::now();
    for (int step = 0; step < 2 * kFrames * kClients; ++step) {  // evenly spread, 2 s
      std::this_thread::sleep_until(start + std::chrono::microseconds(20'000) * step / kClients);
      clients[step % kClients].send(frame);
    }
    ::_exit(0);
  }
  std::int64_t frames = 0, bytes = 0;
  world.on_message = [&](std::uint64_t, std::string_view data) {
    ++frames;
    bytes += static_cast<std::int64_t>(data.size());
  };
  BOOST_REQUIRE(world.until([&] { return frames >= kClients * kFrames / 4; }, 20s));
  Event event;  // as the gateway waits: with descriptors of its own
  pollfd fds[] = {{event.fd, POLLIN, 0}};
  const auto cpu = thread_cpu_seconds();
  const auto first = frames;
  for (const auto end = Clock::now() + 20s; frames < 2 * kClients * kFrames && Clock::now() < end;)
    world.server->wait(fds, 20ms);
  const auto used = thread_cpu_seconds() - cpu;
  int status = 0;
  ::waitpid(child, &status, 0);
  BOOST_TEST(frames == 2 * kClients * kFrames);
  BOOST_TEST(bytes == frames * 640);
  const auto micros = 1e6 * used / static_cast<double>(frames - first);
  std::printf("bench http: %.2f us CPU per 640-byte frame received, %d sockets, 50 frames/s each\n", micros, kClients);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace parlando::http
