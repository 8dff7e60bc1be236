#include "services/cli/up.hpp"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ATen/Parallel.h>

#include <filesystem>
#include <fstream>
#include <iostream>

#include "services/context/definition.hpp"
#include "services/controller/definition.hpp"
#include "services/gateway/definition.hpp"
#include "services/llm/definition.hpp"
#include "services/tokenizer/definition.hpp"
#include "services/tts/definition.hpp"
#include "services/vad/definition.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

std::vector<service::Definition> definitions() {
  return {vad::definition(), tokenizer::definition(), llm::definition(), tts::definition(), context::definition(), controller::definition(), gateway::definition()};
}

/// Every service of one machine. `prefix` + name is an endpoint.
json topology(const UpOptions& o, const std::string& prefix) {
  auto count = [&](const std::string& role) { const auto found = o.replicas.find(role); return found == o.replicas.end() ? 1 : found->second; };
  auto endpoints = [&](const std::string& role) {
    json out = json::array();
    for (int n = 1; n <= count(role); ++n) out.push_back(fmt::format("{}{}-{}", prefix, role, n));
    return out;
  };
  const fs::path model = o.model_path;
  json all = json::array();
  // On a machine shared with model threads, a beat may be late for reasons that are no fault: three seconds are patience enough.
  auto add = [&](const std::string& service, const std::string& role, json core, json connect = json::object()) {
    for (const auto& bind : endpoints(role))
      all.push_back({{"service", service}, {"role", role}, {"wire", {{"bind", bind}, {"connect", connect}, {"heartbeat_ms", 100}, {"misses_max", o.processes ? 5 : 30}}}, {"core", core}});
  };
  add("vad", "vad", {{"weights", o.vad_weights}});
  add("tokenizer", "tokenizer", {{"model", (model / "Step-Audio-Tokenizer").string()}, {"threads", o.threads}});
  add("llm", "llm-chat", {{"model", (model / "Step-Audio-Chat").string()}, {"threads", o.threads}, {"bf16", o.bf16}});
  add("llm", "llm-tts", {{"model", (model / "Step-Audio-TTS-3B").string()}, {"threads", o.threads}, {"bf16", o.bf16}});
  add("tts", "tts", {{"model", (model / "Step-Audio-TTS-3B").string()}, {"threads", o.threads}}, {{"llm-tts", endpoints("llm-tts")}, {"tokenizer", endpoints("tokenizer")}});
  add("context", "context", {{"store", o.store}});
  add("controller", "controller", {{"tokenizer_mode", "exact"}},
      {{"vad", endpoints("vad")}, {"tokenizer", endpoints("tokenizer")}, {"llm-chat", endpoints("llm-chat")}, {"tts", endpoints("tts")}, {"context", endpoints("context")}});
  const fs::path source = o.source;
  add("gateway", "gateway", {{"listen", o.listen}, {"page", o.page ? (source / "services/gateway/page").string() : ""}, {"questions", o.page ? (source / "models/nano/questions").string() : ""}}, {{"controller", endpoints("controller")}});
  return all;
}

/// A child process per instance, started again with back-off when it ends.
class Supervisor {
 public:
  Supervisor(std::string bin, fs::path folder) : bin_(std::move(bin)), folder_(std::move(folder)) {}

  Result<void> add(const service::Instance& instance, const json& object) {
    const auto file = folder_ / fmt::format("{}-{}.json", instance.role, children_.size());
    std::ofstream(file) << object.dump(1);
    const auto program = fs::path(bin_) / ("parlando-" + instance.service);
    if (::access(program.c_str(), X_OK) != 0) return fail(Errc::not_found, "'{}' is not an executable", program.string());
    children_.push_back({instance.role, program.string(), file.string()});
    return {};
  }

  void run() {
    sigset_t set;
    sigemptyset(&set);
    for (const int s : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&set, s);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    for (auto& c : children_) spawn(c);
    while (true) {
      const timespec wait{0, 100'000'000};
      const int got = sigtimedwait(&set, nullptr, &wait);
      if (got == SIGTERM || got == SIGINT) break;
      reap();
      const auto now = clock_.now();
      for (auto& c : children_)
        if (c.pid == 0 && now >= c.start_at) spawn(c);
    }
    for (const auto& c : children_)
      if (c.pid > 0) ::kill(c.pid, SIGTERM);
    const auto until = clock_.now() + std::chrono::seconds(25);
    while (std::any_of(children_.begin(), children_.end(), [](const auto& c) { return c.pid > 0; })) {
      const timespec wait{0, 50'000'000};
      sigtimedwait(&set, nullptr, &wait);
      reap();
      if (clock_.now() > until)
        for (const auto& c : children_)
          if (c.pid > 0) ::kill(c.pid, SIGKILL);
    }
  }

