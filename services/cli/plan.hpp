#pragma once
/// What an engine consists of: its services' definitions and the instances that a process or its children run.
#include <nlohmann/json.hpp>
#include <vector>

#include "common/service/definition.hpp"
#include "common/service/process/supervisor.hpp"
#include "services/cli/topology.hpp"

namespace parlando::cli {

std::vector<service::Definition> definitions();

/// When children that are stopped or hung are killed; key `supervisor` of a file with instances.
struct SupervisorConfig {
  int stopped_seconds_max = 10;
  int hung_seconds_max = 10;
  template <class V>
  void fields(V&& v) {
    v("stopped_seconds_max", stopped_seconds_max);
    v("hung_seconds_max", hung_seconds_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const {
    std::vector<config::Problem> out;
    config::expect_range(out, path + ".stopped_seconds_max", stopped_seconds_max, 0, 3600);
    config::expect_range(out, path + ".hung_seconds_max", hung_seconds_max, 0, 3600);
    return out;
  }
  service::process::RestartLimits limits() const {
    return {.stopped_max = std::chrono::seconds(stopped_seconds_max),
            .hung_max = std::chrono::seconds(hung_seconds_max)};
  }
};

/// Everything a process or its children run.
struct Plan {
  nlohmann::json list;
  std::vector<service::Instance> instances;
  SupervisorConfig supervisor;
  int cores = 0;  ///< that the services of one process compute on at a time; 0: as many as it may use
};

/// Of the options' file, or of the topology for their model. @error Errc::invalid_argument with all problems at once
Result<Plan> read_plan(const UpOptions& options, const Places& places);

}  // namespace parlando::cli
