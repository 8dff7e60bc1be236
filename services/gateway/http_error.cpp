#include "services/gateway/http_error.hpp"

#include <algorithm>

#include "common/base/result.hpp"
#include "services/gateway/json_text.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr std::int64_t kRetryMs = 1000;  // where nobody knows better

int status_of(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
    case Errc::bad_format:
    case Errc::unsupported:
    case Errc::bad_frame:
    case Errc::bad_json:
    case Errc::unknown_type:
    case Errc::no_speech:
      return 400;
    case Errc::not_found:
      return 404;
    case Errc::overloaded:
    case Errc::not_ready:
    case Errc::unavailable:
      return 503;
    case Errc::deadline_exceeded:
      return 504;
    default:
      return 500;
  }
}

}  // namespace

std::string_view error_type(int status) {
  if (status == 401) return "authentication_error";
  if (status == 403) return "permission_error";
  if (status == 429) return "rate_limit_error";
  return status >= 500 ? "server_error" : "invalid_request_error";
}

std::string error_json(const ApiError& error) {
  json body{{"message", error.message}, {"type", error_type(error.status)}, {"param", nullptr}, {"code", nullptr}};
  if (!error.param.empty()) body["param"] = error.param;
  if (!error.code.empty()) body["code"] = error.code;
  return dump(json{{"error", std::move(body)}});
}

http::Response error_response(const ApiError& error) {
  http::Response out{error.status, "application/json", error_json(error)};
  if (error.status != 429 && error.status != 503) return out;
  const auto wait = std::max<std::int64_t>(error.retry_ms > 0 ? error.retry_ms : kRetryMs, 1);
  out.headers = {{"Retry-After", std::to_string((wait + 999) / 1000)}, {"Retry-After-Ms", std::to_string(wait)}};
  return out;
}

ApiError api_error(std::string_view code, std::string message, std::int64_t retry_ms) {
  return {status_of(errc_of(code)), std::move(message), {}, std::string(code), retry_ms};
}

}  // namespace parlando::gateway
