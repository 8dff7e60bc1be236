#include "services/gateway/http_keys.hpp"

#include <openssl/crypto.h>

#include <algorithm>
#include <charconv>

#include "common/base/mapped_file.hpp"
#include "services/gateway/resume_token.hpp"

namespace parlando::gateway {
namespace {

constexpr std::size_t kFileBytesMax = 1 << 20, kDigestDigits = 64, kKeyBytesMax = 512;
constexpr int kLimitMax = 1'000'000;

std::string_view next_word(std::string_view& line) {
  const auto first = std::min(line.find_first_not_of(" \t\r"), line.size());
  line.remove_prefix(first);
  const auto word = line.substr(0, line.find_first_of(" \t\r"));
  line.remove_prefix(word.size());
  return word;
}

}  // namespace

Result<void> ApiKeys::read_limit(Key& key, std::string_view word, const std::string& where) {
  const auto equals = word.find('=');
  const auto name = word.substr(0, equals);
  int* to = name == "sessions" ? &key.sessions_max : name == "requests_per_minute" ? &key.requests_per_minute : nullptr;
  if (to == nullptr || equals == std::string_view::npos)
    return fail(Errc::bad_format, "{} has '{}', expected sessions=N or requests_per_minute=N", where,
                word.substr(0, 40));
  const auto number = word.substr(equals + 1);
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), *to);
  if (error != std::errc() || end != number.data() + number.size() || *to < 1 || *to > kLimitMax)
    return fail(Errc::bad_format, "{} has {} '{}', expected 1 to {}", where, name, number.substr(0, 40), kLimitMax);
  return {};
}

Result<ApiKeys> ApiKeys::parse(std::string_view text, const std::string& path) {
  ApiKeys out;
  for (int number = 1; !text.empty(); ++number) {
    auto line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    line = line.substr(0, line.find('#'));
    const auto where = fmt::format("'{}' line {}", path, number);
    const auto digest = next_word(line);
    if (digest.empty()) continue;
    if (digest.size() != kDigestDigits || digest.find_first_not_of("0123456789abcdef") != std::string_view::npos)
      return fail(Errc::bad_format, "{} begins with no SHA-256 of {} hexadecimal digits in lower case", where,
                  kDigestDigits);
    Key key;
    key.digest = digest;
    key.name = next_word(line);
    if (key.name.empty()) return fail(Errc::bad_format, "{} names nobody", where);
    for (auto word = next_word(line); !word.empty(); word = next_word(line)) PARLANDO_DO(read_limit(key, word, where));
    if (key.requests_per_minute > 0) key.requests.emplace(key.requests_per_minute);
    for (const auto& other : out.keys_)
      if (other.digest == key.digest) return fail(Errc::bad_format, "{} repeats the key of '{}'", where, other.name);
    out.keys_.push_back(std::move(key));
  }
  if (out.empty()) return fail(Errc::bad_format, "'{}' has no keys", path);
  return out;
}

Result<ApiKeys> ApiKeys::read(const std::string& path) {
  PARLANDO_TRY(const auto text, read_file(path, kFileBytesMax));
  return parse(text, path);
}

std::string_view bearer_of(std::string_view authorization) {
  constexpr std::string_view kBearer = "bearer ";
  if (authorization.size() <= kBearer.size()) return {};
  for (std::size_t i = 0; i < kBearer.size(); ++i)
    if ((authorization[i] | 0x20) != (kBearer[i] | 0x20)) return {};
  auto rest = authorization.substr(kBearer.size());
  return next_word(rest);
}

std::optional<KeyId> ApiKeys::find_key(std::string_view key) const {
  if (key.empty() || key.size() > kKeyBytesMax) return {};
  const auto digest = digest_of(key);
  std::optional<KeyId> found;
  for (KeyId i = 0; i < keys_.size(); ++i)  // all of them, whichever it is
    if (CRYPTO_memcmp(digest.data(), keys_[i].digest.data(), kDigestDigits) == 0) found = i;
  return found;
}

std::optional<KeyId> ApiKeys::find_name(std::string_view name) const {
  for (KeyId i = 0; i < keys_.size(); ++i)
    if (keys_[i].name == name) return i;
  return {};
}

std::optional<milliseconds> ApiKeys::take_request(KeyId id, Time now) {
  auto& requests = keys_[id].requests;
  return requests ? requests->take(now) : std::nullopt;
}

bool ApiKeys::begin_session(KeyId id) {
  auto& key = keys_[id];
  if (key.sessions_max > 0 && key.sessions >= key.sessions_max) return false;
  ++key.sessions;
  return true;
}

void ApiKeys::end_session(KeyId id) { --keys_[id].sessions; }

}  // namespace parlando::gateway
