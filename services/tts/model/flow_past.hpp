#pragma once
/// Frames that stand before a window and are not computed again.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace parlando::tts {

inline constexpr std::int64_t kNormGroups = 8;  ///< of each norm of the estimator

/// What frames (a voice's prompt) are to those behind them, in every step of the solver: keys and values of each
/// attention (bf16), moments of each norm, the last frame that each convolution reads.
struct FlowPast {
  std::int64_t frames = 0;
  at::Tensor fixed;                            ///< last frame of what is the same in every step
  std::vector<std::vector<at::Tensor>> steps;  ///< in the order of use
  std::int64_t bytes() const {
    std::int64_t out = 0;
    for (const auto& step : steps)
      for (const auto& part : step) out += static_cast<std::int64_t>(part.nbytes());
    return out;
  }
};

/// One step of the solver: it keeps what its first frames are, or goes on behind those that are known.
struct PastStep {
  std::int64_t frames = 0;                         ///< at the length that the estimator is at
  const std::vector<at::Tensor>* known = nullptr;  ///< null: it keeps
  std::vector<at::Tensor> made;
  std::size_t next = 0;  ///< of those known
  at::Tensor take() { return known->at(next++); }
};

}  // namespace parlando::tts
