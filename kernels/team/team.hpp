#pragma once
/// How many threads do the parts of a piece of work: what a call takes at most of a pool.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/team/pool.hpp"

namespace parlando::kernels {

/// About how long one thread takes for a piece of work. Estimated from its bytes and operations and never measured, so
/// that the same work is always shared in the same way.
struct Cost {
  double nanoseconds = 0;
  /// @param bytes  that come from a cache which cores share, or from memory
  static Cost of(double bytes, double operations, double operations_per_nanosecond) {
    constexpr double kBytesPerNanosecond = 20;
    return {std::max(bytes / kBytesPerNanosecond, operations / operations_per_nanosecond)};
  }
};
/// How many threads that is worth: one below 120 µs, since helpers begin some 40 µs after they were asked and who waits
/// for them has to be woken, too (two break even at about 100); from there one for each 20 µs, since all wake at once.
int threads_worth(Cost all, int most);

class Team {
 public:
  /// With a pool of its own. @param threads  at least 1, the caller's included; 1 starts none
  explicit Team(int threads = 1);
  Team(Pool& pool, int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  /// At most so many threads do a call's parts.
  int size() const { return pool_ == nullptr ? 1 : std::min(threads_, pool_->cores()); }
  /// Runs work(first, last) over [0, count), a part for each thread that may help, none smaller than `least` unless it
  /// is the only one. Returns when all are done; what a part throws is thrown here. Any thread may call this, also
  /// within the work of another call.
  template <class F>
  void run(std::int64_t count, std::int64_t least, F&& work) {
    run_parts(count, std::min<std::int64_t>(size(), count / std::max<std::int64_t>(1, least)), work);
  }
  /// The same with a part for each thread that all of it is worth.
  template <class F>
  void run(std::int64_t count, Cost all, F&& work) {
    run_parts(count, std::min<std::int64_t>(count, threads_worth(all, size())), work);
  }

  /// The team of the calling thread: a share of the process's pool, of one thread unless `use` said else.
  static Team& of_this_thread();
  /// From now on the calling thread takes at most so many threads, its own included, for a call. Its team stays where
  /// it is.
  static void use(int threads);

 private:
  void share(Pool& pool, int threads);
  template <class F>
  void run_parts(std::int64_t count, std::int64_t parts, F& work) {
    if (parts <= 1) {
      if (count > 0) work(std::int64_t{0}, count);
      return;
    }
    pool_->run([](void* f, std::int64_t first, std::int64_t last) { (*static_cast<F*>(f))(first, last); },
               const_cast<void*>(static_cast<const void*>(&work)), count, parts);
  }
  int threads_;
  std::unique_ptr<Pool> own_;
  Pool* pool_ = nullptr;  ///< none for one thread
};

/// Cuts items into parts of about the same work. @param until  [items] the work of all items up to this one, it
/// included
/// @return [parts + 1] part n is items [out[n], out[n + 1]); some are empty when one item is most of the work
std::vector<std::int64_t> cut_by_work(std::span<const std::int64_t> until, std::int64_t parts);

}  // namespace parlando::kernels
