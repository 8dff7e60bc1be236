#pragma once
/// The largest of many numbers in one pass, for sampling from a large vocabulary.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace parlando::kernels {

struct TopCandidates {
  std::vector<std::int32_t> ids;  ///< ascending
  std::vector<float> values;      ///< of these ids
  /// The first id whose number is NaN or +inf; -1 when there is none. The others mean nothing then.
  std::int64_t bad = -1;
};

/// All numbers that are at least the k-th largest one, and perhaps a few more that are smaller. −inf is a number.
/// @param count  k, at least 1   @param slack  numbers up to this factor of 1 below the border come along, too, so that
/// numbers that a division makes equal to it are not lost
/// @param out  keeps its memory
void top_candidates(std::span<const float> x, std::int64_t count, float slack, TopCandidates& out);

/// Where the largest number stands, the first one of equals. @return -1 when there is none; bad as above
struct Largest {
  std::int64_t at = -1, bad = -1;
};
Largest largest_of(std::span<const float> x);

}  // namespace parlando::kernels
