#define BOOST_TEST_MODULE rank_backend
#include "services/llm/model/rank_backend.hpp"

#include <signal.h>

#include <boost/test/unit_test.hpp>

#include <limits>
#include <set>

#include "common/checkpoint/safetensors.hpp"
#include "common/parallel/shm_communicator.hpp"
#include "services/llm/model/cpu_backend.hpp"
#include "services/llm/model/engine.hpp"
#include "tests/support/temporary_directory.hpp"

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

std::map<std::string, std::vector<std::int32_t>> alone(WeightFormat format, bool greedy,
                                                       const std::filesystem::path& directory = kModel) {
  auto model = Step1::load(directory, format);
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

/// Every way to draw, behind one prompt; one of them looks at ids of the history.
StepPlan all_draws(bool whole_vocabulary) {
  std::vector<std::int32_t> ids{1}, blocks{0, 1, 2};
  for (int i = 1; i < 40; ++i) ids.push_back(4 + (i * 37) % 600);
  StepPlan plan;
  plan.add(ids, 0, blocks);
  auto penalised = Sampling::tts();
  penalised.repetition_penalty = 1.4, penalised.temperature = 1.3;
  Sampling wide{.temperature = 1.5, .top_k = 350}, plain{.temperature = 1, .top_k = {}},
      nucleus{.temperature = 1.2, .top_k = {}, .top_p = 0.95}, more_than_all{.temperature = 1, .top_k = 1 << 20};
  std::vector<Sampling> settings{Sampling::greedy(), Sampling::chat(), Sampling::tts(), penalised};
  if (whole_vocabulary)
    for (const auto& s : {wide, plain, nucleus, more_than_all}) settings.push_back(s);
  for (const auto& s : settings)
    for (std::uint64_t n = 0; n < 6; ++n) {
      auto seeded = s;
      seeded.seed = n;
      plan.draw(ids, seeded, 40 + n);
    }
  return plan;
}

std::vector<std::int32_t> ids_of(const std::vector<Drawn>& drawn) {
  std::vector<std::int32_t> out;
  for (const auto& one : drawn) out.push_back(one.error ? -2 : one.id);
  return out;
}

/// Counts what its rank gives to be gathered.
class Counting : public parallel::Communicator {
 public:
  explicit Counting(std::unique_ptr<parallel::Communicator> group) : group_(std::move(group)) {}
  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  Result<void> all_reduce(std::span<float> v, Time t) override { return group_->all_reduce(v, t); }
  Result<void> all_reduce(std::span<parallel::Bf16> v, Time t) override { return group_->all_reduce(v, t); }
  Result<void> all_gather(std::span<const std::byte> own, std::span<std::byte> all, Time t) override {
    gathered += own.size();
    return group_->all_gather(own, all, t);
  }
  Result<void> broadcast(std::span<std::byte> b, int root, Time t) override { return group_->broadcast(b, root, t); }
  void abort(const std::string& reason) override { group_->abort(reason); }
  std::string broken() const override { return group_->broken(); }
  std::size_t gathered = 0;

 private:
  std::unique_ptr<parallel::Communicator> group_;
};

}  // namespace

BOOST_AUTO_TEST_CASE(every_way_to_draw_gives_the_ids_of_one_rank) {
  const auto plan = all_draws(true);
  const auto model = Step1::load(kModel, WeightFormat::f32);
  BOOST_REQUIRE(model);
  CpuBackend alone(*model, kCacheTokens / kBlockTokens);
  const auto want = alone.run(plan);
  BOOST_REQUIRE(want);
  const auto ids = ids_of(*want);
  BOOST_TEST(std::set(ids.begin(), ids.end()).size() > 5u);
  for (const int ranks : {2, 4}) {
    auto group = start(options(ranks));
    for (int again = 0; again < 2; ++again) {  // the second time over memory that was used
      const auto got = group->run(plan);
      BOOST_REQUIRE(got);
      BOOST_TEST(ids_of(*got) == ids, boost::test_tools::per_element());
    }
  }
}

