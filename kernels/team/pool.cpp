#include "kernels/team/pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <system_error>

namespace parlando::kernels {

namespace {
constexpr int kCoresMax = 1024;
/// The pool that the calling thread is counted in.
thread_local const Pool* counted_in = nullptr;

int niceness() { return ::getpriority(PRIO_PROCESS, static_cast<id_t>(::gettid())); }
/// Threads of a low priority stay there, since most processes may not raise one.
thread_local int own_niceness = niceness();
}  // namespace

int usable_cores() {
  cpu_set_t set;
  int out = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  if (::sched_getaffinity(0, sizeof set, &set) == 0) out = std::max(1, CPU_COUNT(&set));
  // "max 100000" or "150000 100000", microseconds of each period.
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  long long quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0)
    out = static_cast<int>(std::clamp((quota + period - 1) / period, 1LL, static_cast<long long>(out)));
  return std::min(out, kCoresMax);
}

Pool::Pool(int cores, int cores_max)
    : cores_(std::max(1, cores)),
      seats_max_(std::max(cores_.load(), cores_max) - 1),
      seats_(std::make_unique<Seat[]>(static_cast<std::size_t>(seats_max_))) {}

Pool::~Pool() {
  for (int n = 0; n < static_cast<int>(threads_.size()); ++n) {
    seats_[static_cast<std::size_t>(n)].state.store(stopped, std::memory_order_release);
    seats_[static_cast<std::size_t>(n)].state.notify_one();
  }
  for (auto& thread : threads_) thread.join();
}

Pool& Pool::of_process() {
  // Never destroyed: a process may end while somebody computes.
  static Pool& pool = *new Pool(usable_cores(), kCoresMax);
  return pool;
}

void Pool::set_cores(int cores) {
  cores_.store(std::clamp(cores < 1 ? usable_cores() : cores, 1, seats_max_ + 1), std::memory_order_relaxed);
  expect(0);
}

void Pool::expect(int helpers) {
  const std::lock_guard lock(growing_);
  expected_ += helpers;
  const auto wanted = static_cast<std::size_t>(std::min({expected_, cores() - 1, seats_max_}));
  if (threads_.size() >= wanted) return;
  sigset_t all, before;  // signals are for those who wait for them
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    while (threads_.size() < wanted) {
      auto& seat = seats_[threads_.size()];
      threads_.emplace_back([this, &seat] { serve(seat); });
      ::pthread_setname_np(threads_.back().native_handle(), "compute");
    }
  } catch (const std::exception&) {  // as many as the system and the memory allow
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  started_.store(static_cast<int>(threads_.size()), std::memory_order_release);
}

void Pool::expect_no_more(int helpers) {
  const std::lock_guard lock(growing_);
  expected_ -= helpers;
}

Pool::Busy::Busy(Pool& pool) : pool_(counted_in == &pool ? nullptr : &pool), before_(counted_in) {
  if (pool_ == nullptr) return;
  pool_->busy_.fetch_add(1, std::memory_order_relaxed);
  counted_in = pool_;
}

Pool::Busy::~Busy() {
  if (pool_ == nullptr) return;
  pool_->busy_.fetch_sub(1, std::memory_order_relaxed);
  counted_in = before_;
}

void Pool::Job::work_on() {
  for (auto n = next.fetch_add(1, std::memory_order_relaxed); n < parts;
       n = next.fetch_add(1, std::memory_order_relaxed)) {
    if (failed.load(std::memory_order_relaxed)) return;
    try {
      call(work, count * n / parts, count * (n + 1) / parts);
    } catch (...) {
      if (!failed.exchange(true, std::memory_order_relaxed)) error = std::current_exception();
    }
  }
}

bool Pool::take_core() {
  auto busy = busy_.load(std::memory_order_relaxed);
  while (busy < cores())
    if (busy_.compare_exchange_weak(busy, busy + 1, std::memory_order_relaxed)) return true;
  return false;
}

Pool::Seat* Pool::take_seat() {
  const auto count = started_.load(std::memory_order_acquire);
  for (int n = 0; n < count; ++n) {
    auto& seat = seats_[static_cast<std::size_t>(n)];
    std::uint32_t is = free;
    if (seat.state.load(std::memory_order_relaxed) == free &&
        seat.state.compare_exchange_strong(is, taken, std::memory_order_acquire))
      return &seat;
  }
  return nullptr;
}

void Pool::run(Call call, void* work, std::int64_t count, std::int64_t parts) {
  const Busy self(*this);
  Job job{call, work, count, parts, own_niceness};
  Seat* mine = nullptr;
  for (std::int64_t n = 1; n < parts && take_core(); ++n) {
    auto* seat = take_seat();
    if (seat == nullptr) {
      busy_.fetch_sub(1, std::memory_order_relaxed);
      break;
    }
    seat->job = &job, seat->next = mine, mine = seat;
    asked_.fetch_add(1, std::memory_order_relaxed);
    seat->state.store(offered, std::memory_order_seq_cst);
    seat->state.notify_one();
  }
  job.work_on();
  while (mine != nullptr) {
    auto& seat = *mine;
    mine = seat.next;
    // Who has not begun finds nothing left to do: it is not waited for.
    std::uint32_t is = offered;
    if (!seat.state.compare_exchange_strong(is, taken, std::memory_order_acquire))
      while (seat.state.load(std::memory_order_acquire) == running) seat.state.wait(running, std::memory_order_acquire);
    seat.state.store(free, std::memory_order_release);
    busy_.fetch_sub(1, std::memory_order_relaxed);
  }
  if (job.error) std::rethrow_exception(job.error);
}

void Pool::serve(Seat& seat) {
  counted_in = this;  // by those who ask
  for (;;) {
    std::uint32_t is = seat.state.load(std::memory_order_acquire);
    if (is == stopped) return;
    if (is != offered) {
      seat.state.wait(is, std::memory_order_acquire);
      continue;
    }
    if (!seat.state.compare_exchange_strong(is, running, std::memory_order_acq_rel)) continue;
    auto& job = *seat.job;
    // A helper has no higher priority than who it helps.
    if (job.niceness > own_niceness && ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), job.niceness) == 0)
      own_niceness = job.niceness;
    job.work_on();
    // In order with the look at who waits that `notify_one` begins with.
    seat.state.store(done, std::memory_order_seq_cst);
    seat.state.notify_one();
  }
}

}  // namespace parlando::kernels
