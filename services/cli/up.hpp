#pragma once
/// `parlando up` and `parlando serve`: all services in this process over inproc, or as supervised children over ipc.
#include <map>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

struct UpOptions {
  std::string config;  ///< file with {"instances": […]}; empty: everything for `model_path` on this machine
  std::string model_path, vad_weights, source;  ///< `source`: folder with the page and the questions
  std::string listen = "127.0.0.1:7860", store = "out/context.sqlite";
  std::string api_listen;  ///< a second address of the first gateway; empty: none
  bool api_listen_required = true;
  std::string keys_file;     ///< of the gateways
  std::string secrets_file;  ///< likewise; empty: beside the store, made when it is missing
  bool page = false, processes = false, check = false, bf16 = false;
  int threads = 1, metrics_port = 0;    ///< first of consecutive ports of metrics and health; 0: none
  int step_limit_ms = 2000;             ///< of one unit of a model's work; official sizes on a processor take longer
  std::string tools = "none";           ///< or demo, what the bundled model was trained to call
  std::map<std::string, int> replicas;  ///< of any role; default 1
  std::string record;                   ///< folder for recordings of controllers; empty: none
  std::string run_folder;  ///< with processes: where endpoints and the children's files lie; empty: a fresh one
  std::string bin;         ///< folder with the parlando-<service> executables
};

/// Sets the number of replicas of roles in the engine that runs in a folder (`up --processes --run-folder`).
/// @error Errc::not_found when none runs there
Result<void> scale(const std::string& run_folder, const std::map<std::string, int>& replicas);

/// Runs until SIGTERM or SIGINT. With `processes`, SIGHUP reads the wanted instances again (the file's, or what `scale`
/// has asked for): new ones are started, missing ones ended, changed ones started again. @return the exit code; @error
/// Errc::invalid_argument with all problems of the configuration
Result<int> up(const UpOptions& options);

}  // namespace parlando::cli
