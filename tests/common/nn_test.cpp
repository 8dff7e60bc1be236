/// Layers with packed weights against the library's, whatever the batch and the number of threads.
#define BOOST_TEST_MODULE nn
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <boost/test/unit_test.hpp>

#include "common/base/result.hpp"
#include "common/nn/convolution.hpp"
#include "common/nn/linear.hpp"
#include "common/nn/threads.hpp"
#include "kernels/team/pool.hpp"

namespace parlando::nn {
namespace {
double largest(const at::Tensor& x) { return x.numel() == 0 ? 0.0 : x.abs().max().item<double>(); }

template <class F>
void with_threads(F&& check) {
  for (const int threads : {1, 2, 3}) {
    use_threads(threads);
    BOOST_TEST_CONTEXT(threads << " threads") { check(); }
  }
  use_threads(1);
}
}  // namespace

BOOST_AUTO_TEST_SUITE(nn)

BOOST_AUTO_TEST_CASE(convolutions_are_those_of_the_library) {
  at::manual_seed(1);
  with_threads([] {
    for (const auto& [batch, in, out, taps, n] :
         {std::array<std::int64_t, 5>{1, 3, 5, 1, 7}, {2, 96, 96, 3, 183}, {3, 80, 24, 7, 513}, {1, 4, 4, 11, 3}}) {
      const auto w = at::randn({out, in, taps}), b = at::randn({out}), x = at::randn({batch, in, n});
      const auto want = at::conv1d(x, w, b, 1, taps / 2);
      const auto allowed = 1e-5 * static_cast<double>(in * taps);
      BOOST_TEST(largest(Convolution(w, b)(x) - want) < allowed);
      BOOST_TEST(largest(Convolution(w, {})(x) + b.view({out, 1}) - want) < allowed);
      // Rows that do not lie one behind the other.
      const auto turned = x.transpose(1, 2).contiguous().transpose(1, 2);
      BOOST_TEST(at::equal(Convolution(w, b)(turned), Convolution(w, b)(x)));
    }
  });
  BOOST_TEST(Convolution(at::randn({2, 3, 3}), {})(at::randn({1, 3, 0})).numel() == 0);
  // The rest of a sequence, told what stands in front of it.
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const auto w = at::randn({8, 4, 5}).to(type), x = at::randn({2, 4, 30}).to(type);
    const Convolution convolution(w, {});
    const auto rest = convolution(x.narrow(2, 12, 18), x.narrow(2, 10, 2));
    BOOST_TEST(at::allclose(rest.to(at::kFloat), convolution(x).narrow(2, 12, 18).to(at::kFloat), 1e-2, 1e-5));
  }
}

BOOST_AUTO_TEST_CASE(linear_layers_are_those_of_the_library) {
  at::manual_seed(2);
  with_threads([] {
    for (const auto& [rows, in, out] : {std::array<std::int64_t, 3>{1, 5, 3}, {183, 96, 384}, {40, 384, 96}}) {
      const auto w = at::randn({out, in}), b = at::randn({out}), x = at::randn({2, rows, in});
      BOOST_TEST(largest(Linear(w, b)(x) - at::linear(x, w, b)) < 1e-5 * static_cast<double>(in));
      const auto half = w.to(at::kBFloat16), small = x.to(at::kBFloat16);
      BOOST_TEST(at::equal(Linear(half, {})(small), at::linear(small, half)));
    }
  });
}

BOOST_AUTO_TEST_CASE(bits_do_not_depend_on_the_number_of_threads) {
  at::manual_seed(3);
  kernels::Pool::of_process().set_cores(4);
  const auto w = at::randn({1603, 96}), b = at::randn({1603}), x = at::randn({2, 137, 96}),
             wave = at::randn({2, 96, 1001});
  const Linear linear(w, b);
  const Convolution convolution(at::randn({40, 96, 7}), at::randn({40}));
  use_threads(1);
  const auto rows = linear(x), sound = convolution(wave);
  for (const int threads : {2, 3, 4}) {
    use_threads(threads);
    BOOST_TEST(at::get_num_threads() == 1);
    const auto& pool = kernels::Pool::of_process();
    for (int round = 0; round < 5; ++round) {
      const auto before = pool.asked();
      BOOST_TEST(at::equal(linear(x), rows));
      const auto between = pool.asked();
      BOOST_TEST(between > before);
      BOOST_TEST(at::equal(convolution(wave), sound));
      BOOST_TEST(pool.asked() > between);
    }
    // A little of either wakes nobody.
    const auto asked = pool.asked();
    linear(x.narrow(1, 0, 4)), convolution(wave.narrow(2, 0, 40));
    BOOST_TEST(pool.asked() == asked);
  }
  use_threads(1);
  kernels::Pool::of_process().set_cores(0);
}

BOOST_AUTO_TEST_CASE(what_does_not_fit_is_refused) {
  const auto is = [](Errc code) { return [code](const Failure& f) { return f.error.code == code; }; };
  BOOST_CHECK_EXCEPTION(Linear(at::randn({4, 6}), {})(at::randn({2, 3})), Failure, is(Errc::invalid_argument));
  BOOST_CHECK_EXCEPTION(Linear(at::randn({4, 0}), {}), Failure, is(Errc::checkpoint_mismatch));
  BOOST_CHECK_EXCEPTION(Convolution(at::randn({4, 6, 3}), {})(at::randn({1, 5, 9})), Failure,
                        is(Errc::invalid_argument));
  BOOST_CHECK_EXCEPTION(Convolution(at::randn({4, 6, 2}), {}), Failure, is(Errc::checkpoint_mismatch));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::nn
