#define BOOST_TEST_MODULE bench_ranks
#include "services/cli/bench_ranks.hpp"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "common/nn/threads.hpp"

namespace parlando::cli {
namespace {
using nlohmann::json;

/// Odd where ranks can share it: a vocabulary that does not divide.
llm::Step1Config tiny() {
  llm::Step1Config c;
  c.hidden = 64, c.inner = 96, c.heads = 4, c.groups = 2, c.layers = 2, c.vocabulary = 333, c.length_max = 256;
  c.norm_eps = 1e-5;
  return c;
}

json measured(const RankBenchOptions& o) {
  const std::vector<float> memory(std::size_t{1} << 22, 1.0f);
  const auto figures = bench_ranks(o, memory);
  BOOST_REQUIRE_MESSAGE(figures.has_value(), (figures ? std::string() : figures.error().message));
  json out = {{"spread", json::object()}};
  for (const auto& figure : *figures) put(figure, out, out["spread"]);
  return out;
}
}  // namespace

BOOST_AUTO_TEST_CASE(two_ranks_and_one_are_told_with_the_spread_of_their_runs) {
  nn::use_threads(1);
  for (const auto format : {llm::WeightFormat::f32, llm::WeightFormat::bf16, llm::WeightFormat::int4}) {
    const auto out = measured({.config = tiny(), .format = format, .context = 20, .prefill = 40, .calls = 200});
    const std::vector<std::string> names = {"ranks_2_speedup", "ranks_2_prefill_speedup", "ranks_2_bandwidth_ratio",
                                            "all_reduce_us.p50", "all_reduce_us.p99"};
    for (const auto& name : names) BOOST_TEST_CONTEXT(name) {
        auto path = "/" + name;
        std::ranges::replace(path, '.', '/');
        const double value = out.at(json::json_pointer(path));
        const auto& spread = out.at("spread").at(name);
        const double low = spread.at("low"), median = spread.at("median"), high = spread.at("high");
        BOOST_TEST(low > 0);
        BOOST_TEST(low <= median);
        BOOST_TEST(median <= high);
        // Speeds are the fastest of the runs, times their median.
        BOOST_TEST(value == (name.starts_with("ranks") ? high : median));
      }
    BOOST_TEST(out.at("spread").size() == names.size());
    BOOST_TEST(out["all_reduce_us"]["p50"].get<double>() <= out["all_reduce_us"]["p99"].get<double>());
  }
}

BOOST_AUTO_TEST_CASE(what_cannot_be_measured_is_named) {
  auto odd = tiny();
  odd.inner = 95;
  const std::vector<float> memory(1024);
  const auto shape = bench_ranks({.config = odd, .context = 20, .prefill = 40}, memory);
  BOOST_REQUIRE(!shape.has_value());
  BOOST_TEST(shape.error().message.find("95") != std::string::npos, shape.error().message);
  const auto context = bench_ranks({.config = tiny(), .context = 41, .prefill = 40}, memory);
  BOOST_REQUIRE(!context.has_value());
  BOOST_TEST((context.error().code == Errc::invalid_argument));
}

}  // namespace parlando::cli
