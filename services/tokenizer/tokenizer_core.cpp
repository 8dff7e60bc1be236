#include "services/tokenizer/tokenizer_core.hpp"

#include <ATen/Parallel.h>

#include "common/base/codes.hpp"
#include "common/base/pcm.hpp"

namespace parlando::tokenizer {
using protocol::MessageType;

std::vector<config::Problem> TokenizerConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".threads", threads, 1, 1024);
  config::expect_range(out, path + ".guard_ms", guard_ms, 0, 10000);
  config::expect_range(out, path + ".sessions_max", sessions_max, 1, 1 << 16);
  config::expect_range(out, path + ".utterance_seconds_max", utterance_seconds_max, 1, 300);
  return out;
}

Result<std::unique_ptr<service::Core>> TokenizerCore::make(const TokenizerConfig& config) {
  PARLANDO_TRY(auto model, SpeechTokenizer::load(config.model));
  // Warm means that one second has been through both encoders.
  const std::vector<float> second(16000, 0.01f);
  PARLANDO_TRY(const auto warm, model->codes(second, 16000, {}));
  if (warm.empty()) return fail(Errc::internal, "the tokenizer of '{}' gave no codes for one second of audio", config.model);
  return std::unique_ptr<service::Core>(std::make_unique<TokenizerCore>(config, std::move(model)));
}

void TokenizerCore::on_thread() { at::set_num_threads(config_.threads); }

void TokenizerCore::add_metrics(telemetry::Metrics& metrics) {
  seconds_ = metrics.counter("parlando_tokenizer_audio_seconds_total", "Audio taken in");
  codes_ = metrics.counter("parlando_tokenizer_codes_total", "Codes sent");
}

void TokenizerCore::on_message(const std::string& peer, protocol::Message m, Time) {
  const Key key{peer, m.head.session, m.head.stream};
  const auto body = protocol::body_of(m);
  if (m.head.type == MessageType::open) {
    if (static_cast<int>(streams_.size()) >= config_.sessions_max)
      return answer_error(peer, m.head, {Errc::overloaded, fmt::format("{} streams are open, at most {} are served", streams_.size(), config_.sessions_max)});
    const auto mode = body.contains("mode") && body["mode"].is_string() ? body["mode"].get<std::string>() : std::string("stable");
    if (mode != "stable" && mode != "exact")
      return answer_error(peer, m.head, {Errc::invalid_argument, fmt::format("mode '{}', expected stable or exact", mode.substr(0, 40))});
    Stream s{m.head, LiveTokenizer(model_, {.guard_ms = config_.guard_ms}), mode == "exact", {}, {}, {}, 0, false};
    if (body.contains("recording")) {
      s.recording_rate = body["recording"].is_number_integer() ? body["recording"].get<int>() : 0;
      if (s.recording_rate < 16000 || s.recording_rate > 192000)
        return answer_error(peer, m.head, {Errc::invalid_argument, fmt::format("a recording at {} Hz, expected 16000 to 192000", s.recording_rate)});
      s.recording = from_bytes<float>(m.payload);
    }
    auto& stored = streams_.insert_or_assign(key, std::move(s)).first->second;
    if (stored.recording_rate > 0) queue(key, stored);
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
      if (s.end) return;  // after the end of the utterance
      const auto samples = from_pcm16(m.payload);
      if (s.live.samples() + s.pending.size() + samples.size() > static_cast<std::size_t>(config_.utterance_seconds_max) * 16000)
        return answer_error(peer, m.head, {Errc::invalid_argument, fmt::format("an utterance takes at most {} s", config_.utterance_seconds_max)});
      s.pending.insert(s.pending.end(), samples.begin(), samples.end());
      seconds_.add(static_cast<double>(samples.size()) / 16000);
      queue(key, s);
      break;
    }
    case MessageType::flush:
      s.end = body.contains("samples") && body["samples"].is_number_integer() ? body["samples"].get<std::int64_t>()
                                                                              : static_cast<std::int64_t>(s.live.samples() + s.pending.size());
      queue(key, s);
      break;
    case MessageType::close:
    case MessageType::cancel:
      streams_.erase(found);
      break;
    default:
      answer_error(peer, m.head, {Errc::unsupported, fmt::format("tokenizer takes no message of type {}", static_cast<int>(m.head.type))});
  }
}

void TokenizerCore::queue(const Key& key, Stream& stream) {
  if (!std::exchange(stream.queued, true)) turns_.push_back(key);
}

void TokenizerCore::tell(const std::string& peer, const protocol::Envelope& to, std::int64_t first_group, std::int64_t final_groups, bool last,
                         std::span<const std::int32_t> codes) {
  codes_.add(static_cast<double>(codes.size()));
  answer(peer, to, MessageType::tokens, fmt::format(R"({{"first_group":{},"final_groups":{},"last":{}}})", first_group, final_groups, last), to_bytes(codes));
}

bool TokenizerCore::work(Time) {
  if (turns_.empty()) return false;
  const auto key = turns_.front();
  turns_.pop_front();
  const auto found = streams_.find(key);
  if (found == streams_.end()) return !turns_.empty();
  auto& s = found->second;
  const auto& peer = std::get<0>(key);
  s.queued = false;
  if (s.recording_rate > 0) {
    const auto codes = model_->codes(s.recording, s.recording_rate, {.trim = true, .energy_norm = true});
    if (codes)
      tell(peer, s.head, 0, static_cast<std::int64_t>(codes->size()) / kCodesPerGroup, true, *codes);
    else
      answer_error(peer, s.head, codes.error());
    streams_.erase(found);
    return !turns_.empty();
  }
  const auto update = s.live.push(std::exchange(s.pending, {}));
  if (!update) {
    answer_error(peer, s.head, update.error());
  } else if (s.end) {
    s.live.cut(static_cast<std::size_t>(std::max<std::int64_t>(0, *s.end)));
    const auto codes = s.exact ? s.live.exact() : s.live.finish();
    if (codes)
      tell(peer, s.head, 0, static_cast<std::int64_t>(codes->size()) / kCodesPerGroup, true, *codes);
    else
      answer_error(peer, s.head, codes.error());
    streams_.erase(found);
  } else if (*update) {
    tell(peer, s.head, (*update)->first_group, (*update)->final_groups, false, (*update)->codes);
  }
  return !turns_.empty();
}

void TokenizerCore::on_peer(const transport::Peer& peer, bool up, Time) {
  if (!up) std::erase_if(streams_, [&](const auto& s) { return std::get<0>(s.first) == peer.instance; });
}

}  // namespace parlando::tokenizer
