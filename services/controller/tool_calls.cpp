/// Calls of the model. Those of the client's tools are told and waited for; others are executed by a tool server or by
/// the engine itself. The model goes on when all calls of its round have a result. Ids depend on the turn, the input
/// that it begins with (the number of a turn that came to nothing is used again) and the call's place, so that an
/// output that is said again behind a hand-over finds its call, and one of a former turn does not.
#include "common/base/nesting.hpp"
#include "services/controller/json_text.hpp"
#include "services/controller/session.hpp"
#include "services/controller/tools.hpp"

namespace parlando::controller {
using namespace protocol;
using nlohmann::json;
using Stage = Turn::Stage;

namespace {

constexpr std::size_t kEarlyOutputsMax = 64;
constexpr std::size_t kCallsMax = 64;  // of one turn
constexpr int kOutputDepthMax = 16;
constexpr milliseconds kReplayMax{1000};  // outputs that are said again come at once

std::string id_prefix(TurnId turn) { return fmt::format("call_{}_", turn.value); }

/// What a tool says is JSON, or text.
json result_of(const std::string& output) {
  auto parsed = nested_deeper_than(output, kOutputDepthMax) ? json(json::value_t::discarded)
                                                            : json::parse(output, nullptr, false);
  return parsed.is_discarded() ? json(output) : parsed;
}

}  // namespace

/// A call is made once, whoever asks for it again: its result is in the turn, or was told by the gateway.
void Session::on_tool_call(Text text, Time now) {
  if (trial_) return trial_->tool_calls.push_back(std::move(text));  // the model waits for it, and so does the world
  const auto index = static_cast<std::size_t>(text.at_bytes);
  auto& calls = turn_.tool_calls;
  if (index > calls.size()) return fail_turn({Errc::internal, "llm-chat: a tool call is missing"}, now);
  if (index >= kCallsMax)
    return fail_turn({Errc::overloaded, fmt::format("the model has made {} calls in one turn", kCallsMax)}, now);
  if (index == calls.size()) {
    auto call = read_tool_call(text.text);
    if (!call) return fail_turn(call.error(), now);
    call->id = fmt::format("{}{}_{}", id_prefix(turn_.id), turn_.begin_input, index + 1);
    call->is_clients = turn_.lead->tools.contains(call->name);
    around_.tally.tool_calls.add();
    calls.push_back(std::move(*call));
    begin_call(calls.back(), now);
    // "one moment." is spoken beside it.
    auto pieces = turn_.chunker.pause();
    if (!pieces.empty()) turn_.call_ends.push_back(turn_.reply.text.size());
    speak(std::move(pieces), now);
  }
  tell_ids(std::move(text.payload));
  turn_.calls_made = std::max(turn_.calls_made, index + 1);
  go_on_with_calls(now);
}

void Session::begin_call(ToolCall& call, Time now) {
  const auto index = turn_.tool_calls.size() - 1;
  const auto& told = turn_.told.tool_results;
  if (index < told.size() && !told[index].is_null()) {
    call.result = told[index];
    call.is_answered = call.is_settled = true;
  } else if (call.is_clients) {
    const auto early = early_outputs_.find(call.id);
    if (early == early_outputs_.end()) return;
    turn_.inputs.push_back(early->second.first);
    call.result = result_of(early->second.second);
    call.is_answered = true;
    early_outputs_.erase(early);
  } else if (around_.tools != nullptr) {
    const std::chrono::seconds budget(around_.config.tool_seconds_max);
    if (around_.tools->ask({id_, turn_.id, call.id, call.name, call.arguments, budget})) return;
    call.result = {{"error", "too many calls wait"}};
    call.is_answered = true;
  } else {
    call.result = run_tool(around_.config.tools, call, around_.outlet.wall_time(now));
    call.is_answered = true;
  }
}

/// Tells the client of calls in their order, and the model of results.
void Session::go_on_with_calls(Time now) {
  auto& calls = turn_.tool_calls;
  for (; turn_.calls_told < calls.size(); ++turn_.calls_told) {
    const auto& call = calls[turn_.calls_told];
    if (!call.is_clients && !call.is_answered) break;  // what the engine executes is told with its result
    const auto index = static_cast<std::int64_t>(turn_.calls_told);
    if (index >= turn_.told.tool_calls) tell(Text{TextKind::tool_call, index, text_of(to_json(call)), {}});
  }
  for (; turn_.results_said < turn_.calls_made && calls[turn_.results_said].is_answered; ++turn_.results_said)
    call(Role::chat).send(head(), ToolResult{{text_of(calls[turn_.results_said].result)}}, chat_deadline());
  const auto open = std::count_if(calls.begin(), calls.end(), [](const ToolCall& c) { return !c.is_answered; });
  if (open == 0) {
    if (!turn_.is_waiting()) return;
    turn_.deadline += now - turn_.waits_since;
    turn_.waits_since = Time::max();
    return;
  }
  if (turn_.is_waiting() || calls.back().left > 0) return;
  turn_.waits_since = now;
  const auto clients =
      std::count_if(calls.begin(), calls.end(), [](const ToolCall& c) { return !c.is_answered && c.is_clients; });
  if (clients > 0) tell(Waiting{turn_.id, clients});
}

void Session::answer_call(ToolCall& call, json result, Time now) {
  call.result = std::move(result);
  call.is_answered = true;
  go_on_with_calls(now);
}

/// A tool server does not make calls that nobody waits for.
void Session::forget_call(const ToolCall& call) {
  if (around_.tools != nullptr && !call.is_clients && !call.is_answered) around_.tools->forget(id_, call.id);
}

void Session::forget_calls() {
  for (const auto& call : turn_.tool_calls) forget_call(call);
}

/// The model has not made this call yet, but will: a former owner has told it.
bool Session::may_call(const std::string& id) const {
  const auto& known = turn_.told.call_ids;
  return std::find(known.begin(), known.end(), id) != known.end();
}

void Session::on_tool_output(const ToolOutput& output, std::uint64_t input, Time now) {
  auto& calls = turn_.tool_calls;
  const auto call =
      std::find_if(calls.begin(), calls.end(), [&](const ToolCall& c) { return c.id == output.call && c.is_clients; });
  if (call != calls.end() && is_answering()) {
    const bool waits = !call->is_answered && turn_.stage == Stage::thinking;
    if (waits || call->is_settled) turn_.inputs.push_back(input);
    if (waits) return answer_call(*call, result_of(output.output), now);
    if (std::exchange(call->is_settled, false)) return;
  } else if (call == calls.end() && may_call(output.call) && early_outputs_.size() < kEarlyOutputsMax &&
             !early_outputs_.contains(output.call)) {
    early_outputs_[output.call] = {input, output.output};
    return;
  }
  keep_output(output.call, output.output, input);
}

/// Of a call that waits no more: the model hears of it with the next turn.
void Session::keep_output(const std::string& call, const std::string& output, std::uint64_t input) {
  on_item({fmt::format("output_{}", input), ItemRole::tool, output, {text_of(json(call))}}, input);
}

void Session::on_tool_answer(const ToolServer::Answer& answer, Time now) {
  if (over_) return;
  auto& calls = turn_.tool_calls;
  const auto call = std::find_if(calls.begin(), calls.end(), [&](const ToolCall& c) {
    return c.id == answer.id && !c.is_clients && !c.is_answered;
  });
  if (call == calls.end() || turn_.stage != Stage::thinking) return;  // nobody waits for it any more
  answer_call(*call, answer.result, now);
  settle(now);
}

void Session::expire_calls(Time now) {
  if (!turn_.is_waiting()) return;
  const milliseconds most = std::chrono::seconds(around_.config.tool_seconds_max);
  for (auto& call : turn_.tool_calls) {
    if (call.is_answered) continue;
    const auto limit = call.was_made ? std::min(most, kReplayMax) : most;
    if (now - turn_.waits_since < limit) continue;
    around_.tally.tool_timeouts.add();
    forget_call(call);
    const auto seconds = std::chrono::floor<std::chrono::seconds>(limit).count();
    call.result = {{"error", fmt::format("{} has given no answer in {} s", call.name, seconds)}};
    call.is_answered = true;
  }
  go_on_with_calls(now);
}

}  // namespace parlando::controller
