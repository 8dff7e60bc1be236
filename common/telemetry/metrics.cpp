#include "common/telemetry/metrics.hpp"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <deque>
#include <map>
#include <mutex>
#include <set>

#include "common/base/assert.hpp"

namespace parlando::telemetry {

namespace {
struct Kept {
  std::size_t most = 0;
  std::mutex mutex;
  std::deque<std::string> lines;
};
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
void Metrics::Histogram::observe(double seconds) const {
  if (impl != nullptr) static_cast<prometheus::Histogram*>(impl)->Observe(seconds);
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

std::string Metrics::text() const { return prometheus::TextSerializer().Serialize(impl_->registry.Collect()); }

}  // namespace parlando::telemetry
