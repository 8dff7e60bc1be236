/// Time of the store's operations on a real file. Usage: bench_context FILE (new; it stays), beside one fdatasync of 4
/// KiB in its folder.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "services/context/store.hpp"

namespace {

using namespace parlando;

template <class F>
void measure(const char* what, int count, F&& f) {
  std::vector<double> ms;
  for (int n = 0; n < count; ++n) {
    const auto start = std::chrono::steady_clock::now();
    if (!f(n)) {
      fmt::print(stderr, "{} {} failed\n", what, n);
      return;
    }
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(ms.begin(), ms.end());
  const auto at = [&](double q) { return ms[static_cast<std::size_t>(q * static_cast<double>(ms.size() - 1))]; };
  fmt::print("{:<44} p50 {:.3f} ms  p99 {:.3f} ms  max {:.3f} ms\n", what, at(0.5), at(0.99), at(1));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: bench_context FILE\n");
    return 2;
  }
  const std::filesystem::path file = argv[1];
  auto opened = context::Store::open(file);
  if (!opened) {
    fmt::print(stderr, "{}\n", opened.error().message);
    return 1;
  }
  auto& store = **opened;
  const std::string record = R"({"user":")" + std::string(2000, 'x') + "\"}";
  const auto beside = file.string() + ".fdatasync";
  const int raw = ::open(beside.c_str(), O_RDWR | O_CREAT, 0600);
  const std::string page(4096, 'x');
  constexpr std::size_t kAll = std::size_t{1} << 30;
  for (int round = 0; round < 3; ++round) {
    measure("write and fdatasync of 4 KiB", 300, [&](int n) {
      return ::pwrite(raw, page.data(), page.size(), 4096 * static_cast<off_t>(n)) == 4096 && ::fdatasync(raw) == 0;
    });
    const auto session = fmt::format("session-{}", round);
    measure("claim of a new session", 100,
            [&](int n) { return store.claim(fmt::format("{}-{}", session, n), {0}, "c").has_value(); });
    if (!store.claim(session, {0}, "c")) return 1;
    measure("commit of a record of 2 KB", 1000,
            [&](int n) { return store.commit(session, {1}, n + 1, record).has_value(); });
    measure("renew", 1000, [&](int) { return store.renew(session, {1}).has_value(); });
    measure("history of 20 of 1000 turns, all verified", 100,
            [&](int) { return store.history(session, 20, kAll, 0).has_value(); });
  }
  ::close(raw);
  ::unlink(beside.c_str());
}
