#define BOOST_TEST_MODULE rank_backend
#include "services/llm/model/rank_backend.hpp"

#include <signal.h>

#include <boost/test/unit_test.hpp>

#include "services/llm/model/engine.hpp"

namespace parlando::llm {
namespace {

const std::filesystem::path kModel = std::filesystem::path(PARLANDO_SOURCE_DIR) / "models/nano/Step-Audio-Chat";
constexpr std::int64_t kCacheTokens = 4096;

RankBackend::Options options(int ranks, WeightFormat format = WeightFormat::f32, std::string program = {}) {
  return {kModel, format, ranks, 1, kCacheTokens / kBlockTokens, std::move(program)};
}

std::unique_ptr<RankBackend> start(const RankBackend::Options& o) {
  auto out = RankBackend::start(o);
  BOOST_REQUIRE_MESSAGE(out, (out ? "" : out.error().message));
  return *std::move(out);
}

/// Prompts in pieces beside those who generate, a fork that goes on from the middle, all greedy or drawn by a seed.
/// @return ids of each sequence, and an error of the engine's as −2
std::map<std::string, std::vector<std::int32_t>> talk(LmEngine& engine, bool greedy) {
  std::map<std::string, std::vector<std::int32_t>> out;
  auto sampling = greedy ? Sampling::greedy() : Sampling::chat();
  sampling.repetition_aware = !greedy;
  sampling.seed = 5;
  const auto begin = [&](const std::string& name, int length, int seed) {
    std::vector<std::int32_t> ids{1};
    for (int i = 1; i < length; ++i) ids.push_back(4 + (i * 37 + seed * 101) % 900);
    BOOST_REQUIRE(engine.open(name));
    BOOST_REQUIRE(engine.append(name, 0, ids));
    BOOST_REQUIRE(engine.generate(name, length, {sampling, 24}));
  };
  const auto run = [&](int steps) {
    for (int n = 0; n < steps && !engine.idle(); ++n)
      for (const auto& event : engine.step()) out[event.sequence].push_back(event.error ? -2 : event.id);
  };
  begin("a", 70, 1);
  run(10);
  begin("b", 33, 2);
  BOOST_REQUIRE(engine.fork("a", 40, "c"));
  BOOST_REQUIRE(engine.generate("c", 40, {sampling, 24}));
  begin("d", 5, 3);
  run(200);
  BOOST_TEST(engine.idle());
  return out;
}

std::map<std::string, std::vector<std::int32_t>> alone(WeightFormat format, bool greedy) {
  auto model = Step1::load(kModel, format);
  BOOST_REQUIRE(model);
  LmEngine engine(*model, {.cache_tokens = kCacheTokens, .prefill_chunk = 16});
  return talk(engine, greedy);
}

std::map<std::string, std::vector<std::int32_t>> shared(const RankBackend::Options& o, bool greedy) {
  auto group = start(o);
  const auto part = group->part();
  LmEngine engine(part, {.cache_tokens = kCacheTokens, .prefill_chunk = 16}, std::make_shared<SteadyClock>(),
                  std::move(group));
  return talk(engine, greedy);
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_group_says_what_one_says) {
  for (const bool greedy : {true, false}) {
    const auto want = alone(WeightFormat::f32, greedy);
    BOOST_TEST(want.size() == 4u);
    for (const auto& [name, ids] : want) BOOST_TEST(!ids.empty());
    for (const int ranks : {2, 4}) BOOST_TEST_CONTEXT("greedy " << greedy << ", ranks " << ranks) {
        const auto got = shared(options(ranks), greedy);
        for (const auto& [name, ids] : want) BOOST_TEST(got.at(name) == ids, boost::test_tools::per_element());
      }
  }
}

BOOST_AUTO_TEST_CASE(ranks_may_be_processes) {
  const auto want = alone(WeightFormat::f32, true);
  const auto got = shared(options(2, WeightFormat::f32, PARLANDO_LLM), true);
  for (const auto& [name, ids] : want) BOOST_TEST(got.at(name) == ids, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(every_format_can_be_shared) {
  for (const auto format : {WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4})
    for (const auto& [name, ids] : shared(options(2, format), true)) {
      BOOST_TEST(!ids.empty());
      for (const auto id : ids) BOOST_TEST(id >= 0);
    }
}

BOOST_AUTO_TEST_CASE(a_rank_that_dies_or_stands_still_breaks_the_group) {
  for (const int number : {SIGKILL, SIGSTOP}) {
    BOOST_TEST_CONTEXT("signal " << number) {
      auto group = start(options(2, WeightFormat::f32, PARLANDO_LLM));
      BOOST_REQUIRE(group->processes().size() == 1u);
      StepPlan plan;
      const std::vector<std::int32_t> ids{1, 5, 9}, blocks{0};
      plan.add(ids, 0, blocks);
      plan.draw(ids, Sampling::greedy(), 3);
      BOOST_REQUIRE(group->run(plan));
      ::kill(group->processes().front(), number);
      const auto begun = SteadyClock().now();
      const auto got = group->run(plan);
      BOOST_REQUIRE(!got);
      BOOST_TEST((got.error().code == Errc::unavailable || got.error().code == Errc::deadline_exceeded));
      BOOST_TEST(!group->broken().empty());
      // Within a second on a machine that has time; far below what an exchange may take.
      BOOST_TEST((SteadyClock().now() - begun < std::chrono::seconds(10)));
      BOOST_TEST(!group->run(plan));
    }
  }
}

BOOST_AUTO_TEST_CASE(what_cannot_be_shared_is_refused_by_name) {
  const auto three = RankBackend::start(options(3));
  BOOST_REQUIRE(!three);
  BOOST_TEST((three.error().code == Errc::invalid_argument));
  BOOST_TEST(three.error().message.find("4 heads") != std::string::npos);
  const auto nowhere = RankBackend::start({"/nowhere", WeightFormat::f32, 2, 1, 16, {}});
  BOOST_REQUIRE(!nowhere);
  BOOST_TEST((nowhere.error().code == Errc::not_found));
  const auto program = RankBackend::start(options(2, WeightFormat::f32, "/nowhere/parlando-llm"));
  BOOST_REQUIRE(!program);
  BOOST_TEST(program.error().message.find("/nowhere/parlando-llm") != std::string::npos);
  // One that ends before it has joined is not waited for.
  const auto begun = SteadyClock().now();
  const auto gone = RankBackend::start(options(2, WeightFormat::f32, "/bin/false"));
  BOOST_REQUIRE(!gone);
  BOOST_TEST(gone.error().message.find("exit code 1") != std::string::npos);
  BOOST_TEST((SteadyClock().now() - begun < std::chrono::seconds(20)));
  // A plan that no rank can run harms nobody.
  auto group = start(options(2));
  StepPlan plan;
  const std::vector<std::int32_t> ids{1}, blocks{kCacheTokens};
  plan.add(ids, 0, blocks);
  BOOST_TEST(!group->run(plan));
  BOOST_TEST(group->broken().empty());
}

}  // namespace parlando::llm
