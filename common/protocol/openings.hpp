#pragma once
/// Numbers of inputs of a session (docs/protocol.md): the upper half names the opening that they were said at, the
/// lower one counts from 1. Gateways give them, controllers compare them with those in records.
#include <cstdint>

namespace parlando::protocol {

inline constexpr int kOpeningShift = 32;

constexpr std::uint64_t opening_of(std::uint64_t input) { return input >> kOpeningShift; }
constexpr std::uint64_t first_input_of(std::uint64_t opening) { return (opening << kOpeningShift) + 1; }

}  // namespace parlando::protocol
