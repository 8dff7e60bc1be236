#pragma once
/// What lets a client take its session back: 128 random bits that only the client keeps. Controllers know their digest,
/// so that nobody who reads along between services can resume a session.
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace parlando::gateway {

struct ResumeToken {
  std::string text;    ///< 32 hexadecimal digits
  std::string digest;  ///< of the text
  static ResumeToken make(const std::function<std::uint64_t()>& random);
};

/// SHA-256 in 64 hexadecimal digits. A token is random enough to need no salt.
std::string digest_of(std::string_view token);

}  // namespace parlando::gateway
