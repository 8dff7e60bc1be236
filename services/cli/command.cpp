#include "services/cli/command.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <thread>

#include "common/audio/audio_file.hpp"
#include "kernels/team/pool.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

int exit_code(Errc code) {
  switch (code) {
    case Errc::not_found:
      return kNotFound;
    case Errc::bad_format:
    case Errc::bad_json:
    case Errc::invalid_argument:
    case Errc::unsupported:
    case Errc::checkpoint_mismatch:
      return kBadInput;
    case Errc::no_speech:
      return kNoSpeech;
    default:
      return kFailed;
  }
}

json to_json(const Error& error) { return {{"code", to_string(error.code)}, {"message", error.message}}; }

int report(const Error& error, bool as_json) {
  if (as_json) std::cout << json{{"error", to_json(error)}}.dump() << "\n";
  std::cerr << "parlando: " << error.message << "\n";
  return exit_code(error.code);
}

fs::path find_models(const char* what) {
  std::error_code code;
  const auto exe = fs::read_symlink("/proc/self/exe", code);
  for (auto folder = exe.parent_path(); !folder.empty() && folder != folder.root_path(); folder = folder.parent_path())
    if (fs::exists(folder / "models" / what)) return folder / "models" / what;
  return fs::path("models") / what;
}

bool is_bundled(const std::string& model_path) {
  return fs::weakly_canonical(model_path) == fs::weakly_canonical(find_models("nano"));
}

UpOptions engine_options(const Common& common) {
  constexpr int kStepLimitMs = 600'000;  // nobody else waits: large models on a processor may take their time
  UpOptions out;
  out.model_path = common.model_path;
  out.vad_weights = (find_models("silero-vad") / "silero_vad.safetensors").string();
  out.source = find_models("silero-vad").parent_path().parent_path().string();
  out.bf16 = common.bf16;
  // Text and sound are made at the same time: each model has half of the processor.
  const auto cores = kernels::usable_cores();
  out.threads = common.threads > 0 ? common.threads : std::max(1, cores / 2);
  out.step_limit_ms = kStepLimitMs;
  if (is_bundled(common.model_path)) out.tools = "demo";
  return out;
}

void bar(const std::string& what, double done) {
  if (!::isatty(2)) return;
  std::fprintf(stderr, "\r%-60.60s %3.0f %%%s", what.c_str(), 100 * done, done >= 1 ? "\n" : "");
}

Result<std::vector<std::string>> read_lines(const std::string& file) {
  std::ifstream in(file);
  if (!in) return fail(Errc::not_found, "cannot open '{}'", file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);)
    if (!line.empty()) lines.push_back(std::move(line));
  return lines;
}

Result<void> write_answer(const std::string& file, const std::vector<std::int16_t>& pcm, int rate) {
  std::error_code code;
  if (const auto parent = fs::path(file).parent_path(); !parent.empty()) fs::create_directories(parent, code);
  std::vector<float> wave(pcm.size());
  std::transform(pcm.begin(), pcm.end(), wave.begin(), [](std::int16_t x) { return static_cast<float>(x) / 32767.0f; });
  return audio::write_wav(file, wave, rate);
}

}  // namespace parlando::cli
