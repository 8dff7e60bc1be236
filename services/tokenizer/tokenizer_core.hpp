#pragma once
/// The tokenizer service without its process. Streams of speech: `open {mode}`, `audio` (s16le at 16 kHz), `flush {samples}`, `close`; answers
/// `tokens {first_group, final_groups, last}` with int32 codes. A recording: `open {recording: rate}` with float32 samples answers all its codes.
#include <deque>
#include <map>

#include "common/config/fields.hpp"
#include "common/service/core.hpp"
#include "services/tokenizer/model/live.hpp"

namespace parlando::tokenizer {

struct TokenizerConfig {
  int threads = 1;  ///< of libtorch
  std::string model = "models/nano/Step-Audio-Tokenizer";
  int guard_ms = 400;  ///< groups younger than this are never frozen in `stable` mode
  int sessions_max = 256;
  int utterance_seconds_max = 30;
  template <class V>
  void fields(V&& v) {
    v("threads", threads), v("model", model), v("guard_ms", guard_ms), v("sessions_max", sessions_max), v("utterance_seconds_max", utterance_seconds_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

class TokenizerCore final : public service::Core {
 public:
  static Result<std::unique_ptr<service::Core>> make(const TokenizerConfig& config);
  TokenizerCore(TokenizerConfig config, std::shared_ptr<const SpeechTokenizer> model) : config_(std::move(config)), model_(std::move(model)) {}
  void on_thread() override;
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, bool up, Time now) override;
  bool work(Time now) override;
  std::int64_t load() const override { return static_cast<std::int64_t>(streams_.size()); }
  std::int64_t slots() const override { return config_.sessions_max - load(); }
  void add_metrics(telemetry::Metrics& metrics) override;

 private:
  using Key = std::tuple<std::string, protocol::SessionId, std::uint32_t>;
  struct Stream {
    protocol::Envelope head;
    LiveTokenizer live;
    bool exact = false;
    std::vector<float> pending;
    std::optional<std::int64_t> end;  ///< samples of the utterance, once flushed
    std::vector<float> recording;
    int recording_rate = 0;
    bool queued = false;
  };
  void queue(const Key& key, Stream& stream);
  void tell(const std::string& peer, const protocol::Envelope& to, std::int64_t first_group, std::int64_t final_groups, bool last,
            std::span<const std::int32_t> codes);
  TokenizerConfig config_;
  std::shared_ptr<const SpeechTokenizer> model_;
  std::map<Key, Stream> streams_;
  std::deque<Key> turns_;
  telemetry::Metrics::Counter seconds_, codes_;
};

}  // namespace parlando::tokenizer
