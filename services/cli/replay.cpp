#include "services/cli/replay.hpp"

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/service/recording.hpp"
#include "services/controller/definition.hpp"

namespace parlando::cli {
using nlohmann::json;

namespace {

constexpr std::size_t kBodyShown = 160;

Result<std::unique_ptr<service::Core>> make(const json& header) {
  const std::vector<service::Definition> known{controller::definition()};
  const auto name = header.value("service", std::string());
  const auto found = std::find_if(known.begin(), known.end(), [&](const auto& d) { return d.name == name; });
  if (found == known.end()) return fail(Errc::unsupported, "a recording of '{}' cannot be replayed", name);
  auto core = header.value("core", json::object());
  core.erase("commit_queue_file");  // turns that wait there are not this replay's to write
  return found->make(core);
}

bool is_meant(const std::string& session, const protocol::Message& message) {
  return session == "all" || (!session.empty() && message.head.session.text() == session);
}

/// Packed bodies are numbers; those are told by the payload's size alone.
void print(const service::Replayed& r) {
  const auto& m = r.message;
  auto body = protocol::is_packed(m.head.type) ? std::string() : m.body.substr(0, kBodyShown);
  if (!m.payload.empty()) body += fmt::format("{}+{} bytes", body.empty() ? "" : " ", m.payload.size());
  fmt::print("{:10.3f} s {} {:<24.24} {:<15} turn {:<4} {}\n", r.seconds, r.said ? "->" : "<-", r.peer,
             to_string(m.head.type), m.head.turn.value, body);
}

}  // namespace

Result<int> replay(const ReplayOptions& options) {
  const auto told = [&](const service::Replayed& r) {
    if (is_meant(options.session, r.message)) print(r);
  };
  PARLANDO_TRY(const auto result, service::replay(options.file, make, told));
  const bool identical = !result.difference.has_value();
  if (options.as_json) {
    json out{
        {"file", options.file}, {"events", result.events}, {"messages", result.messages}, {"identical", identical}};
    if (!identical) out["difference"] = *result.difference;
    std::cout << out.dump() << "\n";
  } else if (identical) {
    fmt::print("{} events led to the same {} messages again\n", result.events, result.messages);
  } else {
    fmt::print("differs: {}\n", *result.difference);
  }
  return identical ? 0 : 1;
}

}  // namespace parlando::cli
