#pragma once
/// `DELETE /v1/sessions/{session}`: what was said in a session is deleted. Everything that is wrong is answered alike.
#include "services/gateway/http_request.hpp"

namespace parlando::gateway {

class EraseRequest final : public HttpRequest {
 public:
  /// @param session  as `opened` has told it. @param token  its `session_token`
  EraseRequest(std::string_view session, std::string_view token) : session_(session), token_(token) {}
  void start() override;

 private:
  void on_event(const std::string& type, const nlohmann::json& event) override;
  std::string session_, token_;
};

}  // namespace parlando::gateway
