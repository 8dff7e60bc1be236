/// Time of the store's operations. Usage: bench_context PLACE: a file of SQLite (it stays, beside one fdatasync of 4
/// KiB in its folder), or PostgreSQL (`postgresql://…`, or words in one argument; rows of the sessions `bench-…` stay).
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "common/base/random_id.hpp"
#include "services/context/open_store.hpp"
#include "services/context/postgres_connection.hpp"

namespace {

using namespace parlando;
using Seconds = std::chrono::duration<double>;
constexpr std::size_t kAll = std::size_t{1} << 30;
constexpr int kRounds = 5;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return Seconds(std::chrono::steady_clock::now() - start).count();
}

void print(const char* what, std::vector<double> ms, double seconds) {
  std::sort(ms.begin(), ms.end());
  const auto at = [&](double q) { return ms[static_cast<std::size_t>(q * static_cast<double>(ms.size() - 1))]; };
  fmt::print("{:<44} {:>8.0f}/s  p50 {:.3f} ms  p95 {:.3f} ms  p99 {:.3f} ms  max {:.3f} ms\n", what,
             static_cast<double>(ms.size()) / seconds, at(0.5), at(0.95), at(0.99), at(1));
}

/// Times of `count` calls; none when one fails.
template <class F>
std::vector<double> times(const char* what, int count, F&& f) {
  std::vector<double> ms;
  for (int n = 0; n < count; ++n) {
    const auto start = std::chrono::steady_clock::now();
    if (!f(n)) {
      fmt::print(stderr, "{} {} failed\n", what, n);
      std::exit(1);
    }
    ms.push_back(1000 * seconds_since(start));
  }
  return ms;
}

template <class F>
void measure(const char* what, int count, F&& f) {
  const auto start = std::chrono::steady_clock::now();
  auto ms = times(what, count, f);
  print(what, std::move(ms), seconds_since(start));
}

std::unique_ptr<context::Store> open(const std::string& place) {
  auto store = context::open_store(place);
  const auto why = store ? (*store)->why_away() : store.error().message;
  if (!why.empty()) {
    fmt::print(stderr, "{}\n", why);
    std::exit(1);
  }
  return *std::move(store);
}

/// As many processes as connections, each with a session of its own.
void measure_together(const std::string& place, const std::string& prefix, const std::string& record) {
  constexpr int kTogether = 8, kCount = 250;
  std::vector<std::unique_ptr<context::Store>> stores;
  for (int n = 0; n < kTogether; ++n) stores.push_back(open(place));
  std::vector<std::vector<double>> ms(kTogether);
  std::vector<std::thread> threads;
  const auto start = std::chrono::steady_clock::now();
  for (int n = 0; n < kTogether; ++n)
    threads.emplace_back([&, n] {
      const auto session = fmt::format("{}-together-{}", prefix, n);
      auto& store = *stores[static_cast<std::size_t>(n)];
      const auto again = [](auto&& f) {  // another one may hold the file
        for (;;)
          if (const auto done = f(); done || done.error().code != Errc::unavailable) return done.has_value();
      };
      if (!again([&] { return store.claim(session, {0}, "c"); })) std::exit(1);
      ms[static_cast<std::size_t>(n)] = times("commit", kCount, [&](int turn) {
        return again([&] { return store.commit(session, {1}, turn + 1, record); });
      });
    });
  for (auto& t : threads) t.join();
  const double seconds = seconds_since(start);
  std::vector<double> all;
  for (const auto& some : ms) all.insert(all.end(), some.begin(), some.end());
  print("commit, 8 processes' worth at a time", std::move(all), seconds);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: bench_context FILE | postgresql://… | 'host=… dbname=…'\n");
    return 2;
  }
  const std::string place = argv[1];
  const auto store = open(place);
  const std::string record = R"({"user":")" + std::string(2000, 'x') + "\"}";
  const bool is_file = !context::is_conninfo(place);
  const auto beside = place + ".fdatasync";
  const int raw = is_file ? ::open(beside.c_str(), O_RDWR | O_CREAT, 0600) : -1;
  const std::string page(4096, 'x');
  for (int round = 0; round < kRounds; ++round) {
    if (is_file)
      measure("write and fdatasync of 4 KiB", 300, [&](int n) {
        return ::pwrite(raw, page.data(), page.size(), 4096 * static_cast<off_t>(n)) == 4096 && ::fdatasync(raw) == 0;
      });
    const auto session = "bench-" + random_hex(8);
    measure("claim of a new session", 200,
            [&](int n) { return store->claim(fmt::format("{}-{}", session, n), {0}, "c").has_value(); });
    if (!store->claim(session, {0}, "c")) return 1;
    measure("commit of a record of 2 KB", 1000,
            [&](int n) { return store->commit(session, {1}, n + 1, record).has_value(); });
    measure("renew", 1000, [&](int) { return store->renew(session, {1}).has_value(); });
    measure("history of 20 of 1000 turns, all verified", 100,
            [&](int) { return store->history(session, 20, kAll, 0).has_value(); });
    measure("erase of 1000 turns", 1, [&](int) { return store->erase(session, {1}).has_value(); });
    measure_together(place, session, record);
  }
  if (is_file) {
    ::close(raw);
    ::unlink(beside.c_str());
  }
}
