#include "kernels/team/team.hpp"

#include <algorithm>
#include <memory>

namespace parlando::kernels {

Team::Team(int threads) : threads_(std::max(1, threads)) {
  if (threads_ == 1) return;
  own_ = std::make_unique<Pool>(threads_);
  pool_ = own_.get();
  pool_->expect(threads_ - 1);
}

Team::Team(Pool& pool, int threads) : threads_(1) { share(pool, threads); }

void Team::share(Pool& pool, int threads) {
  const auto before = pool_;
  const auto helpers = threads_ - 1;
  threads_ = std::max(1, threads);
  pool_ = threads_ == 1 ? nullptr : &pool;
  if (pool_ != nullptr) pool_->expect(threads_ - 1);
  if (before != nullptr) before->expect_no_more(helpers);
}

Team::~Team() {
  if (pool_ != nullptr) pool_->expect_no_more(threads_ - 1);
}

int threads_worth(Cost all, int most) {
  constexpr double kNanosecondsForTwo = 120'000, kNanosecondsForAThread = 20'000;
  if (all.nanoseconds < kNanosecondsForTwo) return 1;
  return static_cast<int>(std::min(all.nanoseconds / kNanosecondsForAThread, static_cast<double>(std::max(1, most))));
}

std::vector<std::int64_t> cut_by_work(std::span<const std::int64_t> until, std::int64_t parts) {
  std::vector<std::int64_t> out{0};
  const auto count = static_cast<std::int64_t>(until.size());
  const auto all = until.empty() ? 0 : until.back();
  for (std::int64_t n = 1, i = 0; n < parts; ++n) {
    // The item over the border goes to the side that has more of it.
    const auto border = static_cast<double>(all) * static_cast<double>(n) / static_cast<double>(parts);
    while (i < count) {
      const auto before = i == 0 ? 0 : until[static_cast<std::size_t>(i - 1)];
      if (static_cast<double>(before + until[static_cast<std::size_t>(i)]) / 2 > border) break;
      ++i;
    }
    out.push_back(i);
  }
  out.push_back(count);
  return out;
}

Team& Team::of_this_thread() {
  thread_local Team team(1);
  return team;
}

void Team::use(int threads) { of_this_thread().share(Pool::of_process(), threads); }

}  // namespace parlando::kernels
