#pragma once
/// The vad service without its process. A stream: OpenVad, Audio (s16le at 16 kHz), Flush, Close; answered turn after
/// turn by SpeechStarted, by SpeechPaused and SpeechResumed for each pause within, and by SpeechEnded. Positions are
/// those of the session: the first Audio's `first_sample` is the stream's base, and each further one must go on where
/// the last one ended. One that does not changes nothing and answers Errc::position_mismatch, once until a frame fits
/// again. OpenVad's own threshold and silence count for its stream alone. How the sound is cut into messages has no
/// influence on the events. A Flush without speech answers Errc::no_speech.
#include <array>

#include "common/service/core.hpp"
#include "common/service/stream_table.hpp"
#include "services/vad/model/silero.hpp"
#include "services/vad/turn_detector.hpp"

namespace parlando::vad {

struct VadConfig {
  std::string weights = "models/silero-vad/silero_vad.safetensors";
  TurnConfig turn;
  int sessions_max = 1024;
  template <class V>
  void fields(V&& v) {
    v("weights", weights);
    v("turn", turn);
    v("sessions_max", sessions_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

class VadCore final : public service::Core {
 public:
  static Result<std::unique_ptr<service::Core>> make(const VadConfig& config);
  VadCore(VadConfig config, std::shared_ptr<const SileroWeights> weights);
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time now) override;
  std::int64_t load() const override { return static_cast<std::int64_t>(streams_.size()); }
  std::int64_t slots() const override { return static_cast<std::int64_t>(streams_.room()); }
  void add_metrics(telemetry::Metrics& metrics) override;

 private:
  /// One user's sound. Its size is fixed: what does not fill a frame yet waits in `open`.
  struct Stream {
    Silero net;
    TurnDetector detector;
    std::array<float, kFrameSamples> open;
    int filled = 0;             ///< samples in `open`
    std::int64_t base = -1;     ///< position of the first sample; -1: none has come
    std::int64_t position = 0;  ///< of the next sample
    bool astray = false;        ///< a gap was reported and no frame has fitted since
  };
  /// The streams that ended last. What was under way when they did is no error.
  class Ended {
   public:
    void add(const service::CallerStream& key);
    bool contains(const service::CallerStream& key) const;

   private:
    static constexpr std::size_t kKept = 64;
    std::vector<service::CallerStream> keys_;
    std::size_t next_ = 0;
  };
  Result<void> open(const std::string& peer, protocol::Message& message);
  Result<void> hear(const std::string& peer, protocol::Message& message);
  Result<void> flush(const std::string& peer, protocol::Message& message);
  /// @return nothing for a stream that has ended. @error Errc::not_found for one that was never opened
  Result<Stream*> stream_of(const service::CallerStream& key);
  void tell(const std::string& peer, const protocol::Envelope& to, const TurnEvent& event);

  VadConfig config_;
  std::shared_ptr<const SileroWeights> weights_;
  service::StreamTable<Stream> streams_;
  Ended ended_;
  telemetry::Metrics::Counter frames_, gaps_;
};

}  // namespace parlando::vad
