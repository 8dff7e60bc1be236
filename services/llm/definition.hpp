#pragma once
#include "common/service/definition.hpp"
#include "services/llm/llm_core.hpp"

namespace parlando::llm {

inline service::Definition definition() {
  return service::define<LlmConfig>("llm", "serves one Step-1 checkpoint to chats or to text-to-speech", {},
                                    &LlmCore::make);
}

}  // namespace parlando::llm
