#pragma once
/// The command line as a client of an engine: of one that runs (`--connect`), or of one that it starts in this process.
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "common/base/result.hpp"
#include "sdk/cpp/include/parlando/client.hpp"
#include "services/cli/engine.hpp"
#include "services/cli/up.hpp"

namespace parlando::cli {

/// Another engine and how it is called. CURVE keys are files, all three or none; for `tcp` alone.
struct EngineAddress {
  std::string endpoint;  ///< as `parlando serve` prints it: ipc://… or tcp://…; empty: an engine of our own
  std::string public_key, secret_key, server_key;
  std::string name = "parlando";  ///< the engine may have bound the key to it
};

/// What of an engine of our own is needed.
struct EngineNeeds {
  bool hears = false, answers = false, speaks = false;
  std::string speakers;  ///< folder of voices in the place of the model's; empty: those
  bool whole = false;    ///< sound is decoded when all codes of a sentence are there
};

/// What the SDK throws, as a value.
template <class F>
auto guarded(F f) -> Result<decltype(f())> {
  try {
    if constexpr (std::is_void_v<decltype(f())>) {
      f();
      return {};
    } else {
      return f();
    }
  } catch (const sdk::Error& e) {
    return tl::unexpected(Error{errc_of(e.code), e.message});
  }
}

class EngineClient {
 public:
  /// Starts an engine for the model of the options, unless another one is named, and waits until it can be used.
  /// @error Errc::not_found naming what is expected where; Errc::unavailable
  static Result<EngineClient> start(const EngineAddress& address, UpOptions options, const EngineNeeds& needs);
  /// A conversation, not stored unless the settings say so. @param settings  of `open`   @error what the engine says
  Result<sdk::Conversation> open(nlohmann::json settings);
  /// It runs in this process.
  bool is_own() const { return engine_ != nullptr; }

 private:
  EngineClient(std::unique_ptr<Engine> engine, sdk::Client client)
      : engine_(std::move(engine)), client_(std::move(client)) {}
  std::unique_ptr<Engine> engine_;  ///< outlives its client
  sdk::Client client_;
};

}  // namespace parlando::cli
