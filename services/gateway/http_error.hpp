#pragma once
/// Why an HTTP request is refused or has failed, in the form of the OpenAI API.
#include <cstdint>
#include <string>
#include <string_view>

#include "common/http/server.hpp"

namespace parlando::gateway {

struct ApiError {
  int status = 400;
  std::string message;
  std::string param;  ///< the field that is wrong, as `messages[0].content`; empty: null
  std::string code;   ///< empty: null
  std::int64_t retry_ms = 0;
};

/// What a status is called in `type`.
std::string_view error_type(int status);
/// {"error": {message, type, param, code}}
std::string error_json(const ApiError& error);
/// With `Retry-After` where trying again makes sense.
http::Response error_response(const ApiError& error);
/// Of an `error` event of a session.
ApiError api_error(std::string_view code, std::string message, std::int64_t retry_ms);

}  // namespace parlando::gateway
