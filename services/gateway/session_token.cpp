#include "services/gateway/session_token.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <array>

#include "common/base/assert.hpp"
#include "common/base/result.hpp"

namespace parlando::gateway {

std::string SessionTokens::of(SessionId session, std::string_view owner) const {
  if (key_.empty()) return {};
  const auto text = fmt::format("session {} {}", session.text(), owner);
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  const auto* done = HMAC(EVP_sha256(), key_.data(), static_cast<int>(key_.size()),
                          reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data(), &size);
  PARLANDO_ASSERT(done != nullptr, "HMAC of a few bytes needs memory only");
  std::string out;
  for (std::size_t i = 0; 2 * i < kDigits; ++i) out += fmt::format("{:02x}", digest[i]);
  return out;
}

bool SessionTokens::is_right(std::string_view token, SessionId session, std::string_view owner) const {
  const auto right = of(session, owner);
  return !right.empty() && token.size() == right.size() && CRYPTO_memcmp(token.data(), right.data(), right.size()) == 0;
}

}  // namespace parlando::gateway
