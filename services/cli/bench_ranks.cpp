#include "services/cli/bench_ranks.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "common/parallel/shm_communicator.hpp"
#include "kernels/memory/read_stream.hpp"
#include "services/cli/bench_setting.hpp"
#include "services/llm/model/cpu_backend.hpp"
#include "services/llm/model/rank_backend.hpp"

namespace parlando::cli {
using llm::Step1;
using nlohmann::json;

namespace {
constexpr int kRanks = 2;
constexpr std::size_t kReduced = 3072;              // floats, 12 KB: a row of the 3B shape
constexpr std::size_t kReduceSlotBytes = 1u << 20;  // as groups have it
constexpr int kWarmUpCalls = 1000;
constexpr std::chrono::seconds kCallMax{5};
constexpr std::int64_t kReadLeast = std::int64_t{1} << 20;  // floats of a thread

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Figure of_runs(std::string name, double value, const std::vector<double>& runs, const char* unit) {
  return {std::move(name), value, quantile(runs, 0), quantile(runs, 0.5), quantile(runs, 1), unit};
}

/// How many times faster `after` is: the fastest runs of both, and all of `after` against the fastest of `before`.
Figure speedup(std::string name, const std::vector<double>& before, const std::vector<double>& after) {
  const auto one = quantile(before, 0);
  std::vector<double> runs;
  for (const auto s : after) runs.push_back(one / s);
  const auto best = quantile(runs, 1);
  return of_runs(std::move(name), best, runs, "×");
}

Result<double> seconds_of(llm::Backend& backend, const llm::StepPlan& plan) {
  const auto start = Clock::now();
  PARLANDO_TRY(const auto drawn, backend.run(plan));
  const auto seconds = seconds_since(start);
  for (const auto& one : drawn)
    if (one.error) return tl::make_unexpected(*one.error);
  return seconds;
}

/// Ids behind those that are computed, and a draw.
llm::StepPlan plan_of(const llm::Step1Config& config, std::int64_t first, std::int64_t last) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(last - first)),
      blocks(static_cast<std::size_t>((last + llm::kBlockTokens - 1) / llm::kBlockTokens));
  for (std::size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<std::int32_t>((i * 7919 + 11) % static_cast<std::size_t>(config.vocabulary));
  std::iota(blocks.begin(), blocks.end(), 0);
  llm::StepPlan plan;
  plan.add(ids, first, blocks);
  plan.draw({}, llm::Sampling::greedy(), static_cast<std::uint64_t>(last));
  return plan;
}

Result<void> compare(const RankBenchOptions& o, std::vector<Figure>& out) {
  const auto blocks = (o.prefill + llm::kBlockTokens - 1) / llm::kBlockTokens;
  PARLANDO_TRY(const auto model, Step1::random(o.config, o.format, 1));
  llm::CpuBackend alone(model, blocks);
  PARLANDO_TRY(
      const auto group,
      llm::RankBackend::start(
          {.format = o.format, .ranks = kRanks, .threads = o.threads, .blocks = blocks, .part = [&o](int rank) {
             return Step1::random(o.config, o.format, 1, rank, kRanks);
           }}));
  const auto prefill = plan_of(o.config, 0, o.prefill), decode = plan_of(o.config, o.context - 1, o.context);
  const auto by_turns = [&](const llm::StepPlan& plan, int runs) -> Result<std::array<std::vector<double>, 2>> {
    std::array<std::vector<double>, 2> times;
    for (int i = 0; i <= runs; ++i) {
      PARLANDO_TRY(const auto one, seconds_of(alone, plan));
      PARLANDO_TRY(const auto two, seconds_of(*group, plan));
      if (i > 0) times[0].push_back(one), times[1].push_back(two);  // the first touches the memory
    }
    return times;
  };
  // The prefill fills the cache that the steps read.
  PARLANDO_TRY(const auto prompts, by_turns(prefill, o.runs));
  PARLANDO_TRY(const auto steps, by_turns(decode, 2 * o.runs));
  out.push_back(speedup("ranks_2_speedup", steps[0], steps[1]));
  out.push_back(speedup("ranks_2_prefill_speedup", prompts[0], prompts[1]));
  return {};
}

void bandwidth(const RankBenchOptions& o, std::span<const float> memory, std::vector<Figure>& out) {
  kernels::Team one(o.threads), two(kRanks * o.threads);
  const auto read = [&](kernels::Team& team) {
    volatile float sink = 0;
    const auto start = Clock::now();
    team.run(static_cast<std::int64_t>(memory.size()), kReadLeast, [&](std::int64_t first, std::int64_t last) {
      const float sum = kernels::read_stream(memory.data() + first, last - first);
      if (sum > 1e30f) sink = sum;
    });
    return seconds_since(start);
  };
  std::vector<double> before, after;
  for (int i = 0; i < 2 * o.runs; ++i) before.push_back(read(one)), after.push_back(read(two));
  out.push_back(speedup("ranks_2_bandwidth_ratio", before, after));
}

/// Microseconds of each call of a run, as rank 0 sees them.
Result<std::vector<double>> reduce_run(int calls) {
  PARLANDO_TRY(const auto region, parallel::SharedRegion::create(kRanks, kReduceSlotBytes));
  std::array<std::unique_ptr<parallel::Communicator>, kRanks> group;
  for (int r = 0; r < kRanks; ++r) {
    PARLANDO_TRY(group[static_cast<std::size_t>(r)], parallel::ShmCommunicator::join(region, r, {}));
  }
  const auto call = [&](int rank, std::vector<float>& values) {
    return group[static_cast<std::size_t>(rank)]->all_reduce(std::span(values), SteadyClock().now() + kCallMax);
  };
  const auto count = kWarmUpCalls + calls;
  // A call that fails breaks the group: both hear of it.
  const std::jthread other([&] {
    std::vector<float> values(kReduced);
    for (int i = 0; i < count && call(1, values); ++i) {
    }
  });
  std::vector<double> us;
  std::vector<float> values(kReduced);
  for (int i = 0; i < count; ++i) {
    const auto start = Clock::now();
    PARLANDO_DO(call(0, values));
    if (i >= kWarmUpCalls) us.push_back(1e6 * seconds_since(start));
  }
  return us;
}

Result<void> all_reduce(const RankBenchOptions& o, std::vector<Figure>& out) {
  std::vector<double> p50, p99;
  for (int i = 0; i < o.runs; ++i) {
    PARLANDO_TRY(const auto us, reduce_run(o.calls));
    p50.push_back(quantile(us, 0.5)), p99.push_back(quantile(us, 0.99));
  }
  out.push_back(of_runs("all_reduce_us.p50", quantile(p50, 0.5), p50, "µs"));
  out.push_back(of_runs("all_reduce_us.p99", quantile(p99, 0.5), p99, "µs"));
  return {};
}
}  // namespace

Result<std::vector<Figure>> bench_ranks(const RankBenchOptions& o, std::span<const float> memory) {
  if (o.runs < 1 || o.calls < 1 || o.context < 1 || o.context > o.prefill)
    return fail(Errc::invalid_argument, "{} runs, {} calls, a step at {} behind a prefill of {}", o.runs, o.calls,
                o.context, o.prefill);
  std::vector<Figure> out;
  PARLANDO_DO(compare(o, out));
  bandwidth(o, memory, out);
  PARLANDO_DO(all_reduce(o, out));
  return out;
}

void put(const Figure& figure, json& out, json& spread) {
  auto path = figure.name;
  std::ranges::replace(path, '.', '/');
  out[json::json_pointer("/" + path)] = figure.value;
  spread[figure.name] = {{"low", figure.low}, {"median", figure.median}, {"high", figure.high}};
}

}  // namespace parlando::cli
