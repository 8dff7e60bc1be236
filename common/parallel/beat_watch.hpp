#pragma once
/// Which rank of a group has stopped giving signs of life. Plain class: it counts its own looks, not time, so whoever
/// stood still itself accuses nobody.
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace parlando::parallel {

class BeatWatch {
 public:
  /// @param looks  a rank whose beat is the same in so many looks in a row is silent
  BeatWatch(int ranks, int own, int looks) : last_(ranks, 0), same_(ranks, 0), own_(own), looks_(looks) {}

  /// @param beats  of each rank; 0: it has not joined yet and cannot be silent
  /// @return the lowest silent rank
  std::optional<int> look(std::span<const std::uint64_t> beats) {
    std::optional<int> silent;
    for (int r = 0; r < static_cast<int>(last_.size()); ++r) {
      same_[r] = beats[r] == last_[r] && beats[r] != 0 ? same_[r] + 1 : 0;
      last_[r] = beats[r];
      if (!silent && r != own_ && same_[r] >= looks_) silent = r;
    }
    return silent;
  }

 private:
  std::vector<std::uint64_t> last_;
  std::vector<int> same_;
  int own_, looks_;
};

}  // namespace parlando::parallel
