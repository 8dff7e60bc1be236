#include "kernels/team/team.hpp"

#include <algorithm>
#include <memory>

namespace parlando::kernels {

Team::Team(int threads) {
  for (int i = 1; i < threads; ++i) {
    auto& seat = seats_.emplace_back();  // stays where it is while others are added
    others_.emplace_back([this, &seat, i] { serve(seat, i); });
  }
}

Team::~Team() {
  stop_ = true;
  for (auto& seat : seats_) {
    seat.round.fetch_add(1);
    seat.round.notify_one();
  }
  for (auto& thread : others_) thread.join();
}

std::int64_t Team::parts_of(std::int64_t count, std::int64_t least) const {
  return std::min<std::int64_t>(size(), count / std::max<std::int64_t>(1, least));
}

void Team::part(std::int64_t index) { call_(work_, count_ * index / parts_, count_ * (index + 1) / parts_); }

void Team::call(Call call, void* work, std::int64_t count, std::int64_t parts) {
  call_ = call, work_ = work, count_ = count, parts_ = parts;
  left_.store(static_cast<std::uint32_t>(parts - 1), std::memory_order_relaxed);
  // Only those that have a part are woken and waited for: the others read nothing of this call.
  for (std::int64_t i = 1; i < parts; ++i) {
    auto& round = seats_[static_cast<std::size_t>(i - 1)].round;
    round.fetch_add(1, std::memory_order_release);
    round.notify_one();
  }
  part(0);
  for (auto left = left_.load(std::memory_order_acquire); left != 0; left = left_.load(std::memory_order_acquire))
    left_.wait(left, std::memory_order_acquire);
}

void Team::serve(Seat& seat, std::int64_t index) {
  for (std::uint32_t seen = 0;;) {
    seat.round.wait(seen, std::memory_order_acquire);
    seen = seat.round.load(std::memory_order_acquire);
    if (stop_) return;
    woken_.fetch_add(1, std::memory_order_relaxed);
    part(index);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
  }
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

Team& Team::of_this_thread(int threads) {
  thread_local std::unique_ptr<Team> team;
  if (!team || team->size() != std::max(1, threads)) team = std::make_unique<Team>(std::max(1, threads));
  return *team;
}

}  // namespace parlando::kernels
