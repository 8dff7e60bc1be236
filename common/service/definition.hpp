#pragma once
/// What a process needs to know of a service to run it, alone (`parlando-<service>`) or beside others (`parlando up`).
#include "common/service/host.hpp"

namespace parlando::service {

struct Definition {
  std::string name;  ///< section of the configuration and of the executable: vad, llm, …
  std::string help;
  std::vector<std::string> calls;  ///< roles it connects to
  /// Reads the section `core` of the configuration; problems are added, nothing is loaded.
  std::function<void(const nlohmann::json& section, const std::string& path, std::vector<config::Problem>& problems)>
      check;
  /// Loads models and opens stores; may take a while.
  std::function<Result<std::unique_ptr<Core>>(const nlohmann::json& section)> make;
};

/// A definition from a configuration struct and a factory that takes it.
template <class Config>
Definition define(std::string name, std::string help, std::vector<std::string> calls,
                  Result<std::unique_ptr<Core>> (*make)(const Config&)) {
  return {std::move(name), std::move(help), std::move(calls),
          [](const nlohmann::json& section, const std::string& path, std::vector<config::Problem>& problems) {
            (void)config::read<Config>(section, path, problems);
          },
          [make](const nlohmann::json& section) -> Result<std::unique_ptr<Core>> {
            std::vector<config::Problem> problems;
            const auto config = config::read<Config>(section, "core", problems);
            if (!problems.empty()) return fail(Errc::invalid_argument, "{}", config::to_text(problems));
            return make(config);
          }};
}

/// One instance of a configuration file: `{"service": "llm", "role": "llm-chat", "wire": {…}, "core": {…}, "record":
/// "folder"}`.
struct Instance {
  std::string service, role;
  WireConfig wire;
  nlohmann::json core = nlohmann::json::object();
  std::string record;  ///< folder that a recording of it is written to (`recording.hpp`); empty: none is
};
/// All problems at once. @param known  the definitions this process may run
Result<Instance> read_instance(const nlohmann::json& object, const std::string& path,
                               const std::vector<Definition>& known);

/// Makes the instance's core, recorded if that is wanted, in a file named after role, time and process.
/// @error those of `make` and of `record`
Result<std::unique_ptr<Core>> make_core(const Definition& definition, const Instance& instance);

/// `main` of a `parlando-<service>`: flags, configuration, run until SIGTERM or SIGINT. Exit codes: 0 done, 2 usage, 78
/// configuration, 1 else.
int run(int argc, char** argv, const Definition& definition);

/// Blocks SIGTERM and SIGINT in this thread and those it starts, so that one place can wait for them; ignores SIGPIPE.
void block_signals();

}  // namespace parlando::service
