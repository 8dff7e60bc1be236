#pragma once
/// The controller's section of the configuration; keys, units and ranges stand in configs/README.md.
#include <string>
#include <vector>

#include "common/base/clock.hpp"
#include "common/config/fields.hpp"

namespace parlando::controller {

struct ControllerConfig {
  int preroll_ms = 300;           ///< sound kept in front of detected speech
  int tail_ms = 200;              ///< and behind it
  int turn_seconds_max = 30;      ///< of one utterance; it ends there
  int reply_seconds_max = 60;     ///< from the end of speech to the answer's last sample
  int wait_ms_max = 3000;         ///< for a replica of a role that the turn needs
  int history_turns = 20;         ///< what the model is told of the past
  int lease_ms = 10000;           ///< of a session's ownership
  int commit_seconds_max = 60;    ///< that turns of a session without a client wait to be stored
  int detached_seconds_max = 60;  ///< that a session waits for its client to resume it; 0: it ends with its gateway
  int sessions_max = 256;
  int trials_max = 8;                     ///< answers thought through in a pause, at a time; 0: none is
  int barge_in_ms = 900;                  ///< voice over an answer that takes the word; 0: answers are not interrupted
  std::string tokenizer_mode = "stable";  ///< or exact: the turn is tokenised again at its end
  std::string tools = "none";             ///< or demo
  std::string tools_url;                  ///< http://host:port/path that executes calls; empty: `tools` does
  int tool_seconds_max = 30;              ///< that a call is waited for
  int semantic_tail_ms = 96;              ///< sound behind an end that a semantic detector finds, in place of `tail_ms`
  int judge_ms = 160;                     ///< and behind a pause when it is judged
  int judge_again_ms = 480;               ///< and once more, when the vad says that it lasts; 0: it is not
  int trial_permille = 200;            ///< it makes no trial of an utterance that is less likely complete at the pause
  int complete_permille_low = 900;     ///< a semantic detector ends an utterance that is so likely complete,
  int complete_permille_medium = 550;  ///< by eagerness; automatic is medium
  int complete_permille_high = 320;
  int complete_again_permille_low = 870;  ///< so likely is enough behind a pause that lasts
  int complete_again_permille_medium = 470;
  int complete_again_permille_high = 100;
  int likely_permille_low = 600;  ///< of one that is at least so likely
  int likely_permille_medium = 350;
  int likely_permille_high = 80;
  int likely_silence_ms = 700;   ///< so much silence is enough,
  int unfinished_permille = 2;   ///< the rest of one that is less likely than this is waited for longest, and of others
  int unsure_silence_ms = 1200;  ///< so much silence is enough
  int history_bytes_max = 32768;  ///< of texts that the model is told of the past; the oldest turns go first
  std::string personas_file;      ///< {name: {system, speaker}}; empty: none
  std::string commit_queue_file;  ///< turns that wait for the store are also kept here; empty: in memory only
  std::string summary = "off";    ///< or model: turns that the model is told no more are summarised by it
  std::string summary_prompt =    ///< what it is asked for
      "You keep the memory of a spoken conversation. Summarise what follows in at most ten short sentences, in the "
      "language of the conversation: who the user is, names, numbers, dates, wishes, promises and what is still open. "
      "Say nothing else.";
  int summary_bytes_max = 2000;  ///< of one; a longer one is not used
  int sessions_per_slot = 8;  ///< that are open for each slot of llm-chat and tts: people listen more than they speak
  template <class V>
  void fields(V&& v) {
    v("preroll_ms", preroll_ms);
    v("tail_ms", tail_ms);
    v("turn_seconds_max", turn_seconds_max);
    v("reply_seconds_max", reply_seconds_max);
    v("wait_ms_max", wait_ms_max);
    v("history_turns", history_turns);
    v("lease_ms", lease_ms);
    v("commit_seconds_max", commit_seconds_max);
    v("detached_seconds_max", detached_seconds_max);
    v("sessions_max", sessions_max);
    v("trials_max", trials_max);
    v("barge_in_ms", barge_in_ms);
    v("tokenizer_mode", tokenizer_mode);
    v("tools", tools);
    v("tools_url", tools_url);
    v("tool_seconds_max", tool_seconds_max);
    v("semantic_tail_ms", semantic_tail_ms);
    v("judge_ms", judge_ms);
    v("judge_again_ms", judge_again_ms);
    v("trial_permille", trial_permille);
    v("complete_permille_low", complete_permille_low);
    v("complete_permille_medium", complete_permille_medium);
    v("complete_permille_high", complete_permille_high);
    v("complete_again_permille_low", complete_again_permille_low);
    v("complete_again_permille_medium", complete_again_permille_medium);
    v("complete_again_permille_high", complete_again_permille_high);
    v("likely_permille_low", likely_permille_low);
    v("likely_permille_medium", likely_permille_medium);
    v("likely_permille_high", likely_permille_high);
    v("likely_silence_ms", likely_silence_ms);
    v("unfinished_permille", unfinished_permille);
    v("unsure_silence_ms", unsure_silence_ms);
    v("history_bytes_max", history_bytes_max);
    v("personas_file", personas_file);
    v("commit_queue_file", commit_queue_file);
    v("summary", summary);
    v("summary_prompt", summary_prompt);
    v("summary_bytes_max", summary_bytes_max);
    v("sessions_per_slot", sessions_per_slot);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

}  // namespace parlando::controller
