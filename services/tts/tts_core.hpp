#pragma once
/// The tts service without its process. `speak {chunk, text, speaker, last, skip_samples, seed}`, any number on one stream, spoken in their order;
/// answers `speech {chunk, sample, last}` with s16le at 22.05 kHz. Calls `llm-tts` for codes and `tokenizer` for the codes of its voices.
#include <deque>
#include <map>

#include "common/base/codes.hpp"
#include "common/config/fields.hpp"
#include "common/service/core.hpp"
#include "services/tts/model/voices.hpp"

namespace parlando::tts {

struct TtsConfig {
  int threads = 1;  ///< of libtorch
  std::string model = "models/nano/Step-Audio-TTS-3B";
  int utterances_max = 64;
  int text_bytes_max = 4000;
  template <class V>
  void fields(V&& v) {
    v("threads", threads), v("model", model), v("utterances_max", utterances_max), v("text_bytes_max", text_bytes_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

class TtsCore final : public service::Core {
 public:
  static Result<std::unique_ptr<service::Core>> make(const TtsConfig& config);
  void on_thread() override;
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, bool up, Time now) override;
  bool work(Time now) override;
  std::string why_not_ready() const override;
  std::int64_t load() const override { return static_cast<std::int64_t>(utterances_.size()); }
  std::int64_t slots() const override { return config_.utterances_max - load(); }
  void add_metrics(telemetry::Metrics& metrics) override;

 private:
  using Key = std::tuple<std::string, protocol::SessionId, std::uint32_t>;
  struct Chunk {
    std::int64_t index;
    std::string text, speaker;
    bool last;
    std::int64_t skip;
    std::uint64_t seed;
  };
  struct Utterance {
    protocol::Envelope head;
    std::deque<Chunk> chunks;  ///< the first one is being spoken
    std::unique_ptr<SpeechStream> stream;
    std::uint32_t codes_stream = 0;  ///< of the request to llm-tts; 0: none
    std::string llm;                 ///< the replica that was asked
    std::vector<std::int32_t> codes;
    bool codes_done = false;
    std::int64_t samples = 0;  ///< of the chunk, made so far
    Time begun{};              ///< when its codes were asked for
  };
  explicit TtsCore(TtsConfig config) : config_(std::move(config)) {}
  static bool can_advance(const Utterance& u);
  Result<void> begin(Utterance& u, Time now);
  Result<void> advance(const Key& key, Utterance& u, Time now);
  void abandon(Utterance& u);
  void ask_for_voices();

  TtsConfig config_;
  std::shared_ptr<const SpeechDecoder> common_, music_;
  std::shared_ptr<Voices> voices_;
  std::map<std::string, std::vector<std::int32_t>> voice_codes_;  ///< as they come from the tokenizer
  std::map<std::uint32_t, std::string> voice_requests_;
  std::string voice_now_;  ///< the voice being loaded, for the tokenise callback
  std::vector<std::string> tokenizers_, llms_;
  std::map<Key, Utterance> utterances_;
  std::uint32_t next_stream_ = 1;
  std::size_t turn_ = 0;
  telemetry::Metrics::Counter seconds_;
  telemetry::Metrics::Histogram first_audio_;
};

}  // namespace parlando::tts
