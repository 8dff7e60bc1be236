#pragma once
#include "common/service/definition.hpp"
#include "services/gateway/gateway_core.hpp"

namespace parlando::gateway {

inline service::Definition definition() {
  return service::define<GatewayConfig>("gateway", "the page and its WebSocket", {"controller"}, &GatewayCore::make);
}

}  // namespace parlando::gateway
