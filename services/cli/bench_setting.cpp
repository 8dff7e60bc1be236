#include "services/cli/bench_setting.hpp"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

#include "kernels/gemv/gemv.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {
std::string first_line(const char* command) {
  std::string out;
  if (FILE* pipe = ::popen(command, "r"); pipe != nullptr) {
    char text[200];
    if (std::fgets(text, sizeof text, pipe) != nullptr) out = text;
    ::pclose(pipe);
  }
  while (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}
}  // namespace

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(q * static_cast<double>(values.size())))];
}

double cpu_of_thread() {
  rusage usage{};
  ::getrusage(RUSAGE_THREAD, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::string load_average() {
  std::ifstream file("/proc/loadavg");
  std::string out;
  std::getline(file, out);
  return out.substr(0, out.find(' ', out.find(' ', out.find(' ') + 1) + 1));
}

json machine_of(const fs::path& source) {
  std::string processor = "unknown";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) {
      processor = line.substr(line.find(':') + 2);
      break;
    }
  const auto commit =
      source.empty()
          ? std::string()
          : first_line(fmt::format("git -C '{}' describe --always --dirty 2>/dev/null", source.string()).c_str());
  return {{"processor", processor},
          {"cores", std::thread::hardware_concurrency()},
          {"instruction_set", kernels::gemv_target()},
          {"commit", commit.empty() ? "unknown" : commit},
          {"load_before", load_average()}};
}

Scratch::Scratch() {
  std::string made = "/tmp/parlando-bench-XXXXXX";
  path_ = ::mkdtemp(made.data()) == nullptr ? fs::path() : fs::path(made);
}

Scratch::~Scratch() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
}

}  // namespace parlando::cli
