#include "services/cli/bench_lm.hpp"

#include <ATen/ATen.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "common/base/mapped_file.hpp"
#include "kernels/memory/read_stream.hpp"
#include "kernels/vector/isa.hpp"
#include "services/cli/bench_baseline.hpp"
#include "services/cli/bench_ranks.hpp"
#include "services/cli/bench_setting.hpp"
#include "services/llm/model/engine.hpp"

namespace parlando::cli {
using llm::Step1;
using llm::WeightFormat;
using nlohmann::json;

namespace {
constexpr std::int64_t kContext = 256, kLongContext = 4096, kPrefill = 512;
constexpr int kRows[] = {2, 4, 8, 32};
constexpr std::int64_t kRowsMax = 32;

double seconds_of(auto&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Times of one thing, best first.
struct Times {
  std::vector<double> seconds;
  void add(double s) { seconds.push_back(s); }
  double best() const { return quantile(seconds, 0); }
  /// Of `of(time)`: a speed or a time.
  template <class F>
  json spread(F&& of) const {
    auto a = of(quantile(seconds, 0)), b = of(quantile(seconds, 0.5)), c = of(quantile(seconds, 1));
    return {{"low", std::min(a, c)}, {"median", b}, {"high", std::max(a, c)}};
  }
};

/// Far larger than the caches.
std::size_t read_bytes() {
  const auto cache = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
  return std::max(std::size_t{256} << 20, 4 * static_cast<std::size_t>(std::max(0L, cache)));
}

struct Bench {
  BenchOptions options;
  json out, spread = json::object();
  kernels::Team& team = kernels::Team::of_this_thread();
  kernels::LargeMemory block{read_bytes()};
  Times reads;
  /// Steps whose share of the bandwidth is told when all reads are done.
  struct Share {
    std::string name;
    double bytes;
    Times times;
  };
  std::vector<Share> shares;

  double read_once() {
    const auto size = static_cast<std::int64_t>(block.size() / sizeof(float));
    volatile float sink = 0;
    const auto* x = reinterpret_cast<const float*>(block.data());
    const auto s = seconds_of([&] {
      team.run(size, 1 << 20, [&](std::int64_t first, std::int64_t last) {
        const float sum = kernels::read_stream(x + first, last - first);
        if (sum > 1e30f) sink = sum;
      });
    });
    reads.add(s);
    return s;
  }
  double bandwidth() const { return static_cast<double>(block.size()) / reads.best(); }
  int runs() const { return std::max(5, options.runs); }
  static void line(const char* what, double value, const char* unit, const json& s) {
    fmt::print("  {:<34} {:10.2f} {} ({:.2f}…{:.2f}, median {:.2f})\n", what, value, unit, s.at("low").get<double>(),
               s.at("high").get<double>(), s.at("median").get<double>());
  }
  void put(const std::string& name, double value, const json& s, const char* unit) {
    spread[name] = s;
    line(name.c_str(), value, unit, s);
  }
};

/// Sequences of one model at some context, and steps over the first of them.
struct Decoding {
  std::shared_ptr<const Step1> model;
  std::unique_ptr<llm::KvPool> pool;
  std::vector<llm::KvPool::Sequence> sequences;
  std::int64_t context;
  std::string error;

  Decoding(std::shared_ptr<const Step1> m, std::int64_t length, std::int64_t count)
      : model(std::move(m)), pool(model->make_pool((length + 64) * count)), context(length) {
    for (std::int64_t n = 0; n < count; ++n) sequences.push_back(pool->open());
    // What the cache holds does not matter to the time that reading it takes, but its pages must be there: one real
    // token, and the rest is said to be computed.
    for (auto& s : sequences) {
      step_ids(s, 1);
      const llm::KvPool::Want want{&s, context - s.length()};
      if (auto room = pool->reserve({&want, 1}); !room) {
        error = room.error().message;
        return;
      }
      pool->commit(s, want.count);
      const std::vector<float> row(static_cast<std::size_t>(model->config().groups * model->config().dim()), 0.01f);
      for (std::int64_t l = 0; l < model->config().layers; ++l)
        pool->store().write(s.blocks(), l, 0, context, row.data(), row.data(), 0);
    }
  }
  void step_ids(llm::KvPool::Sequence& s, std::int64_t count) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < ids.size(); ++i)
      ids[i] = static_cast<std::int32_t>((i * 7919 + 11) % static_cast<std::size_t>(model->config().vocabulary));
    Step1::Chunk chunk{&s, ids};
    if (const auto done = model->forward(*pool, {&chunk, 1}); !done) error = done.error().message;
  }
  /// A step of the first `count` sequences, logits included; their length stays.
  void step(std::size_t count) {
    const std::int32_t id = 17;
    std::vector<Step1::Chunk> chunks;
    for (std::size_t n = 0; n < count; ++n) {
      sequences[n].truncate(context - 1);
      chunks.push_back({&sequences[n], {&id, 1}});
    }
    const auto hidden = model->forward(*pool, chunks);
    if (!hidden)
      error = hidden.error().message;
    else
      model->logits(*hidden);
  }
  double bytes() const {
    return static_cast<double>(model->decode_bytes()) +
           static_cast<double>(model->cache_bytes()) * static_cast<double>(context);
  }
};

std::vector<std::int32_t> random_ids(std::mt19937& random, std::int64_t length, std::int64_t vocabulary) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(length));
  for (auto& id : ids) id = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(vocabulary));
  return ids;
}

