#pragma once
/// `parlando top`: all services of an engine, what they do and how long people wait, again and again.
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

struct TopOptions {
  std::string run_folder;              ///< of `up --processes --run-folder`: its instances; empty: none
  std::vector<std::string> endpoints;  ///< HOST:PORT of metrics, or dns:NAME:PORT for every address of a name
  double seconds = 2;                  ///< between two looks
  bool once = false;                   ///< two looks, one picture, and the end
  bool as_json = false;                ///< an object a look instead of a picture
};

/// Where the instances that run in a folder tell their metrics, as [name, host:port].
/// @error Errc::not_found: there is no instance, or none that tells metrics
Result<std::vector<std::pair<std::string, std::string>>> instances_in(const std::string& run_folder);

/// Until SIGINT or SIGTERM. What does not answer is shown as such; instances are looked up anew each time, so that
/// replicas come and go in the picture as they do in the engine.
/// @error when there is nobody to look at
Result<void> top(const TopOptions& options);

}  // namespace parlando::cli
