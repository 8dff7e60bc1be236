/// Pieces of prompts by what passes have cost, on a clock that counts tokens.
#include "services/llm/model/step_cost.hpp"

#include <boost/test/unit_test.hpp>
#include <random>

#include "services/llm/model/engine.hpp"

namespace parlando::llm {
namespace {

/// A machine on which a pass takes what `of` says.
template <class F>
std::int64_t settled(StepCost& cost, std::int64_t decoding, F&& of) {
  std::int64_t room = 0;
  for (int i = 0; i < 60; ++i) {
    cost.observe(decoding, 0, of(decoding, 0));
    room = cost.room(decoding);
    cost.observe(decoding, room, of(decoding, room));
  }
  return cost.room(decoding);
}

/// Every token of a pass costs a millisecond.
struct Priced final : Clock {
  const LmEngine* engine = nullptr;
  Time now() const override {
    return Time{std::chrono::hours(1)} + milliseconds(engine == nullptr ? 0 : engine->tokens_computed());
  }
};

std::vector<std::int32_t> some_ids(int n, int seed) {
  std::vector<std::int32_t> out;
  for (int i = 0; i < n; ++i) out.push_back((i * 37 + seed * 101) % 640);
  return out;
}

void begin(LmEngine& engine, const std::string& name, int length, std::int64_t tokens, Priority priority) {
  BOOST_REQUIRE(engine.open(name).has_value());
  BOOST_REQUIRE(engine.append(name, 0, some_ids(length, 1)).has_value());
  BOOST_REQUIRE(engine.generate(name, length, {Sampling::greedy(), tokens, {}, priority}).has_value());
}

std::shared_ptr<const Step1> cost_model() {
  static const auto loaded =
      Step1::load(std::filesystem::path(PARLANDO_SOURCE_DIR) / "tests/goldens/lm/tiny-step1-np2", WeightFormat::f32);
  BOOST_REQUIRE(loaded.has_value());
  return *loaded;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(step_cost_test)

BOOST_AUTO_TEST_CASE(pieces_fill_the_time_of_a_step_and_no_more) {
  // 2 ms a pass and 0.5 ms a token: 50 ms have room for about 96 tokens.
  StepCost cost(0.050, 1.25);
  const auto room = settled(cost, 4, [](auto d, auto p) { return 0.002 + 0.0005 * static_cast<double>(d + p); });
  BOOST_TEST(room >= 70);
  BOOST_TEST(room <= 96);
}

BOOST_AUTO_TEST_CASE(where_a_step_is_long_anyway_it_grows_by_a_quarter) {
  // A large model: 170 ms for the weights, 13 ms a token.
  StepCost cost(0.050, 1.25);
  const auto room = settled(cost, 8, [](auto d, auto p) { return 0.170 + 0.013 * static_cast<double>(d + p); });
  const double grown = 0.013 * static_cast<double>(room) / (0.170 + 0.013 * 8);
  BOOST_TEST(grown <= 0.4);  // the least piece is 8 tokens
  BOOST_TEST(room >= StepCost::kLeast);
}

BOOST_AUTO_TEST_CASE(while_nobody_speaks_pieces_are_not_tiny) {
  // The weights alone take longer than a step should: pieces of 8 tokens would read them 250 times for 2000.
  StepCost cost(0.050, 1.25);
  cost.observe(0, 1, 0.181);  // the token that says that the model is ready
  std::int64_t room = 0;
  for (int i = 0; i < 60; ++i) {
    room = cost.room(0);
    cost.observe(0, room, 0.165 + 0.016 * static_cast<double>(room));
  }
  BOOST_TEST(room >= StepCost::kAlone);
}

BOOST_AUTO_TEST_CASE(a_machine_that_becomes_slow_is_noticed_at_once) {
  StepCost cost(0.050, 1.25);
  settled(cost, 1, [](auto, auto p) { return 0.001 + 0.0001 * static_cast<double>(p); });
  const auto before = cost.room(1);
  cost.observe(1, 100, 1.0);
  BOOST_TEST(cost.room(1) < before / 4);
}

/// Those who speak were seen while the machine was busy: every pass with a piece is faster than they were.
BOOST_AUTO_TEST_CASE(a_token_is_not_free_because_a_pass_was_fast) {
  StepCost cost(0.050, 1.25);
  for (int i = 0; i < 10; ++i) cost.observe(4, 0, 0.030);
  double longest = 0;
  for (int i = 0; i < 60; ++i) {
    const auto room = cost.room(4);
    const auto seconds = 0.010 + 0.0004 * static_cast<double>(room);
    cost.observe(4, room, seconds);
    longest = std::max(longest, seconds);
  }
  BOOST_TEST(longest <= 0.051);
  BOOST_TEST(cost.room(4) >= 80);  // 100 are what 50 ms have room for
  // The first piece that is seen has a price, too.
  StepCost fresh(0.050, 1.25);
  fresh.observe(2, 0, 0.020);
  fresh.observe(2, 16, 0.019);
  BOOST_TEST(fresh.room(2) == 26);  // (50 - 19) ms at 19 / 16 ms
}

/// A pass takes 10 to 30 ms whatever it does: accidents make pieces neither tiny nor long.
BOOST_AUTO_TEST_CASE(on_a_busy_machine_pieces_stay_what_they_should_be) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      const auto pass = [&](std::int64_t prefilled) {
        return 0.010 + 0.020 * static_cast<double>(random() % 1000) / 1000 + 0.0004 * static_cast<double>(prefilled);
      };
      StepCost cost(0.050, 1.25);
      std::int64_t most = 0, least = 1000;
      for (int i = 0; i < 400; ++i) {
        cost.observe(4, 0, pass(0));
        const auto room = cost.room(4);
        cost.observe(4, room, pass(room));
        if (i < 50) continue;
        most = std::max(most, room), least = std::min(least, room);
      }
      BOOST_TEST(most <= 125);  // with one of the faster passes 60 ms
      BOOST_TEST(least >= 16);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_long_prompt_does_not_hold_up_those_who_speak) {
  auto clock = std::make_shared<Priced>();
  LmEngine engine(cost_model(), {.cache_tokens = 2048, .step_max = milliseconds(24)}, clock);
  clock->engine = &engine;
  for (int n = 0; n < 4; ++n) begin(engine, "voice " + std::to_string(n), 8, 120, Priority::speech);
  while (engine.step().size() < 4) {
  }
  begin(engine, "long", 400, 1, Priority::reply);
  std::int64_t worst = 0, steps = 0;
  for (bool told = false; !told; ++steps) {
    BOOST_REQUIRE(steps < 100);
    const auto before = engine.tokens_computed();
    std::int64_t spoken = 0;
    for (const auto& event : engine.step()) {
      spoken += event.sequence.starts_with("voice") && event.id >= 0;
      told |= event.sequence == "long";
    }
    BOOST_TEST(spoken == 4);  // every voice in every step
    if (steps >= 3) worst = std::max(worst, engine.tokens_computed() - before);
  }
  BOOST_TEST(worst <= 24);
  BOOST_TEST(steps >= 400 / 24);
}

BOOST_AUTO_TEST_CASE(of_one_class_what_is_due_first_goes_first) {
  LmEngine engine(cost_model(), {.cache_tokens = 1024, .prefill_chunk = 8, .batch_tokens = 8},
                  std::make_shared<ManualClock>());
  begin(engine, "late", 16, 1, Priority::reply), begin(engine, "early", 16, 1, Priority::reply);
  begin(engine, "speech", 16, 1, Priority::speech);
  const Time now{std::chrono::hours(1)};
  engine.due("late", now + milliseconds(900)), engine.due("early", now + milliseconds(300));
  std::vector<std::string> order;
  while (!engine.idle())
    for (const auto& event : engine.step()) order.push_back(event.sequence);
  BOOST_TEST(order == (std::vector<std::string>{"speech", "early", "late"}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(what_is_cancelled_is_not_in_the_next_step) {
  LmEngine engine(cost_model(), {.cache_tokens = 1024, .prefill_chunk = 8}, std::make_shared<ManualClock>());
  begin(engine, "gone", 200, 5, Priority::speech), begin(engine, "stays", 8, 3, Priority::reply);
  engine.step();
  engine.cancel("gone"), engine.release("gone");
  std::int64_t told = 0;
  while (!engine.idle())
    for (const auto& event : engine.step()) {
      BOOST_TEST(event.sequence == "stays");
      ++told;
    }
  BOOST_TEST(told >= 2);
  engine.release("stays");
  BOOST_TEST(engine.blocks_free() == 1024 / kBlockTokens);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::llm
