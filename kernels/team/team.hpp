#pragma once
/// Threads that do the parts of one piece of work and sleep between pieces. Nobody spins: a team that waits costs its
/// neighbours nothing.
#include <atomic>
#include <cstdint>
#include <functional>
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
  /// The team of the calling thread with this many threads; made again when the number changes.
  static Team& of_this_thread(int threads);

 private:
  using Call = void (*)(void*, std::int64_t, std::int64_t);
  std::int64_t parts_of(std::int64_t count, std::int64_t least) const;
  void call(Call call, void* work, std::int64_t count, std::int64_t parts);
  void part(std::int64_t index);
  void serve(std::int64_t index);
  Call call_ = nullptr;
  void* work_ = nullptr;
  std::int64_t count_ = 0, parts_ = 0;
  std::atomic<std::uint32_t> round_{0}, left_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> others_;
};

}  // namespace parlando::kernels
