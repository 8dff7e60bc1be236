/// Plans as bytes, and plans of an engine run again by another backend.
#include "services/llm/model/step_plan.hpp"

#include <boost/test/unit_test.hpp>
#include <random>

#include "services/llm/model/engine.hpp"

namespace parlando::llm {
namespace {

Step1Config plan_config() {
  Step1Config c;
  c.hidden = 96, c.inner = 192, c.heads = 12, c.groups = 4, c.layers = 2, c.vocabulary = 640, c.length_max = 256;
  return c;
}

StepPlan random_plan(std::mt19937& random) {
  auto pick = [&](std::int64_t last) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(last + 1));
  };
  StepPlan out;
  out.step = pick(1 << 20);
  std::int32_t block = 0;
  for (auto n = pick(4); n > 0; --n) {
    std::vector<std::int32_t> ids, blocks, history;
    for (auto i = 1 + pick(40); i > 0; --i) ids.push_back(static_cast<std::int32_t>(pick(639)));
    const auto first = pick(100);
    for (std::int64_t b = 0; b * kBlockTokens < first + static_cast<std::int64_t>(ids.size()); ++b)
      blocks.push_back(block++);
    out.add(ids, first, blocks);
    for (auto i = pick(30); i > 0; --i) history.push_back(static_cast<std::int32_t>(pick(639)));
    Sampling s;
    s.seed = random(), s.temperature = pick(1) == 0 ? 0.0 : 0.5;
    if (pick(1) == 0) s.top_k.reset();
    if (pick(1) == 0) s.top_p = 0.25;
    if (pick(1) == 0) s.repetition_penalty = 1.5;
    s.repetition_aware = pick(1) == 0;
    if (pick(2) > 0) out.draw(history, s, static_cast<std::uint64_t>(first) + ids.size());
  }
  for (auto n = pick(3); n > 0; --n) out.copies.push_back({block++, block++});
  return out;
}

