#pragma once
/// The engine on one machine: which instances there are, whom each calls, and where they find each other.
#include <nlohmann/json.hpp>
#include <string>

#include "services/cli/up.hpp"

namespace parlando::cli {

/// Where instances of one machine meet.
struct Places {
  std::string prefix;  ///< + role and number is an endpoint: `inproc://`, `ipc://FOLDER/`
  std::string
      replicas_folder;  ///< of files with the endpoints of each role, followed at run time; empty: endpoints are fixed
};

/// Where clients of the mesh (sdk/) find the n-th gateway, from 1. In one process nobody else calls it, so that it may
/// be reached from outside: by the same user.
std::string clients_endpoint(const UpOptions& options, const Places& places, int n);

/// The store outlives the engine; beside it lie the secret of session tokens (`.secret`) and, for each controller, the
/// turns that wait for it (`.waiting-1` …).
bool stores_in_a_file(const UpOptions& options);

/// Every instance, as a configuration file would list them.
nlohmann::json topology(const UpOptions& options, const Places& places);

}  // namespace parlando::cli
