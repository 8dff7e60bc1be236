#pragma once
#include "common/service/definition.hpp"
#include "services/controller/controller_core.hpp"

namespace parlando::controller {

inline service::Definition definition() {
  return service::define<ControllerConfig>("controller", "leads the conversations",
                                           {"vad", "tokenizer", "llm-chat", "tts", "context"}, &ControllerCore::make);
}

}  // namespace parlando::controller
