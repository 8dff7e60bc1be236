#pragma once
/// Threads that do the parts of one piece of work and sleep between pieces. Nobody spins: a team that waits costs its
/// neighbours nothing.
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <thread>
#include <vector>

namespace parlando::kernels {

class Team {
 public:
  /// @param threads  at least 1, the caller's included; 1 starts none
  explicit Team(int threads = 1);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  int size() const { return static_cast<int>(others_.size()) + 1; }
  /// Runs work(first, last) over [0, count), a part for each thread, none smaller than `least` unless it is the only
  /// one. Returns when all are done. Only the thread that made the team calls this; `work` throws nothing.
  template <class F>
  void run(std::int64_t count, std::int64_t least, F&& work) {
    const auto parts = parts_of(count, least);
    if (parts <= 1) {
      if (count > 0) work(std::int64_t{0}, count);
      return;
    }
    call([](void* f, std::int64_t first, std::int64_t last) { (*static_cast<F*>(f))(first, last); }, &work, count,
         parts);
  }
  /// How often a thread was woken so far. Those without a part are not.
  std::int64_t woken() const { return woken_.load(std::memory_order_relaxed); }
  /// The team of the calling thread with this many threads; made again when the number changes.
  static Team& of_this_thread(int threads);

 private:
  using Call = void (*)(void*, std::int64_t, std::int64_t);
  std::int64_t parts_of(std::int64_t count, std::int64_t least) const;
  void call(Call call, void* work, std::int64_t count, std::int64_t parts);
  void part(std::int64_t index);
  /// Where one of the others waits, on a line of its own.
  struct alignas(64) Seat {
    std::atomic<std::uint32_t> round{0};
  };
  void serve(Seat& seat, std::int64_t index);
  Call call_ = nullptr;
  void* work_ = nullptr;
  std::int64_t count_ = 0, parts_ = 0;
  std::atomic<std::uint32_t> left_{0};
  std::atomic<std::int64_t> woken_{0};
  std::atomic<bool> stop_{false};
  std::deque<Seat> seats_;
  std::vector<std::thread> others_;
};

/// Cuts items into parts of about the same work. @param until  [items] the work of all items up to this one, it
/// included
/// @return [parts + 1] part n is items [out[n], out[n + 1]); some are empty when one item is most of the work
std::vector<std::int64_t> cut_by_work(std::span<const std::int64_t> until, std::int64_t parts);

}  // namespace parlando::kernels
