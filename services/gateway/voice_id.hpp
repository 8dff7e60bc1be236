#pragma once
/// Names of voices that users of the API have made: `voice_`, eight digits that stand for the owner, 24 random ones.
/// Who may use one is seen from its name alone, by any gateway.
#include <string>
#include <string_view>

#include "common/base/voice_id.hpp"
#include "services/gateway/resume_token.hpp"

namespace parlando::gateway {

inline constexpr std::size_t kOwnerDigits = 8;

/// @param owner  name of a key; empty: what was made without a key is everybody's
inline std::string owner_tag(std::string_view owner) {
  return owner.empty() ? std::string(kOwnerDigits, '0') : digest_of(owner).substr(0, kOwnerDigits);
}

inline bool may_use_voice(std::string_view name, std::string_view owner) {
  if (!is_voice_id(name)) return true;
  const auto tag = name.substr(kVoicePrefix.size(), kOwnerDigits);
  return tag == owner_tag({}) || tag == owner_tag(owner);
}

}  // namespace parlando::gateway
