#include "services/cli/topology.hpp"

#include <unistd.h>

#include <filesystem>

#include "common/config/fields.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// In one process nobody dies alone: heartbeats only tell readiness, slots and work that stands still.
constexpr int kHeartbeatAlone = 500;
constexpr int kHeartbeat = 100;
constexpr int kRoles = 8;

}  // namespace

std::string clients_endpoint(const UpOptions& options, const Places& places, int n) {
  if (options.processes) return fmt::format("{}gateway-{}", places.prefix, n);
  return fmt::format("ipc://{}/parlando-{}-gateway-{}", fs::temp_directory_path().string(),
                     static_cast<long>(::getpid()), n);
}

bool stores_in_a_file(const UpOptions& options) {
  return options.store != ":memory:" && options.store.find("://") == std::string::npos;
}

namespace {

class Topology {
 public:
  Topology(const UpOptions& options, const Places& places) : options_(options), places_(places) {}

  int count(const std::string& role) const {
    const auto found = options_.replicas.find(role);
    return found == options_.replicas.end() ? 1 : found->second;
  }
  std::string endpoint(const std::string& role, int n) const { return fmt::format("{}{}-{}", places_.prefix, role, n); }
  json sources(const std::vector<std::string>& roles) const {
    json out = json::object();
    for (const auto& role : roles) {
      out[role] = json::array();
      if (!places_.replicas_folder.empty())
        out[role].push_back("file:" + (fs::path(places_.replicas_folder) / role).string());
      else
        for (int n = 1; n <= count(role); ++n) out[role].push_back(endpoint(role, n));
    }
    return out;
  }
  void add(const std::string& service, const std::string& role, json core, const std::vector<std::string>& calls = {}) {
    for (int n = 1; n <= count(role); ++n) {
      // One address is the engine's; further gateways take free ports.
      if (service == "gateway" && n == 2) {
        core["listen"] = options_.listen.substr(0, options_.listen.rfind(':')) + ":0";
        core.erase("api_listen");
        core.erase("api_listen_required");
      }
      add_one(service, role, n, core, calls);
    }
  }
  json take() { return std::move(all_); }

 private:
  void add_one(const std::string& service, const std::string& role, int n, const json& core,
               const std::vector<std::string>& calls) {
    const auto metrics =
        options_.metrics_port == 0 ? std::string() : fmt::format("127.0.0.1:{}", metrics_port(role, n));
    json wire{{"bind", role == "gateway" ? clients_endpoint(options_, places_, n) : endpoint(role, n)},
              {"connect", sources(calls)},
              {"metrics", metrics},
              {"heartbeat_ms", options_.processes ? kHeartbeat : kHeartbeatAlone},
              {"step_limit_ms", options_.step_limit_ms}};
    all_.push_back({{"service", service}, {"role", role}, {"wire", std::move(wire)}, {"core", core}});
    if (service != "controller") return;
    if (!options_.record.empty()) all_.back()["record"] = options_.record;
    // Turns that wait for the store outlive the process as the stored ones do.
    if (stores_in_a_file(options_))
      all_.back()["core"]["commit_queue_file"] = fmt::format("{}.waiting-{}", options_.store, n);
  }
  /// The first replicas of all roles, then the second ones: a port that does not depend on how many there are of other
  /// roles, so that scaling one of them leaves everyone else's configuration, and so its process, alone.
  int metrics_port(const std::string& role, int n) {
    const auto place = places_of_roles_.emplace(role, static_cast<int>(places_of_roles_.size())).first->second;
    return options_.metrics_port + place + kRoles * (n - 1);
  }
  const UpOptions& options_;
  const Places& places_;
  std::map<std::string, int> places_of_roles_;
  json all_ = json::array();
};

}  // namespace

json topology(const UpOptions& o, const Places& places) {
  Topology out(o, places);
  const fs::path model = o.model_path, source = o.source;
  out.add("vad", "vad", {{"weights", o.vad_weights}});
  out.add("tokenizer", "tokenizer", {{"model", (model / "Step-Audio-Tokenizer").string()}, {"threads", o.threads}});
  out.add("llm", "llm-chat",
          {{"model", (model / "Step-Audio-Chat").string()}, {"threads", o.threads}, {"bf16", o.bf16}});
  out.add("llm", "llm-tts",
          {{"model", (model / "Step-Audio-TTS-3B").string()}, {"threads", o.threads}, {"bf16", o.bf16}});
  const auto voices = (source / "out/voices").string();  // of users: gateways write them, tts services read them
  out.add("tts", "tts", {{"model", (model / "Step-Audio-TTS-3B").string()}, {"threads", o.threads}, {"voices", voices}},
          {"llm-tts", "tokenizer"});
  out.add("context", "context", {{"store", o.store}});
  // What the model can make use of is the model's own matter: its configuration says how many turns of history, and
  // whether the tools of the demonstration are what it was trained to call.
  json core{{"tools", o.tools}};
  if (const auto config = config::load_file((model / "Step-Audio-Chat/config.json").string());
      config && config->contains("history_turns"))
    core["history_turns"] = (*config)["history_turns"];
  out.add("controller", "controller", core, {"vad", "tokenizer", "llm-chat", "tts", "context"});
  json front{{"listen", o.listen},
             {"voices", voices},
             {"page", o.page ? (source / "services/gateway/page").string() : ""},
             {"questions", o.page ? (source / "models/nano/questions").string() : ""}};
  if (!o.keys_file.empty()) front["keys_file"] = o.keys_file;
  if (!o.secrets_file.empty()) front["secrets_file"] = o.secrets_file;
  if (!o.api_listen.empty()) {
    front["api_listen"] = o.api_listen;
    front["api_listen_required"] = o.api_listen_required;
  }
  out.add("gateway", "gateway", front, {"controller"});
  return out.take();
}

}  // namespace parlando::cli
