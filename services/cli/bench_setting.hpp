#pragma once
/// Where a benchmark runs and what its numbers are: machine and commit, a folder that goes with it, quantiles.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace parlando::cli {

/// @return not a number when there are no values
double quantile(std::vector<double> values, double q);
/// Seconds of processor time that the calling thread has used.
double cpu_of_thread();
/// Of the last minutes, as the system says it.
std::string load_average();
/// Processor, cores, instruction set, commit (of the repository at `source`; empty or none: unknown) and load.
nlohmann::json machine_of(const std::filesystem::path& source);

/// A folder of our own that goes with us.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  /// Empty when none could be made.
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace parlando::cli
