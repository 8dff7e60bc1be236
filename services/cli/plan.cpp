#include "services/cli/plan.hpp"

#include "services/context/definition.hpp"
#include "services/controller/definition.hpp"
#include "services/gateway/definition.hpp"
#include "services/llm/definition.hpp"
#include "services/tokenizer/definition.hpp"
#include "services/tts/definition.hpp"
#include "services/vad/definition.hpp"

namespace parlando::cli {
using nlohmann::json;

std::vector<service::Definition> definitions() {
  return {vad::definition(),     tokenizer::definition(),  llm::definition(),    tts::definition(),
          context::definition(), controller::definition(), gateway::definition()};
}

Result<Plan> read_plan(const UpOptions& options, const Places& places) {
  Plan out;
  std::vector<config::Problem> problems;
  if (options.config.empty()) {
    out.list = topology(options, places);
  } else {
    PARLANDO_TRY(auto object, config::load_file(options.config));
    if (!object.contains("instances") || !object["instances"].is_array())
      return fail(Errc::invalid_argument, "'{}' has no list 'instances'", options.config);
    out.list = object["instances"];
    if (object.contains("supervisor"))
      out.supervisor = config::read<SupervisorConfig>(object["supervisor"], "supervisor", problems);
  }
  const auto known = definitions();
  auto text = problems.empty() ? std::string() : config::to_text(problems);
  for (std::size_t n = 0; n < out.list.size(); ++n) {
    auto instance = service::read_instance(out.list[n], fmt::format("instances[{}]", n), known);
    if (instance)
      out.instances.push_back(*std::move(instance));
    else
      text += (text.empty() ? "" : "\n") + instance.error().message;
  }
  if (out.list.empty()) text += "instances is empty, expected one at least";
  for (const auto& instance : out.instances)
    if (const auto keys = service::socket_options(instance.wire, SteadyClock().now()); !keys)
      text += (text.empty() ? "" : "\n") + fmt::format("{}: {}", instance.role, keys.error().message);
  if (!text.empty()) return fail(Errc::invalid_argument, "{}", text);
  return out;
}

}  // namespace parlando::cli
