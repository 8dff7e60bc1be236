#include "services/cli/doctor.hpp"

#include <dlfcn.h>
#include <fmt/core.h>
#include <sqlite3.h>
#include <torch/csrc/api/include/torch/version.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "common/http/server.hpp"
#include "common/service/host.hpp"
#include "kernels/gemv/gemv.hpp"
#include "kernels/vector/isa.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

int doctor(const fs::path& model_path, bool as_json) {
  json out;
  auto& cpu = out["cpu"];
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) {
      cpu["model"] = line.substr(line.find(':') + 2);
      break;
    }
  cpu["threads"] = std::thread::hardware_concurrency();
  cpu["kernels"] = kernels::gemv_target();
  __builtin_cpu_init();
  cpu["features"] = {{"avx2", static_cast<bool>(__builtin_cpu_supports("avx2"))},
                     {"avx512f", static_cast<bool>(__builtin_cpu_supports("avx512f"))},
                     {"avx512_bf16", static_cast<bool>(__builtin_cpu_supports("avx512bf16"))},
                     {"amx", kernels::isas().back() == kernels::Isa::amx}};
  std::ifstream memory("/proc/meminfo");
  for (std::string key; memory >> key;)
    if (key == "MemAvailable:") {
      long kb = 0;
      memory >> kb;
      out["memory_available_bytes"] = static_cast<std::int64_t>(kb) * 1024;
      break;
    }
  // The driver library is opened, never linked: every executable starts on a machine without a GPU.
  int devices = 0;
  if (void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
    const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
    const auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
    if (init == nullptr || count == nullptr || init(0) != 0 || count(&devices) != 0) devices = 0;
    dlclose(driver);
  }
  out["gpus"] = devices;
  out["libraries"] = {{"libtorch", TORCH_VERSION},
                      {"ZeroMQ", transport::zmq_version()},
                      {"CAF", service::caf_version()},
                      {"SQLite", sqlite3_libversion()}};
  // The page's port is free when it can be listened on for a moment.
  constexpr const char* kPage = "127.0.0.1:7860";
  out["ports"][kPage] =
      http::Server::start(kPage, [](const http::Request&) { return http::Response{}; }, {}, {}).has_value() ? "free"
                                                                                                            : "taken";
  json models;
  bool complete = true;
  for (const char* name : {"Step-Audio-Tokenizer", "Step-Audio-Chat", "Step-Audio-TTS-3B"}) {
    models[name] = fs::is_directory(model_path / name);
    complete = complete && models[name].get<bool>();
  }
  out["model_path"] = model_path.string();
  out["models"] = models;
  out["ready"] = complete;
  if (as_json) {
    std::cout << out.dump() << "\n";
    return complete ? 0 : 3;
  }
  fmt::print("processor   {} ({} threads), kernels for {}\n", cpu.value("model", "unknown"),
             cpu["threads"].get<unsigned>(), cpu["kernels"].get<std::string>());
  fmt::print("            AVX2 {}, AVX-512 {}, bf16 {}, AMX {}\n", cpu["features"]["avx2"].dump(),
             cpu["features"]["avx512f"].dump(), cpu["features"]["avx512_bf16"].dump(), cpu["features"]["amx"].dump());
  fmt::print("memory      {:.1f} GB available\n", out.value("memory_available_bytes", std::int64_t{0}) / 1e9);
  fmt::print("GPUs        {}\n", devices == 0 ? "none (the CPU is used)" : std::to_string(devices));
  std::string libraries;
  for (const auto& [name, version] : out["libraries"].items())
    libraries += fmt::format("{}{} {}", libraries.empty() ? "" : " · ", name, version.get<std::string>());
  fmt::print("libraries   {}\nports       {} {}\n", libraries, kPage, out["ports"][kPage].get<std::string>());
  fmt::print("models      {}\n", model_path.string());
  for (const auto& [name, there] : models.items())
    fmt::print("            {:<22} {}\n", name, there.get<bool>() ? "found" : "missing");
  return complete ? 0 : 3;
}

}  // namespace parlando::cli
