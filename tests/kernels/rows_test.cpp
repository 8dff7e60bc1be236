/// Norms and gates against double precision, on every instruction set of this processor.
#include "kernels/rows/rows.hpp"

#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>

#include "tests/kernels/each_isa.hpp"

namespace parlando::kernels {
namespace {
constexpr std::int64_t kSizes[] = {1, 2, 15, 16, 17, 48, 160, 1001};

double rounded_to_bf16(double x) {
  const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(x));
  return std::bit_cast<float>((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}
/// Sums of floats may fall to the other side of a border of bf16: one step of it, a 256th.
double allowed(double want, bool round) { return std::abs(want) * (round ? 0.0079 : 4e-6) + 1e-12; }
}  // namespace

BOOST_AUTO_TEST_SUITE(rows_test)

BOOST_AUTO_TEST_CASE(norms_are_those_of_double_precision) {
  for_each_isa([] {
    for (const auto n : kSizes)
      for (const bool round : {false, true}) {
        auto x = random_floats(n, 1);
        const auto w = random_floats(n, 2);
        if (round)
          for (auto& v : x) v = static_cast<float>(rounded_to_bf16(v));
        std::vector<float> got(x.size());
        rms_norm(x.data(), w.data(), 1e-5f, n, round, got.data());
        double squares = 0;
        for (const auto v : x) squares += double{v} * v;
        double r = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
        if (round) r = rounded_to_bf16(r);
        double worst = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
          const double want = round ? rounded_to_bf16(rounded_to_bf16(x[i] * r) * w[i]) : x[i] * r * w[i];
          worst = std::max(worst, std::abs(got[i] - want) - allowed(want, round));
        }
        BOOST_TEST(worst <= 0.0, n << " numbers, " << (round ? "bf16" : "f32"));
        auto in_place = x;
        rms_norm(in_place.data(), w.data(), 1e-5f, n, round, in_place.data());
        BOOST_TEST((in_place == got));
      }
  });
}

BOOST_AUTO_TEST_CASE(gates_are_those_of_double_precision_from_end_to_end) {
  for_each_isa([] {
    for (const auto n : kSizes)
      for (const bool round : {false, true}) {
        auto gate = random_floats(n, 3), up = random_floats(n, 4);
        for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= i % 3 == 0 ? 60.0f : 1.0f;
        if (round)
          for (auto* v : {&gate, &up})
            for (auto& x : *v) x = static_cast<float>(rounded_to_bf16(x));
        std::vector<float> got(gate.size());
        swiglu(gate.data(), up.data(), n, round, got.data());
        double worst = 0;
        for (std::size_t i = 0; i < gate.size(); ++i) {
          double silu = gate[i] / (1 + std::exp(-double{gate[i]}));
          if (round) silu = rounded_to_bf16(silu);
          const double want = round ? rounded_to_bf16(silu * up[i]) : silu * up[i];
          // Below e^-87 the exponential ends; what is left of the gate is no larger than 1e-35.
          worst = std::max(worst, std::abs(got[i] - want) - allowed(want, round) - 1e-35);
        }
        BOOST_TEST(worst <= 0.0, n << " numbers, " << (round ? "bf16" : "f32"));
      }
  });
}

BOOST_AUTO_TEST_CASE(groups_are_normed_and_activated_as_in_double_precision) {
  for_each_isa([] {
    for (const auto& [channels, groups] : {std::pair{8, 8}, {96, 8}, {5, 1}})
      for (const std::int64_t size : {1, 7, 16, 183}) {
        auto x = random_floats(channels * size, 7);
        const auto w = random_floats(channels, 8), b = random_floats(channels, 9);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = 3 * x[i] + (i % 5 == 0 ? 8.0f : 1.0f);
        std::vector<float> got(x.size());
        group_norm_mish(x.data(), channels, size, groups, w.data(), b.data(), 1e-5f, got.data());
        const auto count = static_cast<std::size_t>(channels / groups * size);
        double worst = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
          double mean = 0, squares = 0;
          const auto begin = i / count * count, channel = i / static_cast<std::size_t>(size);
          for (auto k = begin; k < begin + count; ++k) mean += x[k];
          mean /= static_cast<double>(count);
          for (auto k = begin; k < begin + count; ++k) squares += (x[k] - mean) * (x[k] - mean);
          const double over = 1 / std::sqrt(squares / static_cast<double>(count) + 1e-5),
                       v = (x[i] - mean) * over * w[channel] + b[channel],
                       want = v * std::tanh(std::log1p(std::exp(v)));
          // A group of one number has no spread: what is left of it is rounding, made large.
          worst = std::max(worst, std::abs(got[i] - want) - (count == 1 ? 1e-3 : 4e-6) * (1 + std::abs(v)));
        }
        BOOST_TEST(worst <= 0.0, channels << " channels in " << groups << " groups, " << size << " positions");
      }
  });
}

