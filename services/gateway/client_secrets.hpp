#pragma once
/// Client secrets (`ek_…`): what a server of a user gives to the browsers of others, so that they can open
/// `/v1/realtime` for a while without knowing the key. A secret says whose key it stands for, until when, and what its
/// session begins with; it is signed, so that no gateway has to remember it.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/base/result.hpp"

namespace parlando::gateway {

struct SecretClaims {
  std::string key;           ///< name of the key; empty: none was needed
  std::int64_t expires = 0;  ///< Unix time
  std::string session;       ///< JSON, as of `session.update`; empty: nothing
};

class ClientSecrets {
 public:
  static constexpr std::string_view kPrefix = "ek_";
  static constexpr std::size_t kSessionBytesMax = 8192;  ///< a secret travels in a header

  /// With a random signing key: what it signs no other gateway knows, and this one no more after a restart.
  ClientSecrets();
  /// @param path  at least 32 bytes that all gateways share. @error Errc::not_found, Errc::io; Errc::bad_format
  static Result<ClientSecrets> read(const std::string& path);

  /// A key for something else, of which this one is not learnt.
  std::string derive(std::string_view purpose) const { return sign(purpose); }
  std::string make(const SecretClaims& claims) const;
  /// @return nothing when it was not made here, or its time is over
  std::optional<SecretClaims> find(std::string_view secret, std::int64_t now_seconds) const;

 private:
  std::string sign(std::string_view text) const;
  std::string key_;
};

}  // namespace parlando::gateway
