#define BOOST_TEST_MODULE kernels
#include <hwy/targets.h>

#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <random>

#include "kernels/attention/paged_attention.hpp"
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

BOOST_AUTO_TEST_CASE(bf16_weights_are_widened_exactly) {
  for_each_target([] {
    for (const auto rows : kRows)
      for (const auto columns : kColumns) {
        auto w = random_values(static_cast<std::size_t>(rows * columns), 4);
        std::vector<std::uint16_t> half(w.size());
        for (std::size_t i = 0; i < w.size(); ++i) {
          half[i] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(w[i]) >> 16);
          w[i] = std::bit_cast<float>(static_cast<std::uint32_t>(half[i]) << 16);
        }
        const auto x = random_values(static_cast<std::size_t>(columns), 5);
        std::vector<double> want(static_cast<std::size_t>(rows));
        std::vector<float> got(static_cast<std::size_t>(rows));
        gemv_reference(w.data(), rows, columns, x.data(), nullptr, want.data());
        gemv_bf16(half.data(), rows, columns, x.data(), got.data());
        for (std::int64_t r = 0; r < rows; ++r) BOOST_TEST(std::abs(got[r] - want[r]) <= 1e-6 * (columns + 8));
      }
  });
}

BOOST_AUTO_TEST_CASE(paged_attention_matches_the_reference_over_scattered_blocks) {
  for_each_target([] {
    for (const std::int64_t dim : {1, 8, 40, 64, 128})
      for (const std::int64_t tokens : {1, 3, 33}) {
        PagedAttention a;
        const std::int64_t heads = 6, groups = 2, block = 4, first = 5, total = first + tokens,
                           blocks = (total + block - 1) / block;
        std::vector<std::int32_t> table;
        for (std::int64_t b = 0; b < blocks; ++b)
          table.push_back(static_cast<std::int32_t>((b * 7 + 3) % (blocks + 3)));
        // The table must not repeat a block.
        for (std::int64_t b = 0; b < blocks; ++b) table[b] = static_cast<std::int32_t>(blocks - 1 - b);
        const auto q = random_values(static_cast<std::size_t>(tokens * heads * dim), 6);
        const auto k = random_values(static_cast<std::size_t>(blocks * block * groups * dim), 7),
                   v = random_values(static_cast<std::size_t>(blocks * block * groups * dim), 8);
        const std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.0625f, 0.9f, 0.7f};
        std::vector<float> got(q.size()), want(q.size());
        a.q = q.data(), a.keys = k.data(), a.values = v.data(), a.blocks = table.data(), a.block_size = block,
        a.heads = heads, a.groups = groups, a.dim = dim;
        a.tokens = tokens, a.first_position = first, a.slopes = slopes.data();
        a.out = got.data();
        paged_attention(a);
        a.out = want.data();
        paged_attention_reference(a);
        for (std::size_t i = 0; i < got.size(); ++i) BOOST_TEST(std::abs(got[i] - want[i]) <= 2e-5);
      }
  });
}

}  // namespace parlando::kernels
