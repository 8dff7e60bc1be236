#include "services/gateway/http_client_secrets.hpp"

#include "common/base/nesting.hpp"
#include "services/gateway/http_fields.hpp"
#include "services/gateway/realtime_settings.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {
constexpr int kSecretDepthMax = 32;
constexpr std::int64_t kSecondsLeast = 10, kSecondsMost = 7200, kSecondsUsual = 600;  // as published
}  // namespace

http::Response answer_client_secret(std::string_view text, const ClientSecrets& secrets, const std::string& key,
                                    const std::string& id, std::int64_t now) {
  const auto body = text.empty()                                ? json::object()
                    : nested_deeper_than(text, kSecretDepthMax) ? json()
                                                                : json::parse(text, nullptr, false);
  if (!body.is_object()) return error_response({400, "the body is not a JSON object", {}, "bad_json"});
  std::optional<ApiError> problem;
  Fields f(body, "", problem);
  SecretClaims claims{key, now + kSecondsUsual, {}};
  if (const auto* after = f.object("expires_after")) {
    Fields a(*after, "expires_after", problem);
    a.one_of("anchor", {"created_at"});
    claims.expires = now + a.integer("seconds", kSecondsLeast, kSecondsMost).value_or(kSecondsUsual);
  }
  auto session = f.object("session") != nullptr ? body["session"] : json::object();
  if (problem) return error_response(*problem);
  if (!session.contains("type")) session["type"] = "realtime";
  const auto type = session["type"];
  if (type != "realtime" && type != "transcription")
    return error_response({400,
                           "'session.type' is " + dump(type).substr(0, 60) + ", expected realtime or transcription",
                           "session.type", "invalid_value"});
  RealtimeSettings settings("sess_" + id, "parlando", type == "transcription", claims.expires);
  if (const auto read = settings.update(session); !read)
    return error_response({400, read.error().message, read.error().param, read.error().code});
  claims.session = dump(session);
  if (claims.session.size() > ClientSecrets::kSessionBytesMax)
    return error_response({400,
                           fmt::format("'session' has {} bytes, expected at most {}: the rest is for session.update",
                                       claims.session.size(), ClientSecrets::kSessionBytesMax),
                           "session", "invalid_value"});
  return {200, "application/json",
          dump({{"value", secrets.make(claims)}, {"expires_at", claims.expires}, {"session", settings.effective()}})};
}

}  // namespace parlando::gateway
