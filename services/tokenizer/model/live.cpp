#include "services/tokenizer/model/live.hpp"

#include <algorithm>

#include "common/base/codes.hpp"

namespace parlando::tokenizer {

namespace {
constexpr std::int64_t kGroupSamples = 1920;  // 120 ms
}

Result<std::vector<std::int32_t>> LiveTokenizer::run() const { return tokenizer_->codes(wave_, 16000, {}); }
Result<std::vector<std::int32_t>> LiveTokenizer::exact() const { return run(); }

Result<std::optional<LiveUpdate>> LiveTokenizer::push(std::span<const float> wave) {
  wave_.insert(wave_.end(), wave.begin(), wave.end());
  if (wave_.size() - done_ < static_cast<std::size_t>(options_.interval_samples)) return std::optional<LiveUpdate>{};
  done_ = wave_.size() / static_cast<std::size_t>(options_.interval_samples) *
          static_cast<std::size_t>(options_.interval_samples);
  PARLANDO_TRY(const auto now, run());
  const auto old_enough =
      std::max<std::int64_t>(0, (static_cast<std::int64_t>(wave_.size()) - options_.guard_ms * 16) / kGroupSamples);
  const auto first = static_cast<std::int64_t>(frozen_.size()) / kCodesPerGroup;
  for (auto g = first; g < old_enough; ++g) {
    const auto at = static_cast<std::size_t>(g * kCodesPerGroup);
    if (at + kCodesPerGroup > now.size() || at + kCodesPerGroup > previous_.size() ||
        !std::equal(now.begin() + at, now.begin() + at + kCodesPerGroup, previous_.begin() + at))
      break;
    frozen_.insert(frozen_.end(), now.begin() + at, now.begin() + at + kCodesPerGroup);
  }
  previous_ = now;
  LiveUpdate update{first, {}, static_cast<std::int64_t>(frozen_.size()) / kCodesPerGroup};
  update.codes.assign(frozen_.begin() + first * kCodesPerGroup, frozen_.end());
  if (now.size() > frozen_.size())
    update.codes.insert(update.codes.end(), now.begin() + static_cast<std::ptrdiff_t>(frozen_.size()), now.end());
  return std::optional(update);
}

void LiveTokenizer::cut(std::size_t samples) {
  if (samples >= wave_.size()) return;
  wave_.resize(samples);
  const auto groups = samples / static_cast<std::size_t>(kGroupSamples);
  frozen_.resize(std::min(frozen_.size(), groups * kCodesPerGroup));
}

Result<std::vector<std::int32_t>> LiveTokenizer::finish() {
  PARLANDO_TRY(const auto last, run());
  auto out = std::exchange(frozen_, {});
  if (last.size() > out.size())
    out.insert(out.end(), last.begin() + static_cast<std::ptrdiff_t>(out.size()), last.end());
  previous_.clear();
  done_ = 0;
  return out;
}

}  // namespace parlando::tokenizer
