#include "services/gateway/http_sessions.hpp"

#include "common/base/codes.hpp"
#include "services/gateway/json_text.hpp"

namespace parlando::gateway {
using nlohmann::json;

void EraseRequest::start() { say({{"type", "erase"}, {"session", session_}, {"token", token_}}); }

void EraseRequest::on_event(const std::string& type, const json& event) {
  if (type == "erased")
    return answer({200, "application/json",
                   dump({{"object", "session.deleted"},
                         {"id", session_},
                         {"deleted", true},
                         {"turns", event.value("turns", std::int64_t{0})}})});
  if (type != "error") return;
  const auto code = event.value("code", "");
  // No name and no token, a wrong one, somebody else's, one that was erased before: who tries learns nothing.
  if (code == to_string(Errc::invalid_argument) || code == to_string(Errc::not_found))
    return fail({404, "nothing is stored of a session with this token", {}, "not_found"});
  fail(api_error(code, event.value("message", ""), event.value("retry_ms", std::int64_t{0})));
}

}  // namespace parlando::gateway
