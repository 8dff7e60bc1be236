#pragma once
/// What a session's owner reaches it by for as long as it is stored: to open it again, hours later and at any gateway,
/// and to have it erased. It is signed, so that nobody has to remember it: of the session's name and of whose key it
/// was opened with, under what signs client secrets.
#include <string>
#include <string_view>

#include "common/base/ids.hpp"

namespace parlando::gateway {

class SessionTokens {
 public:
  static constexpr std::size_t kDigits = 32;

  SessionTokens() = default;  ///< there are no tokens, and none is right
  /// @param key  that signs
  explicit SessionTokens(std::string key) : key_(std::move(key)) {}

  /// @param owner  name of a key; empty: none was needed. @return 32 hexadecimal digits; empty without a key
  std::string of(SessionId session, std::string_view owner) const;
  /// Takes the same time for every wrong token.
  bool is_right(std::string_view token, SessionId session, std::string_view owner) const;

 private:
  std::string key_;
};

}  // namespace parlando::gateway