BOOST_AUTO_TEST_CASE(groups_that_began_before_are_normed_as_wholes) {
  for_each_isa([] {
    for (const auto& [channels, groups] : {std::pair{8, 8}, {96, 8}, {5, 1}})
      for (const auto& [size, before] : {std::pair{2, 1}, {40, 17}, {183, 160}}) {
        auto x = random_floats(channels * size, 7);
        const auto w = random_floats(channels, 8), b = random_floats(channels, 9);
        // What stands before is nothing like the rest.
        for (std::int64_t i = 0; i < channels * size; ++i)
          if (i % size < before) x[static_cast<std::size_t>(i)] = 5 * x[static_cast<std::size_t>(i)] + 20;
        std::vector<float> whole(x.size()), rest, got;
        group_norm_mish(x.data(), channels, size, groups, w.data(), b.data(), 1e-5f, whole.data());
        std::vector<Moments> moments(static_cast<std::size_t>(groups));
        group_moments(x.data(), channels, size, before, groups, moments.data());
        for (std::int64_t c = 0; c < channels; ++c)
          rest.insert(rest.end(), x.begin() + c * size + before, x.begin() + (c + 1) * size);
        got.resize(rest.size());
        group_norm_mish(rest.data(), channels, size - before, groups, w.data(), b.data(), 1e-5f, got.data(),
                        moments.data());
        double worst = 0;
        for (std::int64_t c = 0; c < channels; ++c)
          for (std::int64_t i = before; i < size; ++i)
            worst = std::max(worst, std::abs(double{got[static_cast<std::size_t>(c * (size - before) + i - before)]} -
                                             whole[static_cast<std::size_t>(c * size + i)]));
        BOOST_TEST(worst <= 2e-5, channels << " channels in " << groups << " groups, " << before << " of " << size);
      }
  });
}

BOOST_AUTO_TEST_CASE(what_is_no_number_stays_none) {
  for_each_isa([] {
    const float bad = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> x(20, 1.0f), w(20, 1.0f), y(20);
    x[18] = bad;
    rms_norm(x.data(), w.data(), 1e-5f, 20, true, y.data());
    for (const auto v : y) BOOST_TEST(std::isnan(v));
    swiglu(x.data(), w.data(), 20, false, y.data());
    BOOST_TEST(std::isnan(y[18]));
    BOOST_TEST(!std::isnan(y[17]));
    const std::vector<float> b(2, 0.0f);
    group_norm_mish(x.data(), 2, 10, 2, w.data(), b.data(), 1e-5f, y.data());
    BOOST_TEST(std::isnan(y[18]));
    BOOST_TEST(!std::isnan(y[9]));
    const std::vector<float> large(2, 1000.0f);
    x = {-1.0f, 1.0f, 0.0f, 0.0f};
    group_norm_mish(x.data(), 1, 4, 1, large.data(), b.data(), 1e-5f, y.data());
    BOOST_TEST(std::abs(y[1] - 1000 * std::sqrt(2.0f)) < 0.1f);
    BOOST_TEST(std::abs(y[0]) < 1e-30f);
  });
}

BOOST_AUTO_TEST_CASE(sums_round_to_the_nearest_even) {
  for_each_isa([] {
    for (const auto n : kSizes) {
      const auto x = random_floats(n, 5), y = random_floats(n, 6);
      auto plain = x, rough = x;
      add_to(plain.data(), y.data(), n, false), add_to(rough.data(), y.data(), n, true);
      auto later = plain;
      round_to_bf16(later.data(), n);
      for (std::size_t i = 0; i < x.size(); ++i) {
        BOOST_TEST(plain[i] == x[i] + y[i]);
        BOOST_TEST(rough[i] == static_cast<float>(rounded_to_bf16(x[i] + y[i])));
        BOOST_TEST(later[i] == rough[i]);
      }
      std::vector<std::uint16_t> half;
      for (const auto v : rough) half.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(v) >> 16));
      std::vector<float> wide(half.size());
      widen_bf16(half.data(), n, wide.data());
      BOOST_TEST((wide == rough));
    }
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::kernels
