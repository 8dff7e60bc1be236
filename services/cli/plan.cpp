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

namespace {
constexpr std::uint64_t kCoresMax = 1024;

/// The least silence that ends a turn of this vad behind its telling that a pause lasts.
int silence_ms_behind_again(vad::TurnConfig turn) {
  turn.silence_ms = turn.pause_again_ms;
  while (turn.end_samples() <= turn.again_samples()) ++turn.silence_ms;
  return turn.silence_ms;
}

/// What is right in each service but not in both: the second look at a pause hears what the user says behind it when
/// the vad says earlier that the pause lasts, and never comes when a likely end has ended the turn before.
std::string disagreements(const std::vector<service::Instance>& instances) {
  std::string out;
  const auto add = [&](std::string problem) { out += (out.empty() ? "" : "\n") + std::move(problem); };
  std::vector<config::Problem> known;  // of one service: told already
  for (const auto& leader : instances) {
    if (leader.service != "controller") continue;
    const auto config = config::read<controller::ControllerConfig>(leader.core, "core", known);
    const auto look = config.judge_again_ms, likely = config.likely_silence_ms;
    for (const auto& ear : instances) {
      if (ear.service != "vad") continue;
      const auto turn = config::read<vad::VadConfig>(ear.core, "core", known).turn;
      const auto told = turn.pause_again_ms;
      if (look == 0 || told == 0) continue;  // there is no second look
      if (look > told)
        add(fmt::format("{}: core.judge_again_ms is {}, expected at most core.turn.pause_again_ms of {}, which is {}",
                        leader.role, look, ear.role, told));
      if (const auto least = silence_ms_behind_again(turn); likely < least)
        add(
            fmt::format("{}: core.likely_silence_ms is {}, expected at least {}: {} tells a pause again behind "
                        "core.turn.pause_again_ms of {} and ends a turn core.turn.lag_ms of {} before its silence",
                        leader.role, likely, least, ear.role, told, turn.lag_ms));
    }
  }
  return out;
}
}  // namespace

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
    if (object.contains("cores")) {
      const auto& cores = object["cores"];
      if (cores.is_number_unsigned() && cores.get<std::uint64_t>() <= kCoresMax)
        out.cores = cores.get<int>();
      else
        problems.push_back({"cores", fmt::format("is {}, expected a number of 0 to {}", cores.dump(), kCoresMax)});
      if (out.cores > 0 && options.processes)
        problems.push_back(
            {"cores", fmt::format("is {}, expected 0 with --processes: a process of one service computes "
                                  "on its `threads`",
                                  out.cores)});
    }
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
  if (const auto differ = disagreements(out.instances); !differ.empty()) text += (text.empty() ? "" : "\n") + differ;
  if (!text.empty()) return fail(Errc::invalid_argument, "{}", text);
  return out;
}

}  // namespace parlando::cli
