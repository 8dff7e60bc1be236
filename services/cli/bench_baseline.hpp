#pragma once
/// Figures of a benchmark against those of an earlier run.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

struct Change {
  std::string name;  ///< as in the JSON, with dots
  double before = 0, now = 0;
  double low = 0, high = 0;  ///< of the runs now; both `now` where no spread is told
  /// Part by which it grew; 0 when it was 0.
  double growth() const { return before == 0 ? 0 : now / before - 1; }
};

/// Every figure that both have, in the order of their names. What says where and how it was measured is none.
std::vector<Change> changes(const nlohmann::json& now, const nlohmann::json& before);
/// A table for people: what changed, and whether machine, instruction set and threads are the same.
std::string change_table(const nlohmann::json& now, const nlohmann::json& before);
/// @error Errc::not_found, Errc::bad_format
Result<nlohmann::json> read_baseline(const std::filesystem::path& file);
/// Before anything is measured. @return none when no file is named, or when it is to be made: `output` names the same
/// one. @error those of `read_baseline`: what is not there cannot be compared with
Result<std::optional<nlohmann::json>> baseline_of(const std::filesystem::path& file,
                                                  const std::filesystem::path& output);

}  // namespace parlando::cli
