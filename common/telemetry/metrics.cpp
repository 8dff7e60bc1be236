#include "common/telemetry/metrics.hpp"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <set>

#include "common/base/assert.hpp"

namespace parlando::telemetry {

struct Metrics::Impl {
  prometheus::Registry registry;
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
  static const prometheus::Histogram::BucketBoundaries kBounds{
      0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10};
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

std::string Metrics::text() const { return prometheus::TextSerializer().Serialize(impl_->registry.Collect()); }

}  // namespace parlando::telemetry
