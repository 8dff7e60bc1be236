#pragma once
#include "common/service/definition.hpp"
#include "services/tokenizer/tokenizer_core.hpp"

namespace parlando::tokenizer {

inline service::Definition definition() {
  return service::define<TokenizerConfig>("tokenizer", "speech to dual-codebook tokens", {}, &TokenizerCore::make);
}

}  // namespace parlando::tokenizer
