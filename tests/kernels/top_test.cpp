/// The largest of many numbers against a sort, on every instruction set of this processor.
#include "kernels/select/top.hpp"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>

#include "tests/kernels/each_isa.hpp"

namespace parlando::kernels {
namespace {
constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
}

BOOST_AUTO_TEST_SUITE(top_test)

BOOST_AUTO_TEST_CASE(none_of_the_largest_is_missing_and_ids_ascend) {
  for_each_isa([] {
    for (const std::int64_t size : {1, 15, 16, 17, 100, 3001, 40000})
      for (const int kind : {0, 1, 2, 3}) {
        auto x = random_floats(size, static_cast<unsigned>(size));
        if (kind == 1)  // ties
          for (auto& v : x) v = std::round(2 * v);
        if (kind == 2) std::sort(x.begin(), x.end());  // every number passes the border that was found before
        if (kind == 3) std::fill(x.begin(), x.end(), 0.5f);
        for (const std::int64_t k : {1, 2, 50, 700}) {
          if (k > size) continue;
          TopCandidates got;
          top_candidates(x, k, 0.0f, got);
          auto sorted = x;
          std::sort(sorted.begin(), sorted.end(), std::greater<>());
          const auto border = sorted[static_cast<std::size_t>(k - 1)];
          std::vector<std::int32_t> want;
          for (std::int64_t i = 0; i < size; ++i)
            if (x[static_cast<std::size_t>(i)] >= border) want.push_back(static_cast<std::int32_t>(i));
          BOOST_TEST(got.bad == -1);
          BOOST_TEST((got.ids == want), size << " numbers of kind " << kind << ", k = " << k);
          for (std::size_t i = 0; i < got.ids.size(); ++i)
            BOOST_TEST(got.values[i] == x[static_cast<std::size_t>(got.ids[i])]);
        }
        const auto first = std::max_element(x.begin(), x.end()) - x.begin();
        BOOST_TEST(largest_of(x).at == first);
      }
  });
}

BOOST_AUTO_TEST_CASE(slack_takes_what_lies_closely_below) {
  for_each_isa([] {
    const std::vector<float> x = {-1.0f, -1.0005f, -2.0f, -0.5f};
    TopCandidates got;
    top_candidates(x, 2, 1e-3f, got);
    BOOST_TEST((got.ids == std::vector<std::int32_t>{0, 1, 3}));
    // Of many, some of which lie that close to the border.
    for (const std::int64_t size : {2334, 3001, 74752}) {
      auto many = random_floats(size, 5);
      for (auto& v : many) v -= 6.0f;
      auto sorted = many;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      const float border = sorted[49] - 0.02f * std::abs(sorted[49]);
      top_candidates(many, 50, 0.02f, got);
      std::vector<std::int32_t> want;
      for (std::int64_t i = 0; i < size; ++i)
        if (many[static_cast<std::size_t>(i)] >= border) want.push_back(static_cast<std::int32_t>(i));
      BOOST_TEST(want.size() > 50u);
      BOOST_TEST((got.ids == want), size << " numbers");
    }
  });
}

BOOST_AUTO_TEST_CASE(what_is_no_number_is_named_and_minus_infinity_is_one) {
  for_each_isa([] {
    for (const std::size_t at : {0u, 15u, 16u, 40u, 49u})
      for (const float bad : {kNan, -kNan, kInf}) {
        std::vector<float> x(50, -kInf);
        x[3] = 1.0f;
        TopCandidates got;
        top_candidates(x, 5, 0.0f, got);
        BOOST_TEST(got.bad == -1);
        BOOST_TEST(largest_of(x).at == 3);
        x[at] = bad;
        top_candidates(x, 5, 0.0f, got);
        BOOST_TEST(got.bad == static_cast<std::int64_t>(at));
        BOOST_TEST(largest_of(x).bad == static_cast<std::int64_t>(at));
      }
    BOOST_TEST(largest_of(std::vector<float>(20, -kInf)).at == 0);
    BOOST_TEST(largest_of({}).at == -1);
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::kernels
