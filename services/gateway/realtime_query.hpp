#pragma once
/// What a client of `/v1/realtime` says in the query of its target. Admission and the session read it by the same
/// rules: what one takes for a resumption is one for the other.
#include <string>
#include <string_view>

#include "services/gateway/realtime.hpp"

namespace parlando::gateway {

/// `model` and `intent` of a request's target; whatever else it has is no concern of translators.
RealtimeOptions realtime_options(std::string_view target);

/// What the resume extension reads of it.
struct ResumeFields {
  bool resumable = false;
  std::string token;  ///< empty: it is a new session
  std::string after;
};
ResumeFields resume_fields(std::string_view target);

}  // namespace parlando::gateway
