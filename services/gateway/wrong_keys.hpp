#pragma once
/// How often an address may come with keys that are not known: ten at once, ten a minute; above that it is told to
/// wait. One that is known is let in whatever came before: whoever shares an address with a guesser, or with a program
/// whose key was taken away, is not shut out. Keys are too long to be guessed; this keeps who tries from being
/// answered.
#include <map>
#include <optional>
#include <string>

#include "common/base/clock.hpp"
#include "services/gateway/rate_credit.hpp"

namespace parlando::gateway {

class WrongKeys {
 public:
  static constexpr int kPerMinute = 10;
  static constexpr std::size_t kAddressesMax = 4096;  ///< then the one that was heard of longest ago is forgotten

  /// An address has come with a wrong one. @return how long to wait when these were too many; else it is counted
  std::optional<milliseconds> take(const std::string& address, Time now);
  std::size_t addresses() const { return addresses_.size(); }

 private:
  struct Address {
    RateCredit credit{kPerMinute};
    Time heard{};
  };
  Address& of(const std::string& address);
  std::map<std::string, Address> addresses_;
};

}  // namespace parlando::gateway
