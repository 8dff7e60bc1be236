#pragma once
/// What the HTTP endpoints have in common: voices, styles, counts. For sources only: it brings the JSON library.
#include "services/gateway/http_fields.hpp"

namespace parlando::gateway {

/// A string or {id}. The names of OpenAI's voices are no voices of ours: they mean the default one.
/// @return empty: the default; nothing when the field is missing or wrong, which `fields` notes
std::optional<std::string> read_voice(Fields& fields, const std::string& key);

/// `usage` of a chat completion, from the event that ends its turn; counts that it does not tell are 0.
nlohmann::json chat_usage(const nlohmann::json& turn);

/// The style tag that an English or Chinese word stands for (`happy`, `sichuanese`, `高兴1`); empty: none does.
std::string style_of(std::string_view word);
/// The first style that free text asks for; empty: none.
std::string style_in(std::string_view instructions);

}  // namespace parlando::gateway
