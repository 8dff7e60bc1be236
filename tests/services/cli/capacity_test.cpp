#define BOOST_TEST_MODULE capacity
#include "services/cli/capacity.hpp"

#include <boost/test/unit_test.hpp>
#include <filesystem>

#include "common/checkpoint/safetensors.hpp"
#include "kernels/vector/isa.hpp"

namespace parlando::cli {
namespace {

llm::Step1Config tts_3b() { return *published_shape("tts-3b"); }
llm::Step1Config chat_130b() { return *published_shape("chat-130b"); }

}  // namespace

BOOST_AUTO_TEST_CASE(published_sizes_come_out) {
  BOOST_TEST(plan_capacity(tts_3b(), {}, {})->parameters / 1e9 == 3.53, boost::test_tools::tolerance(0.002));
  BOOST_TEST(plan_capacity(tts_3b(), {}, {})->kv_per_token == 32 * 1024);
  const auto chat = *plan_capacity(chat_130b(), {}, {.ranks = 4, .streams = 20});
  BOOST_TEST(chat.parameters / 1e9 == 131.94, boost::test_tools::tolerance(0.0001));
  BOOST_TEST(4 * chat.weights / 1e9 == 263.9, boost::test_tools::tolerance(0.001));
  BOOST_TEST(chat.kv_per_token == 88 * 1024);
  BOOST_TEST(chat.fits());
  // One such device is not enough, whatever the load.
  BOOST_TEST(!plan_capacity(chat_130b(), {}, {.ranks = 1})->fits());
  BOOST_TEST(plan_capacity(chat_130b(), {}, {.ranks = 1})->cache_tokens_max == 0);
}

BOOST_AUTO_TEST_CASE(the_weights_of_a_rank_are_those_of_its_files) {
  // What the checkpoint holds, tensor by tensor, is what is counted; in memory it is packed, to the byte, and what the
  // file has in 16 bits lies in as many.
  const std::filesystem::path nano = std::filesystem::path(PARLANDO_SOURCE_DIR) / "models/nano/Step-Audio-TTS-3B";
  const auto config = *llm::Step1Config::load(nano / "config.json");
  const auto file = checkpoint::read_safetensors(nano / "model.safetensors");
  BOOST_REQUIRE(file);
  std::int64_t elements = 0;
  for (const auto& [name, tensor] : file->tensors) elements += tensor.elements();
  const auto capacity = *plan_capacity(config, {}, {.context = 100, .weights = WeightFormat::f32});
  BOOST_TEST(capacity.parameters == elements);
  const auto model = *llm::Step1::load(nano, WeightFormat::f32);
  const auto norms = 4 * (2 * config.layers + 1) * config.hidden;
  const bool halves = kernels::isa() != kernels::Isa::plain;
  BOOST_TEST(capacity.weights == model->weight_bytes() + (halves ? model->decode_bytes() - norms : 0));
}

BOOST_AUTO_TEST_CASE(all_ranks_together_hold_the_model_once) {
  for (const int ranks : {1, 2, 4}) {
    const auto one = *plan_capacity(tts_3b(), {}, {.ranks = ranks});
    const std::int64_t norms = (2 * 32 + 1) * 3072;  // held by each, in fp32
    BOOST_TEST(ranks * (one.weights - 4 * norms) + 2 * norms == 2 * one.parameters, ranks << " ranks");
    BOOST_TEST(ranks * one.kv_per_token == 32 * 1024);
  }
  // More ranks than groups: a group's keys are held by several.
  BOOST_TEST(plan_capacity(tts_3b(), {}, {.ranks = 8})->kv_per_token == 8 * 1024);
}

BOOST_AUTO_TEST_CASE(what_is_planned_is_what_is_loaded) {
  llm::Step1Config config;
  config.hidden = 192, config.inner = 480, config.heads = 6, config.groups = 2, config.layers = 2;
  config.vocabulary = 1003, config.length_max = 512;
  for (const auto format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4}) {
    const auto model = *llm::Step1::random(config, format, 1);
    const auto capacity = *plan_capacity(config, {}, {.context = 100, .weights = format});
    BOOST_TEST(capacity.weights == model->weight_bytes(), kernels::name(format));
    BOOST_TEST(capacity.step_bytes - capacity.kv == model->decode_bytes(), kernels::name(format));
  }
  BOOST_TEST(plan_capacity(tts_3b(), {}, {.weights = WeightFormat::int4})->step_ms <
             plan_capacity(tts_3b(), {}, {.weights = WeightFormat::int8})->step_ms);
}

BOOST_AUTO_TEST_CASE(a_step_is_what_must_be_read_or_computed_and_exchanged) {
  const RankMachine machine{
      .bandwidth_gb_s = 1000, .bandwidth_share = 1, .tflops = 100, .link_gb_s = 100, .all_reduce_us = 10};
  const auto few = *plan_capacity(tts_3b(), machine, {.streams = 1, .context = 1000});
  BOOST_TEST(few.step_bytes == few.weights - 2 * 74752 * 3072 + few.kv);
  BOOST_TEST(few.read_ms == static_cast<double>(few.step_bytes) / 1e9, boost::test_tools::tolerance(1e-9));
  BOOST_TEST(few.exchange_ms == 0);
  BOOST_TEST(few.step_ms == few.read_ms);
  const auto two = *plan_capacity(tts_3b(), machine, {.ranks = 2, .streams = 1, .context = 1000});
  // 65 sums of 3072 values of two bytes: each link carries them once.
  BOOST_TEST(two.exchange_ms == 65 * (0.010 + 6144 / 1e8), boost::test_tools::tolerance(1e-9));
  BOOST_TEST(two.step_ms == two.read_ms + two.exchange_ms);
  BOOST_TEST(plan_capacity(tts_3b(), machine, {.streams = 4000, .context = 1})->compute_ms > few.read_ms);
}

BOOST_AUTO_TEST_CASE(what_makes_no_sense_is_refused) {
  BOOST_TEST(plan_capacity(tts_3b(), {}, {.streams = 0}).error().message == "streams is 0, expected more than 0");
  BOOST_TEST(plan_capacity(tts_3b(), {}, {.context = 40000}).error().message ==
             "a context of 40000 tokens, the model has at most 32768");
  BOOST_TEST(plan_capacity(tts_3b(), {.bandwidth_gb_s = 0}, {}).error().message ==
             "bandwidth is 0, expected more than 0");
  BOOST_TEST(!plan_capacity(tts_3b(), {}, {.ranks = 5}));
  BOOST_TEST(published_shape("gpt").error().message == "shape 'gpt', expected chat-130b or tts-3b");
  BOOST_TEST(weight_format("fp8").error().message == "format 'fp8', expected f32, bf16, int8 or int4");
}

}  // namespace parlando::cli
