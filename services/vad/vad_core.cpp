#include "services/vad/vad_core.hpp"

#include "common/base/pcm.hpp"

namespace parlando::vad {
using protocol::MessageType;

std::vector<config::Problem> VadConfig::problems(const std::string& path) const {
  auto out = turn.problems(path + ".turn");
  config::expect_range(out, path + ".sessions_max", sessions_max, 1, 1 << 20);
  return out;
}

Result<std::unique_ptr<service::Core>> VadCore::make(const VadConfig& config) {
  PARLANDO_TRY(auto weights, SileroWeights::load(config.weights));
  return std::unique_ptr<service::Core>(std::make_unique<VadCore>(config, std::move(weights)));
}

void VadCore::add_metrics(telemetry::Metrics& metrics) { frames_ = metrics.counter("parlando_vad_frames_total", "Frames of 32 ms judged"); }

void VadCore::on_message(const std::string& peer, protocol::Message m, Time) {
  const Key key{peer, m.head.session, m.head.stream};
  if (m.head.type == MessageType::open) {
    if (static_cast<int>(streams_.size()) >= config_.sessions_max)
      return answer_error(peer, m.head, {Errc::overloaded, fmt::format("{} streams are open, at most {} are served", streams_.size(), config_.sessions_max)});
    streams_.insert_or_assign(key, Stream{Silero(weights_), TurnDetector(config_.turn), {}, 0});
    return;
  }
  const auto found = streams_.find(key);
  if (found == streams_.end()) {
    if (m.head.type != MessageType::close && m.head.type != MessageType::cancel)
      answer_error(peer, m.head, {Errc::not_found, fmt::format("stream {} is not open", m.head.stream)});
    return;
  }
  auto& s = found->second;
  switch (m.head.type) {
    case MessageType::audio: {
      const auto samples = from_pcm16(m.payload);
      s.open.insert(s.open.end(), samples.begin(), samples.end());
      std::size_t at = 0;
      for (; s.open.size() - at >= kFrameSamples; at += kFrameSamples) {
        const float p = s.net(std::span<const float, kFrameSamples>(s.open.data() + at, kFrameSamples));
        frames_.add();
        if (const auto event = s.detector.push(p, s.position)) tell(peer, m.head, *event);
        s.position += kFrameSamples;
      }
      s.open.erase(s.open.begin(), s.open.begin() + static_cast<std::ptrdiff_t>(at));
      break;
    }
    case MessageType::flush:
      if (const auto event = s.detector.flush())
        tell(peer, m.head, *event);
      else
        answer_error(peer, m.head, {Errc::no_speech, fmt::format("no speech was found in {:.2f} s of audio", static_cast<double>(s.position) / 16000)});
      break;
    case MessageType::close:
    case MessageType::cancel:
      streams_.erase(found);
      break;
    default:
      answer_error(peer, m.head, {Errc::unsupported, fmt::format("vad takes no message of type {}", static_cast<int>(m.head.type))});
  }
}

void VadCore::tell(const std::string& peer, const protocol::Envelope& to, const TurnEvent& event) {
  answer(peer, to, event.kind == TurnEvent::Kind::started ? MessageType::speech_started : MessageType::speech_ended,
         fmt::format(R"({{"sample":{}}})", event.sample));
}

void VadCore::on_peer(const transport::Peer& peer, bool up, Time) {
  if (!up) std::erase_if(streams_, [&](const auto& s) { return std::get<0>(s.first) == peer.instance; });
}

}  // namespace parlando::vad
