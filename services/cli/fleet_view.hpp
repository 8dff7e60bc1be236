#pragma once
/// What the metrics of all services say, as a table for a terminal and as JSON: texts and times in, a picture out.
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace parlando::cli {

/// Samples of a page of metrics in Prometheus' text format: `name{labels}` and value. What is no sample is left out.
std::map<std::string, double> parse_metrics(std::string_view text);

/// Differences between two pages of the same instance; counters that went back belong to a new process and count from
/// zero.
class FleetView {
 public:
  /// @param name  of the instance, as it is shown   @param text  its page of metrics   @param now  seconds, of any
  /// clock that does not go back
  void take(const std::string& name, std::string_view text, double now);
  /// It does not answer. Its figures are no more.
  void lost(const std::string& name, const std::string& why);
  /// It is not part of the engine any more.
  void forget(const std::string& name) { instances_.erase(name); }

  /// At most so many columns wide; shares the view with nobody.
  std::string draw(int columns) const;
  /// {sessions, turns, turns_per_s, errors_per_s, first_audio_ms: {p50, p95, n}, services: [{name, role, state, …}]};
  /// what is not known is left out.
  nlohmann::json to_json() const;

 private:
  struct Instance {
    std::map<std::string, double> now, before;
    double at = 0, at_before = 0;
    std::string away;  ///< why it does not answer
  };
  struct Quantiles {
    double p50 = 0, p95 = 0, p99 = 0, count = 0;
  };
  nlohmann::json row(const std::string& name, const Instance& instance) const;
  /// Of a histogram over instances: what was observed between their pages, or ever where nothing was.
  static std::optional<Quantiles> quantiles(const std::vector<const Instance*>& of, const std::string& name);

  std::map<std::string, Instance> instances_;
};

}  // namespace parlando::cli
