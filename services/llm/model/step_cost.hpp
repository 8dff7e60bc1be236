#pragma once
/// What passes have cost so far, and from that how much of a prefill may go with the next one. Plain numbers; the
/// caller has the clock.
#include <array>
#include <cstdint>

namespace parlando::llm {

class StepCost {
 public:
  /// @param seconds_max  what a step may take; an hour or more: whatever it takes  @param growth  or this many times
  /// what it takes without a prefill, whichever is more: on a large model every step is long, and nobody is helped by
  /// pieces of one token
  StepCost(double seconds_max, double growth) : seconds_max_(seconds_max), growth_(growth) {}
  /// A pass over so many sequences with one token each and so many tokens of prompts took this long.
  void observe(std::int64_t decoding, std::int64_t prefilled, double seconds);
  /// Tokens of prompts that may go with the next pass; at least `kLeast`, so that a prompt always proceeds, and at most
  /// twice as many as were seen to be cheap enough.
  std::int64_t room(std::int64_t decoding) const;

  /// `kAlone`: the least while nobody speaks. What reads the weights costs is part of every piece then, so that small
  /// ones would make a long prompt several times slower and help only who comes meanwhile.
  static constexpr std::int64_t kLeast = 8, kFirst = 32, kAlone = 64;

 private:
  static std::size_t bucket(std::int64_t decoding);
  double without_prefill(std::int64_t decoding) const;
  double seconds_max_, growth_;
  /// By the power of two of the sequences the least that a pass without a prefill takes; 0: not seen.
  std::array<double, 24> steps_{};
  double token_ = 0;       ///< seconds that a token of a prompt adds, never none; 0: not seen
  std::int64_t seen_ = 0;  ///< largest piece that was observed lately
};

}  // namespace parlando::llm
