#pragma once
/// One function per reader of foreign bytes. A target may refuse its input; it must never crash, hang or read outside
/// it.
#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace parlando::fuzz {

struct Target {
  std::string name;
  void (*run)(std::span<const std::byte> input);
};

/// A script of frames, time and service calls for one mesh.
void run_mesh(std::span<const std::byte> input);

const std::vector<Target>& targets();

}  // namespace parlando::fuzz
