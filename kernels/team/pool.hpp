#pragma once
/// The threads of a process that help those who have work to share. They sleep until somebody asks; nobody spins. Who
/// asks always does its own work, and is helped by those that are free: a pool whose workers are all taken holds nobody
/// up, and no call waits for one that has not begun. So calls may come from any thread, from many at once, and from
/// within the work of another.
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace parlando::kernels {

/// Processors that this process may use: of its affinity mask, and at most its quota (`/sys/fs/cgroup/cpu.max`: that of
/// a container; a unit of systemd has it elsewhere, and all cores count).
int usable_cores();

class Pool {
 public:
  /// @param cores  threads that compute at a time, those who call included: helpers are taken only while fewer do
  /// @param cores_max  what `set_cores` may say later; 0: cores
  explicit Pool(int cores, int cores_max = 0);
  /// Nobody may be in a call.
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  /// The pool that services and tools share. It has as many cores as the process may use until somebody says else.
  static Pool& of_process();

  int cores() const { return cores_.load(std::memory_order_relaxed); }
  /// @param cores  0: as many as the process may use
  void set_cores(int cores);
  /// Workers are started when somebody who may ask for them comes: as many as all who may ask want at most together,
  /// and fewer than there are cores. They stay. Where the system gives no more threads there are fewer.
  void expect(int helpers);
  void expect_no_more(int helpers);
  int workers() const { return started_.load(std::memory_order_acquire); }
  /// How often a worker was asked so far.
  std::int64_t asked() const { return asked_.load(std::memory_order_relaxed); }

  /// While it lives, its thread is one of those who compute, also between its calls: a core that a service works on is
  /// not lent to another one. Inside of another one of the same thread it does nothing.
  class Busy {
   public:
    explicit Busy(Pool& pool);
    ~Busy();
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;

   private:
    Pool* pool_;
    const Pool* before_;
  };

  using Call = void (*)(void*, std::int64_t, std::int64_t);
  /// Calls call(work, first, last) for each of the parts of [0, count), with at most parts - 1 helpers. Returns when
  /// all are done. What a part throws is thrown here, and parts that have not begun are left out.
  void run(Call call, void* work, std::int64_t count, std::int64_t parts);

 private:
  enum State : std::uint32_t { free, taken, offered, running, done, stopped };
  struct Job {
    Call call;
    void* work;
    std::int64_t count, parts;
    int niceness;
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error{};
    void work_on();
  };
  /// Where a worker waits, on a line of its own. From `taken` to `free` it belongs to who has taken it.
  struct alignas(64) Seat {
    std::atomic<std::uint32_t> state{free};
    Job* job = nullptr;
    Seat* next = nullptr;  ///< of those that the same call has taken
  };
  bool take_core();
  Seat* take_seat();
  void serve(Seat& seat);

  std::atomic<int> cores_, busy_{0}, started_{0};
  std::atomic<std::int64_t> asked_{0};
  const int seats_max_;
  const std::unique_ptr<Seat[]> seats_;
  std::mutex growing_;
  int expected_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace parlando::kernels
