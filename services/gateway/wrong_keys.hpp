#pragma once
/// How often an address may come with keys that are not known: ten at once, ten a minute. Above that no key of it is
/// looked at, so that guesses are not answered, but those that it has come with before: whoever shares an address with
/// a guesser, or with a program whose key was taken away, is not shut out.
#include <map>
#include <optional>
#include <set>
#include <string>

#include "common/base/clock.hpp"
#include "services/gateway/http_keys.hpp"

namespace parlando::gateway {

class WrongKeys {
 public:
  static constexpr int kPerMinute = 10;
  static constexpr std::size_t kAddressesMax = 4096;  ///< then the one that was heard of longest ago is forgotten

  /// @param key  that the request brings; none: one that is not known
  /// @return how long to wait when the address has come with too many wrong ones; else a wrong one is counted
  std::optional<milliseconds> take(const std::string& address, std::optional<KeyId> key, Time now);
  std::size_t addresses() const { return addresses_.size(); }

 private:
  struct Address {
    double credit = kPerMinute;
    Time counted, heard;
    std::set<KeyId> known;  ///< that it came with
  };
  Address& of(const std::string& address, Time now);
  std::map<std::string, Address> addresses_;
};

}  // namespace parlando::gateway
