#pragma once
/// A group of one rank: nothing is exchanged.
#include <algorithm>
#include <mutex>

#include "common/parallel/communicator.hpp"

namespace parlando::parallel {

class LocalCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  Result<void> all_reduce(std::span<float>, Time) override { return whole(); }
  Result<void> all_reduce(std::span<Bf16>, Time) override { return whole(); }
  Result<void> all_gather(std::span<const std::byte> own, std::span<std::byte> all, Time) override {
    if (all.size() != own.size())
      return fail(Errc::invalid_argument, "all_gather: room for {} bytes, expected 1 x {}", all.size(), own.size());
    PARLANDO_DO(whole());
    std::ranges::copy(own, all.begin());
    return {};
  }
  Result<void> broadcast(std::span<std::byte>, int root, Time) override {
    if (root != 0) return fail(Errc::invalid_argument, "broadcast: root {}, expected 0 in a group of one", root);
    return whole();
  }
  void abort(const std::string& reason) override {
    const std::lock_guard lock(mutex_);
    if (reason_.empty()) reason_ = reason.empty() ? "aborted" : reason;
  }
  std::string broken() const override {
    const std::lock_guard lock(mutex_);
    return reason_;
  }

 private:
  Result<void> whole() const {
    const auto reason = broken();
    if (!reason.empty()) return fail(Errc::unavailable, "the group is broken: {}", reason);
    return {};
  }
  mutable std::mutex mutex_;
  std::string reason_;
};

}  // namespace parlando::parallel
