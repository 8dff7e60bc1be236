#pragma once
/// Errors as they arrive and leave: codes by name, and what makes sense next.
#include "common/base/clock.hpp"
#include "common/base/result.hpp"

namespace parlando::controller {

inline constexpr int kErrcCount = static_cast<int>(Errc::no_speech) + 1;
/// When a client may try again what could not be served.
inline constexpr milliseconds kRetry{1000};

/// Another replica may take what this one refuses.
inline bool is_refusal(Errc code) {
  return code == Errc::overloaded || code == Errc::not_ready || code == Errc::unavailable;
}

/// Our own link says that the stream is gone: it is no word of the replica.
inline bool is_link_lost(Errc code) { return code == Errc::unavailable || code == Errc::cancelled; }

}  // namespace parlando::controller
