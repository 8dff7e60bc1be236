/// Products in bf16 and what stands between them, against double precision, on every instruction set of this processor.
#include "kernels/gemm/gemm.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>

#include "kernels/frames/frames.hpp"
#include "kernels/vector/bf16.hpp"
#include "tests/kernels/each_isa.hpp"

namespace parlando::kernels {
namespace {
double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
double mish(double x) { return x * std::tanh(std::log1p(std::exp(x))); }

struct Case {
  std::int64_t rows, columns, count, stride;
};
}  // namespace

BOOST_AUTO_TEST_SUITE(gemm_test)

BOOST_AUTO_TEST_CASE(products_are_those_of_double_precision) {
  for (const auto& c : {Case{16, 32, 1, 32},
                        {80, 64, 17, 64},
                        {48, 96, 33, 32},
                        {7, 32, 50, 40},
                        {256, 768, 64, 256},
                        {33, 256, 15, 256},
                        {160, 288, 48, 96}}) {
    PackedShape shape;
    shape.format = WeightFormat::bf16;
    shape.rows = c.rows, shape.columns = c.columns;
    auto w = random_floats(c.rows * c.columns, 1);
    // Rows of x overlap where their stride is less than they are long.
    const auto numbers = random_floats((c.count - 1) * c.stride + c.columns, 2);
    std::vector<std::uint16_t> x;
    for (const auto v : numbers) x.push_back(bf16_of(v));
    for (auto& v : w) v = float_of_bf16(bf16_of(v));
    std::vector<std::byte> packed(static_cast<std::size_t>(shape.bytes()));
    pack_rows(shape, w.data(), 0, c.rows, packed.data());
    const auto bias = random_floats(c.rows, 3), more = random_floats(c.count * c.rows, 4);
    for_each_isa([&] {
      for (const bool activated : {false, true}) {
        for (const int threads : {1, 2}) {
          Team team(threads);
          std::vector<float> y = more;  // what is added may be where it goes
          std::vector<std::uint16_t> rounded(y.size());
          gemm_bf16(team, shape, packed.data(), x.data(), c.count, c.stride,
                    {bias.data(), activated, y.data(), y.data(), rounded.data(), c.rows});
          double worst = 0, worst_rounded = 0;
          for (std::int64_t n = 0; n < c.count; ++n)
            for (std::int64_t r = 0; r < c.rows; ++r) {
              double sum = bias[static_cast<std::size_t>(r)], size = std::abs(sum);
              for (std::int64_t k = 0; k < c.columns; ++k) {
                const double product = double{w[static_cast<std::size_t>(r * c.columns + k)]} *
                                       float_of_bf16(x[static_cast<std::size_t>(n * c.stride + k)]);
                sum += product, size += std::abs(product);
              }
              const auto at = static_cast<std::size_t>(n * c.rows + r);
              const double want = (activated ? gelu(sum) : sum) + more[at];
              worst = std::max(worst,
                               std::abs(y[at] - want) - 2e-6 * size - (activated ? 1.1e-5 * (1 + std::abs(sum)) : 0));
              worst_rounded = std::max(
                  worst_rounded, std::abs(float_of_bf16(rounded[at]) - double{y[at]}) - std::abs(double{y[at]}) / 256);
            }
          BOOST_TEST(worst <= 0.0, c.rows << " by " << c.columns << ", " << c.count << " rows");
          BOOST_TEST(worst_rounded <= 0.0);
        }
      }
    });
  }
}

BOOST_AUTO_TEST_CASE(frames_are_normed_as_in_double_precision) {
  for_each_isa([] {
    for (const auto& [channels, groups] : {std::pair{32, 8}, {96, 8}, {256, 8}, {5, 1}})
      for (const std::int64_t size : {2, 7, 300}) {
        auto x = random_floats(channels * size, 5);
        const auto w = random_floats(channels, 6), b = random_floats(channels, 7), shift = random_floats(channels, 8),
                   more = random_floats(channels * size, 9);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = 3 * x[i] + (i % 5 == 0 ? 8.0f : 1.0f);
        std::vector<Moments> moments(static_cast<std::size_t>(groups));
        frames_moments(x.data(), size, channels, groups, moments.data());
        std::vector<float> y(x.size());
        std::vector<std::uint16_t> rounded(x.size()), rows(x.size()), copied(x.size());
        frames_norm_mish(x.data(), size, channels, groups, moments.data(), w.data(), b.data(), 1e-5f, shift.data(),
                         more.data(), y.data(), rounded.data());
        frames_norm(x.data(), size, channels, w.data(), b.data(), 1e-5f, rows.data());
        frames_round(x.data(), size, channels, copied.data(), channels);
        const auto each = channels / groups;
        const auto value = [&](std::int64_t n, std::int64_t c) {
          return double{x[static_cast<std::size_t>(n * channels + c)]};
        };
        double worst = 0, worst_rounded = 0, worst_row = 0;
        for (std::int64_t n = 0; n < size; ++n) {
          double row_mean = 0, row_squares = 0;
          for (std::int64_t c = 0; c < channels; ++c) row_mean += value(n, c) / channels;
          for (std::int64_t c = 0; c < channels; ++c) row_squares += std::pow(value(n, c) - row_mean, 2) / channels;
          for (std::int64_t c = 0; c < channels; ++c) {
            double mean = 0, squares = 0;
            const auto first = c / each * each, count = each * size;
            for (std::int64_t m = 0; m < size; ++m)
              for (auto k = first; k < first + each; ++k) mean += value(m, k) / static_cast<double>(count);
            for (std::int64_t m = 0; m < size; ++m)
              for (auto k = first; k < first + each; ++k)
                squares += std::pow(value(m, k) - mean, 2) / static_cast<double>(count);
            const auto i = static_cast<std::size_t>(n * channels + c), channel = static_cast<std::size_t>(c);
            const double v = (value(n, c) - mean) / std::sqrt(squares + 1e-5) * w[channel] + b[channel],
                         want = mish(v) + shift[channel] + more[i],
                         row = (value(n, c) - row_mean) / std::sqrt(row_squares + 1e-5) * w[channel] + b[channel];
            worst = std::max(worst, std::abs(y[i] - want) - 1e-5 * (1 + std::abs(v)));
            worst_rounded = std::max(worst_rounded,
                                     std::abs(float_of_bf16(rounded[i]) - double{y[i]}) - std::abs(double{y[i]}) / 256);
            worst_row = std::max(worst_row, std::abs(float_of_bf16(rows[i]) - row) - std::abs(row) / 256 - 1e-5);
          }
        }
        BOOST_TEST(worst <= 0.0, channels << " channels, " << size << " frames");
        BOOST_TEST(worst_rounded <= 0.0);
        BOOST_TEST(worst_row <= 0.0, channels << " channels, " << size << " frames");
        for (std::size_t i = 0; i < x.size(); ++i) BOOST_REQUIRE(copied[i] == bf16_of(x[i]));
        if (size > 2) {
          std::vector<Moments> first(moments.size()), rest(moments.size());
          frames_moments(x.data(), 3, channels, groups, first.data());
          frames_moments(x.data() + 3 * channels, size - 3, channels, groups, rest.data());
          for (std::size_t g = 0; g < moments.size(); ++g) {
            const auto both = together(first[g], rest[g]);
            BOOST_TEST(std::abs(both.mean - moments[g].mean) < 1e-5);
            BOOST_TEST(std::abs(both.squares / moments[g].squares - 1) < 1e-5);
          }
        }
      }
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::kernels
