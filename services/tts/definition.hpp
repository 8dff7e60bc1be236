#pragma once
#include "common/service/definition.hpp"
#include "services/tts/tts_core.hpp"

namespace parlando::tts {

inline service::Definition definition() {
  return service::define<TtsConfig>("tts", "text to speech: codes, flow, vocoder", {"llm-tts", "tokenizer"},
                                    &TtsCore::make);
}

}  // namespace parlando::tts
