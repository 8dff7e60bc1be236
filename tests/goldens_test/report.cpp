#include "tests/goldens_test/report.hpp"

#include <ATen/ATen.h>
#include <fmt/core.h>

#include <cmath>

#include "common/base/mapped_file.hpp"
#include "common/tensor/weights.hpp"

namespace parlando::goldens {

void Report::begin(const std::string& kind, const std::string& name) {
  kind_ = kind, case_ = name;
  ++kinds_[kind].cases;
}

void Report::fail(const std::string& what, const std::string& why) {
  ++kinds_[kind_].failures;
  failures_.push_back(fmt::format("{} {} {}: {}", family_, case_, what, why));
}

void Report::equal(const std::string& what, bool same, const std::string& detail) {
  if (!same) fail(what, detail.empty() ? "not equal" : detail);
}

void Report::near(const std::string& what, const at::Tensor& got_any, const at::Tensor& want_any,
                  const Tolerance& tolerance) {
  if (!got_any.defined()) return fail(what, "no value was computed");
  if (got_any.sizes() != want_any.sizes()) {
    std::string a, b;
    for (const auto n : got_any.sizes()) a += std::to_string(n) + " ";
    for (const auto n : want_any.sizes()) b += std::to_string(n) + " ";
    return fail(what, fmt::format("shape [{}], expected [{}]", a, b));
  }
  if (want_any.numel() == 0) return;
  const auto got = got_any.to(at::kDouble), want = want_any.to(at::kDouble);
  const auto error = (got - want).abs();
  const double worst = error.max().item<double>(), mean = error.mean().item<double>();
  auto& kind = kinds_[kind_];
  kind.tolerance = std::max(kind.tolerance, tolerance.absolute);
  kind.error = std::max(kind.error, worst);
  const double excess = (error - tolerance.absolute - tolerance.relative * want.abs()).max().item<double>();
  if (!(excess <= 0) || std::isnan(worst))
    return fail(what, fmt::format("largest error {:.3g}, tolerance {:.3g} + {:.3g} relative", worst, tolerance.absolute,
                                  tolerance.relative));
  if (tolerance.mean >= 0 && !(mean <= tolerance.mean))
    return fail(what, fmt::format("mean error {:.3g}, tolerance {:.3g}", mean, tolerance.mean));
  if (tolerance.snr_db >= 0) {
    const double snr =
        10 * std::log10(want.pow(2).sum().item<double>() / std::max(1e-30, error.pow(2).sum().item<double>()));
    if (!(snr >= tolerance.snr_db))
      fail(what, fmt::format("signal-to-noise ratio {:.1f} dB, at least {} dB", snr, tolerance.snr_db));
  }
}

void Report::near(const std::string& what, std::span<const float> got, const at::Tensor& want,
                  const Tolerance& tolerance) {
  auto tensor = at::empty({static_cast<std::int64_t>(got.size())});
  std::copy(got.begin(), got.end(), tensor.data_ptr<float>());
  if (want.numel() != tensor.numel())
    return fail(what, fmt::format("{} values, expected {}", got.size(), want.numel()));
  near(what, tensor.view(want.sizes()), want, tolerance);
}

bool Report::print() const {
  int cases = 0;
  for (const auto& [name, kind] : kinds_) {
    fmt::print("{:<10} {:<24} {:>4} cases   largest error {:<10.3g} tolerance {:<10.3g} {}\n", family_, name,
               kind.cases, kind.error, kind.tolerance,
               kind.failures == 0 ? "ok" : fmt::format("{} FAILED", kind.failures));
    cases += kind.cases;
  }
  for (std::size_t i = 0; i < failures_.size() && i < 40; ++i) fmt::print("  {}\n", failures_[i]);
  if (cases == 0) fmt::print("{} holds no cases\n", family_);
  std::fflush(stdout);
  return failures_.empty() && cases > 0;
}

checkpoint::TensorMap load_tensors(const std::filesystem::path& path) {
  auto file = checkpoint::read_safetensors(path);
  if (!file) throw Failure{file.error()};
  return std::move(file->tensors);
}

at::Tensor tensor_of(const checkpoint::TensorMap& map, const std::string& name) {
  const auto found = map.find(name);
  if (found == map.end()) raise(Errc::not_found, "reference tensor '{}' is missing", name);
  return tensor::to_torch(found->second);
}

nlohmann::json load_json(const std::filesystem::path& path) {
  auto text = read_file(path);
  if (!text) throw Failure{text.error()};
  auto out = nlohmann::json::parse(*text, nullptr, false);
  if (out.is_discarded()) raise(Errc::bad_json, "'{}' is not JSON", path.string());
  return out;
}

std::vector<std::int32_t> ints_of(const at::Tensor& tensor) {
  const auto flat = tensor.to(at::kInt).contiguous();
  return {flat.data_ptr<std::int32_t>(), flat.data_ptr<std::int32_t>() + flat.numel()};
}

}  // namespace parlando::goldens
