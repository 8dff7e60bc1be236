#pragma once
/// The user's sound from a position of the session on, and with which input each part of it came. A value.
#include <algorithm>
#include <deque>
#include <optional>

#include "common/base/clock.hpp"
#include "common/base/units.hpp"
#include "common/protocol/messages.hpp"

namespace parlando::controller {

class SoundLog {
 public:
  bool is_empty() const { return pcm_.empty(); }
  std::int64_t first_sample() const { return first_sample_; }
  std::int64_t end_sample() const { return first_sample_ + static_cast<std::int64_t>(pcm_.size() / kSampleBytes); }
  std::int64_t samples() const { return end_sample() - first_sample_; }
  /// An empty log begins where the sound does; what is known already is left out.
  /// @return what was new, or nothing when sound is missing before it. @pre whole samples
  std::optional<protocol::Audio> append(protocol::Audio audio, std::uint64_t input, Time now);
  /// Where the sound begins that has come since then; the end when none has.
  std::int64_t first_sample_since(Time then) const;
  /// The input that a sample came with; of one that has not come, the last.
  std::uint64_t input_of(std::int64_t sample) const;
  void drop_before(std::int64_t sample);
  void drop_from(std::int64_t sample);
  /// What comes from there on, as a log of its own; this one keeps the rest.
  SoundLog split_from(std::int64_t sample);
  /// Appends a log that begins where this one ends.
  void join(SoundLog rest);
  /// Parts of at most 16 KiB, as they are said again to another replica.
  template <class F>
  void each(F&& f) const {
    for (std::size_t at = 0; at < pcm_.size(); at += kPartBytes) {
      const auto end = std::min(pcm_.size(), at + kPartBytes);
      protocol::Audio part;
      part.first_sample = first_sample_ + static_cast<std::int64_t>(at / kSampleBytes);
      part.payload.assign(pcm_.begin() + static_cast<std::ptrdiff_t>(at),
                          pcm_.begin() + static_cast<std::ptrdiff_t>(end));
      f(std::move(part));
    }
  }
  /// The input that the kept sound begins in; 0: none is kept.
  std::uint64_t first_input() const { return inputs_.empty() ? 0 : inputs_.front().number; }

 private:
  static constexpr std::size_t kPartBytes = 16 * 1024;
  struct Input {
    std::uint64_t number;
    std::int64_t end_sample;
    Time arrived;
  };
  std::int64_t first_sample_ = 0;
  protocol::Bytes pcm_;
  std::deque<Input> inputs_;  ///< of the kept sound, oldest first
};

}  // namespace parlando::controller
