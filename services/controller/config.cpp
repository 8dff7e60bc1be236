#include "services/controller/config.hpp"

#include "common/http/post.hpp"

namespace parlando::controller {

std::vector<config::Problem> ControllerConfig::problems(const std::string& path) const {
  struct Range {
    const char* key;
    int value, low, high;
  };
  const Range ranges[] = {
      {"preroll_ms", preroll_ms, 0, 2000},
      {"tail_ms", tail_ms, 0, 2000},
      {"turn_seconds_max", turn_seconds_max, 1, 30},
      {"reply_seconds_max", reply_seconds_max, 1, 600},
      {"wait_ms_max", wait_ms_max, 0, 60000},
      {"history_turns", history_turns, 0, 100},
      {"lease_ms", lease_ms, 1000, 600000},
      {"commit_seconds_max", commit_seconds_max, 1, 3600},
      {"detached_seconds_max", detached_seconds_max, 0, 3600},
      {"sessions_max", sessions_max, 1, 1 << 16},
      {"trials_max", trials_max, 0, 1 << 16},
      {"barge_in_ms", barge_in_ms, 0, 10000},
      {"tool_seconds_max", tool_seconds_max, 1, 600},
      {"semantic_tail_ms", semantic_tail_ms, 0, 2000},
      {"judge_ms", judge_ms, 0, 2000},
      {"judge_again_ms", judge_again_ms, 0, 2000},
      {"trial_permille", trial_permille, 0, 1000},
      {"complete_permille_low", complete_permille_low, 1, 1000},
      {"complete_permille_medium", complete_permille_medium, 1, 1000},
      {"complete_permille_high", complete_permille_high, 1, 1000},
      {"complete_again_permille_low", complete_again_permille_low, 1, 1000},
      {"complete_again_permille_medium", complete_again_permille_medium, 1, 1000},
      {"complete_again_permille_high", complete_again_permille_high, 1, 1000},
      {"likely_permille_low", likely_permille_low, 0, 1000},
      {"likely_permille_medium", likely_permille_medium, 0, 1000},
      {"likely_permille_high", likely_permille_high, 0, 1000},
      {"likely_silence_ms", likely_silence_ms, 200, 10000},
      {"unfinished_permille", unfinished_permille, 0, 1000},
      {"unsure_silence_ms", unsure_silence_ms, 200, 10000},
      {"history_bytes_max", history_bytes_max, 0, 1 << 24},
      {"summary_bytes_max", summary_bytes_max, 100, 1 << 14},
      {"sessions_per_slot", sessions_per_slot, 1, 1024},
  };
  std::vector<config::Problem> out;
  for (const auto& r : ranges) config::expect_range(out, path + "." + r.key, r.value, r.low, r.high);
  const auto at_most = [&](const char* key, int value, const char* other, int most) {
    if (value > most)
      out.push_back({path + "." + key, "is " + std::to_string(value) + ", expected at most " + other + ", which is " +
                                           std::to_string(most)});
  };
  at_most("likely_silence_ms", likely_silence_ms, "unsure_silence_ms", unsure_silence_ms);
  if (likely_silence_ms < judge_again_ms)
    out.push_back({path + ".likely_silence_ms", "is " + std::to_string(likely_silence_ms) +
                                                    ", expected at least judge_again_ms, which is " +
                                                    std::to_string(judge_again_ms)});
  // Less is enough behind more silence.
  at_most("complete_again_permille_low", complete_again_permille_low, "complete_permille_low", complete_permille_low);
  at_most("complete_again_permille_medium", complete_again_permille_medium, "complete_permille_medium",
          complete_permille_medium);
  at_most("complete_again_permille_high", complete_again_permille_high, "complete_permille_high",
          complete_permille_high);
  if (tokenizer_mode != "stable" && tokenizer_mode != "exact")
    out.push_back({path + ".tokenizer_mode", "is '" + tokenizer_mode + "', expected stable or exact"});
  if (tools != "demo" && tools != "none") out.push_back({path + ".tools", "is '" + tools + "', expected demo or none"});
  if (summary != "off" && summary != "model")
    out.push_back({path + ".summary", "is '" + summary + "', expected off or model"});
  if (summary == "model" && summary_prompt.empty())
    out.push_back({path + ".summary_prompt", "is empty, expected what the model is asked for"});
  if (!tools_url.empty() && !http::Url::parse(tools_url))
    out.push_back({path + ".tools_url", "is '" + tools_url + "', expected http://host:port/path"});
  return out;
}

}  // namespace parlando::controller