BOOST_AUTO_TEST_CASE(of_the_vocabulary_candidates_alone_are_gathered) {
  const auto plan = all_draws(false);
  const auto region = parallel::SharedRegion::create(2, 1 << 20);
  BOOST_REQUIRE(region);
  std::size_t gathered[2] = {};
  std::vector<Drawn> drawn[2];
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < 2; ++rank)
      threads.emplace_back([&, rank] {
        Counting group(*parallel::ShmCommunicator::join(*region, rank, {}));
        RankPart part(*Step1::load(kModel, WeightFormat::f32, rank, 2), 8);
        if (auto done = part.run(plan, group)) drawn[rank] = *std::move(done);
        gathered[rank] = group.gathered;
        std::byte all[2];  // who leaves first breaks the group for the other
        (void)group.all_gather({all, 1}, all, SteadyClock().now() + std::chrono::seconds(20));
      });
  }
  BOOST_TEST(drawn[0].size() == plan.draws.size());
  BOOST_TEST(drawn[1].empty());
  for (const auto bytes : gathered) {
    BOOST_TEST(bytes > 0u);
    // A number and an id for each of 50, a few that are nearly equal, and how many there are; the part has 1167 ids.
    BOOST_TEST(bytes <= plan.draws.size() * (55 * 8 + 12));
  }
}

BOOST_AUTO_TEST_CASE(a_logit_that_is_no_number_fails_its_draw_and_not_the_group) {
  const auto source = std::filesystem::path(PARLANDO_SOURCE_DIR) / "tests/goldens/lm/tiny-step1-np2";
  constexpr std::int32_t kBad = 600;  // of the second rank
  const TemporaryDirectory folder;
  std::filesystem::copy_file(source / "config.json", folder.path() / "config.json");
  auto file = checkpoint::read_safetensors_model(source);
  BOOST_REQUIRE(file);
  auto& head = file->tensors.at("lm_head.weight");
  auto values = checkpoint::to_f32(head);
  BOOST_REQUIRE(values);
  values->at(static_cast<std::size_t>(kBad * head.shape[1])) = std::numeric_limits<float>::quiet_NaN();
  head = checkpoint::make_f32(head.shape, *std::move(values));
  BOOST_REQUIRE(checkpoint::write_safetensors(folder.path() / "model.safetensors", file->tensors));
  auto group = start({folder.path(), WeightFormat::f32, 2, 1, 8, {}});
  for (int again = 0; again < 2; ++again) {
    const auto got = group->run(all_draws(true));
    BOOST_REQUIRE(got);
    for (const auto& one : *got) {
      BOOST_REQUIRE(one.error);
      BOOST_TEST((one.error->code == Errc::internal));
      BOOST_TEST(one.error->message.find("id 600") != std::string::npos, one.error->message);
    }
  }
}

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

BOOST_AUTO_TEST_CASE(packed_files_are_shared_and_say_what_one_rank_says) {
  for (const auto format : {WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4}) {
    const TemporaryDirectory folder;
    {
      const auto model = Step1::load(kModel, format);
      BOOST_REQUIRE(model);
      BOOST_REQUIRE((*model)->save(folder.path()));
      std::filesystem::copy_file(kModel / "config.json", folder.path() / "config.json");
    }
    const auto want = alone(format, true, folder.path());
    for (const int ranks : {2, 4}) {
      auto o = options(ranks, format, ranks == 2 ? PARLANDO_LLM : "");
      o.directory = folder.path();
      const auto got = shared(o, true);
      for (const auto& [name, ids] : want) {
        BOOST_TEST_CONTEXT(kernels::name(format) << ", ranks " << ranks << ", " << name) {
          BOOST_TEST(!ids.empty());
          BOOST_TEST(got.at(name) == ids, boost::test_tools::per_element());
        }
      }
    }
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
