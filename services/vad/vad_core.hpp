#pragma once
/// The vad service without its process. Streams: `open {}`, `audio` (s16le at 16 kHz), `flush {}`, `close`; answers `speech_started {sample}`
/// and `speech_ended {sample}`, positions counted from the stream's first sample. A flush without speech answers no_speech.
#include <map>

#include "common/service/core.hpp"
#include "services/vad/model/silero.hpp"
#include "services/vad/turn_detector.hpp"

namespace parlando::vad {

struct VadConfig {
  std::string weights = "models/silero-vad/silero_vad.safetensors";
  TurnConfig turn;
  int sessions_max = 1024;
  template <class V>
  void fields(V&& v) {
    v("weights", weights), v("turn", turn), v("sessions_max", sessions_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

class VadCore final : public service::Core {
 public:
  static Result<std::unique_ptr<service::Core>> make(const VadConfig& config);
  VadCore(VadConfig config, std::shared_ptr<const SileroWeights> weights) : config_(std::move(config)), weights_(std::move(weights)) {}
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, bool up, Time now) override;
  std::int64_t load() const override { return static_cast<std::int64_t>(streams_.size()); }
  std::int64_t slots() const override { return config_.sessions_max - load(); }
  void add_metrics(telemetry::Metrics& metrics) override;

 private:
  using Key = std::tuple<std::string, protocol::SessionId, std::uint32_t>;
  struct Stream {
    Silero net;
    TurnDetector detector;
    std::vector<float> open;
    std::int64_t position = 0;
  };
  void tell(const std::string& peer, const protocol::Envelope& to, const TurnEvent& event);
  VadConfig config_;
  std::shared_ptr<const SileroWeights> weights_;
  std::map<Key, Stream> streams_;
  telemetry::Metrics::Counter frames_;
};

}  // namespace parlando::vad
