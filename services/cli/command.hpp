#pragma once
/// What commands share: where models are, exit codes, how a failure is told.
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/result.hpp"
#include "services/cli/up.hpp"

namespace parlando::cli {

// Exit codes, as `parlando --help` lists them.
inline constexpr int kOk = 0, kFailed = 1, kUsage = 2, kNotFound = 3, kBadInput = 4, kNoSpeech = 5, kConfiguration = 78;
int exit_code(Errc code);

/// Options of most commands.
struct Common {
  std::string model_path;
  int threads = 0;  ///< 0: all
  bool bf16 = false, as_json = false;
  std::uint64_t seed = 1;
};

/// Tells what went wrong, as JSON on stdout too if that is wanted. @return the exit code
int report(const Error& error, bool as_json);
nlohmann::json to_json(const Error& error);  ///< {code, message}

/// models/`what` beside the executable's build tree, or in the current directory.
std::filesystem::path find_models(const char* what);
/// The model is the bundled one.
bool is_bundled(const std::string& model_path);
/// Of an engine for this model in this process, with what the bundled model knows. @param threads  of each model
UpOptions engine_options(const Common& common);

/// A line of progress on stderr, where that is a terminal. @param done  0 to 1
void bar(const std::string& what, double done);
/// The lines of a batch that are not empty. @error Errc::not_found
Result<std::vector<std::string>> read_lines(const std::string& file);
/// A WAV, and the folders that its name has. @param pcm  mono
Result<void> write_answer(const std::string& file, const std::vector<std::int16_t>& pcm, int rate);

}  // namespace parlando::cli
