#include "services/controller/http_tool_server.hpp"

#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <future>
#include <set>
#include <system_error>
#include <thread>

#include "common/http/server.hpp"

namespace parlando::controller {
namespace {
using namespace std::chrono_literals;
using nlohmann::json;

/// Tools on a port of their own: one that answers, one that is long, one that fails, one that is no JSON.
struct Tools {
  std::unique_ptr<http::Server> server;
  http::Url url;
  Tools() {
    auto started =
        http::Server::start("127.0.0.1:0",
                            [](const http::Request& r) -> http::Response {
                              const auto ask = json::parse(r.body);
                              const auto name = ask["name"].get<std::string>();
                              if (name == "long") return {200, "text/plain", std::string(70'000, 'x')};
                              if (name == "broken") return {500, "text/plain", "no"};
                              if (name == "text") return {200, "text/plain", "so it is"};
                              return {200, "application/json", json{{"asked", ask}, {"method", r.method}}.dump()};
                            },
                            {}, {});
    BOOST_REQUIRE(started.has_value());
    server = *std::move(started);
    server->run_thread();
    url = {"127.0.0.1", "/tools", static_cast<std::uint16_t>(server->port())};
  }
};

/// Waits for as many answers, at most five seconds each.
std::vector<ToolServer::Answer> answers_of(ToolServer& tools, std::size_t count) {
  std::vector<ToolServer::Answer> out;
  while (out.size() < count) {
    pollfd p{tools.descriptor(), POLLIN, 0};
    if (::poll(&p, 1, 5000) <= 0) break;
    for (auto& answer : tools.take()) out.push_back(std::move(answer));
  }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(http_tool_server)

BOOST_AUTO_TEST_CASE(calls_are_posted_side_by_side_and_every_one_has_an_answer) {
  Tools tools;
  HttpToolServer server(tools.url, {});
  std::set<std::string> names{"good", "long", "broken", "text"};
  for (const auto& name : names) BOOST_REQUIRE(server.ask({{1, 2}, {3}, "id-" + name, name, {{"x", "äöü"}}}));
  std::map<std::string, json> results;
  for (const auto& answer : answers_of(server, names.size())) {
    BOOST_TEST((answer.session == SessionId{1, 2}));
    results[answer.id] = answer.result;
  }
  BOOST_REQUIRE(results.size() == 4u);
  BOOST_TEST(results["id-good"]["method"] == "POST");
  const auto asked = results["id-good"]["asked"];
  BOOST_TEST(asked["arguments"]["x"] == "äöü");
  BOOST_TEST(asked["turn"] == 3);
  BOOST_TEST(asked["session"] == (SessionId{1, 2}.text()));
  BOOST_TEST(results["id-text"] == "so it is");
  BOOST_TEST(results["id-broken"]["error"] == "the tool server answers with status 500");
  BOOST_TEST(results["id-long"]["error"] == "the tool server: its answer has more than 65536 bytes");
}

BOOST_AUTO_TEST_CASE(a_server_that_is_not_there_or_says_nothing_is_an_error_and_not_a_wait) {
  http::Url nowhere;
  {
    Tools tools;
    nowhere = tools.url;
  }
  HttpToolServer gone(nowhere, {});
  BOOST_REQUIRE(gone.ask({{1, 2}, {3}, "a", "x", {}}));
  auto answers = answers_of(gone, 1);
  BOOST_REQUIRE(answers.size() == 1u);
  BOOST_TEST(answers[0].result["error"].get<std::string>().find("cannot be reached") != std::string::npos);

  // One whose thread stands: connections are taken by the system, and nobody answers.
  auto started = http::Server::start("127.0.0.1:0", [](const http::Request&) { return http::Response{}; }, {}, {});
  BOOST_REQUIRE(started.has_value());
  const http::Url silent{"127.0.0.1", "/", static_cast<std::uint16_t>((*started)->port())};
  HttpToolServer::Limits limits;
  limits.post.time_max = 50ms;
  HttpToolServer slow(silent, limits);
  BOOST_REQUIRE(slow.ask({{1, 2}, {3}, "a", "x", {}}));
  answers = answers_of(slow, 1);
  BOOST_REQUIRE(answers.size() == 1u);
  BOOST_TEST(answers[0].result["error"] == "the tool server: no answer in time");
}

BOOST_AUTO_TEST_CASE(what_waits_is_bounded_and_given_up_with_the_server) {
  auto started = http::Server::start("127.0.0.1:0", [](const http::Request&) { return http::Response{}; }, {}, {});
  BOOST_REQUIRE(started.has_value());
  const http::Url silent{"127.0.0.1", "/", static_cast<std::uint16_t>((*started)->port())};
  HttpToolServer::Limits limits;
  limits.threads = 1;
  limits.waiting_max = 3;
  const auto begun = std::chrono::steady_clock::now();
  {
    HttpToolServer server(silent, limits);
    std::size_t taken = 0;
    while (server.ask({{1, 2}, {3}, "a", "x", {}})) ++taken;
    BOOST_TEST(taken >= 3u);
    BOOST_TEST(taken <= 4u);
  }
  BOOST_TEST((std::chrono::steady_clock::now() - begun < 10s));  // and not the half minute of a call
}

BOOST_AUTO_TEST_CASE(calls_that_nobody_waits_for_are_not_made) {
  // The first call holds the only thread until its time is over.
  auto started = http::Server::start("127.0.0.1:0", [](const http::Request&) { return http::Response{}; }, {}, {});
  BOOST_REQUIRE(started.has_value());
  const http::Url silent{"127.0.0.1", "/", static_cast<std::uint16_t>((*started)->port())};
  HttpToolServer::Limits limits;
  limits.threads = 1;
  limits.session_max = 3;
  limits.post.time_max = 200ms;
  HttpToolServer server(silent, limits);
  BOOST_REQUIRE(server.ask({{1, 1}, {1}, "made", "x", {}}));
  BOOST_REQUIRE(server.ask({{1, 1}, {1}, "forgotten", "x", {}}));
  BOOST_REQUIRE(server.ask({{1, 1}, {1}, "late", "x", {}, 0ms}));
  BOOST_TEST(!server.ask({{1, 1}, {1}, "one too many", "x", {}}));
  BOOST_REQUIRE(server.ask({{2, 2}, {1}, "of another session", "x", {}}));
  server.forget({1, 1}, "forgotten");
  BOOST_TEST(server.ask({{1, 1}, {1}, "in its place", "x", {}}));
  std::set<std::string> made;
  for (const auto& answer : answers_of(server, 3)) made.insert(answer.id);
  BOOST_TEST((made == std::set<std::string>{"made", "of another session", "in its place"}));
}

BOOST_AUTO_TEST_CASE(a_name_that_nobody_resolves_takes_no_longer_than_the_call) {
  std::promise<void> end;
  auto ended = end.get_future().share();
  http::PostLimits limits;
  limits.time_max = 50ms;
  limits.resolver = [ended](const char*, const char*, const addrinfo*, addrinfo**) {
    ended.wait();
    return -2;  // EAI_NONAME
  };
  const auto answer = http::post({"nobody.example", "/", 80}, "{}", "application/json", limits);
  BOOST_REQUIRE(!answer.has_value());
  BOOST_TEST((answer.error().code == Errc::deadline_exceeded));
  end.set_value();
}

BOOST_AUTO_TEST_CASE(names_are_resolved_or_not_known) {
  Tools tools;
  http::PostLimits limits;
  limits.resolver = [](const char*, const char* port, const addrinfo* hints, addrinfo** list) {
    return ::getaddrinfo("127.0.0.1", port, hints, list);
  };
  const http::Url url{"localhost", "/tools", tools.url.port};
  auto answer = http::post(url, R"({"name":"text"})", "application/json", limits);
  BOOST_REQUIRE(answer.has_value());
  BOOST_TEST(answer->body == "so it is");
  limits.resolver = [](const char*, const char*, const addrinfo*, addrinfo**) { return EAI_NONAME; };
  answer = http::post(url, "{}", "application/json", limits);
  BOOST_REQUIRE(!answer.has_value());
  BOOST_TEST((answer.error().code == Errc::unavailable));
  BOOST_TEST(answer.error().message.starts_with("'localhost' is not known: "));
}

/// As at the system's limit of threads. More often than look-ups may hang: none is counted that was not begun.
BOOST_AUTO_TEST_CASE(a_thread_that_cannot_be_made_is_an_error_and_is_not_counted) {
  Tools tools;
  const http::Url url{"localhost", "/tools", tools.url.port};
  http::PostLimits limits;
  limits.spawner = [](const std::function<void()>&) {
    throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
  };
  for (int i = 0; i < 20; ++i) {
    const auto answer = http::post(url, "{}", "application/json", limits);
    BOOST_REQUIRE(!answer.has_value());
    BOOST_TEST((answer.error().code == Errc::overloaded));
    BOOST_TEST(answer.error().message.starts_with("there is no thread to look 'localhost' up: "));
  }
  {
    HttpToolServer::Limits of_server;
    of_server.post = limits;
    HttpToolServer server(url, of_server);
    BOOST_REQUIRE(server.ask({{1, 2}, {3}, "a", "text", {}}));
    const auto answers = answers_of(server, 1);
    BOOST_REQUIRE(answers.size() == 1u);
    BOOST_TEST(answers[0].result["error"].get<std::string>().find("there is no thread") != std::string::npos);
  }
  limits.spawner = {};
  limits.resolver = [](const char*, const char* port, const addrinfo* hints, addrinfo** list) {
    return ::getaddrinfo("127.0.0.1", port, hints, list);
  };
  BOOST_TEST(http::post(url, R"({"name":"text"})", "application/json", limits).has_value());
}

/// A server of which one tool never answers; the others do, on other connections.
struct Hanging {
  int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int end[2] = {-1, -1};
  http::Url url{"127.0.0.1", "/", 0};
  std::atomic<int> hang{0};
  std::thread thread;
  Hanging() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    BOOST_REQUIRE(::bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0);
    BOOST_REQUIRE(::listen(listener, 16) == 0);
    BOOST_REQUIRE(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    BOOST_REQUIRE(::pipe(end) == 0);
    url.port = ntohs(address.sin_port);
    thread = std::thread([this] { run(); });
  }
  ~Hanging() {
    ::close(end[1]);
    thread.join();
    ::close(end[0]);
    ::close(listener);
  }
  void run() {
    std::vector<int> kept;
    for (;;) {
      pollfd p[] = {{listener, POLLIN, 0}, {end[0], POLLIN, 0}};
      if (::poll(p, 2, -1) < 0 || p[1].revents != 0) break;
      const int fd = ::accept(listener, nullptr, nullptr);
      std::string asked;
      char block[4096];
      while (asked.find("}") == std::string::npos)
        if (const auto got = ::recv(fd, block, sizeof block, 0); got > 0)
          asked.append(block, static_cast<std::size_t>(got));
        else
          break;
      kept.push_back(fd);
      if (asked.find("\"hang\"") != std::string::npos) {
        ++hang;
        continue;
      }
      const std::string answer = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n42";
      [[maybe_unused]] const auto ignored = ::send(fd, answer.data(), answer.size(), MSG_NOSIGNAL);
    }
    for (const int fd : kept) ::close(fd);
  }
};

BOOST_AUTO_TEST_CASE(slow_tools_of_one_session_leave_threads_for_those_of_others) {
  Hanging tools;
  HttpToolServer server(tools.url, {});
  for (int i = 0; i < 8; ++i) BOOST_REQUIRE(server.ask({{1, 1}, {1}, fmt::format("hang-{}", i), "hang", {}}));
  BOOST_REQUIRE(server.ask({{2, 2}, {1}, "good", "good", {}}));
  const auto answers = answers_of(server, 1);  // and not behind the half minute of the others
  BOOST_REQUIRE(answers.size() == 1u);
  BOOST_TEST(answers[0].id == "good");
  BOOST_TEST(answers[0].result == 42);
  BOOST_TEST(tools.hang.load() <= 2);
}

BOOST_AUTO_TEST_CASE(addresses_are_read_or_refused) {
  const auto url = http::Url::parse("http://tools.example:8080/a/b?c=1");
  BOOST_REQUIRE(url.has_value());
  BOOST_TEST(url->host == "tools.example");
  BOOST_TEST(url->port == 8080);
  BOOST_TEST(url->target == "/a/b?c=1");
  BOOST_TEST(http::Url::parse("http://[::1]:99")->host == "::1");
  BOOST_TEST(http::Url::parse("http://h")->port == 80);
  BOOST_TEST(http::Url::parse("http://h")->target == "/");
  for (const char* bad : {"", "https://h/", "http://", "http:///x", "http://h:0/", "http://h:70000/", "http://h:1x/",
                          "http://h/a b", "http://h/\r\nx"})
    BOOST_TEST(!http::Url::parse(bad).has_value(), bad);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
