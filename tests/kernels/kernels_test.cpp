#define BOOST_TEST_MODULE kernels
#include <hwy/targets.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <random>

#include "kernels/gemv/gemv.hpp"

namespace parlando::kernels {
namespace {

std::vector<float> random_values(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (auto& v : out) v = normal(random);
  return out;
}

/// Runs `check` once per instruction set that this processor has, forcing each in turn.
template <class F>
void for_each_target(F&& check) {
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    BOOST_TEST_CONTEXT("instruction set " << hwy::TargetName(target)) { check(); }
  }
  hwy::SetSupportedTargetsForTest(0);
}

constexpr std::int64_t kRows[] = {0, 1, 3, 4, 5, 17, 49}, kColumns[] = {0, 1, 7, 8, 15, 16, 31, 64, 100, 513};

}  // namespace

BOOST_AUTO_TEST_CASE(matrix_vector_products_match_the_double_precision_reference) {
  for_each_target([] {
    for (const auto rows : kRows)
      for (const auto columns : kColumns) {
        const auto w = random_values(static_cast<std::size_t>(rows * columns), 1),
                   x = random_values(static_cast<std::size_t>(columns), 2),
                   b = random_values(static_cast<std::size_t>(rows), 3);
        std::vector<double> want(static_cast<std::size_t>(rows));
        std::vector<float> got(static_cast<std::size_t>(rows));
        gemv_reference(w.data(), rows, columns, x.data(), b.data(), want.data());
        gemv_f32(w.data(), rows, columns, x.data(), b.data(), got.data());
        // n products of size ~1 summed in float: error below n · 2^-24 · a few.
        for (std::int64_t r = 0; r < rows; ++r) BOOST_TEST(std::abs(got[r] - want[r]) <= 1e-6 * (columns + 8));
      }
  });
}

BOOST_AUTO_TEST_CASE(several_rows_at_once_match_the_reference) {
  for_each_target([] {
    for (const std::int64_t count : {1, 2, 4, 6, 9, 19})
      for (const auto rows : kRows)
        for (const auto columns : kColumns) {
          const auto w = random_values(static_cast<std::size_t>(rows * columns), 1),
                     x = random_values(static_cast<std::size_t>(count * columns), 2),
                     b = random_values(static_cast<std::size_t>(rows), 3);
          std::vector<float> got(static_cast<std::size_t>(count * rows));
          std::vector<float> packed(static_cast<std::size_t>(packed_size(rows, columns)));
          pack_f32(w.data(), rows, columns, packed.data());
          gemm_packed_f32(packed.data(), rows, columns, x.data(), count, b.data(), got.data());
          std::vector<double> want(static_cast<std::size_t>(rows));
          for (std::int64_t n = 0; n < count; ++n) {
            gemv_reference(w.data(), rows, columns, x.data() + n * columns, b.data(), want.data());
            for (std::int64_t r = 0; r < rows; ++r)
              BOOST_TEST(std::abs(got[n * rows + r] - want[r]) <= 1e-6 * (columns + 8));
          }
        }
  });
}

}  // namespace parlando::kernels
