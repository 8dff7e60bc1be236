#include "services/gateway/wrong_keys.hpp"

#include <algorithm>

namespace parlando::gateway {

WrongKeys::Address& WrongKeys::of(const std::string& name, Time now) {
  if (const auto known = addresses_.find(name); known != addresses_.end()) return known->second;
  if (addresses_.size() >= kAddressesMax)
    addresses_.erase(std::min_element(addresses_.begin(), addresses_.end(),
                                      [](const auto& a, const auto& b) { return a.second.heard < b.second.heard; }));
  auto& out = addresses_[name];
  out.counted = now;
  return out;
}

std::optional<milliseconds> WrongKeys::take(const std::string& name, std::optional<KeyId> key, Time now) {
  constexpr double kRate = kPerMinute / 60000.0;  // a millisecond
  auto& address = of(name, now);
  const auto passed = std::chrono::duration<double, std::milli>(now - address.counted).count();
  address.credit = std::min<double>(kPerMinute, address.credit + kRate * std::max(0.0, passed));
  address.counted = address.heard = now;
  if (key && address.known.contains(*key)) return {};
  if (address.credit < 1) return milliseconds(static_cast<std::int64_t>((1 - address.credit) / kRate) + 1);
  if (key)
    address.known.insert(*key);
  else
    address.credit -= 1;
  return {};
}

}  // namespace parlando::gateway
