/// Convolutions and the snake activation against double precision, on every instruction set of this processor.
#include "kernels/convolution/convolution.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>

#include "tests/kernels/each_isa.hpp"

namespace parlando::kernels {
namespace {
struct Shape {
  std::int64_t out, in, taps, dilation, size;
};
constexpr Shape kShapes[] = {{1, 1, 1, 1, 1},     {24, 24, 3, 1, 100},  {24, 24, 7, 3, 33},   {24, 24, 11, 5, 64},
                             {18, 24, 7, 1, 513}, {48, 48, 11, 5, 248}, {96, 96, 3, 1, 183},  {7, 5, 3, 2, 31},
                             {12, 3, 1, 1, 16},   {13, 2, 5, 4, 1030},  {25, 130, 2, 1, 1025}};
}  // namespace

BOOST_AUTO_TEST_SUITE(convolution_test)

BOOST_AUTO_TEST_CASE(sums_are_those_of_double_precision) {
  for (const auto& s : kShapes) {
    const auto reach = (s.taps - 1) * s.dilation, stride = s.size + reach;
    const auto x = random_floats(s.in * stride + kConvolutionSlack, 1), w = random_floats(s.out * s.in * s.taps, 2),
               bias = random_floats(s.out, 3), added = random_floats(s.out * s.size, 4);
    std::vector<double> want(static_cast<std::size_t>(s.out * s.size));
    convolve_reference(w.data(), bias.data(), s.out, s.in, s.taps, x.data(), stride, s.dilation, s.size, want.data());
    const PackedFilter filter(w.data(), bias.data(), s.out, s.in, s.taps);
    for_each_isa([&] {
      std::vector<float> got(want.size(), 7.0f);
      convolve(filter, x.data(), stride, s.dilation, s.size, nullptr, got.data(), s.size);
      const double allowed = 2e-6 * std::sqrt(static_cast<double>(s.in * s.taps)) + 2e-6;
      double worst = 0;
      for (std::size_t i = 0; i < got.size(); ++i)
        worst = std::max(worst, std::abs(got[i] - want[i]) / (1 + std::abs(want[i])));
      BOOST_TEST(worst <= allowed, s.out << "×" << s.in << "×" << s.taps << " over " << s.size);
      auto sum = added;
      convolve(filter, x.data(), stride, s.dilation, s.size, sum.data(), sum.data(), s.size);
      for (std::size_t i = 0; i < got.size(); ++i) BOOST_REQUIRE_EQUAL(sum[i], got[i] + added[i]);
    });
  }
}

BOOST_AUTO_TEST_CASE(rows_end_where_they_end) {
  // What lies in front of, between and behind the rows of y stays as it was, and a filter without bias has none.
  const auto x = random_floats(5 * 60 + kConvolutionSlack, 1), w = random_floats(8 * 5 * 3, 2);
  const PackedFilter filter(w.data(), nullptr, 8, 5, 3);
  std::vector<double> want(8 * 37);
  convolve_reference(w.data(), nullptr, 8, 5, 3, x.data(), 60, 2, 37, want.data());
  for_each_isa([&] {
    std::vector<float> y(8 * 50 + 8, 7.0f);
    convolve(filter, x.data(), 60, 2, 37, nullptr, y.data() + 4, 50);
    for (std::size_t i = 0; i < y.size(); ++i) {
      const auto row = (i - 4) / 50, t = (i - 4) % 50;
      if (i >= 4 && row < 8 && t < 37)
        BOOST_TEST(std::abs(y[i] - want[row * 37 + t]) < 2e-5);
      else
        BOOST_TEST(y[i] == 7.0f);
    }
  });
}

BOOST_AUTO_TEST_CASE(a_position_does_not_depend_on_how_many_there_are) {
  const auto x = random_floats(24 * 800 + kConvolutionSlack, 1), w = random_floats(24 * 24 * 7, 2);
  const PackedFilter filter(w.data(), nullptr, 24, 24, 7);
  for_each_isa([&] {
    std::vector<float> whole(24 * 700), part(24 * 700);
    convolve(filter, x.data(), 800, 3, 700, nullptr, whole.data(), 700);
    for (const std::int64_t from : {0, 1, 17, 511, 690}) {
      convolve(filter, x.data() + from, 800, 3, 700 - from, nullptr, part.data(), 700);
      for (std::int64_t c = 0; c < 24; ++c)
        for (std::int64_t t = from; t < 700; ++t)
          BOOST_REQUIRE_EQUAL(part[static_cast<std::size_t>(c * 700 + t - from)],
                              whole[static_cast<std::size_t>(c * 700 + t)]);
    }
  });
}

BOOST_AUTO_TEST_CASE(snakes_are_those_of_double_precision) {
  for_each_isa([] {
    for (const float alpha : {0.01f, 0.3f, 1.0f, 4.7f, 20.0f})
      for (const std::int64_t n : {1, 15, 16, 17, 1001}) {
        auto x = random_floats(n, 5);
        for (auto& v : x) v *= 10;
        std::vector<float> got(x.size());
        snake(x.data(), alpha, n, got.data());
        double worst = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
          // The angle as a float has it: what is rounded there is no error of the sine.
          const double angle = alpha * x[i], sine = std::sin(angle), want = x[i] + sine * sine / (alpha + 1e-9);
          worst = std::max(worst, (std::abs(got[i] - want) - 2e-7 * std::abs(x[i])) * std::min(1.0f, alpha));
        }
        BOOST_TEST(worst <= 1e-6, "alpha " << alpha << ", " << n << " numbers");
        auto in_place = x;
        snake(in_place.data(), alpha, n, in_place.data());
        BOOST_TEST((in_place == got));
      }
  });
}

BOOST_AUTO_TEST_CASE(what_is_no_number_stays_none) {
  for_each_isa([] {
    std::vector<float> x(20, 1.0f), y(20);
    x[3] = x[18] = std::numeric_limits<float>::quiet_NaN();
    snake(x.data(), 1.0f, 20, y.data());
    BOOST_TEST(std::isnan(y[3]));
    BOOST_TEST(std::isnan(y[18]));
    BOOST_TEST(!std::isnan(y[17]));
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::kernels
