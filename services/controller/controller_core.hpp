#pragma once
/// The controller service without its process: its sessions' dialogues, and which replica of a role serves which session.
/// From gateways, on stream 1 of a session: `open {system, speaker, speak}`, `audio`, `flush`, `text {text}`, `cancel`, `close`; answers
/// `open`, `speech_started`, `speech_ended`, `text`, `speech`, `turn`, `error`.
#include "common/service/core.hpp"
#include "services/controller/dialogue.hpp"

namespace parlando::controller {

class ControllerCore final : public service::Core {
 public:
  static Result<std::unique_ptr<service::Core>> make(const DialogueConfig& config);
  explicit ControllerCore(DialogueConfig config);
  ~ControllerCore() override;
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, bool up, Time now) override;
  void on_tick(Time now) override;
  std::string why_not_ready() const override;
  std::int64_t load() const override { return static_cast<std::int64_t>(sessions_.size()); }
  std::int64_t slots() const override { return config_.sessions_max - load(); }
  bool drain() override;
  void add_metrics(telemetry::Metrics& metrics) override;

 private:
  class Session;
  DialogueConfig config_;
  std::map<std::string, std::vector<std::string>> replicas_;  ///< role -> live instances
  std::map<std::string, std::string> roles_;                  ///< instance -> role
  std::map<protocol::SessionId, std::unique_ptr<Session>> sessions_;
  bool draining_ = false;
  telemetry::Metrics::Counter turns_, replays_, errors_;
  telemetry::Metrics::Histogram first_audio_;
};

}  // namespace parlando::controller
