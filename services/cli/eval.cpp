#include "services/cli/eval.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include "services/cli/command.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;

int eval(const std::string& model, const std::string& work, const std::vector<std::string>& rest) {
  if (model != "nano")
    return report({Errc::invalid_argument, fmt::format("there is no evaluation of '{}'; there is one of nano", model)},
                  false);
  const auto root = find_models("nano").parent_path().parent_path();
  const auto python = root / ".deps/venv/bin/python";
  if (!fs::is_directory(root / work / "speech") && !fs::is_directory(fs::path(work) / "speech"))
    return report(
        {Errc::not_found, fmt::format("'{}' holds no speech; `make nano` makes the data, trains and evaluates", work)},
        false);
  if (::access(python.c_str(), X_OK) != 0)
    return report({Errc::not_found, fmt::format("'{}' is missing: run tools/setup.sh --nano", python.string())}, false);
  std::vector<std::string> words{python.string(),
                                 "-W",
                                 "ignore",
                                 "-m",
                                 "tools.nano.judge.evaluate",
                                 work,
                                 "--parlando",
                                 fs::canonical("/proc/self/exe").string()};
  words.insert(words.end(), rest.begin(), rest.end());
  std::vector<char*> arguments;
  for (auto& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  fs::current_path(root);
  ::execv(arguments[0], arguments.data());
  return report({Errc::io, "python could not be started"}, false);
}

}  // namespace parlando::cli
