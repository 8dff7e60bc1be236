#pragma once
/// G.711 (ITU-T): 16-bit samples in 8 bits each, µ-law (PCMU) and A-law (PCMA), as telephones speak at 8 kHz.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace parlando::audio {

enum class G711 : std::uint8_t { mu_law, a_law };

std::uint8_t g711_code(G711 law, std::int16_t sample);
/// The sample in the middle of the interval that a code stands for.
std::int16_t g711_sample(G711 law, std::uint8_t code);

std::vector<std::byte> g711_encode(G711 law, std::span<const std::int16_t> samples);
std::vector<std::int16_t> g711_decode(G711 law, std::span<const std::byte> codes);

}  // namespace parlando::audio
