#pragma once
/// Why a turn took as long as it did: its stages as parts that follow each other.
#include <array>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "common/protocol/envelope.hpp"

namespace parlando::controller {

/// Their names: what the part ends with.
inline constexpr std::array<std::string_view, 6> kTraceParts{"decision",   "tokenizer",   "transcript",
                                                             "first_text", "first_audio", "text"};

/// From the end of the user's speech to the answer's first sound, or to the end of its text when it is not spoken:
/// `{id, total_ms, parts: [{name, ms}]}`. A part is what lies between a mark and the one before it, whatever of it was
/// done ahead of time; the parts sum to the total. What comes behind the first sound is not in it.
/// @param trace  of the gateway, as 16 hexadecimal digits
/// @param stages  name_ms → milliseconds from the end of speech (`Turn::stages`)
nlohmann::json trace_of(std::uint64_t trace, const nlohmann::json& stages);

}  // namespace parlando::controller
