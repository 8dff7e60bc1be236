#pragma once
/// Memory that the ranks of one group share: on one host, between threads or processes. It holds no pointers. Who made
/// it hands it to the others as an object (threads), a descriptor (children) or a file's path (containers of one pod);
/// the kernel frees it with its last user, and a file is unlinked once all have joined.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>

#include "common/base/result.hpp"

namespace parlando::parallel {

/// One rank's words. Lies in shared memory; what the others look at in every call is one cache line.
struct alignas(64) RankWords {
  /// What a call is, so that calls that do not match are found out.
  struct Call {
    std::uint32_t kind = 0, root = 0;
    std::uint64_t bytes = 0;  ///< of the whole call
    bool operator==(const Call&) const = default;
  };
  std::atomic<std::uint32_t> posted{0};    ///< calls made so far; a futex
  std::atomic<std::uint32_t> sleepers{0};  ///< ranks that sleep on it
  Call calls[2];                           ///< of each slot
  alignas(64) std::atomic<std::uint64_t> beat{0};
  std::atomic<std::uint32_t> joined{0};
};

struct RegionHeader {
  static constexpr std::uint64_t kMagic = 0x31676e7261706c70;
  std::uint64_t magic = kMagic;
  std::uint32_t ranks = 0;
  std::uint32_t reserved = 0;
  std::uint64_t slot_bytes = 0;
  std::atomic<std::uint32_t> broken{0};  ///< 0 whole, 1 the reason is being written, 2 broken
  char reason[224] = {};                 ///< ends with a zero
};

class SharedRegion {
 public:
  static constexpr int kRanksMax = 64;
  /// @param slot_bytes  how much one rank posts at a time (rounded up to 64); larger calls go in pieces
  /// @error Errc::invalid_argument, Errc::io
  static Result<std::shared_ptr<SharedRegion>> create(int ranks, std::size_t slot_bytes);
  /// The same as a new file, which must not exist; its folder should be in memory (/dev/shm).
  static Result<std::shared_ptr<SharedRegion>> create_file(const std::filesystem::path& path, int ranks,
                                                           std::size_t slot_bytes);
  /// @param descriptor  of a region; is copied, stays the caller's. @error Errc::bad_format when it is none
  static Result<std::shared_ptr<SharedRegion>> attach(int descriptor);
  static Result<std::shared_ptr<SharedRegion>> attach_file(const std::filesystem::path& path);
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  int descriptor() const { return descriptor_; }
  int ranks() const { return static_cast<int>(header().ranks); }
  std::size_t slot_bytes() const { return header().slot_bytes; }
  RegionHeader& header() const { return *reinterpret_cast<RegionHeader*>(memory_); }
  RankWords& words(int rank) const;
  /// One of the two places that a rank posts into by turns.
  std::byte* slot(int rank, std::uint32_t call) const;

 private:
  SharedRegion(int descriptor, std::byte* memory, std::size_t bytes)
      : descriptor_(descriptor), memory_(memory), bytes_(bytes) {}
  static Result<std::shared_ptr<SharedRegion>> build(int descriptor, int ranks, std::size_t slot_bytes);
  static Result<std::shared_ptr<SharedRegion>> map(int descriptor, std::size_t bytes);
  int descriptor_;
  std::byte* memory_;
  std::size_t bytes_;
};

}  // namespace parlando::parallel
