#pragma once
/// The dual-codebook token stream: groups of 2 linguistic and 3 semantic codes per 120 ms.
/// A *code* is 0…1023 (linguistic) or 1024…5119 (semantic + 1024); a language-model id is a code plus the id of
/// `<audio_0>`.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando {

inline constexpr int kLinguisticPerGroup = 2, kSemanticPerGroup = 3, kCodesPerGroup = 5;
inline constexpr std::int32_t kLinguisticCodes = 1024, kSemanticCodes = 4096,
                              kCodes = kLinguisticCodes + kSemanticCodes;

/// Interleaves whole groups; what is left over of either list is dropped, as the reference does at the end of an
/// utterance.
/// @param linguistic [L] ids in [0, 1024)   @param semantic [S] ids in [0, 4096)
/// @return [5·min(L/2, S/3)] codes
/// @error Errc::token_out_of_range, naming the stream and index.
Result<std::vector<std::int32_t>> interleave(std::span<const std::int32_t> linguistic,
                                             std::span<const std::int32_t> semantic);

struct SplitCodes {
  std::vector<std::int32_t> linguistic, semantic;
};
/// Inverse of `interleave` on whole groups. @error Errc::token_out_of_range for a code that does not fit its place.
Result<SplitCodes> split_codes(std::span<const std::int32_t> codes);

/// `<audio_N>` without separators; the form the chat prompt uses.
std::string to_token_string(std::span<const std::int32_t> codes);

/// Collects generated codes into whole groups. Codes out of phase and ids that are no codes are dropped and counted.
class GroupCollector {
 public:
  /// @return the codes of groups completed by this one (0 or 5)
  std::vector<std::int32_t> push(std::int32_t code);
  std::int64_t dropped() const { return dropped_; }

 private:
  std::vector<std::int32_t> open_;
  std::int64_t dropped_ = 0;
};

}  // namespace parlando
