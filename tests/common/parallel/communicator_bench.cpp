// Prints how long an all-reduce takes between threads of this process, as rank 0 sees it: ranks and floats from the
// command line (2 and 3072: a row of a model with 3072 features). Five runs of 20,000 calls behind a warm-up.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "common/parallel/shm_communicator.hpp"

using namespace parlando;
using namespace parlando::parallel;

int main(int count, char** words) {
  const int ranks = count > 1 ? std::atoi(words[1]) : 2;
  const int floats = count > 2 ? std::atoi(words[2]) : 3072;
  constexpr int kCalls = 20000;
  for (int run = 0; run < 6; ++run) {
    const auto region = SharedRegion::create(ranks, 1 << 20);
    if (!region) return fmt::print("{}\n", region.error().message), 1;
    std::vector<std::unique_ptr<ShmCommunicator>> group;
    for (int r = 0; r < ranks; ++r) group.push_back(*ShmCommunicator::join(*region, r, {}));
    std::vector<double> us;
    {
      std::vector<std::jthread> threads;
      for (int r = 0; r < ranks; ++r)
        threads.emplace_back([&, r] {
          std::vector<float> values(static_cast<std::size_t>(floats));
          for (int call = 0; call < kCalls; ++call) {
            const auto begin = SteadyClock().now();
            const auto done =
                group[static_cast<std::size_t>(r)]->all_reduce(std::span(values), begin + std::chrono::seconds(5));
            if (!done) return fmt::print("rank {}: {}\n", r, done.error().message), void();
            if (r == 0) us.push_back(std::chrono::duration<double, std::micro>(SteadyClock().now() - begin).count());
          }
        });
    }
    std::ranges::sort(us);
    if (run == 0 || us.size() < kCalls) continue;
    fmt::print("{} ranks, {} floats: p50 {:.2f}, p99 {:.2f} us\n", ranks, floats, us[us.size() / 2],
               us[us.size() * 99 / 100]);
  }
}
