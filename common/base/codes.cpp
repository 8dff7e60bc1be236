#include "common/base/codes.hpp"

#include <algorithm>

namespace parlando {

Result<std::vector<std::int32_t>> interleave(std::span<const std::int32_t> linguistic,
                                             std::span<const std::int32_t> semantic) {
  const std::size_t groups = std::min(linguistic.size() / kLinguisticPerGroup, semantic.size() / kSemanticPerGroup);
  std::vector<std::int32_t> out;
  out.reserve(groups * kCodesPerGroup);
  for (std::size_t g = 0; g < groups; ++g) {
    for (std::size_t i = g * kLinguisticPerGroup; i < (g + 1) * kLinguisticPerGroup; ++i) {
      if (linguistic[i] < 0 || linguistic[i] >= kLinguisticCodes)
        return fail(Errc::token_out_of_range, "linguistic token {} is {}, expected 0…{}", i, linguistic[i],
                    kLinguisticCodes - 1);
      out.push_back(linguistic[i]);
    }
    for (std::size_t i = g * kSemanticPerGroup; i < (g + 1) * kSemanticPerGroup; ++i) {
      if (semantic[i] < 0 || semantic[i] >= kSemanticCodes)
        return fail(Errc::token_out_of_range, "semantic token {} is {}, expected 0…{}", i, semantic[i],
                    kSemanticCodes - 1);
      out.push_back(kLinguisticCodes + semantic[i]);
    }
  }
  return out;
}

Result<SplitCodes> split_codes(std::span<const std::int32_t> codes) {
  SplitCodes out;
  for (std::size_t i = 0; i + kCodesPerGroup <= codes.size(); i += kCodesPerGroup)
    for (std::size_t j = i; j < i + kCodesPerGroup; ++j) {
      const bool linguistic = j - i < kLinguisticPerGroup;
      const auto value = linguistic ? codes[j] : codes[j] - kLinguisticCodes;
      if (value < 0 || value >= (linguistic ? kLinguisticCodes : kSemanticCodes))
        return fail(Errc::token_out_of_range, "code {} at position {} is no {} code", codes[j], j,
                    linguistic ? "linguistic" : "semantic");
      (linguistic ? out.linguistic : out.semantic).push_back(value);
    }
  return out;
}

std::string to_token_string(std::span<const std::int32_t> codes) {
  std::string out;
  for (const auto code : codes) out += fmt::format("<audio_{}>", code);
  return out;
}

std::vector<std::int32_t> GroupCollector::push(std::int32_t code) {
  const bool linguistic = code >= 0 && code < kLinguisticCodes, semantic = code >= kLinguisticCodes && code < kCodes;
  const bool wants_linguistic = open_.size() < kLinguisticPerGroup;
  if (!(wants_linguistic ? linguistic : semantic)) {
    ++dropped_;
    return {};
  }
  open_.push_back(code);
  if (open_.size() < kCodesPerGroup) return {};
  return std::exchange(open_, {});
}

}  // namespace parlando
