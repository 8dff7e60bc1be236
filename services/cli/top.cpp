#include "services/cli/top.hpp"

#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "common/config/fields.hpp"
#include "common/http/post.hpp"
#include "services/cli/fleet_view.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Instances = std::vector<std::pair<std::string, std::string>>;

namespace {

constexpr std::chrono::milliseconds kAnswerMax{1'000};
constexpr std::size_t kPageMax = 1 << 20;
constexpr std::size_t kThreads = 16;
constexpr std::size_t kInstancesMax = 4096;
constexpr int kColumns = 110;
constexpr std::string_view kNames = "dns:";

Result<void> add_named(const std::string& endpoint, Instances& out) {
  const auto name = endpoint.substr(kNames.size());
  const auto colon = name.rfind(':');
  if (colon == std::string::npos) return fail(Errc::invalid_argument, "endpoint {}, expected dns:NAME:PORT", endpoint);
  addrinfo hints{}, *list = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  const auto host = name.substr(0, colon), port = name.substr(colon + 1);
  if (const int code = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &list); code != 0)
    return fail(Errc::unavailable, "name {}: {}", host, ::gai_strerror(code));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(list, &::freeaddrinfo);
  for (const auto* at = list; at != nullptr; at = at->ai_next) {
    char address[NI_MAXHOST];
    if (::getnameinfo(at->ai_addr, at->ai_addrlen, address, sizeof address, nullptr, 0, NI_NUMERICHOST) == 0)
      out.emplace_back(fmt::format("{}:{}", address, port), fmt::format("{}:{}", address, port));
  }
  return {};
}

Result<Instances> all_of(const TopOptions& options) {
  Instances out;
  if (!options.run_folder.empty()) {
    PARLANDO_TRY(out, instances_in(options.run_folder));
  }
  for (const auto& endpoint : options.endpoints) {
    if (endpoint.starts_with(kNames)) {
      PARLANDO_DO(add_named(endpoint, out));
    } else {
      out.emplace_back(endpoint, endpoint);
    }
  }
  if (out.size() > kInstancesMax)
    return fail(Errc::invalid_argument, "{} instances, expected at most {}", out.size(), kInstancesMax);
  return out;
}

/// Pages of all, side by side.
std::vector<Result<std::string>> read_all(const Instances& of) {
  std::vector<Result<std::string>> pages(of.size(), fail(Errc::internal, "not read"));
  std::atomic<std::size_t> next = 0;
  const auto read = [&] {
    for (std::size_t n; (n = next++) < of.size();) {
      const auto url = http::Url::parse(fmt::format("http://{}/metrics", of[n].second));
      if (!url) {
        pages[n] = tl::unexpected(url.error());
        continue;
      }
      auto answer = http::get(*url, {.time_max = kAnswerMax, .answer_bytes_max = kPageMax});
      if (!answer) {
        pages[n] = tl::unexpected(answer.error());
      } else if (answer->status != 200) {
        pages[n] = fail(Errc::unavailable, "status {}, expected 200", answer->status);
      } else {
        pages[n] = std::move(answer->body);
      }
    }
  };
  std::vector<std::jthread> threads;
  for (std::size_t n = 1; n < std::min(kThreads, of.size()); ++n) threads.emplace_back(read);
  read();
  threads.clear();
  return pages;
}

int columns_of_terminal() {
  winsize size{};
  return ::ioctl(1, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kColumns;
}

/// Ends the wait when the user does.
class Stop {
 public:
  Stop() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    fd_ = ::signalfd(-1, &set_, SFD_CLOEXEC);
  }
  ~Stop() { ::close(fd_); }
  Stop(const Stop&) = delete;
  Stop& operator=(const Stop&) = delete;
  /// @return whether it is the end
  bool wait_until(Clock::time_point then) const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(then - Clock::now()).count();
    pollfd one{fd_, POLLIN, 0};
    return ::poll(&one, 1, static_cast<int>(std::max<std::int64_t>(0, left))) > 0;
  }

 private:
  sigset_t set_;
  int fd_;
};

}  // namespace

Result<Instances> instances_in(const std::string& run_folder) {
  Instances out;
  std::size_t silent = 0;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(run_folder, code)) {
    if (entry.path().extension() != ".json") continue;
    const auto config = config::load_file(entry.path().string());
    if (!config || !config->contains("role") || !config->contains("wire")) continue;
    const auto endpoint = (*config)["wire"].value("metrics", std::string());
    if (endpoint.empty())
      ++silent;
    else
      out.emplace_back(entry.path().stem().string(), endpoint);
  }
  if (code) return fail(Errc::not_found, "folder {}: {}", run_folder, code.message());
  if (out.empty() && silent > 0)
    return fail(Errc::not_found, "the {} services in {} tell no metrics: start the engine with --metrics-port", silent,
                run_folder);
  if (out.empty())
    return fail(Errc::not_found, "no service runs in {}, expected the folder of `up --processes --run-folder`",
                run_folder);
  std::sort(out.begin(), out.end());
  return out;
}

Result<void> top(const TopOptions& options) {
  if (options.run_folder.empty() && options.endpoints.empty())
    return fail(Errc::invalid_argument, "nobody to look at, expected --run-folder or HOST:PORT of metrics");
  const Stop stop;
  const bool terminal = !options.as_json && !options.once && ::isatty(1) == 1;
  const auto between = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.seconds));
  FleetView view;
  Instances known;
  const auto start = Clock::now();
  auto due = start;
  for (int look = 0;; ++look) {
    auto found = all_of(options);
    // A name that cannot be looked up for once ends nothing.
    if (!found && look == 0) return tl::make_unexpected(found.error());
    auto instances = found ? *std::move(found) : known;
    for (const auto& gone : known)
      if (std::find(instances.begin(), instances.end(), gone) == instances.end()) view.forget(gone.first);
    known = std::move(instances);
    const auto pages = read_all(known);
    const double now = std::chrono::duration<double>(Clock::now() - start).count();
    for (std::size_t n = 0; n < known.size(); ++n)
      if (pages[n])
        view.take(known[n].first, *pages[n], now);
      else
        view.lost(known[n].first, pages[n].error().message);
    // Rates need two looks.
    if (!options.once || look > 0) {
      const auto picture = options.as_json ? view.to_json().dump() + "\n" : view.draw(columns_of_terminal());
      fmt::print("{}{}", terminal ? "\x1b[H\x1b[2J" : "", picture);
      std::fflush(stdout);
      if (options.once) return {};
    }
    due = std::max(due + between, Clock::now());
    if (stop.wait_until(due)) return {};
  }
}

}  // namespace parlando::cli