Result<void> begin(llm::LmEngine& engine, const std::string& name, const std::vector<std::int32_t>& ids,
                   llm::Priority priority) {
  const auto length = static_cast<std::int64_t>(ids.size());
  PARLANDO_DO(engine.open(name));
  PARLANDO_DO(engine.append(name, 0, ids));
  return engine.generate(name, length, {llm::Sampling::tts(), 1000, {}, priority});
}

/// A prompt as a service computes it: through the scheduler with its limits, with nobody and with eight who speak.
Result<void> served_prefill(Bench& b, const std::shared_ptr<const Step1>& model) {
  constexpr int kSpeaking = 8, kSteps = 24;
  std::mt19937 random(3);
  llm::LmEngine engine(model, {});
  auto milli = [](double s) { return 1e3 * s; };
  // Until the prompt's first token: its time, and the time of each step.
  auto first_token = [&](Times* steps) -> Result<double> {
    PARLANDO_DO(
        begin(engine, "prompt", random_ids(random, kPrefill, model->config().vocabulary), llm::Priority::reply));
    double total = 0;
    for (bool told = false; !told;) {
      std::vector<llm::TokenEvent> events;
      const auto s = seconds_of([&] { events = engine.step(); });
      total += s;
      if (steps) steps->add(s);
      for (const auto& event : events) {
        if (event.error) return tl::make_unexpected(*event.error);
        told |= event.sequence == "prompt";
      }
    }
    engine.release("prompt");
    return total;
  };
  auto tell = [&](const std::string& name, const Times& times) {
    b.out["served_prefill_512"][name + "_tokens_per_s"] = kPrefill / times.best();
    b.out["served_prefill_512"][name + "_first_token_ms"] = 1e3 * quantile(times.seconds, 0.5);
    b.put("served_prefill_512." + name + "_tokens_per_s", kPrefill / times.best(),
          times.spread([](double s) { return kPrefill / s; }), "tokens/s");
    b.put("served_prefill_512." + name + "_first_token_ms", 1e3 * quantile(times.seconds, 0.5), times.spread(milli),
          "ms");
  };
  Times alone, beside, without, with;
  PARLANDO_DO(first_token(nullptr));  // what passes cost is learned
  for (int i = 0; i < b.runs(); ++i) {
    PARLANDO_TRY(const auto seconds, first_token(nullptr));
    alone.add(seconds);
  }
  tell("alone", alone);
  for (int n = 0; n < kSpeaking; ++n)
    PARLANDO_DO(
        begin(engine, std::to_string(n), random_ids(random, 64, model->config().vocabulary), llm::Priority::speech));
  for (int i = 0; i < 2 * kSpeaking; ++i) engine.step();
  for (int i = 0; i < kSteps; ++i) without.add(seconds_of([&] { engine.step(); }));
  for (int i = 0; i < 3; ++i) {
    PARLANDO_TRY(const auto seconds, first_token(&with));
    beside.add(seconds);
  }
  tell("beside_8", beside);
  const double growth = quantile(with.seconds, 0.99) / quantile(without.seconds, 0.99);
  b.out["served_prefill_512"]["speakers_p99_growth"] = growth;
  const auto before = quantile(without.seconds, 0.99);
  b.put("served_prefill_512.speakers_p99_growth", growth, with.spread([&](double s) { return s / before; }), "×");
  // Tokens of prompts that a step took with it: what waits is 512 of these.
  const double piece = 3.0 * kPrefill / static_cast<double>(with.seconds.size());
  b.out["served_prefill_512"]["beside_8_tokens_a_step"] = piece;
  b.put("served_prefill_512.beside_8_tokens_a_step", piece, {{"low", piece}, {"median", piece}, {"high", piece}}, "");
  return {};
}

