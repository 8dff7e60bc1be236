#pragma once
/// Collectives between ranks of one host over shared memory. A call posts into one of the rank's two slots by turns and
/// counts it; the others wait for the count, at first awake, then asleep on it as a futex. A slot is written again two
/// calls later, when all have counted the call between: who has counted that has read this one.
#include <memory>
#include <thread>

#include "common/parallel/communicator.hpp"
#include "common/parallel/shared_region.hpp"

namespace parlando::parallel {

class ShmCommunicator final : public Communicator {
 public:
  struct Options {
    /// How long a rank waits awake at most; half as long after each time in vain. Negative: 50 us, or not at all where
    /// the group has more ranks than this process may use cores.
    std::chrono::microseconds spin{-1};
    milliseconds beat{100};  ///< how often a rank gives a sign of life and looks for those of the others
    int looks = 8;           ///< looks without one until a rank counts as dead and the group is broken
  };
  /// Takes a rank's place. @error Errc::invalid_argument for a rank outside the group or one that was taken before
  static Result<std::unique_ptr<ShmCommunicator>> join(std::shared_ptr<SharedRegion> region, int rank, Options options);
  /// Leaves, which breaks the group for the others' later calls.
  ~ShmCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Result<void> all_reduce(std::span<float> values, Time deadline) override;
  Result<void> all_reduce(std::span<Bf16> values, Time deadline) override;
  Result<void> all_gather(std::span<const std::byte> own, std::span<std::byte> all, Time deadline) override;
  Result<void> broadcast(std::span<std::byte> bytes, int root, Time deadline) override;
  void abort(const std::string& reason) override;
  std::string broken() const override;

 private:
  enum class Kind : std::uint32_t { all_reduce_f32 = 1, all_reduce_bf16, all_gather, broadcast };
  ShmCommunicator(std::shared_ptr<SharedRegion> region, int rank, Options options);
  template <class Value>
  Result<void> reduce(std::span<Value> values, Kind kind, Time deadline);
  Result<void> begin(std::span<const std::byte> piece, Kind kind, int root, std::size_t whole, Time deadline);
  std::chrono::microseconds spin_for();
  Result<void> wait_for(int other, std::uint32_t call, Time deadline);
  Result<void> match(int other, std::uint32_t call);
  Result<const std::byte*> read(int other, Time deadline);
  Error reason() const;
  void watch(const std::stop_token& stop);
  std::shared_ptr<SharedRegion> region_;
  int rank_, size_;
  Options options_;
  std::chrono::microseconds spin_{0};
  std::uint32_t waits_ = 0;
  std::uint32_t call_ = 0;  ///< the one under way, or the last
  std::jthread watch_;
};

}  // namespace parlando::parallel
