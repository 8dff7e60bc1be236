#pragma once
/// What a listener has left to hear of an utterance that is played from its first sample on without a pause. Of several
/// utterances, the one that runs dry first is decoded next: a new one before those that are ahead of their listeners.
#include <algorithm>
#include <cstdint>

#include "common/base/clock.hpp"

namespace parlando::tts {

class Playout {
 public:
  /// Something is to be said from now on.
  void asked(Time now) { dry_at_ = std::max(dry_at_, now); }
  /// Sound has been sent. Behind a pause it is played from now on.
  void sent(std::int64_t samples, int rate, Time now) {
    asked(now);
    dry_at_ += std::chrono::duration_cast<Time::duration>(
        std::chrono::duration<double>(static_cast<double>(samples) / static_cast<double>(rate)));
  }
  /// Since when, or from when on, there is nothing to hear.
  Time dry_at() const { return dry_at_; }

 private:
  Time dry_at_{};
};

}  // namespace parlando::tts