/// Runs plans and keeps them, as bytes, with what came of them.
struct Recorder : Backend {
  CpuBackend own;
  std::vector<std::vector<std::byte>>& plans;
  std::vector<std::vector<std::int32_t>>& ids;
  Recorder(std::shared_ptr<const Step1> m, std::int64_t blocks, std::vector<std::vector<std::byte>>& p,
           std::vector<std::vector<std::int32_t>>& i)
      : own(std::move(m), blocks), plans(p), ids(i) {}
  std::int64_t blocks() const override { return own.blocks(); }
  Result<std::vector<Drawn>> run(const StepPlan& plan) override {
    plans.push_back(plan.encode());
    PARLANDO_TRY(auto out, own.run(plan));
    ids.emplace_back();
    for (const auto& drawn : out) ids.back().push_back(drawn.id);
    return out;
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(step_plan_test)

BOOST_AUTO_TEST_CASE(bytes_give_the_plan_and_a_plan_its_bytes) {
  for (unsigned seed = 1; seed <= 300; ++seed) {
    std::mt19937 random(seed);
    const auto plan = random_plan(random);
    const auto bytes = plan.encode();
    const auto again = StepPlan::decode(bytes);
    BOOST_REQUIRE_MESSAGE(again.has_value(), "seed " << seed << ": " << (again ? "" : again.error().message));
    BOOST_TEST((*again == plan), "seed " << seed);
    BOOST_TEST((again->encode() == bytes), "seed " << seed);
    BOOST_TEST(plan.check(plan_config(), 1000).has_value(), "seed " << seed);
  }
}

BOOST_AUTO_TEST_CASE(malformed_bytes_are_an_error_or_another_plan) {
  int refused = 0, read = 0;
  for (unsigned seed = 1; seed <= 200; ++seed) {
    std::mt19937 random(seed);
    const auto bytes = random_plan(random).encode();
    for (std::size_t n = 0; n < bytes.size(); n += 1 + n / 7)
      BOOST_TEST(static_cast<int>(StepPlan::decode(std::span(bytes).first(n)).error().code) ==
                 static_cast<int>(Errc::bad_format));
    auto longer = bytes;
    longer.push_back(std::byte{0});
    BOOST_TEST(!StepPlan::decode(longer).has_value());
    for (int change = 0; change < 50; ++change) {
      auto other = bytes;
      other[random() % other.size()] = static_cast<std::byte>(random());
      const auto plan = StepPlan::decode(other);
      plan ? ++read : ++refused;
      if (plan)
        BOOST_TEST((plan->encode() == other), "seed " << seed);
      else
        BOOST_TEST(static_cast<int>(plan.error().code) == static_cast<int>(Errc::bad_format));
    }
  }
  BOOST_TEST(refused > 1000);
  BOOST_TEST(read > 1000);
}

BOOST_AUTO_TEST_CASE(what_a_model_cannot_run_is_named) {
  const std::vector<std::int32_t> ids = {1, 2, 3}, blocks = {4};
  const auto message = [&](auto&& change) {
    StepPlan plan;
    plan.add(ids, 5, blocks);
    plan.draw({}, Sampling::greedy(), 8);
    change(plan);
    const auto checked = plan.check(plan_config(), 8);
    return checked ? std::string() : checked.error().message;
  };
  BOOST_TEST(message([](StepPlan&) {}) == "");
  BOOST_TEST(message([](StepPlan& p) { p.ids[1] = 640; }) == "token id 640 is outside the vocabulary of 640");
  BOOST_TEST(message([](StepPlan& p) { p.tables[0] = 8; }) == "a plan names block 8 of 8");
  BOOST_TEST(message([](StepPlan& p) { p.copies.push_back({0, -1}); }) == "a plan copies block 0 to -1 of 8");
  BOOST_TEST(message([](StepPlan& p) { p.draws[0].row = 3; }) == "a plan draws behind row 3, it has 3");
  BOOST_TEST(message([](StepPlan& p) { p.pieces[0].first = 255; }).find("has 1 blocks, expected 17") !=
             std::string::npos);
  BOOST_TEST(message([&](StepPlan& p) { p.add(ids, 0, blocks); }) == "a plan writes block 4 for two sequences");
  const std::vector<std::int32_t> many(17, 0);
  BOOST_TEST(message([&](StepPlan& p) { p.add(ids, 254, many); }) ==
             "the sequence would have 257 tokens, the model takes 256");
}

BOOST_AUTO_TEST_CASE(recorded_plans_give_the_same_ids_elsewhere) {
  for (const auto format : {WeightFormat::f32, WeightFormat::bf16}) {
    const auto model = *Step1::random(plan_config(), format, 5);
    std::vector<std::vector<std::byte>> plans;
    std::vector<std::vector<std::int32_t>> ids;
    constexpr std::int64_t kBlocks = 24;
    LmEngine engine(model,
                    {.prefill_chunk = 24, .batch_tokens = 64, .prefix_blocks = 8, .step_max = std::chrono::hours(1)},
                    std::make_shared<SteadyClock>(), std::make_unique<Recorder>(model, kBlocks, plans, ids));
    BOOST_TEST(engine.blocks_free() == kBlocks);
    std::mt19937 random(9);
    auto some = [&](int n) {
      std::vector<std::int32_t> out;
      for (int i = 0; i < n; ++i) out.push_back(static_cast<std::int32_t>(random() % 640));
      return out;
    };
    // Shared beginnings, copies on write, a cache that is too small, several ways to draw.
    BOOST_REQUIRE(engine.open("a").has_value());
    engine.share("a", {37, {}});
    BOOST_REQUIRE(engine.append("a", 0, some(37)).has_value());
    engine.step(), engine.step();
    for (int n = 0; n < 6; ++n) {
      const auto name = std::to_string(n);
      BOOST_REQUIRE(engine.fork("a", 37 - n, name).has_value());
      BOOST_REQUIRE(engine.append(name, 37 - n, some(3 * n)).has_value());
      auto sampling = n % 2 == 0 ? Sampling::tts() : Sampling::chat();
      sampling.seed = random();
      if (n == 3) sampling.repetition_penalty = 1.2;
      BOOST_REQUIRE(engine.generate(name, 37 + 2 * n, {sampling, 60, {}}).has_value());
    }
    while (!engine.idle()) engine.step();
    BOOST_REQUIRE(plans.size() == ids.size());
    std::int64_t drawn = 0, copied = 0;
    CpuBackend other(model, kBlocks);
    for (std::size_t n = 0; n < plans.size(); ++n) {
      const auto plan = StepPlan::decode(plans[n]);
      BOOST_REQUIRE(plan.has_value());
      const auto out = other.run(*plan);
      BOOST_REQUIRE_MESSAGE(out.has_value(), (out ? std::string() : out.error().message));
      BOOST_REQUIRE(out->size() == ids[n].size());
      for (std::size_t i = 0; i < out->size(); ++i) BOOST_TEST((*out)[i].id == ids[n][i]);
      drawn += static_cast<std::int64_t>(out->size()), copied += static_cast<std::int64_t>(plan->copies.size());
    }
    BOOST_TEST(drawn > 100);
    BOOST_TEST(copied > 2);
    BOOST_TEST(engine.counts().gave_way > 0);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::llm
