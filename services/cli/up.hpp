#pragma once
/// `parlando up` and `parlando serve`: all services in this process over inproc, or as supervised children over ipc.
#include <map>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

struct UpOptions {
  std::string config;                           ///< file with {"instances": […]}; empty: everything for `model_path` on this machine
  std::string model_path, vad_weights, source;  ///< `source`: folder with the page and the questions
  std::string listen = "127.0.0.1:7860", store = "out/context.sqlite";
  bool page = false, processes = false, check = false, bf16 = false;
  int threads = 1, metrics_port = 0;    ///< first of consecutive ports of metrics and health; 0: none
  std::map<std::string, int> replicas;  ///< of vad, tokenizer, tts; default 1
  std::string bin;                      ///< folder with the parlando-<service> executables
};

/// Runs until SIGTERM or SIGINT. @return the exit code; @error Errc::invalid_argument with all problems of the configuration
Result<int> up(const UpOptions& options);

}  // namespace parlando::cli