Result<void> decode(Bench& b, const llm::Step1Config& config, WeightFormat format) {
  PARLANDO_TRY(const auto model, Step1::random(config, format, 1));
  const auto key = fmt::format("decode_{}", kernels::name(format));
  auto measure = [&](const std::string& name, std::int64_t context) -> Result<double> {
    Decoding d(model, context, 1);
    Times times;
    d.step(1);
    for (int i = 0; i < 2 * b.runs(); ++i) b.read_once(), times.add(seconds_of([&] { d.step(1); }));
    if (!d.error.empty()) return fail(Errc::internal, "{}", d.error);
    b.out[name] = {{"tokens_per_s", 1 / times.best()}, {"step_bytes", d.bytes()}};
    b.put(name + ".tokens_per_s", 1 / times.best(), times.spread([](double s) { return 1 / s; }), "tokens/s");
    b.shares.push_back({name, d.bytes(), times});
    return times.best();
  };
  PARLANDO_TRY(const auto one, measure(key, kContext));
  if (format != WeightFormat::bf16) return {};
  PARLANDO_DO(measure(key + "_4096", kLongContext));
  Decoding d(model, kContext, kRowsMax);
  for (const auto rows : kRows) {
    const auto count = static_cast<std::size_t>(rows);
    Times times;
    d.step(count);
    for (int i = 0; i < b.runs(); ++i) times.add(seconds_of([&] { d.step(count); }));
    const auto key_of = std::to_string(rows);
    b.out["rows"][key_of] = rows * one / times.best();
    b.put("rows." + key_of, rows * one / times.best(), times.spread([&](double s) { return rows * one / s; }),
          "× one row");
  }
  if (!d.error.empty()) return fail(Errc::internal, "{}", d.error);

  // A prefill, against the products of libtorch that it cannot do without.
  {
    Times times;
    auto sequence = d.pool->open();
    for (int i = 0; i < b.runs(); ++i) {
      sequence.truncate(0);
      times.add(seconds_of([&] { d.step_ids(sequence, kPrefill); }));
    }
    if (!d.error.empty()) return fail(Errc::internal, "{}", d.error);
    const auto layer = model->layer(0);
    const auto x = at::randn({kPrefill, config.hidden}, at::kBFloat16),
               y = at::randn({kPrefill, config.inner}, at::kBFloat16);
    Times products;
    for (int i = 0; i <= b.runs(); ++i)
      products.add(seconds_of([&] {
        at::linear(x, layer.qkv), at::linear(x, layer.out), at::linear(x, layer.gate_up), at::linear(y, layer.down);
      }));
    const double gemm = products.best() * static_cast<double>(config.layers);
    b.out["prefill_512"] = {{"tokens_per_s", kPrefill / times.best()}, {"share_of_gemm", gemm / times.best()}};
    b.put("prefill_512.tokens_per_s", kPrefill / times.best(), times.spread([](double s) { return kPrefill / s; }),
          "tokens/s");
    b.put("prefill_512.share_of_gemm", gemm / times.best(), times.spread([&](double s) { return gemm / s; }), "");

    // The same layer token by token, and the head: what a step costs in libtorch, without its attention and norms.
    const auto head = model->head();
    const auto x1 = x.narrow(0, 0, 1), y1 = y.narrow(0, 0, 1);
    Times layers, heads;
    for (int i = 0; i <= 2 * b.runs(); ++i) {
      layers.add(seconds_of([&] {
        at::linear(x1, layer.qkv), at::linear(x1, layer.out), at::linear(x1, layer.gate_up), at::linear(y1, layer.down);
      }));
      heads.add(seconds_of([&] { at::linear(x1, head); }));
    }
    auto speed = [&](double q) {
      return 1 / (quantile(layers.seconds, q) * static_cast<double>(config.layers) + quantile(heads.seconds, q));
    };
    b.out["torch_bf16"] = {{"tokens_per_s", speed(0)}};
    b.put("torch_bf16.tokens_per_s", speed(0), {{"low", speed(1)}, {"median", speed(0.5)}, {"high", speed(0)}},
          "tokens/s");
  }

  PARLANDO_DO(served_prefill(b, model));

  // A fork and the first token behind it, which copies the shared block.
  {
    Times forks, writes;
    d.sequences[0].truncate(kContext - 6);
    for (int i = 0; i < 200; ++i) {
      llm::KvPool::Sequence fork;
      forks.add(seconds_of([&] { fork = d.sequences[0].fork(); }));
      const llm::KvPool::Want want{&fork, 1};
      std::optional<Error> failed;
      writes.add(seconds_of([&] {
        if (auto done = d.pool->reserve({&want, 1}); !done) failed = done.error();
      }));
      if (failed) return tl::make_unexpected(*failed);
      d.pool->unreserve(fork);
    }
    auto micro = [](double s) { return 1e6 * s; };
    b.out["fork_us"] = 1e6 * quantile(forks.seconds, 0.5);
    b.out["fork_write_us"] = 1e6 * quantile(writes.seconds, 0.5);
    b.put("fork_us", b.out["fork_us"], forks.spread(micro), "µs");
    b.put("fork_write_us", b.out["fork_write_us"], writes.spread(micro), "µs");
  }
  return {};
}

