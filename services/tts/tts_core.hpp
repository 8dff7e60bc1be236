#pragma once
/// The tts service without its process. Speak, any number on one stream, spoken in their order; answers Speech. Calls
/// `llm-tts` for codes (Synthesise, one stream a piece; those of the next piece while this one is decoded) and
/// `tokenizer` for the codes of its voices (Tokenize). An error ends the utterance; what still comes on its stream
/// before Close is ignored.
#include <deque>
#include <map>
#include <optional>
#include <set>

#include "common/base/codes.hpp"
#include "common/config/fields.hpp"
#include "common/service/core.hpp"
#include "common/service/ended_streams.hpp"
#include "common/service/replicas.hpp"
#include "common/service/stream_table.hpp"
#include "services/tts/model/effects.hpp"
#include "services/tts/model/voices.hpp"
#include "services/tts/playout.hpp"

namespace parlando::tts {

struct TtsConfig {
  int threads = 1;    ///< of the process's pool that one call takes at most, its own included
  bool bf16 = false;  ///< the flow's estimator computes in bf16
  std::string model = "models/nano/Step-Audio-TTS-3B";
  int utterances_max = 64;
  int text_bytes_max = 4000;
  std::string speakers;        ///< folder of the voices; empty: the model's own
  bool whole = false;          ///< a piece is decoded when all its codes are there, as the official script does offline
  std::string voices;          ///< folder of users' voices, as the gateways have it; empty: there are none
  int voices_cached_max = 64;  ///< of these, those whose prompt is kept
  int prompt_memory_mb = 4096;  ///< for what utterances under way keep of their prompts
  template <class V>
  void fields(V&& v) {
    v("threads", threads), v("model", model), v("bf16", bf16), v("utterances_max", utterances_max),
        v("text_bytes_max", text_bytes_max);
    v("speakers", speakers), v("whole", whole);
    v("voices", voices), v("voices_cached_max", voices_cached_max);
    v("prompt_memory_mb", prompt_memory_mb);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

class TtsCore final : public service::Core {
 public:
  static Result<std::unique_ptr<service::Core>> make(const TtsConfig& config);
  void on_thread() override;
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time now) override;
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) override;
  void on_tick(Time now) override;
  bool work(Time now) override;
  bool is_heavy() const override { return true; }
  std::string why_not_ready() const override;
  std::int64_t load() const override { return static_cast<std::int64_t>(utterances_.size()); }
  std::int64_t slots() const override { return config_.utterances_max - load(); }
  void add_metrics(telemetry::Metrics& metrics) override;

 private:
  using Key = service::CallerStream;
  struct Piece {
    std::uint32_t index;
    std::string text, speaker;
    std::int64_t skip_samples;
    std::uint64_t seed;
    std::int32_t speed_milli = 1000, volume_milli = 1000;
    // From the request for its codes on:
    StreamId codes_stream = {};       ///< of the request to llm-tts; 0: none
    std::string llm = {};             ///< the replica that was asked
    std::set<std::string> full = {};  ///< replicas that have refused this piece
    bool only_first = false;          ///< asking ahead has failed: it is asked for again when it is the first
    std::shared_ptr<const SpeechDecoder> decoder = {};
    std::shared_ptr<const Voice> voice = {};
    std::unique_ptr<SpeechStream> stream = {};   ///< made while its codes are computed
    std::unique_ptr<EffectStream> effects = {};  ///< behind it; none: speed and volume are 1
    std::vector<std::int32_t> codes = {};
    bool codes_done = false;
    std::int64_t samples = 0;  ///< made so far
    Time begun = {};           ///< when its codes were asked for, or the piece before was over
  };
  struct Utterance {
    protocol::Envelope head;
    Time deadline = Time::max();
    Playout playout;
    std::deque<Piece> pieces;  ///< the first one is being spoken, the codes of the second one may have been asked for
    Piece* piece_of(StreamId codes_stream);
  };
  /// A built-in voice on the way to its codes.
  struct VoiceState {
    std::vector<std::int32_t> codes;
    StreamId request;       ///< under way; 0: none
    std::string tokenizer;  ///< who was asked
    int failures = 0;
    Time retry_at{};
    std::optional<Error> broken;  ///< why it cannot be used
  };
  explicit TtsCore(TtsConfig config)
      : config_(std::move(config)),
        prompt_memory_(std::make_shared<PastMemory>(std::int64_t{config_.prompt_memory_mb} << 20)),
        utterances_(static_cast<std::size_t>(config_.utterances_max)) {}
  // What callers say.
  Result<void> speak(const Key& key, protocol::Message& message, Time now);
  void forget(const Key& key, Utterance& u);
  // What llm-tts and tokenizers say.
  void from_llm(const std::string& peer, protocol::Message& message, Time now);
  void from_tokenizer(const std::string& peer, protocol::Message& message, Time now);
  void codes_failed(const Key& key, Utterance& u, Piece& piece, const Error& error);
  // The work.
  bool can_advance(const Utterance& u) const;
  std::optional<Key> runs_dry_first();
  Piece* to_begin(Utterance& u);
  Result<void> begin(const Key& key, Utterance& u, Piece& piece, Time now);
  Result<void> advance(const Key& key, Utterance& u, Time now);
  Result<std::vector<float>> decode(Piece& piece, bool& last) const;
  void end_codes(const Utterance& u, Piece& piece);
  void forget_codes(const Utterance& u, Piece& piece);
  void restart(const Utterance& u, Piece& piece);
  void give_up(const Key& key, Utterance& u, const Error& error);
  // Voices.
  void leave_tokenizer(VoiceState& voice);
  void ask_for_voices(Time now);
  Result<void> find_own_voice(const std::string& name, Time now);
  void forget_voice(const std::string& name);
  Result<protocol::Tokenize> recording_of(const std::string& name) const;
  void on_voice(const std::string& name, VoiceState& voice, Result<std::vector<std::int32_t>> codes, Time now);

  TtsConfig config_;
  std::shared_ptr<PastMemory> prompt_memory_;
  std::shared_ptr<const SpeechDecoder> common_, music_;
  std::shared_ptr<Voices> voices_;
  Time llm_away_since_ = Time::max();               ///< no llm-tts is up since then; max: one is
  std::map<std::string, VoiceState> voice_states_;  ///< every name of `voices_`
  std::string voice_now_;                           ///< the voice being loaded, for the tokenise callback
  service::Replicas tokenizers_, llms_;
  service::StreamTable<Utterance> utterances_;
  service::EndedStreams ended_;
  std::map<StreamId, Key> by_codes_stream_;  ///< whose codes come on a stream; ends with `end_codes`
  std::deque<Key> turns_;                    ///< all utterances; of two that run dry together, the first gets a step
  std::uint32_t next_stream_ = 1;
  telemetry::Metrics::Counter seconds_, restarts_;
  telemetry::Metrics::Gauge voices_broken_;
  telemetry::Metrics::Histogram first_audio_;
};

}  // namespace parlando::tts
