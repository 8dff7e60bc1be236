#pragma once
/// Counters, gauges and histograms of one process in Prometheus text format. Names:
/// parlando_<service>_<thing>_<unit>[_total].
#include <memory>
#include <optional>
#include <string>

namespace parlando::telemetry {

class Metrics {
 public:
  Metrics();
  ~Metrics();
  /// Handles stay valid as long as the object; a handle that was never made counts nothing (a core without a host).
  /// `label` is an optional key=value of few values.
  class Counter {
   public:
    void add(double by = 1) const;
    void set_at_least(double total) const;
    void* impl = nullptr;
  };
  class Gauge {
   public:
    void set(double value) const;
    void* impl = nullptr;
  };
  class Histogram {
   public:
    void observe(double value) const;
    void* impl = nullptr;
  };
  Counter counter(const std::string& name, const std::string& help, const std::string& label_key = {},
                  const std::string& label_value = {});
  Gauge gauge(const std::string& name, const std::string& help, const std::string& label_key = {},
              const std::string& label_value = {});
  /// Of seconds: buckets from 0.1 ms to 10 s, with those of the budgets: 40, 60, 300, 530 and 700 ms.
  Histogram histogram(const std::string& name, const std::string& help, const std::string& label_key = {},
                      const std::string& label_value = {});
  /// The same of how many: buckets of 1, 2, 4, 8 … 1024.
  Histogram sizes(const std::string& name, const std::string& help);
  std::string text() const;

  /// The last lines of something, one JSON object each, for whoever asks; the oldest go first. From any thread.
  class Lines {
   public:
    void add(std::string line) const;
    void* impl = nullptr;
  };
  Lines lines(const std::string& name, std::size_t kept);
  /// Nothing for a name that nobody writes to.
  std::optional<std::string> lines_of(const std::string& name) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parlando::telemetry
