#include "services/gateway/client_secrets.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <array>

#include "common/base/assert.hpp"
#include "common/base/base64.hpp"
#include "common/base/mapped_file.hpp"
#include "common/base/random_id.hpp"
#include "services/gateway/json_text.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr std::size_t kKeyBytesMin = 32, kKeyBytesMax = 4096, kSecretBytesMax = 16 << 10;

/// Base64 whose characters may stand in a header's token and in a subprotocol.
std::string to_base64url(std::span<const std::byte> bytes) {
  auto out = to_base64(bytes);
  while (!out.empty() && out.back() == '=') out.pop_back();
  for (auto& c : out) c = c == '+' ? '-' : c == '/' ? '_' : c;
  return out;
}

Result<std::vector<std::byte>> from_base64url(std::string_view text) {
  std::string plain(text);
  for (auto& c : plain) c = c == '-' ? '+' : c == '_' ? '/' : c;
  return from_base64(plain);
}

}  // namespace

ClientSecrets::ClientSecrets() : key_(random_hex(kKeyBytesMin)) {}

Result<ClientSecrets> ClientSecrets::read(const std::string& path) {
  ClientSecrets out;
  PARLANDO_TRY(out.key_, read_file(path, kKeyBytesMax));
  if (out.key_.size() < kKeyBytesMin)
    return fail(Errc::bad_format, "'{}' has {} bytes, expected at least {} random ones", path, out.key_.size(),
                kKeyBytesMin);
  return out;
}

std::string ClientSecrets::sign(std::string_view text) const {
  std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
  unsigned size = 0;
  const auto* done = HMAC(EVP_sha256(), key_.data(), static_cast<int>(key_.size()),
                          reinterpret_cast<const unsigned char*>(text.data()), text.size(), out.data(), &size);
  PARLANDO_ASSERT(done != nullptr, "HMAC of a few bytes needs memory only");
  return to_base64url(std::as_bytes(std::span(out).first(size)));
}

std::string ClientSecrets::make(const SecretClaims& claims) const {
  json body{{"key", claims.key}, {"expires", claims.expires}, {"id", random_hex(8)}};
  if (!claims.session.empty()) body["session"] = claims.session;
  const auto text = dump(body);
  auto out = std::string(kPrefix) + to_base64url(std::as_bytes(std::span(text)));
  out += "." + sign(out);
  return out;
}

std::optional<SecretClaims> ClientSecrets::find(std::string_view secret, std::int64_t now) const {
  if (!secret.starts_with(kPrefix) || secret.size() > kSecretBytesMax) return {};
  const auto dot = secret.rfind('.');
  if (dot == std::string_view::npos) return {};
  const auto signed_text = secret.substr(0, dot), signature = secret.substr(dot + 1);
  const auto right = sign(signed_text);
  if (signature.size() != right.size() || CRYPTO_memcmp(signature.data(), right.data(), right.size()) != 0) return {};
  const auto bytes = from_base64url(signed_text.substr(kPrefix.size()));
  if (!bytes) return {};
  const auto body =
      json::parse(std::string_view(reinterpret_cast<const char*>(bytes->data()), bytes->size()), nullptr, false);
  if (!body.is_object()) return {};
  SecretClaims out{body.value("key", ""), body.value("expires", std::int64_t{0}), body.value("session", "")};
  if (out.expires <= now) return {};
  return out;
}

}  // namespace parlando::gateway
