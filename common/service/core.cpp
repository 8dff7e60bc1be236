#include "common/service/core.hpp"

#include <nlohmann/json.hpp>

namespace parlando::service {

void Core::answer_error(const std::string& peer, const protocol::Envelope& to, const Error& error) {
  answer(peer, to, protocol::MessageType::error,
         nlohmann::json{{"code", std::string(to_string(error.code))}, {"message", error.message}, {"stream", to.stream}}.dump());
}

}  // namespace parlando::service