/// Two ranks against one; a shape that cannot be divided has no such figures.
Result<void> two_ranks(Bench& b, const llm::Step1Config& config) {
  if (const auto part = llm::Shard::plan(config, 0, 2); !part) {
    fmt::print("  two ranks are not measured: {}\n", part.error().message);
    return {};
  }
  PARLANDO_TRY(const auto figures,
               bench_ranks({.config = config, .threads = b.options.threads, .runs = b.runs()},
                           {reinterpret_cast<const float*>(b.block.data()), b.block.size() / sizeof(float)}));
  for (const auto& figure : figures) {
    put(figure, b.out, b.spread);
    Bench::line(figure.name.c_str(), figure.value, figure.unit, b.spread.at(figure.name));
  }
  return {};
}

Result<void> sampling(Bench& b, const llm::Step1Config& config) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits(static_cast<std::size_t>(config.vocabulary));
  for (auto& x : logits) x = normal(random);
  std::vector<std::int32_t> history(200);
  for (auto& id : history) id = static_cast<std::int32_t>(random() % logits.size());
  Times times;
  for (std::uint64_t n = 0; n < 300; ++n) {
    std::optional<Error> failed;
    times.add(seconds_of([&] {
      if (auto id = llm::sample(logits, history, llm::Sampling::tts(), n); !id) failed = id.error();
    }));
    if (failed) return tl::make_unexpected(*failed);
  }
  b.out["sampling_us"] = 1e6 * quantile(times.seconds, 0.5);
  b.put("sampling_us", b.out["sampling_us"], times.spread([](double s) { return 1e6 * s; }), "µs");
  return {};
}

