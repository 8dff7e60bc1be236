#include "kernels/team/team.hpp"

#include <algorithm>
#include <memory>

namespace parlando::kernels {

Team::Team(int threads) {
  for (int i = 1; i < threads; ++i) others_.emplace_back([this, i] { serve(i); });
}

Team::~Team() {
  stop_ = true;
  round_.fetch_add(1);
  round_.notify_all();
  for (auto& thread : others_) thread.join();
}

std::int64_t Team::parts_of(std::int64_t count, std::int64_t least) const {
  return std::min<std::int64_t>(size(), count / std::max<std::int64_t>(1, least));
}

void Team::part(std::int64_t index) {
  if (index >= parts_) return;
  call_(work_, count_ * index / parts_, count_ * (index + 1) / parts_);
}

void Team::call(Call call, void* work, std::int64_t count, std::int64_t parts) {
  call_ = call, work_ = work, count_ = count, parts_ = parts;
  left_.store(static_cast<std::uint32_t>(others_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  part(0);
  for (auto left = left_.load(std::memory_order_acquire); left != 0; left = left_.load(std::memory_order_acquire))
    left_.wait(left, std::memory_order_acquire);
}

void Team::serve(std::int64_t index) {
  for (std::uint32_t seen = 0;;) {
    round_.wait(seen, std::memory_order_acquire);
    seen = round_.load(std::memory_order_acquire);
    if (stop_) return;
    part(index);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
  }
}

Team& Team::of_this_thread(int threads) {
  thread_local std::unique_ptr<Team> team;
  if (!team || team->size() != std::max(1, threads)) team = std::make_unique<Team>(std::max(1, threads));
  return *team;
}

}  // namespace parlando::kernels
