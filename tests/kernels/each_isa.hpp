#pragma once
/// For tests of kernels: random numbers, and every instruction set that this processor has, forced in turn.
#include <boost/test/unit_test.hpp>
#include <random>

#include "kernels/vector/isa.hpp"

namespace parlando::kernels {

inline std::vector<float> random_floats(std::int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(n));
  for (auto& v : out) v = normal(random);
  return out;
}

template <class F>
void for_each_isa(F&& check) {
  for (const auto isa : isas()) {
    BOOST_REQUIRE(force_isa(isa));
    BOOST_TEST_CONTEXT("instruction set " << name(isa)) { check(); }
  }
  force_isa(std::nullopt);
}

}  // namespace parlando::kernels