 private:
  struct Child {
    std::string role, program, config;
    pid_t pid = 0;
    Time started{}, start_at{};
    milliseconds back_off{100};
  };
  void spawn(Child& c) {
    const auto parent = ::getpid();
    c.pid = ::fork();
    if (c.pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (::getppid() != parent) ::_exit(1);
      sigset_t none;
      sigemptyset(&none);
      sigprocmask(SIG_SETMASK, &none, nullptr);
      ::execl(c.program.c_str(), c.program.c_str(), "--config", c.config.c_str(), nullptr);
      ::_exit(127);
    }
    if (c.pid < 0) c.pid = 0, c.start_at = clock_.now() + std::chrono::seconds(1);
    c.started = clock_.now();
    std::cout << "child " << c.role << " pid " << c.pid << std::endl;
  }
  void reap() {
    int status = 0;
    for (pid_t pid; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;)
      for (auto& c : children_) {
        if (c.pid != pid) continue;
        const auto now = clock_.now();
        if (now - c.started > std::chrono::seconds(10)) c.back_off = milliseconds(100);
        c.pid = 0, c.start_at = now + c.back_off;
        std::cerr << fmt::format("parlando: {} ended ({} {}), starts again in {} ms\n", c.role, WIFSIGNALED(status) ? "signal" : "exit", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), c.back_off.count());
        c.back_off = std::min(c.back_off * 2, milliseconds(5000));
      }
  }
  std::string bin_;
  fs::path folder_;
  std::vector<Child> children_;
  SteadyClock clock_;
};

}  // namespace

Result<int> up(const UpOptions& options) {
  // ipc endpoints and the children's configurations lie in a folder that only this user may enter.
  std::string folder = "/tmp/parlando-XXXXXX";
  if (options.processes && ::mkdtemp(folder.data()) == nullptr) return fail(Errc::io, "no folder can be made in /tmp");
  struct Remove { std::string path; bool active; ~Remove() { std::error_code ignored; if (active) fs::remove_all(path, ignored); } } remove{folder, options.processes};
  json list;
  if (options.config.empty()) {
    list = topology(options, options.processes ? "ipc://" + folder + "/" : "inproc://");
  } else {
    PARLANDO_TRY(auto object, config::load_file(options.config));
    if (!object.contains("instances") || !object["instances"].is_array()) return fail(Errc::invalid_argument, "'{}' has no list 'instances'", options.config);
    list = object["instances"];
  }
  const auto known = definitions();
  std::vector<service::Instance> instances;
  std::string problems;
  for (std::size_t n = 0; n < list.size(); ++n) {
    auto instance = service::read_instance(list[n], fmt::format("instances[{}]", n), known);
    if (instance) instances.push_back(*std::move(instance));
    else problems += (problems.empty() ? "" : "\n") + instance.error().message;
  }
  if (!problems.empty()) return fail(Errc::invalid_argument, "{}", problems);
  if (options.check) {
    std::cout << instances.size() << " instances: good\n";
    return 0;
  }
  service::block_signals();
  if (options.processes) {
    Supervisor supervisor(options.bin, folder);
    for (std::size_t n = 0; n < instances.size(); ++n) PARLANDO_DO(supervisor.add(instances[n], list[n]));
    if (options.page) std::cout << "The page: http://" << options.listen << "/" << std::endl;
    supervisor.run();
    return 0;
  }
  at::set_num_threads(options.threads);
  service::Runtime runtime;
  std::vector<std::unique_ptr<service::Host>> hosts;
  gateway::GatewayCore* front = nullptr;
  for (const auto& instance : instances) {
    const auto& definition = *std::find_if(known.begin(), known.end(), [&](const auto& d) { return d.name == instance.service; });
    PARLANDO_TRY(auto core, definition.make(instance.core));
    if (instance.service == "gateway") front = static_cast<gateway::GatewayCore*>(core.get());
    PARLANDO_TRY(auto host, service::Host::start(runtime, instance.role, instance.wire, std::move(core)));
    hosts.push_back(std::move(host));
  }
  // Ready when every service says so; the first reason that stands is told once.
  std::string told;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT);
  bool ready = false;
  while (true) {
    std::string why;
    const bool all = std::all_of(hosts.begin(), hosts.end(), [&](const auto& h) { return h->ready(&why); });
    if (all && !ready) {
      ready = true;
      if (front != nullptr) std::cout << (options.page ? "ready: http://" : "ready: ws://") << options.listen.substr(0, options.listen.rfind(':')) << ":" << front->port() << (options.page ? "/" : "/v1/dialogue") << std::endl;
      else std::cout << "ready" << std::endl;
    } else if (!all && why != told) {
      told = why;
      std::cout << "waiting: " << why << std::endl;
    }
    const timespec wait{0, 100'000'000};
    if (sigtimedwait(&set, nullptr, &wait) > 0) break;
  }
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  auto drained = [&] { bool all = true; for (const auto& h : hosts) all = h->drain() && all; return all; };
  while (!drained() && std::chrono::steady_clock::now() < until) {
    const timespec wait{0, 50'000'000};
    if (sigtimedwait(&set, nullptr, &wait) > 0) break;
  }
  // Front ends first: nobody is left who could ask.
  while (!hosts.empty()) hosts.pop_back();
  return 0;
}

}  // namespace parlando::cli
