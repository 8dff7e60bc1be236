#pragma once
/// When a vad can tell first that somebody speaks: what a figure behind the detection of a voice counts from.
#include <cstdint>
#include <memory>
#include <string>

#include "services/vad/model/silero.hpp"

namespace parlando::cli {

/// @param pcm  s16le at 16 kHz that is said in a quiet room
/// @return samples from its begin until a vad with the shipped settings has heard the frame that tells of speech,
/// wherever its frames begin: the earliest of them; -1: it hears none
std::int64_t voice_heard_at(const std::string& pcm, const std::shared_ptr<const vad::SileroWeights>& weights);

}  // namespace parlando::cli
