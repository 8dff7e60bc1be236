#pragma once
/// Settings of a conversation as clients write them: README.md lists the fields.
#include <nlohmann/json_fwd.hpp>

#include "common/protocol/settings.hpp"

namespace parlando::gateway {

/// Is this one of the fields that `open`, `configure` and `respond` share?
bool is_setting(std::string_view key);

/// What a message of a client changes, as services carry it (`protocol::apply`). Fields that are no settings are left
/// out; of an unknown `detection` field and of every wrong value the name, the value and what was expected are told.
/// @param where  the type of the message, for errors
/// @error Errc::invalid_argument
Result<protocol::JsonText> read_settings(const nlohmann::json& message, std::string_view where);

}  // namespace parlando::gateway
