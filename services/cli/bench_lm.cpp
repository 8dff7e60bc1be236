#include "services/cli/bench_lm.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "common/base/mapped_file.hpp"
#include "common/nn/threads.hpp"
#include "kernels/memory/read_stream.hpp"
#include "kernels/vector/isa.hpp"
#include "kernels/vector/multiply_rate.hpp"
#include "services/cli/bench_baseline.hpp"
#include "services/cli/bench_ranks.hpp"
#include "services/cli/bench_setting.hpp"
#include "services/llm/llm_core.hpp"

namespace parlando::cli {
using llm::Step1;
using llm::WeightFormat;
using nlohmann::json;

namespace {
constexpr std::int64_t kContext = 256, kLongContext = 4096, kPrefill = 512, kLongPrefill = 8192, kLongPrompt = 2000;
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
  bool wants(const char* part) const {
    return options.only.empty() || std::ranges::find(options.only, part) != options.only.end();
  }
  static void line(const char* what, double value, const char* unit, const json& s) {
    fmt::print("  {:<34} {:10.2f} {} ({:.2f}…{:.2f}, median {:.2f})\n", what, value, unit, s.at("low").get<double>(),
               s.at("high").get<double>(), s.at("median").get<double>());
  }
  void put(const std::string& name, double value, const json& s, const char* unit) {
    spread[name] = s;
    line(name.c_str(), value, unit, s);
  }
};

/// While it lives, libtorch has as many threads as we do: what is compared with it is.
struct LibraryThreads {
  explicit LibraryThreads(int threads) { at::set_num_threads(threads); }
  ~LibraryThreads() { at::set_num_threads(1); }
  LibraryThreads(const LibraryThreads&) = delete;
  LibraryThreads& operator=(const LibraryThreads&) = delete;
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
struct ServedPrompt {
  std::string name;  ///< in the JSON
  std::int64_t tokens;
  int alone, beside;  ///< prompts; 0 alone: not measured
};

Result<void> served_prompt(Bench& b, const std::shared_ptr<const Step1>& model, const ServedPrompt& of) {
  constexpr int kSpeaking = 8, kSteps = 100;
  std::mt19937 random(3);
  llm::LmEngine engine(model, {});
  auto milli = [](double s) { return 1e3 * s; };
  // Until the prompt's first token: its time, and the time of each step.
  auto first_token = [&](std::int64_t tokens, Times* steps) -> Result<double> {
    PARLANDO_DO(begin(engine, "prompt", random_ids(random, tokens, model->config().vocabulary), llm::Priority::reply));
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
  const auto tokens = static_cast<double>(of.tokens);
  auto tell = [&](const std::string& name, const Times& times) {
    b.out[of.name][name + "_tokens_per_s"] = tokens / times.best();
    b.out[of.name][name + "_first_token_ms"] = 1e3 * quantile(times.seconds, 0.5);
    b.put(of.name + "." + name + "_tokens_per_s", tokens / times.best(),
          times.spread([&](double s) { return tokens / s; }), "tokens/s");
    b.put(of.name + "." + name + "_first_token_ms", 1e3 * quantile(times.seconds, 0.5), times.spread(milli), "ms");
  };
  Times alone, beside, without, with;
  PARLANDO_DO(first_token(std::min(of.tokens, kPrefill), nullptr));  // what passes cost is learned
  for (int i = 0; i < of.alone; ++i) {
    PARLANDO_TRY(const auto seconds, first_token(of.tokens, nullptr));
    alone.add(seconds);
  }
  if (of.alone > 0) tell("alone", alone);
  for (int n = 0; n < kSpeaking; ++n)
    PARLANDO_DO(
        begin(engine, std::to_string(n), random_ids(random, 64, model->config().vocabulary), llm::Priority::speech));
  for (int i = 0; i < 2 * kSpeaking; ++i) engine.step();
  for (int i = 0; i < kSteps; ++i) without.add(seconds_of([&] { engine.step(); }));
  for (int i = 0; i < of.beside; ++i) {
    PARLANDO_TRY(const auto seconds, first_token(of.tokens, &with));
    beside.add(seconds);
  }
  tell("beside_8", beside);
  const double growth = quantile(with.seconds, 0.99) / quantile(without.seconds, 0.99);
  b.out[of.name]["speakers_p99_growth"] = growth;
  const auto before = quantile(without.seconds, 0.99);
  b.put(of.name + ".speakers_p99_growth", growth, with.spread([&](double s) { return s / before; }), "×");
  // Of neighbours on the machine the middle tells less than the end does.
  const double middle = quantile(with.seconds, 0.5) / quantile(without.seconds, 0.5);
  const auto middle_before = quantile(without.seconds, 0.5);
  b.out[of.name]["speakers_p50_growth"] = middle;
  b.put(of.name + ".speakers_p50_growth", middle, with.spread([&](double s) { return s / middle_before; }), "×");
  // Tokens of prompts that a step took with it.
  const double piece = of.beside * tokens / static_cast<double>(with.seconds.size());
  b.out[of.name]["beside_8_tokens_a_step"] = piece;
  b.put(of.name + ".beside_8_tokens_a_step", piece, {{"low", piece}, {"median", piece}, {"high", piece}}, "");
  return {};
}

/// A step of one sequence at some context, between reads of the memory.
Result<double> decode_step(Bench& b, const std::shared_ptr<const Step1>& model, const std::string& name,
                           std::int64_t context) {
  Decoding d(model, context, 1);
  Times times;
  d.step(1);
  for (int i = 0; i < 2 * b.runs(); ++i) b.read_once(), times.add(seconds_of([&] { d.step(1); }));
  if (!d.error.empty()) return fail(Errc::internal, "{}", d.error);
  b.out[name] = {{"tokens_per_s", 1 / times.best()}, {"step_bytes", d.bytes()}};
  b.put(name + ".tokens_per_s", 1 / times.best(), times.spread([](double s) { return 1 / s; }), "tokens/s");
  b.shares.push_back({name, d.bytes(), times});
  return times.best();
}

/// Many rows against one; the time of 32 is compared with libtorch's, too.
Result<void> rows(Bench& b, const std::shared_ptr<const Step1>& model) {
  Decoding d(model, kContext, kRowsMax);
  Times ones;
  d.step(1);
  for (int i = 0; i < 2 * b.runs(); ++i) ones.add(seconds_of([&] { d.step(1); }));
  const auto one = ones.best();
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
  return {};
}

/// The attention of all layers of a step at a long context, against the multiplications that as many threads could do.
Result<void> attention(Bench& b, const std::shared_ptr<const Step1>& model) {
  constexpr std::int64_t kRounds = 100'000;  // half a millisecond: a time that neighbours on the machine leave whole
  Decoding d(model, kLongContext, 1);
  if (!d.error.empty()) return fail(Errc::internal, "{}", d.error);
  const auto& config = model->config();
  const auto heads = config.heads, dim = config.dim();
  const std::vector<float> q(static_cast<std::size_t>(heads * dim), 0.25f);  // in bf16 as it is
  std::vector<float> out(q.size());
  const auto& store = d.pool->store();
  const auto step = [&] {
    for (std::int64_t l = 0; l < config.layers; ++l) {
      const kernels::PagedAttention one{q.data(),
                                        out.data(),
                                        heads * dim,
                                        heads * dim,
                                        1,
                                        kLongContext - 1,
                                        store.keys(l),
                                        store.values(l),
                                        d.sequences[0].blocks().data(),
                                        heads,
                                        model->shard().slopes.data()};
      kernels::paged_attention(b.team, store.layout(), {&one, 1});
    }
  };
  const auto peak = [&] {
    std::atomic<std::int64_t> operations{0};
    const auto s = seconds_of([&] {
      b.team.run(b.team.size(), 1, [&](std::int64_t, std::int64_t) {
        float sum = 0;
        operations += kernels::multiply_add(kRounds, sum);
        volatile float sink = sum;
        (void)sink;
      });
    });
    return static_cast<double>(operations.load()) / s;
  };
  step(), peak();
  Times times;
  std::vector<double> peaks;
  for (int i = 0; i < 2 * b.runs(); ++i) peaks.push_back(peak()), times.add(seconds_of(step));
  const auto most = quantile(peaks, 1);
  // A key and a value for each head and position, two operations a number.
  const auto operations = 4.0 * static_cast<double>(heads * dim * kLongContext * config.layers);
  b.out["attention_4096"] = {
      {"ms", 1e3 * times.best()}, {"share_of_peak", operations / times.best() / most}, {"peak_gflops", most / 1e9}};
  b.put("attention_4096.ms", 1e3 * times.best(), times.spread([](double s) { return 1e3 * s; }), "ms");
  b.put("attention_4096.share_of_peak", operations / times.best() / most,
        times.spread([&](double s) { return operations / s / most; }), "");
  b.put("attention_4096.peak_gflops", most / 1e9,
        {{"low", quantile(peaks, 0) / 1e9}, {"median", quantile(peaks, 0.5) / 1e9}, {"high", most / 1e9}}, "GFLOP/s");
  return {};
}

/// Products of a layer as libtorch computes them, those that a prefill cannot do without.
struct LibraryLayer {
  Step1::Layer layer;
  at::Tensor x, y;
  LibraryLayer(const Step1& model, std::int64_t rows)
      : layer(model.layer(0)),
        x(at::randn({rows, model.config().hidden}, at::kBFloat16)),
        y(at::randn({rows, model.config().inner}, at::kBFloat16)) {}
  void operator()() const {
    at::linear(x, layer.qkv), at::linear(x, layer.out), at::linear(x, layer.gate_up), at::linear(y, layer.down);
  }
};

Result<void> prefill(Bench& b, const std::shared_ptr<const Step1>& model) {
  Decoding d(model, kPrefill, 1);
  Times times, products;
  const LibraryLayer library(*model, kPrefill);
  for (int i = 0; i <= b.runs(); ++i) {
    d.sequences[0].truncate(0);
    const auto s = seconds_of([&] { d.step_ids(d.sequences[0], kPrefill); });
    if (i > 0) times.add(s);  // the first one warms up
    const LibraryThreads threads(b.options.threads);
    products.add(seconds_of(library));
  }
  if (!d.error.empty()) return fail(Errc::internal, "{}", d.error);
  const double gemm = products.best() * static_cast<double>(model->config().layers);
  b.out["prefill_512"] = {{"tokens_per_s", kPrefill / times.best()}, {"share_of_gemm", gemm / times.best()}};
  b.put("prefill_512.tokens_per_s", kPrefill / times.best(), times.spread([](double s) { return kPrefill / s; }),
        "tokens/s");
  b.put("prefill_512.share_of_gemm", gemm / times.best(), times.spread([&](double s) { return gemm / s; }), "");
  return {};
}

/// In two layers of the shape, since all cost the same: what is told is that of all of them, without the head. Pieces
/// of 512 tokens.
Result<void> long_prefill(Bench& b, llm::Step1Config config) {
  constexpr std::int64_t kLayers = 2;
  if (config.length_max < kLongPrefill + kPrefill) {
    fmt::print("  a prefill of {} tokens is not measured: the model reads {}\n", kLongPrefill, config.length_max);
    return {};
  }
  const auto whole = static_cast<double>(config.layers) / static_cast<double>(kLayers);
  config.layers = kLayers;
  PARLANDO_TRY(const auto model, Step1::random(config, WeightFormat::bf16, 1));
  Decoding d(model, kLongPrefill, 1);
  Times times, products;
  const LibraryLayer library(*model, kPrefill);
  for (int i = 0; i <= b.runs(); ++i) {
    d.sequences[0].truncate(0);
    const auto s = whole * seconds_of([&] {
                     for (std::int64_t n = 0; n < kLongPrefill; n += kPrefill) d.step_ids(d.sequences[0], kPrefill);
                   });
    if (i > 0) times.add(s);
    const LibraryThreads threads(b.options.threads);
    products.add(seconds_of(library));
  }
  if (!d.error.empty()) return fail(Errc::internal, "{}", d.error);
  const double gemm = products.best() * whole * static_cast<double>(kLayers * kLongPrefill / kPrefill);
  b.out["prefill_8192"] = {{"tokens_per_s", kLongPrefill / times.best()}, {"share_of_gemm", gemm / times.best()}};
  b.put("prefill_8192.tokens_per_s", kLongPrefill / times.best(),
        times.spread([](double s) { return kLongPrefill / s; }), "tokens/s");
  b.put("prefill_8192.share_of_gemm", gemm / times.best(), times.spread([&](double s) { return gemm / s; }), "");
  return {};
}

/// A step's products and head in libtorch, without its attention and norms, against ours with both, by turns.
Result<void> library(Bench& b, const std::shared_ptr<const Step1>& model) {
  const auto head = model->head();
  const auto layers = static_cast<double>(model->config().layers);
  Decoding d(model, kContext, kRowsMax);
  for (const std::int64_t count : {std::int64_t{1}, kRowsMax}) {
    const LibraryLayer layer(*model, count);
    Times each, heads, own;
    for (int i = 0; i <= 2 * b.runs(); ++i) {
      const auto ours = seconds_of([&] { d.step(static_cast<std::size_t>(count)); });
      const LibraryThreads threads(b.options.threads);
      const auto s = seconds_of(layer), h = seconds_of([&] { at::linear(layer.x, head); });
      if (i > 0) own.add(ours), each.add(s), heads.add(h);
    }
    if (!d.error.empty()) return fail(Errc::internal, "{}", d.error);
    auto speed = [&](double q) {
      return static_cast<double>(count) / (quantile(each.seconds, q) * layers + quantile(heads.seconds, q));
    };
    const std::string name = count == 1 ? "torch_bf16" : fmt::format("torch_bf16_{}", count);
    const auto of = [&](double s) { return static_cast<double>(count) / s / speed(0); };
    b.out[name] = {{"tokens_per_s", speed(0)}, {"ours_ratio", of(own.best())}};
    b.put(name + ".tokens_per_s", speed(0), {{"low", speed(1)}, {"median", speed(0.5)}, {"high", speed(0)}},
          "tokens/s");
    b.put(name + ".ours_ratio", of(own.best()), own.spread(of), "×");
  }
  return {};
}

/// A fork and the first token behind it, which copies the shared block.
Result<void> forks(Bench& b, const std::shared_ptr<const Step1>& model) {
  Decoding d(model, kContext, 1);
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
  return {};
}

/// Figure of /proc/self/status, bytes.
double status_bytes(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(name + ":")) return 1024 * std::strtod(line.c_str() + name.size() + 1, nullptr);
  return 0;
}

/// A packed file of the shape, written, and loaded as a service loads it: from the page cache, and from the disk. What
/// the process holds of memory meanwhile counts from what it held before.
Result<void> load(Bench& b, const llm::Step1Config& config, const std::filesystem::path& config_file) {
  const Scratch scratch;
  if (scratch.path().empty()) return fail(Errc::io, "no folder can be made in /tmp");
  double weights = 0;
  {
    PARLANDO_TRY(const auto model, Step1::random(config, WeightFormat::int8, 1));
    weights = static_cast<double>(model->weight_bytes());
    PARLANDO_DO(model->save(scratch.path()));
    PARLANDO_TRY(const auto text, read_file(config_file, 1u << 20));
    PARLANDO_DO(write_file(scratch.path() / "config.json", text));
  }
  const auto file = (scratch.path() / "model.safetensors").string();
  const auto once = [&](bool cold, Times& times, std::vector<double>& peaks) -> Result<void> {
    if (const int f = ::open(file.c_str(), O_RDONLY | O_CLOEXEC); f >= 0) {
      if (cold) ::fsync(f), ::posix_fadvise(f, 0, 0, POSIX_FADV_DONTNEED);
      ::close(f);
    }
    ::malloc_trim(0);
    { std::ofstream("/proc/self/clear_refs") << 5; }  // the peak counts anew
    const auto before = status_bytes("VmRSS");
    std::optional<Error> failed;
    times.add(seconds_of([&] {
      if (const auto loaded = Step1::load(scratch.path(), WeightFormat::int8); !loaded) failed = loaded.error();
    }));
    if (failed) return tl::make_unexpected(*failed);
    peaks.push_back((status_bytes("VmHWM") - before) / weights);
    return {};
  };
  Times warm, cold;
  std::vector<double> peaks;
  for (int i = 0; i <= b.runs(); ++i) {
    Times first;  // the file may not have been read back
    PARLANDO_DO(once(false, i == 0 ? first : warm, peaks));
  }
  for (int i = 0; i < b.runs(); ++i) PARLANDO_DO(once(true, cold, peaks));
  b.out["load_int8"] = {{"seconds", quantile(warm.seconds, 0.5)},
                        {"seconds_from_disk", quantile(cold.seconds, 0.5)},
                        {"peak_of_weights", quantile(peaks, 1)},
                        {"weight_bytes", weights}};
  const auto same = [](double s) { return s; };
  b.put("load_int8.seconds", quantile(warm.seconds, 0.5), warm.spread(same), "s");
  b.put("load_int8.seconds_from_disk", quantile(cold.seconds, 0.5), cold.spread(same), "s");
  b.put("load_int8.peak_of_weights", quantile(peaks, 1),
        {{"low", quantile(peaks, 0)}, {"median", quantile(peaks, 0.5)}, {"high", quantile(peaks, 1)}}, "× weights");
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
  auto any = llm::Sampling::chat();
  any.top_k.reset();
  const std::pair<const char*, llm::Sampling> all[] = {
      {"sampling_us", llm::Sampling::tts()}, {"sampling_chat_us", llm::Sampling::chat()}, {"sampling_any_us", any}};
  for (const auto& [name, sampling] : all) {
    Times times;
    for (std::uint64_t n = 0; n < 300; ++n) {
      std::optional<Error> failed;
      times.add(seconds_of([&, &sampling = sampling] {
        if (auto id = llm::sample(logits, history, sampling, n); !id) failed = id.error();
      }));
      if (failed) return tl::make_unexpected(*failed);
    }
    b.out[name] = 1e6 * quantile(times.seconds, 0.5);
    b.put(name, b.out[name], times.spread([](double s) { return 1e6 * s; }), "µs");
  }
  return {};
}

/// Steps of the nano model with one thread and with two, by turns: a core that is lent must not cost more than it
/// brings. @param streams  that speak
Result<void> two_threads(Bench& b, const std::shared_ptr<const Step1>& model, const std::string& name, int streams) {
  constexpr int kRounds = 40, kSteps = 10;
  std::mt19937 random(4);
  std::array<Times, 2> times;
  std::array<std::unique_ptr<llm::LmEngine>, 2> engines;
  for (auto& engine : engines) {
    engine = std::make_unique<llm::LmEngine>(model, llm::LmEngine::Limits{.cache_tokens = 1 << 16});
    for (int n = 0; n < streams; ++n)
      PARLANDO_DO(begin(*engine, std::to_string(n),
                        random_ids(random, streams == 1 ? 512 : 150, model->config().vocabulary),
                        llm::Priority::speech));
    for (int i = 0; i < 4 * streams + 5; ++i) engine->step();
  }
  for (int round = 0; round < kRounds; ++round)
    for (const std::size_t which : {round % 2, 1 - round % 2}) {
      nn::use_threads(static_cast<int>(which) + 1);
      engines[which]->step();
      for (int i = 0; i < kSteps; ++i) {
        std::vector<llm::TokenEvent> events;
        times[which].add(seconds_of([&] { events = engines[which]->step(); }));
        for (const auto& event : events)
          if (event.error) return tl::make_unexpected(*event.error);
      }
    }
  nn::use_threads(b.options.threads);
  const auto one = quantile(times[0].seconds, 0.5);
  const auto ratio = one / quantile(times[1].seconds, 0.5);
  b.out["nano"][name] = ratio;
  b.put("nano." + name, ratio,
        {{"low", one / quantile(times[1].seconds, 0.95)},
         {"median", ratio},
         {"high", one / quantile(times[1].seconds, 0.05)}},
        "× one thread");
  return {};
}

Result<void> nano_threads(Bench& b) {
  if (kernels::usable_cores() < 2) {
    fmt::print("  two threads are not measured: this process may use one core\n");
    return {};
  }
  PARLANDO_TRY(const auto model, Step1::load(b.options.model_path / "Step-Audio-TTS-3B", WeightFormat::f32));
  PARLANDO_DO(two_threads(b, model, "two_threads_ratio", 1));
  return two_threads(b, model, "two_threads_ratio_32", 32);
}

/// Streams of speech that end and begin again. One that the cache has no room for is counted as refused and tries
/// again with its next turn.
Result<void> streams_of_nano(Bench& b, const std::shared_ptr<const Step1>& model, const std::string& group,
                             const llm::LmEngine::Limits& limits, bool shared) {
  std::mt19937 random(2);
  const auto milli = [](double s) { return 1e3 * s; };
  for (const int streams : {32, 96}) {
    llm::LmEngine engine(model, limits);
    int names = 0, refused = 0;
    // When a stream's first token came, and who still waits for it at the end: steps are short where prompts wait.
    std::map<std::string, double> opened;
    double now = 0;
    Times firsts;
    auto open = [&]() -> Result<void> {
      const auto name = std::to_string(names++);
      opened[name] = now;
      const auto ids = random_ids(random, 150, model->config().vocabulary);
      PARLANDO_DO(engine.open(name));
      if (shared) engine.share(name, {0, SessionId{1, static_cast<std::uint64_t>(names)}});
      PARLANDO_DO(engine.append(name, 0, ids));
      return engine.generate(name, 150, {llm::Sampling::tts(), 1000, {}, llm::Priority::speech});
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
      now += s;
      for (const auto& event : events) {
        if (event.error && event.error->code != Errc::overloaded) return tl::make_unexpected(*event.error);
        if (event.error) ++refused;
        if (const auto first = opened.find(event.sequence); first != opened.end()) {
          if (i >= 50 && !event.error) firsts.add(now - first->second);
          opened.erase(first);
        }
      }
      if (i >= 50) times.add(s);  // by then the first prompts are computed
    }
    const auto key = fmt::format("streams_{}_p99_ms", streams);
    b.out[group][key] = 1e3 * quantile(times.seconds, 0.99);
    b.put(group + "." + key, b.out[group][key], times.spread(milli), "ms");
    if (!firsts.seconds.empty()) {
      const auto first = fmt::format("streams_{}_first_token_ms", streams);
      b.out[group][first] = 1e3 * quantile(firsts.seconds, 0.5);
      b.put(group + "." + first, b.out[group][first], firsts.spread(milli), "ms");
    }
    b.out[group][fmt::format("streams_{}_waiting", streams)] = opened.size();
    b.out[group][fmt::format("streams_{}_refused", streams)] = refused;
    fmt::print("  {:<34} {:10d} of {} streams wait for their first token at the end, {} were refused\n", "",
               opened.size(), streams, refused);
  }
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
  PARLANDO_DO(streams_of_nano(b, model, "nano", {.cache_tokens = 1 << 16}, false));
  // With the cache and the beginnings that the service ships: prompts are looked for and kept, and none is met again.
  const llm::LlmConfig shipped;
  PARLANDO_DO(
      streams_of_nano(b, model, "nano_served",
                      {.cache_tokens = shipped.cache_tokens,
                       .sequences = shipped.sequences_max,
                       .prefix_blocks = shipped.cache_tokens / llm::kBlockTokens * shipped.prefix_permille / 1000,
                       .prefix_idle = milliseconds(shipped.prefix_idle_ms),
                       .step_max = milliseconds(shipped.step_ms_max)},
                      true));
  return {};
}
}  // namespace

Result<json> bench_lm(const BenchOptions& o) {
  PARLANDO_TRY(const auto earlier, baseline_of(o.baseline, o.output));
  for (const auto& part : o.only)
    if (std::ranges::find(kLmParts, part) == std::end(kLmParts))
      return fail(Errc::invalid_argument, "bench lm has no part '{}', expected one of {}", part,
                  fmt::join(kLmParts, ", "));
  Bench b{o, {}};
  const auto file = o.random_weights.empty() ? o.source / "configs/official/step1-3b.json" : o.random_weights;
  PARLANDO_TRY(const auto config, llm::Step1Config::load(file));
  const auto before = load_average();
  fmt::print("language model, shape of {}, {} thread(s), {} kernels\n", file.filename().string(), o.threads,
             kernels::name(kernels::isa()));
  std::fill(b.block.bytes().begin(), b.block.bytes().end(), std::byte{0});
  for (int i = 0; i < b.runs(); ++i) b.read_once();
  {
    std::shared_ptr<const Step1> model;  // one for all parts that want it
    const auto with_model = [&](const char* part, auto&& measure) -> Result<void> {
      if (!b.wants(part)) return {};
      if (!model) {
        PARLANDO_TRY(model, Step1::random(config, WeightFormat::bf16, 1));
      }
      return measure();
    };
    PARLANDO_DO(with_model("decode", [&]() -> Result<void> {
      PARLANDO_DO(decode_step(b, model, "decode_bf16", kContext));
      PARLANDO_DO(decode_step(b, model, "decode_bf16_4096", kLongContext));
      return {};
    }));
    PARLANDO_DO(with_model("rows", [&] { return rows(b, model); }));
    PARLANDO_DO(with_model("attention", [&] { return attention(b, model); }));
    PARLANDO_DO(with_model("prefill", [&] { return prefill(b, model); }));
    PARLANDO_DO(with_model("torch", [&] { return library(b, model); }));
    PARLANDO_DO(with_model("speakers", [&]() -> Result<void> {
      PARLANDO_DO(served_prompt(b, model, {"served_prefill_512", kPrefill, b.runs(), 3}));
      return served_prompt(b, model, {"served_prefill_2000", kLongPrompt, 0, 1});
    }));
    PARLANDO_DO(with_model("fork", [&] { return forks(b, model); }));
  }
  if (b.wants("prefill")) PARLANDO_DO(long_prefill(b, config));
  if (b.wants("decode"))
    for (const auto format : {WeightFormat::int8, WeightFormat::int4}) {
      PARLANDO_TRY(const auto model, Step1::random(config, format, 1));
      PARLANDO_DO(decode_step(b, model, fmt::format("decode_{}", kernels::name(format)), kContext));
    }
  if (b.wants("ranks")) PARLANDO_DO(two_ranks(b, config));
  if (b.wants("load")) PARLANDO_DO(load(b, config, file));
  if (b.wants("sampling")) PARLANDO_DO(sampling(b, config));
  if (b.wants("nano")) PARLANDO_DO(nano(b));
  if (b.wants("threads")) PARLANDO_DO(nano_threads(b));
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
  if (earlier) fmt::print("against {}:\n{}", o.baseline.string(), change_table(b.out, *earlier));
  if (!o.output.empty()) PARLANDO_DO(write_file(o.output, b.out.dump(1) + "\n"));
  return b.out;
}

}  // namespace parlando::cli
