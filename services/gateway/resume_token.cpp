#include "services/gateway/resume_token.hpp"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>

#include "common/base/assert.hpp"
#include "common/base/hex.hpp"

namespace parlando::gateway {

ResumeToken ResumeToken::make(const std::function<std::uint64_t()>& random) {
  const auto high = random();
  ResumeToken out;
  out.text = fmt::format("{:016x}{:016x}", high, random());
  out.digest = digest_of(out.text);
  return out;
}

std::string digest_of(std::string_view token) {
  std::array<unsigned char, 32> out{};
  unsigned size = 0;
  const int good = EVP_Digest(token.data(), token.size(), out.data(), &size, EVP_sha256(), nullptr);
  PARLANDO_ASSERT(good == 1 && size == out.size(), "SHA-256 of a few bytes needs memory only");
  return to_hex(out);
}

}  // namespace parlando::gateway
