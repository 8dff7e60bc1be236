#include "services/gateway/wrong_keys.hpp"

#include <algorithm>

namespace parlando::gateway {

WrongKeys::Address& WrongKeys::of(const std::string& name) {
  if (const auto known = addresses_.find(name); known != addresses_.end()) return known->second;
  if (addresses_.size() >= kAddressesMax)
    addresses_.erase(std::min_element(addresses_.begin(), addresses_.end(),
                                      [](const auto& a, const auto& b) { return a.second.heard < b.second.heard; }));
  return addresses_[name];
}

std::optional<milliseconds> WrongKeys::take(const std::string& name, Time now) {
  auto& address = of(name);
  address.heard = now;
  return address.credit.take(now);
}

}  // namespace parlando::gateway
