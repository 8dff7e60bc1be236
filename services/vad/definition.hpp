#pragma once
#include "common/service/definition.hpp"
#include "services/vad/vad_core.hpp"

namespace parlando::vad {

inline service::Definition definition() {
  return service::define<VadConfig>("vad", "finds where users start and stop speaking", {}, &VadCore::make);
}

}  // namespace parlando::vad
