#pragma once
/// Who may use the API, and how much. A file has a key a line, as its SHA-256: what is stolen of it opens nothing.
///   <64 hexadecimal digits> <name> [sessions=N] [requests_per_minute=N]
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.hpp"
#include "common/base/result.hpp"
#include "services/gateway/rate_credit.hpp"

namespace parlando::gateway {

using KeyId = std::size_t;

/// The key in an Authorization header, "Bearer KEY"; empty: there is none.
std::string_view bearer_of(std::string_view authorization);

class ApiKeys {
 public:
  /// @error Errc::not_found, Errc::io; Errc::bad_format, naming the line and what is wrong with it
  static Result<ApiKeys> read(const std::string& path);
  static Result<ApiKeys> parse(std::string_view text, const std::string& path);

  bool empty() const { return keys_.empty(); }
  std::size_t size() const { return keys_.size(); }
  const std::string& name(KeyId key) const { return keys_[key].name; }

  /// Takes the same time for every wrong key.
  std::optional<KeyId> find(std::string_view authorization) const { return find_key(bearer_of(authorization)); }
  std::optional<KeyId> find_key(std::string_view key) const;
  /// The first key of this name.
  std::optional<KeyId> find_name(std::string_view name) const;

  /// Counts a request. @return how long to wait when there were too many of this key
  std::optional<milliseconds> take_request(KeyId key, Time now);
  /// @return false when it has as many as it may; else `end_session` follows
  bool begin_session(KeyId key);
  void end_session(KeyId key);

 private:
  struct Key {
    std::string digest, name;
    int sessions_max = 0, requests_per_minute = 0;  ///< 0: no limit
    int sessions = 0;
    std::optional<RateCredit> requests;  ///< none: no limit
  };
  static Result<void> read_limit(Key& key, std::string_view word, const std::string& where);
  std::vector<Key> keys_;
};

}  // namespace parlando::gateway
