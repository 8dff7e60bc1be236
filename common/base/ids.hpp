#pragma once
/// Identities as types of their own, so that a turn is never passed where a stream is meant.
#include <compare>
#include <cstdint>
#include <functional>
#include <string>

#include <fmt/format.h>

namespace parlando {

/// 128 random bits; knowing one is no permission.
struct SessionId {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  auto operator<=>(const SessionId&) const = default;
  bool operator==(const SessionId&) const = default;
  /// 32 hexadecimal digits, high word first, as the store and logs write it.
  std::string text() const { return fmt::format("{:016x}{:016x}", high, low); }
};

/// Counts a session's turns from 1; 0 is none.
struct TurnId {
  std::uint32_t value = 0;
  auto operator<=>(const TurnId&) const = default;
};

/// One request and its answers between two peers, within a session. The caller counts from 1 and never uses a number
/// twice on a link.
struct StreamId {
  std::uint32_t value = 0;
  auto operator<=>(const StreamId&) const = default;
};

/// A stream's full name on one link.
struct StreamKey {
  SessionId session;
  StreamId stream;
  auto operator<=>(const StreamKey&) const = default;
  bool operator==(const StreamKey&) const = default;
};

/// The session's owner, as granted by `context`: higher fences lower. 0: not granted yet.
struct Epoch {
  std::uint64_t value = 0;
  auto operator<=>(const Epoch&) const = default;
};

}  // namespace parlando

template <>
struct std::hash<parlando::SessionId> {
  std::size_t operator()(const parlando::SessionId& id) const noexcept {
    return id.high ^ (id.low * 0x9e3779b97f4a7c15ull);
  }
};
template <>
struct std::hash<parlando::StreamKey> {
  std::size_t operator()(const parlando::StreamKey& key) const noexcept {
    return std::hash<parlando::SessionId>()(key.session) ^ (key.stream.value * 0xff51afd7ed558ccdull);
  }
};
