#pragma once
/// How many threads do the parts of a piece of work: what a call takes at most of a pool.
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "kernels/team/pool.hpp"

namespace parlando::kernels {

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
    const auto parts = parts_of(count, least);
    if (parts <= 1) {
      if (count > 0) work(std::int64_t{0}, count);
      return;
    }
    pool_->run([](void* f, std::int64_t first,
                  std::int64_t last) { (*static_cast<std::remove_reference_t<F>*>(f))(first, last); },
               const_cast<void*>(static_cast<const void*>(&work)), count, parts);
  }

  /// The team of the calling thread: a share of the process's pool, of one thread unless `use` said else.
  static Team& of_this_thread();
  /// From now on the calling thread takes at most so many threads, its own included, for a call.
  static void use(int threads);

 private:
  std::int64_t parts_of(std::int64_t count, std::int64_t least) const;
  int threads_;
  std::unique_ptr<Pool> own_;
  Pool* pool_ = nullptr;  ///< none for one thread
};

/// Cuts items into parts of about the same work. @param until  [items] the work of all items up to this one, it
/// included
/// @return [parts + 1] part n is items [out[n], out[n + 1]); some are empty when one item is most of the work
std::vector<std::int64_t> cut_by_work(std::span<const std::int64_t> until, std::int64_t parts);

}  // namespace parlando::kernels