/// Speech of the nano model through the scheduler, as a service runs it.
Result<void> nano(Bench& b) {
  PARLANDO_TRY(const auto model, Step1::load(b.options.model_path / "Step-Audio-TTS-3B", WeightFormat::f32));
  std::mt19937 random(2);
  auto begin = [&](llm::LmEngine& engine, const std::string& name, std::int64_t length) {
    return cli::begin(engine, name, random_ids(random, length, model->config().vocabulary), llm::Priority::speech);
  };
  auto problem = [](const std::vector<llm::TokenEvent>& events) -> Result<void> {
    for (const auto& event : events)
      if (event.error) return tl::make_unexpected(*event.error);
    return {};
  };
  auto milli = [](double s) { return 1e3 * s; };
  {
    llm::LmEngine engine(model, {.cache_tokens = 4096});
    PARLANDO_DO(begin(engine, "one", 512));
    for (int i = 0; i < 5; ++i) PARLANDO_DO(problem(engine.step()));
    Times times;
    for (int i = 0; i < 300; ++i) {
      std::vector<llm::TokenEvent> events;
      times.add(seconds_of([&] { events = engine.step(); }));
      PARLANDO_DO(problem(events));
    }
    b.out["nano"]["step_ms"] = 1e3 * quantile(times.seconds, 0.5);
    b.put("nano.step_ms", b.out["nano"]["step_ms"], times.spread(milli), "ms");
  }
  for (const int streams : {32, 96}) {
    llm::LmEngine engine(model, {.cache_tokens = 1 << 16});
    int names = 0;
    // When a stream's first token came, and who still waits for it at the end: steps are short where prompts wait.
    std::map<std::string, double> opened;
    double now = 0;
    Times firsts;
    auto open = [&] {
      const auto name = std::to_string(names++);
      opened[name] = now;
      return begin(engine, name, 150);
    };
    for (int n = 0; n < streams; ++n) PARLANDO_DO(open());
    Times times;
    for (int i = 0; i < 400; ++i) {
      if (i % 10 == 0) {
        engine.release(std::to_string(names - streams));
        opened.erase(std::to_string(names - streams));
        PARLANDO_DO(open());
      }
      std::vector<llm::TokenEvent> events;
      const auto s = seconds_of([&] { events = engine.step(); });
      PARLANDO_DO(problem(events));
      now += s;
      for (const auto& event : events)
        if (const auto first = opened.find(event.sequence); first != opened.end()) {
          if (i >= 50) firsts.add(now - first->second);
          opened.erase(first);
        }
      if (i >= 50) times.add(s);  // by then the first prompts are computed
    }
    const auto key = fmt::format("streams_{}_p99_ms", streams);
    b.out["nano"][key] = 1e3 * quantile(times.seconds, 0.99);
    b.put("nano." + key, b.out["nano"][key], times.spread(milli), "ms");
    if (!firsts.seconds.empty()) {
      const auto first = fmt::format("streams_{}_first_token_ms", streams);
      b.out["nano"][first] = 1e3 * quantile(firsts.seconds, 0.5);
      b.put("nano." + first, b.out["nano"][first], firsts.spread(milli), "ms");
    }
    b.out["nano"][fmt::format("streams_{}_waiting", streams)] = opened.size();
    fmt::print("  {:<34} {:10d} of {} streams wait for their first token at the end\n", "", opened.size(), streams);
  }
  return {};
}
}  // namespace

Result<json> bench_lm(const BenchOptions& o) {
  Bench b{o, {}};
  const auto file = o.random_weights.empty() ? o.source / "configs/official/step1-3b.json" : o.random_weights;
  PARLANDO_TRY(const auto config, llm::Step1Config::load(file));
  const auto before = load_average();
  fmt::print("language model, shape of {}, {} thread(s), {} kernels\n", file.filename().string(), o.threads,
             kernels::name(kernels::isa()));
  std::fill(b.block.bytes().begin(), b.block.bytes().end(), std::byte{0});
  for (int i = 0; i < b.runs(); ++i) b.read_once();
  for (const auto format : {WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4})
    PARLANDO_DO(decode(b, config, format));
  PARLANDO_DO(two_ranks(b, config));
  PARLANDO_DO(sampling(b, config));
  PARLANDO_DO(nano(b));
  b.out["read_bandwidth_gb_s"] = b.bandwidth() / 1e9;
  const auto bytes = static_cast<double>(b.block.size());
  b.put("read_bandwidth_gb_s", b.bandwidth() / 1e9, b.reads.spread([&](double s) { return bytes / s / 1e9; }), "GB/s");
  for (const auto& share : b.shares) {
    const auto of = [&](double s) { return share.bytes / s / b.bandwidth(); };
    b.out[share.name]["share_of_bandwidth"] = of(share.times.best());
    b.put(share.name + ".share_of_bandwidth", of(share.times.best()), share.times.spread(of), "");
  }
  b.out["bench"] = "lm", b.out["threads"] = o.threads, b.out["spread"] = b.spread;
  b.out["machine"] = machine_of(o.source);
  b.out["machine"]["load_before"] = before;
  b.out["instruction_set"] = kernels::name(kernels::isa());
  b.out["commit"] = b.out["machine"]["commit"];
  if (!o.baseline.empty()) {
    if (const auto before = read_baseline(o.baseline))
      fmt::print("against {}:\n{}", o.baseline.string(), change_table(b.out, *before));
    else
      fmt::print("not compared: {}\n", before.error().message);
  }
  if (!o.output.empty()) PARLANDO_DO(write_file(o.output, b.out.dump(1) + "\n"));
  return b.out;
}

}  // namespace parlando::cli
