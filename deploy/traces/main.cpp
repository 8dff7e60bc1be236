/// Brings turns from controllers to a collector of traces: `parlando-traces --controllers http://controller:9100
/// --collector http://collector:4318/v1/traces`. Every address of the controllers' name is asked each period; a
/// collector that is away is tried again, and the oldest of 4096 waiting turns go. Ends at SIGTERM. Exit codes: 0 done,
/// 2 usage.
#include <arpa/inet.h>
#include <netdb.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <iostream>

#include "common/http/post.hpp"
#include "deploy/traces/otlp.hpp"

namespace parlando::traces {
namespace {

constexpr std::size_t kTurnsAtOnce = 256;
constexpr std::chrono::milliseconds kAnswerTime{2000};
constexpr std::size_t kAnswerBytesMax = 4 << 20;

/// A name's addresses, as URLs of one server each. A name that cannot be resolved has none for now.
std::vector<http::Url> servers_of(const http::Url& url) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  std::vector<http::Url> out;
  if (::getaddrinfo(url.host.c_str(), std::to_string(url.port).c_str(), &hints, &list) != 0) return out;
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(list, &::freeaddrinfo);
  for (const auto* a = list; a != nullptr; a = a->ai_next) {
    char host[NI_MAXHOST];
    if (::getnameinfo(a->ai_addr, a->ai_addrlen, host, sizeof host, nullptr, 0, NI_NUMERICHOST) != 0) continue;
    out.push_back({host, "/turns", url.port});
  }
  return out;
}

void say(const std::string& text) { std::cerr << "parlando-traces: " << text << std::endl; }

void collect(const std::vector<http::Url>& controllers, Backlog& backlog) {
  std::set<std::string> there;
  for (const auto& name : controllers)
    for (const auto& server : servers_of(name)) {
      const auto source = fmt::format("{}:{}", server.host, server.port);
      there.insert(source);
      // One that does not answer is on its way in or out.
      const auto answer = http::get(server, {kAnswerTime, kAnswerBytesMax, -1});
      if (answer && answer->status == 200) backlog.take(source, answer->body);
    }
  backlog.keep_only(there);
}

/// @return whether all that waited has been taken
bool deliver(const http::Url& collector, Backlog& backlog, std::string& trouble) {
  while (backlog.size() > 0) {
    const auto turns = std::min(backlog.size(), kTurnsAtOnce);
    const auto answer = http::post(collector, request_of(backlog.next(turns)).dump(), "application/json",
                                   {kAnswerTime, kAnswerBytesMax, -1});
    const bool later = !answer || answer->status == 429 || answer->status >= 500;
    std::string now;
    if (!answer) now = answer.error().message;
    if (answer && answer->status >= 300) now = fmt::format("it answers {}", answer->status);
    if (now != trouble && !now.empty()) say(fmt::format("the collector does not take turns: {}", now));
    trouble = now;
    if (later) return false;
    backlog.sent(turns);  // what it refuses for good would be refused again
  }
  return true;
}

int run(int argc, char** argv) {
  CLI::App app("parlando-traces: turns of controllers as OTLP/HTTP traces");
  std::vector<std::string> controllers;
  std::string collector;
  int seconds = 5;
  app.add_option("--controllers", controllers, "http://host:port of their metrics; every address of a name is asked")
      ->required();
  app.add_option("--collector", collector, "http://host:port/v1/traces")->required();
  app.add_option("--seconds", seconds, "between two looks")->capture_default_str()->check(CLI::Range(1, 3600));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  std::vector<http::Url> sources;
  for (const auto& text : controllers) {
    const auto url = http::Url::parse(text);
    if (!url) return say(url.error().message), 2;
    sources.push_back(*url);
  }
  const auto target = http::Url::parse(collector);
  if (!target) return say(target.error().message), 2;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  Backlog backlog;
  std::string trouble;
  std::uint64_t dropped = 0;
  const timespec pause{seconds, 0};
  for (bool ended = false; !ended;) {
    ended = sigtimedwait(&set, nullptr, &pause) > 0;
    collect(sources, backlog);
    deliver(*target, backlog, trouble);
    if (backlog.dropped() != dropped) say(fmt::format("{} turns were dropped so far", dropped = backlog.dropped()));
  }
  return 0;
}

}  // namespace
}  // namespace parlando::traces

int main(int argc, char** argv) { return parlando::traces::run(argc, argv); }
