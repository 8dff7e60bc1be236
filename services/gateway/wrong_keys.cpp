#include "services/gateway/wrong_keys.hpp"

#include <algorithm>

namespace parlando::gateway {

WrongKeys::Address& WrongKeys::of(const std::string& name, Time now) {
  if (const auto known = addresses_.find(name); known != addresses_.end()) return known->second;
  if (addresses_.size() >= kAddressesMax)
    addresses_.erase(std::min_element(addresses_.begin(), addresses_.end(),
                                      [](const auto& a, const auto& b) { return a.second.heard < b.second.heard; }));
  auto& out = addresses_[name];
  out.heard = now;
  return out;
}

std::optional<milliseconds> WrongKeys::take(const std::string& name, Time now) {
  constexpr double kRate = kPerMinute / 60000.0;  // a millisecond
  auto& address = of(name, now);
  const auto passed = std::chrono::duration<double, std::milli>(now - address.heard).count();
  address.credit = std::min<double>(kPerMinute, address.credit + kRate * std::max(0.0, passed));
  address.heard = now;
  if (address.credit < 1) return milliseconds(static_cast<std::int64_t>((1 - address.credit) / kRate) + 1);
  address.credit -= 1;
  return {};
}

}  // namespace parlando::gateway
