#pragma once
/// What the ranks of a tensor-parallel group say to each other: collectives with deadlines. All ranks make the same
/// calls in the same order with the same sizes. A group is one failure unit: whatever goes wrong for one rank (a
/// deadline, a rank that dies or leaves, calls that do not match, `abort`) makes the call under way and every later one
/// fail at all ranks, and the group is built anew.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/base/clock.hpp"
#include "common/base/result.hpp"

namespace parlando::parallel {

/// bfloat16 as its bits.
struct Bf16 {
  std::uint16_t bits = 0;
  bool operator==(const Bf16&) const = default;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Replaces `values` by their sum over all ranks. Added in the order of ranks in float and rounded once, so all ranks
  /// get the same bits, in any run.
  /// @error Errc::deadline_exceeded here and Errc::unavailable at the others; Errc::unavailable when the group is
  /// broken, with the first reason; Errc::invalid_argument when the ranks' calls do not match
  virtual Result<void> all_reduce(std::span<float> values, Time deadline) = 0;
  virtual Result<void> all_reduce(std::span<Bf16> values, Time deadline) = 0;
  /// `all` is [size, own.size()]: what each rank gave. @error as `all_reduce`; Errc::invalid_argument when `all` has
  /// another size
  virtual Result<void> all_gather(std::span<const std::byte> own, std::span<std::byte> all, Time deadline) = 0;
  /// `bytes` of rank `root` come to all. The root does not wait until they have been read. @error as `all_reduce`
  virtual Result<void> broadcast(std::span<std::byte> bytes, int root, Time deadline) = 0;

  /// Breaks the group. From any thread; never waits.
  virtual void abort(const std::string& reason) = 0;
  /// Why the group is broken; empty while it is not.
  virtual std::string broken() const = 0;
};

}  // namespace parlando::parallel
