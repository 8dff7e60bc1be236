#pragma once
/// The llm service without its process: serves one Step-1 checkpoint to chats and to text-to-speech.
/// Chat: OpenChat, then Hear while the user speaks or Say, GoOn when another replica had begun, Generate; answers Text;
/// ToolResult goes on. ForkChat opens a chat that goes on from where another one is; neither knows of the other then.
/// Speech: Synthesise; answers Tokens. Erase, on a stream of its own: the session is over, and what is kept of it alone
/// goes; not answered. An error ends the job and releases its sequence; what still
/// comes on its stream before Close is ignored.
#include <map>

#include "common/config/fields.hpp"
#include "common/service/core.hpp"
#include "common/service/ended_streams.hpp"
#include "services/llm/chat.hpp"
#include "services/llm/model/rank_backend.hpp"

namespace parlando::llm {

struct LlmConfig {
  int threads = 1;  ///< of the process's pool that one call takes at most, its own included
  std::string model = "models/nano/Step-Audio-Chat";
  bool bf16 = false;
  int cache_tokens = 49152, sequences_max = 256, reply_tokens_max = 1024;
  int conversation_tokens = 512;  ///< of a usual one, its answer included: so much of the cache is a slot
  int prefix_permille = 500;      ///< of the cache, at most, for beginnings that stay computed; 0: none do
  int prefix_idle_ms = 600'000;   ///< so long they stay when nobody uses them
  int ranks = 1;                  ///< that share the model, each with `threads` and its part of the weights
  bool rank_processes = false;    ///< a process for each of them instead of a thread; with `parlando-llm` only
  int step_ms_max = 50;           ///< of a step with a piece of a prompt in it, or a quarter more than one without
  template <class V>
  void fields(V&& v) {
    v("threads", threads), v("model", model), v("bf16", bf16), v("cache_tokens", cache_tokens),
        v("sequences_max", sequences_max), v("reply_tokens_max", reply_tokens_max),
        v("conversation_tokens", conversation_tokens), v("prefix_permille", prefix_permille),
        v("prefix_idle_ms", prefix_idle_ms), v("step_ms_max", step_ms_max), v("ranks", ranks),
        v("rank_processes", rank_processes);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

/// What a model directory holds besides the weights.
struct LlmModel {
  std::shared_ptr<LmEngine> engine;
  const RankBackend* group = nullptr;  ///< of the engine, where several ranks share the model
  std::shared_ptr<const TextTokenizer> text;
  Sampling chat_sampling, speech_sampling;
  std::string chat_prompt;
  TtsPrompts prompts;
  /// @error Errc::not_found, Errc::checkpoint_mismatch, Errc::bad_json naming the file
  static Result<LlmModel> load(const std::filesystem::path& directory, at::ScalarType dtype, LmEngine::Limits limits,
                               int ranks = 1, int threads = 1, const std::string& program = {});
  /// What a checkpoint holds besides its weights, for an engine that is there. @error those of `load`
  Result<void> read_words(const std::filesystem::path& directory);
  /// What a synthesis needs. mode: with_speaker, without_speaker, rap or vocal; codes: the voice's, 0…5119 and known to
  /// this vocabulary.
  struct Speech {
    std::string mode, speaker, prompt_text, text;
    std::span<const std::int32_t> codes;
    Sampling sampling;
    bool operator_voice = false;            ///< else a user's: its prompt is shared within the session alone
    std::optional<SessionId> session = {};  ///< none: with nobody
  };
  /// Opens the sequence `name` and starts to generate codes for it. On an error the sequence is released.
  /// @error Errc::invalid_argument (mode, prompt too long), Errc::token_out_of_range, and those of the engine
  Result<void> start_speech(const std::string& name, const Speech& speech) const;
};

constexpr int kGroupBroken = 75;  ///< exit code: a rank has died or stood still

class LlmCore final : public service::Core {
 public:
  static Result<std::unique_ptr<service::Core>> make(const LlmConfig& config);
  const LmEngine& engine() const { return *model_.engine; }
  LlmCore(LlmConfig config, LlmModel model) : config_(std::move(config)), model_(std::move(model)) {}
  void on_thread() override;
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time now) override;
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) override;
  bool work(Time now) override;
  void on_tick(Time now) override;
  bool is_heavy() const override { return true; }
  std::int64_t load() const override { return static_cast<std::int64_t>(jobs_.size()); }
  std::int64_t slots() const override;
  void add_metrics(telemetry::Metrics& metrics) override;

 private:
  void end_with_group() const;
  void count_prefixes();
  struct Job {
    std::string peer;
    protocol::Envelope head;
    std::unique_ptr<Chat> chat;  ///< or speech:
    std::unique_ptr<struct SpeechGroups> speech;
    Time deadline = Time::max();
    bool answered = false;  ///< `done` was told: nobody waits for anything
    ~Job();
    /// @param first  the message that opens it
    Job(std::string caller, const protocol::Message& first);
    Job(Job&&) noexcept;
    Job& operator=(Job&&) noexcept;
  };
  using Jobs = std::map<std::string, Job>;
  Result<void> open_chat(const std::string& peer, protocol::Message message);
  Result<void> fork_chat(const std::string& peer, protocol::Message message);
  Result<void> open_speech(const std::string& peer, protocol::Message message);
  Result<void> follow(Job& job, protocol::Message& message);
  void tell(Job& job, std::vector<ChatEvent> events);
  void expire(Time now);
  void end_with(Jobs::iterator job, const Error& error);
  void on_token(const TokenEvent& event);
  LlmConfig config_;
  LlmModel model_;
  Jobs jobs_;  ///< by the name of their sequence
  service::EndedStreams ended_;
  telemetry::Metrics::Counter tokens_, fallbacks_, bad_logits_, gave_way_, parked_, prefix_lookups_, prefix_hit_tokens_,
      prefix_evictions_, prefix_expired_, prefix_forgotten_;
  telemetry::Metrics::Gauge prefix_blocks_, cache_blocks_, cache_blocks_free_;
};

}  // namespace parlando::llm
