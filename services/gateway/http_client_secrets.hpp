#pragma once
/// `POST /v1/realtime/client_secrets`. A plain function.
#include "services/gateway/client_secrets.hpp"
#include "services/gateway/http_error.hpp"

namespace parlando::gateway {

/// @param key  name of the caller's key. @param id  of the session that is described, letters and digits
http::Response answer_client_secret(std::string_view body, const ClientSecrets& secrets, const std::string& key,
                                    const std::string& id, std::int64_t now_seconds);

}  // namespace parlando::gateway
