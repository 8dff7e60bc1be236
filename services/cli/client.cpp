#include "services/cli/client.hpp"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "services/cli/plan.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kReadyMax{300'000};  // large models ask for the codes of their voices first
constexpr milliseconds kLook{5};
constexpr int kHeartbeatMs = 20;  // of an engine that lives for one command: services hear at once who is ready
constexpr std::string_view kIpc = "ipc://";

Result<void> expect_model(const fs::path& root, const EngineNeeds& needs) {
  if (!fs::is_directory(root)) return fail(Errc::not_found, "the model path '{}' is not a directory", root.string());
  const std::tuple<const char*, const char*, bool> parts[] = {
      {"Step-Audio-Tokenizer", "speech tokenizer", needs.hears || needs.speaks},
      {"Step-Audio-Chat", "chat model", needs.answers},
      {"Step-Audio-TTS-3B", "text-to-speech model", needs.speaks}};
  for (const auto& [name, what, wanted] : parts)
    if (wanted && !fs::is_directory(root / name))
      return fail(Errc::not_found,
                  "'{}' does not exist: the model path '{}' must hold Step-Audio-Tokenizer, Step-Audio-Chat and "
                  "Step-Audio-TTS-3B ({}); official downloads are converted by `parlando import DIR OUT`",
                  (root / name).string(), root.string(), what);
  return {};
}

Result<std::unique_ptr<Engine>> start_engine(UpOptions options, const EngineNeeds& needs) {
  PARLANDO_DO(expect_model(options.model_path, needs));
  options.listen = {};
  options.store = ":memory:";
  PARLANDO_TRY(auto plan, read_plan(options, {"inproc://", {}}));
  std::set<std::string> absent;
  if (!needs.hears) absent.insert("vad");
  if (!needs.hears && !needs.speaks) absent.insert("tokenizer");
  if (!needs.answers) absent.insert("llm-chat");
  if (!needs.speaks) absent.insert({"tts", "llm-tts"});
  for (auto& instance : plan.instances) {
    instance.wire.heartbeat_ms = kHeartbeatMs;
    // An engine of our own stands still only together with us.
    instance.wire.misses_max = 100;
    // Models of the official sizes take their time on a processor.
    if (instance.role == "controller") instance.core["reply_seconds_max"] = 600;
    if (instance.role != "tts") continue;
    if (!needs.speakers.empty()) instance.core["speakers"] = needs.speakers;
    if (needs.whole) instance.core["whole"] = true;
  }
  return Engine::start(plan.instances, options.threads, absent);
}

Result<void> wait_ready(const Engine& engine) {
  const auto until = std::chrono::steady_clock::now() + kReadyMax;
  std::string why;
  while (!engine.ready(&why)) {
    if (std::chrono::steady_clock::now() > until) return fail(Errc::unavailable, "the engine is not ready: {}", why);
    if (why.find("no voice can be used") != std::string::npos) return fail(Errc::unavailable, "{}", why);
    std::this_thread::sleep_for(kLook);
  }
  return {};
}

}  // namespace

Result<EngineClient> EngineClient::start(const EngineAddress& address, UpOptions options, const EngineNeeds& needs) {
  sdk::ClientOptions client;
  client.name = address.name;
  std::unique_ptr<Engine> engine;
  if (address.endpoint.empty()) {
    PARLANDO_TRY(engine, start_engine(std::move(options), needs));
    PARLANDO_DO(wait_ready(*engine));
    client.endpoints = {engine->front()->endpoint()};
  } else {
    if (address.endpoint.starts_with("http") || address.endpoint.starts_with("ws"))
      return fail(Errc::invalid_argument,
                  "'{}' is the address of a page or an API; --connect takes the ZeroMQ endpoint that `parlando serve` "
                  "prints beside it (ipc://… or tcp://…)",
                  address.endpoint);
    client.endpoints = {address.endpoint};
    if (!address.public_key.empty()) {
      PARLANDO_TRY(client.keys, guarded([&] {
                     return sdk::Keys::read(address.public_key, address.secret_key, address.server_key);
                   }));
    }
  }
  PARLANDO_TRY(auto made, guarded([&] { return sdk::Client(client); }));
  EngineClient out(std::move(engine), std::move(made));
  if (out.is_own()) {
    // Once we are connected nobody else is to find it, and nothing is left behind, however this process ends.
    PARLANDO_TRY([[maybe_unused]] const auto first, out.open(json::object()));
    std::error_code ignored;
    if (const auto& endpoint = client.endpoints.front(); endpoint.starts_with(kIpc))
      fs::remove(endpoint.substr(kIpc.size()), ignored);
  }
  return out;
}

Result<sdk::Conversation> EngineClient::open(json settings) {
  if (!settings.contains("stored")) settings["stored"] = false;
  return guarded([&] { return client_.open(settings.dump()); });
}

}  // namespace parlando::cli
