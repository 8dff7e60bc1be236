#include "services/cli/turn_figures.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include "services/cli/bench_setting.hpp"

namespace parlando::cli {
using nlohmann::json;

json distribution(std::vector<double> values) {
  std::erase_if(values, [](double v) { return std::isnan(v); });
  json out{{"n", values.size()}};
  if (values.empty()) return out;
  for (const auto& [name, q] : {std::pair("p50", 0.5), {"p95", 0.95}, {"p99", 0.99}}) out[name] = quantile(values, q);
  return out;
}

std::vector<double> whole_turns(const std::vector<TurnFigure>& turns, double TurnFigure::*what) {
  std::vector<double> out;
  for (const auto& t : turns)
    if (!t.interrupted && !t.cut_off) out.push_back(t.*what);
  return out;
}

json dialogue_figures(const LoadFigures& run) {
  json out;
  out["end_of_speech_to_first_audio_ms"] = distribution(whole_turns(run.spoken, &TurnFigure::first_audio));
  auto ends = whole_turns(run.spoken, &TurnFigure::end_told);
  out["end_of_speech_to_decision_ms"] = distribution(ends);
  std::erase_if(ends, [](double v) { return std::isnan(v); });
  std::map<std::string, std::vector<double>> parts;
  for (const auto& turn : run.spoken)
    if (!turn.interrupted && !turn.cut_off)
      for (const auto& [name, ms] : turn.parts) parts[name].push_back(ms);
  for (auto& [name, values] : parts) out["parts_ms"][name] = distribution(std::move(values));
  json detector{{"pauses", run.pauses}, {"utterances", ends.size()}};
  if (run.pauses > 0) detector["cut_off_share"] = static_cast<double>(run.cut_off) / static_cast<double>(run.pauses);
  if (!ends.empty()) {
    const auto late = std::count_if(ends.begin(), ends.end(), [](double ms) { return ms > kLateMs; });
    detector["late_share"] = static_cast<double>(late) / static_cast<double>(ends.size());
  }
  out["detector"] = std::move(detector);
  const auto known = [](double ms) { return std::isnan(ms) ? json() : json(ms); };
  for (const auto& t : run.spoken)
    out["all"].push_back({{"utterance", t.utterance},
                          {"first_audio_ms", known(t.first_audio)},
                          {"decision_ms", known(t.end_told)},
                          {"trial_ms", known(t.trial)},
                          {"calls_tool", t.calls_tool},
                          {"underruns", t.underruns},
                          {"cut_off", t.cut_off},
                          {"interrupted", t.interrupted}});
  out["murmurs"] = run.murmurs;
  out["murmurs_that_ended_an_answer"] = run.murmurs_took;
  return out;
}

json speculation_figures(const LoadFigures& run, double discarded, double turns) {
  std::vector<double> behind_decision, with_tool, without_tool, saved;
  double whole = 0;
  for (const auto& t : run.spoken) {
    if (t.interrupted || t.cut_off) continue;
    ++whole;
    if (std::isnan(t.trial)) continue;
    behind_decision.push_back(t.engine_audio - t.decision);
    (t.calls_tool ? with_tool : without_tool).push_back(t.engine_audio - t.decision);
    saved.push_back(t.trial);
  }
  json out;
  out["committed"]["decision_to_first_audio_ms"] = distribution(std::move(behind_decision));
  if (!with_tool.empty()) out["committed"]["with_tool_ms"] = distribution(std::move(with_tool));
  if (!without_tool.empty()) out["committed"]["without_tool_ms"] = distribution(std::move(without_tool));
  auto& speculation = out["speculation"];
  if (whole > 0) speculation["committed_share"] = static_cast<double>(saved.size()) / whole;
  if (turns > 0) speculation["discarded_per_turn"] = discarded / turns;
  speculation["saved_ms"] = distribution(std::move(saved));
  return out;
}

std::int64_t underruns_of(const LoadFigures& run) {
  std::int64_t sum = 0;
  for (const auto& t : run.spoken) sum += t.interrupted || t.cut_off ? 0 : t.underruns;
  return sum;
}

const std::vector<TurnTarget>& turn_targets() {
  static const std::vector<TurnTarget> kTargets{
      {"/semantic/end_of_speech_to_first_audio_ms/p50", 300},
      {"/semantic/end_of_speech_to_first_audio_ms/p95", 700},
      {"/silence/end_of_speech_to_first_audio_ms/p50", 530},
      {"/committed/decision_to_first_audio_ms/p50", 10},
      {"/committed/decision_to_first_audio_ms/p95", 40},
      {"/synthesis_ms/p50", 60},
      {"/at_once/4/p50", 650},
      {"/detector/cut_off_share", 0.03},
      {"/detector/late_share", 0.05},
      {"/speculation/committed_share", 0, 0.6},
      {"/speculation/discarded_per_turn", 0.7},
      {"/barge_in_ms/p99", 50},
      {"/murmurs/took_share", 0.05},
      {"/underruns", 0},
      {"/live_sessions", 0, 200},
  };
  return kTargets;
}

Verdict judge_turns(const json& figures) {
  Verdict out;
  for (const auto& target : turn_targets()) {
    auto name = std::string(target.path).substr(1);
    std::replace(name.begin(), name.end(), '/', '.');
    const json::json_pointer at(target.path);
    if (!figures.contains(at) || !figures[at].is_number()) {
      out.not_measured.push_back(std::move(name));
      continue;
    }
    const auto value = figures[at].get<double>();
    if (target.least >= 0 ? value < target.least : value > target.most) out.missed.push_back(std::move(name));
  }
  return out;
}

}  // namespace parlando::cli
