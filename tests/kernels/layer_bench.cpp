/// CPU time of one thread for the products of one layer of TTS-3B's shape and for its attention, each instruction set
/// in turn. Usage: bench_layer [bf16|int8|int4] [RUNS] [CONTEXT] [ROWS…]
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <numeric>
#include <random>

#include "kernels/attention/paged_attention.hpp"
#include "kernels/linear/packed_matrix.hpp"
#include "kernels/memory/read_stream.hpp"
#include "kernels/vector/isa.hpp"

namespace {

using namespace parlando::kernels;

constexpr std::int64_t kHidden = 3072, kInner = 8192, kHeads = 48, kGroups = 4, kDim = 64;

double cpu_seconds() {
  timespec t;
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class F>
double seconds_of(F&& f) {
  const auto start = cpu_seconds();
  f();
  return cpu_seconds() - start;
}

std::vector<float> numbers(std::int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> some(-1.0f, 1.0f);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (auto& v : out) v = some(random);
  return out;
}

PackedMatrix matrix(WeightFormat format, std::int64_t rows, std::int64_t columns) {
  PackedMatrix m(PackedShape{format, rows, columns, 32});
  const auto w = numbers(16 * columns, 1);
  for (std::int64_t r = 0; r < rows; r += 16) pack_rows(m.shape(), w.data(), r, 16, m.bytes().data());
  return m;
}

struct Runs {
  std::vector<double> seconds;
  double at(double q) const { return seconds[static_cast<std::size_t>(q * static_cast<double>(seconds.size() - 1))]; }
};

}  // namespace

int main(int argc, char** argv) {
  const std::string wanted = argc > 1 ? argv[1] : "bf16";
  const auto format = wanted == "int8"   ? WeightFormat::int8
                      : wanted == "int4" ? WeightFormat::int4
                                         : WeightFormat::bf16;
  const int runs = argc > 2 ? std::atoi(argv[2]) : 5;
  const std::int64_t context = argc > 3 ? std::atoll(argv[3]) : 0;
  std::vector<std::int64_t> counts;
  for (int i = 4; i < argc; ++i) counts.push_back(std::atoll(argv[i]));
  if (counts.empty()) counts = {1, 2, 4, 8, 16, 32, 64, 128, 512};

  const std::pair<std::int64_t, std::int64_t> shapes[] = {{kHeads * kDim + 2 * kGroups * kDim, kHidden},
                                                          {kHidden, kHeads * kDim},
                                                          {2 * kInner, kHidden},
                                                          {kHidden, kInner}};
  std::vector<PackedMatrix> matrices;
  std::int64_t bytes = 0, weights = 0;
  for (const auto& [rows, columns] : shapes) {
    matrices.push_back(matrix(format, rows, columns));
    bytes += matrices.back().shape().bytes(), weights += rows * columns;
  }
  std::vector<Isa> sets;
  for (const auto isa : isas())
    if (isa >= Isa::avx512_bf16) sets.push_back(isa);
  if (sets.empty()) sets.push_back(isas().back());

  Team team;
  const auto most = *std::max_element(counts.begin(), counts.end());
  const auto x = numbers(most * kInner, 2);
  std::vector<float> y(static_cast<std::size_t>(most * 2 * kInner));
  const auto large = numbers(std::int64_t{64} << 20, 4);
  float kept = 0;
  Runs read;
  for (int i = 0; i < runs; ++i)
    read.seconds.push_back(
        seconds_of([&] { kept += read_stream(large.data(), static_cast<std::int64_t>(large.size())); }));
  std::sort(read.seconds.begin(), read.seconds.end());
  fmt::print("{}: {:.0f} MB of weights; memory is read at {:.1f} GB/s{}\n", name(format),
             1e-6 * static_cast<double>(bytes), 4e-9 * static_cast<double>(large.size()) / read.at(0.5),
             kept == 0.5f ? "." : "");

  const KvLayout layout{true, kGroups, kDim};
  const auto blocks = (context + most + 15) / 16;
  std::vector<std::byte> keys(static_cast<std::size_t>(context > 0 ? blocks * layout.key_bytes() : 0)),
      values(static_cast<std::size_t>(context > 0 ? blocks * layout.value_bytes() : 0));
  std::vector<std::int32_t> table(static_cast<std::size_t>(blocks));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(3));
  std::vector<float> slopes(kHeads, 0.01f), attended(static_cast<std::size_t>(most * kHeads * kDim));
  if (context > 0) {
    const auto kv = numbers(kGroups * kDim, 5);
    for (std::int64_t j = 0; j < blocks * 16; ++j)
      write_position(layout, keys.data() + table[static_cast<std::size_t>(j / 16)] * layout.key_bytes(),
                     values.data() + table[static_cast<std::size_t>(j / 16)] * layout.value_bytes(), j % 16, kv.data(),
                     kv.data());
  }

  for (const auto count : counts) {
    std::vector<Runs> products(sets.size()), inputs(sets.size()), attentions(sets.size());
    for (int i = 0; i <= runs; ++i)  // the first is not counted
      for (std::size_t k = 0; k < sets.size(); ++k) {
        force_isa(sets[k]);
        double product = 0, input = 0, attention = 0;
        for (const auto& m : matrices) {
          LinearInput in;
          in.set(team, m.shape(), x.data(), count, kInner);
          input += seconds_of([&] { in.set(team, m.shape(), x.data(), count, kInner); });
          product += seconds_of([&] { linear(team, m, in, y.data()); });
        }
        if (context > 0) {
          const PagedAttention a{x.data(),    attended.data(), kHeads * kDim, kHeads * kDim, count,        context,
                                 keys.data(), values.data(),   table.data(),  kHeads,        slopes.data()};
          attention = seconds_of([&] { paged_attention(team, layout, {&a, 1}); });
        }
        if (i == 0) continue;
        products[k].seconds.push_back(product), inputs[k].seconds.push_back(input);
        attentions[k].seconds.push_back(attention);
      }
    for (std::size_t k = 0; k < sets.size(); ++k) {
      for (auto* r : {&products[k], &inputs[k], &attentions[k]}) std::sort(r->seconds.begin(), r->seconds.end());
      const auto& p = products[k];
      fmt::print(
          "{:4} rows, {:11}: products {:8.2f} ms ({:.2f}..{:.2f}), {:6.1f} GB/s, {:7.1f} GFLOP/s; x {:.2f} ms; "
          "attention {:.2f} ms ({:.2f}..{:.2f})\n",
          count, name(sets[k]), 1e3 * p.at(0.5), 1e3 * p.at(0), 1e3 * p.at(1),
          1e-9 * static_cast<double>(bytes) / p.at(0.5), 2e-9 * static_cast<double>(weights * count) / p.at(0.5),
          1e3 * inputs[k].at(0.5), 1e3 * attentions[k].at(0.5), 1e3 * attentions[k].at(0), 1e3 * attentions[k].at(1));
    }
  }
}
