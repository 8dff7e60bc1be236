#pragma once
#include "common/service/definition.hpp"
#include "services/context/context_core.hpp"

namespace parlando::context {

inline service::Definition definition() {
  return service::define<ContextConfig>("context", "keeps committed turns", {}, &ContextCore::make);
}

}  // namespace parlando::context
