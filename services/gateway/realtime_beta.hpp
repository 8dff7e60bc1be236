#pragma once
/// The names that the realtime API had as a beta (`OpenAI-Beta: realtime=v1`), for clients that were written then:
/// their events become those of today, and ours become theirs. Plain functions over the text of events.
#include <string>
#include <string_view>

#include "services/gateway/realtime_events.hpp"

namespace parlando::gateway {

/// What is no JSON object stays as it is: who reads it says what is wrong.
std::string from_beta(std::string_view event);
/// @return an empty text: the beta had no such event
std::string to_beta(const RealtimeEvent& event);

}  // namespace parlando::gateway
