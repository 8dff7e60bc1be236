#include "common/telemetry/metrics.hpp"

#include <fmt/format.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <vector>

#include "common/base/assert.hpp"

namespace parlando::telemetry {

namespace {
struct Kept {
  std::size_t most = 0;
  std::mutex mutex;
  std::deque<std::string> lines;
};
/// What every Prometheus client tells of its process, by the names that all of them use.
std::string process_text() {
  // Fields of /proc/self/stat behind the name, from zero; `proc(5)` counts from three.
  constexpr std::size_t kUser = 11, kSystem = 12, kStart = 19, kResident = 21;
  std::ifstream file("/proc/self/stat");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  std::istringstream words(text.substr(std::min(text.rfind(')') + 1, text.size())));
  std::vector<double> fields;
  for (std::string word; words >> word;) fields.push_back(std::strtod(word.c_str(), nullptr));
  if (fields.size() <= kResident) return {};
  std::error_code code;
  const auto files = std::distance(std::filesystem::directory_iterator("/proc/self/fd", code), {});
  const auto ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  // The kernel counts from its start, everybody else from 1970.
  timespec now{}, up{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  ::clock_gettime(CLOCK_BOOTTIME, &up);
  const auto boot = static_cast<double>(now.tv_sec - up.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec - up.tv_nsec);
  std::string out;
  const auto add = [&](const char* name, const char* kind, const char* help, double value) {
    out += fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n{0} {3:.15g}\n", name, help, kind, value);
  };
  add("process_cpu_seconds_total", "counter", "Processor time, user and system.",
      (fields[kUser] + fields[kSystem]) / ticks);
  add("process_resident_memory_bytes", "gauge", "Memory that is not swapped out.",
      fields[kResident] * static_cast<double>(::sysconf(_SC_PAGESIZE)));
  add("process_open_fds", "gauge", "Open file descriptors.", static_cast<double>(files) - 1);
  add("process_start_time_seconds", "gauge", "Start of the process, since 1970.", boot + fields[kStart] / ticks);
  return out;
}

}  // namespace

struct Metrics::Impl {
  prometheus::Registry registry;
  std::map<std::string, Kept> kept;                     ///< made before anybody asks
  std::set<std::pair<std::string, std::string>> taken;  ///< name, value of the label
  /// The registry would let two things count under one name.
  void take(const std::string& name, const std::string& value) {
    PARLANDO_ASSERT(taken.emplace(name, value).second, "every figure of a process has a name of its own");
  }
};

namespace {
prometheus::Labels labels(const std::string& key, const std::string& value) {
  return key.empty() ? prometheus::Labels{} : prometheus::Labels{{key, value}};
}
}  // namespace

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
Metrics::~Metrics() = default;

Metrics::Counter Metrics::counter(const std::string& name, const std::string& help, const std::string& key,
                                  const std::string& value) {
  impl_->take(name, value);
  return {&prometheus::BuildCounter().Name(name).Help(help).Register(impl_->registry).Add(labels(key, value))};
}
Metrics::Gauge Metrics::gauge(const std::string& name, const std::string& help, const std::string& key,
                              const std::string& value) {
  impl_->take(name, value);
  return {&prometheus::BuildGauge().Name(name).Help(help).Register(impl_->registry).Add(labels(key, value))};
}
Metrics::Histogram Metrics::histogram(const std::string& name, const std::string& help, const std::string& key,
                                      const std::string& value) {
  static const prometheus::Histogram::BucketBoundaries kBounds{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
                                                               0.025,  0.04,    0.05,   0.06,  0.1,    0.25,  0.3,
                                                               0.5,    0.53,    0.7,    1,     2.5,    5,     10};
  impl_->take(name, value);
  return {
      &prometheus::BuildHistogram().Name(name).Help(help).Register(impl_->registry).Add(labels(key, value), kBounds)};
}

Metrics::Histogram Metrics::sizes(const std::string& name, const std::string& help) {
  static const prometheus::Histogram::BucketBoundaries kBounds{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
  impl_->take(name, {});
  return {&prometheus::BuildHistogram().Name(name).Help(help).Register(impl_->registry).Add({}, kBounds)};
}

void Metrics::Counter::add(double by) const {
  if (impl != nullptr) static_cast<prometheus::Counter*>(impl)->Increment(by);
}
void Metrics::Counter::set_at_least(double total) const {
  if (impl == nullptr) return;
  auto& c = *static_cast<prometheus::Counter*>(impl);
  if (total > c.Value()) c.Increment(total - c.Value());
}
void Metrics::Gauge::set(double value) const {
  if (impl != nullptr) static_cast<prometheus::Gauge*>(impl)->Set(value);
}
void Metrics::Histogram::observe(double value) const {
  if (impl != nullptr) static_cast<prometheus::Histogram*>(impl)->Observe(value);
}

Metrics::Lines Metrics::lines(const std::string& name, std::size_t kept) {
  impl_->take(name, {});
  auto& out = impl_->kept[name];
  out.most = kept;
  return {&out};
}
void Metrics::Lines::add(std::string line) const {
  if (impl == nullptr) return;
  auto& kept = *static_cast<Kept*>(impl);
  const std::lock_guard lock(kept.mutex);
  kept.lines.push_back(std::move(line));
  if (kept.lines.size() > kept.most) kept.lines.pop_front();
}
std::optional<std::string> Metrics::lines_of(const std::string& name) const {
  const auto found = impl_->kept.find(name);
  if (found == impl_->kept.end()) return {};
  const std::lock_guard lock(found->second.mutex);
  std::string out;
  for (const auto& line : found->second.lines) out += line + "\n";
  return out;
}

std::string Metrics::text() const {
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect()) + process_text();
}

}  // namespace parlando::telemetry
