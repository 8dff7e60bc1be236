#pragma once
/// Collects comparisons with reference values: one printed line per family and kind of case, every failure by name.
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "common/checkpoint/safetensors.hpp"

namespace parlando::goldens {

struct Tolerance {
  double absolute = 0, relative = 0;
  double mean = -1;    ///< limit of the mean absolute error, -1 = none
  double snr_db = -1;  ///< at least this signal-to-noise ratio, -1 = none
};

class Report {
 public:
  explicit Report(std::string family) : family_(std::move(family)) {}
  /// Starts a case of a kind; comparisons that follow belong to it.
  void begin(const std::string& kind, const std::string& name);
  /// |got − want| ≤ absolute + relative·|want| for every element; shapes must agree.
  void near(const std::string& what, const at::Tensor& got, const at::Tensor& want, const Tolerance& tolerance);
  void near(const std::string& what, std::span<const float> got, const at::Tensor& want, const Tolerance& tolerance);
  void equal(const std::string& what, bool same, const std::string& detail = {});
  void fail(const std::string& what, const std::string& why);
  /// Prints the table; true when nothing failed and at least one case ran.
  bool print() const;

 private:
  struct Kind {
    int cases = 0;
    double error = 0, tolerance = 0;
    int failures = 0;
  };
  std::string family_, kind_, case_;
  std::map<std::string, Kind> kinds_;
  std::vector<std::string> failures_;
};

/// A reference file or the end of the test: reading errors are failures, never skips.
checkpoint::TensorMap load_tensors(const std::filesystem::path& path);
at::Tensor tensor_of(const checkpoint::TensorMap& map, const std::string& name);
nlohmann::json load_json(const std::filesystem::path& path);
std::vector<std::int32_t> ints_of(const at::Tensor& tensor);

bool run_tokenizer(const std::filesystem::path& folder);
bool run_lm(const std::filesystem::path& folder);
bool run_vocoder(const std::filesystem::path& folder);
bool run_vad(const std::filesystem::path& folder);

}  // namespace parlando::goldens
