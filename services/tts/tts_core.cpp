#include "services/tts/tts_core.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "common/base/pcm.hpp"
#include "common/base/speech_tags.hpp"

namespace parlando::tts {
using nlohmann::json;
using protocol::MessageType;
namespace fs = std::filesystem;

namespace {
constexpr protocol::SessionId kOwnSession{0, 1};  // requests for voices belong to no conversation
constexpr std::size_t kSamplesPerMessage = 16384;
constexpr std::size_t kChunksMax = 64;
}  // namespace

std::vector<config::Problem> TtsConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".threads", threads, 1, 1024);
  config::expect_range(out, path + ".utterances_max", utterances_max, 1, 1 << 16);
  config::expect_range(out, path + ".text_bytes_max", text_bytes_max, 16, 60000);
  return out;
}

Result<std::unique_ptr<service::Core>> TtsCore::make(const TtsConfig& config) {
  std::unique_ptr<TtsCore> out(new TtsCore(config));
  const fs::path root = config.model;
  PARLANDO_TRY(out->common_, SpeechDecoder::load(root / "CosyVoice-300M-25Hz", at::kFloat));
  if (fs::is_directory(root / "CosyVoice-300M-25Hz-Music")) {
    PARLANDO_TRY(out->music_, SpeechDecoder::load(root / "CosyVoice-300M-25Hz-Music", at::kFloat));
  }
  const auto speakers = fs::is_directory(root / "speakers") ? root / "speakers" : root.parent_path() / "speakers";
  PARLANDO_TRY(out->voices_,
               Voices::load(speakers, out->common_->speaker(), [core = out.get()](std::span<const float>, int) -> Result<std::vector<std::int32_t>> {
                 const auto found = core->voice_codes_.find(core->voice_now_);
                 if (found == core->voice_codes_.end())
                   return fail(Errc::not_ready, "the codes of voice '{}' have not come from the tokenizer yet", core->voice_now_);
                 return found->second;
               }));
  // Warm means that codes have become sound once.
  PARLANDO_TRY(const auto warm, out->common_->synthesise({1, 2, 1024, 1025, 1026, 3, 4, 1027, 1028, 1029}, {{}, at::zeros({1, 0, 80}), at::ones({1, 192})}, 1));
  if (warm.empty()) return fail(Errc::internal, "the decoder of '{}' gave no sound for ten codes", config.model);
  return std::unique_ptr<service::Core>(std::move(out));
}

void TtsCore::on_thread() { at::set_num_threads(config_.threads); }

void TtsCore::add_metrics(telemetry::Metrics& metrics) {
  seconds_ = metrics.counter("parlando_tts_audio_seconds_total", "Speech made");
  first_audio_ = metrics.histogram("parlando_tts_first_audio_seconds", "From the request for a chunk's codes to its first audio");
}

std::string TtsCore::why_not_ready() const {
  if (llms_.empty()) return "no llm-tts is connected";
  const auto names = voices_->names();
  if (voice_codes_.size() < names.size()) return fmt::format("{} of {} voices have their codes", voice_codes_.size(), names.size());
  return {};
}

void TtsCore::ask_for_voices() {
  if (tokenizers_.empty()) return;
  voice_requests_.clear();
  for (const auto& name : voices_->names()) {
    if (voice_codes_.contains(name)) continue;
    const auto recording = voices_->recording(name);
    if (!recording) continue;  // asking for this voice will say why
    protocol::Message m;
    m.head.type = MessageType::open, m.head.session = kOwnSession, m.head.stream = next_stream_++;
    m.body = fmt::format(R"({{"recording":{}}})", recording->rate);
    m.payload = to_bytes(std::span<const float>(recording->wave));
    voice_requests_[m.head.stream] = name;
    send(tokenizers_.front(), std::move(m));
  }
}

void TtsCore::on_peer(const transport::Peer& peer, bool up, Time) {
  auto keep = [&](std::vector<std::string>& list) {
    std::erase(list, peer.instance);
    if (up) list.push_back(peer.instance);
  };
  if (peer.caller) {
    if (!up) {
      for (auto& [key, u] : utterances_)
        if (std::get<0>(key) == peer.instance) abandon(u);
      std::erase_if(utterances_, [&](const auto& u) { return std::get<0>(u.first) == peer.instance; });
    }
  } else if (peer.role == "tokenizer") {
    keep(tokenizers_);
    ask_for_voices();
  } else if (peer.role == "llm-tts") {
    keep(llms_);
    if (!up)  // the chunk under way is spoken again; what was sent of it is skipped
      for (auto& [key, u] : utterances_) {
        if (u.codes_stream == 0 || u.codes_done || u.llm != peer.instance) continue;
        u.chunks.front().skip = std::max(u.chunks.front().skip, u.samples);
        u.codes_stream = 0, u.codes.clear(), u.stream.reset(), u.samples = 0;
      }
  }
}

void TtsCore::abandon(Utterance& u) {
  if (u.codes_stream == 0 || std::find(llms_.begin(), llms_.end(), u.llm) == llms_.end()) return;
  protocol::Message m;
  m.head.type = MessageType::close, m.head.session = u.head.session, m.head.stream = u.codes_stream;
  send(u.llm, std::move(m));
}

void TtsCore::on_message(const std::string& peer, protocol::Message m, Time) {
  const auto body = protocol::body_of(m);
  if (m.head.type == MessageType::tokens || m.head.type == MessageType::error) {
    if (const auto voice = voice_requests_.find(m.head.stream); voice != voice_requests_.end()) {
      if (m.head.type == MessageType::tokens) voice_codes_[voice->second] = from_bytes<std::int32_t>(m.payload);
      voice_requests_.erase(voice);
      answer(peer, m.head, MessageType::close, "{}");
      return;
    }
    const auto found = std::find_if(utterances_.begin(), utterances_.end(), [&](const auto& u) { return u.second.codes_stream == m.head.stream; });
    if (found == utterances_.end()) return;  // of an utterance that was cancelled
    auto& u = found->second;
    if (m.head.type == MessageType::error) {
      answer(std::get<0>(found->first), u.head, MessageType::error, m.body);
      utterances_.erase(found);
      return;
    }
    const auto codes = from_bytes<std::int32_t>(m.payload);
    u.codes.insert(u.codes.end(), codes.begin(), codes.end());
    u.codes_done = protocol::flag_in(body, "last");
    return;
  }
  const Key key{peer, m.head.session, m.head.stream};
  if (m.head.type == MessageType::cancel || m.head.type == MessageType::close) {
    if (const auto found = utterances_.find(key); found != utterances_.end()) {
      abandon(found->second);
      utterances_.erase(found);
    }
    return;
  }
  if (m.head.type != MessageType::speak)
    return answer_error(peer, m.head, {Errc::unsupported, fmt::format("tts takes no message of type {}", static_cast<int>(m.head.type))});
  using protocol::integer_in, protocol::text_in;
  Chunk chunk{integer_in(body, "chunk"),
              text_in(body, "text"),
              text_in(body, "speaker"),
              protocol::flag_in(body, "last", true),
              std::max<std::int64_t>(0, integer_in(body, "skip_samples")),
              static_cast<std::uint64_t>(integer_in(body, "seed", 1))};
  if (chunk.text.size() > static_cast<std::size_t>(config_.text_bytes_max))
    return answer_error(peer, m.head,
                        {Errc::invalid_argument, fmt::format("a text of {} bytes, at most {} are spoken at once", chunk.text.size(), config_.text_bytes_max)});
  auto found = utterances_.find(key);
  if (found == utterances_.end()) {
    if (static_cast<int>(utterances_.size()) >= config_.utterances_max)
      return answer_error(peer, m.head,
                          {Errc::overloaded, fmt::format("{} utterances are under way, at most {} are spoken", utterances_.size(), config_.utterances_max)});
    found = utterances_.emplace(key, Utterance{}).first;
    found->second.head = m.head;
  }
  if (found->second.chunks.size() >= kChunksMax)
    return answer_error(peer, m.head, {Errc::overloaded, fmt::format("{} chunks wait, at most {} are kept", found->second.chunks.size(), kChunksMax)});
  found->second.chunks.push_back(std::move(chunk));
}

/// Asks for the codes of the first chunk. @error what the caller did wrong, or that a voice cannot be had
Result<void> TtsCore::begin(Utterance& u, Time now) {
  auto& chunk = u.chunks.front();
  if (chunk.speaker.empty()) chunk.speaker = voices_->default_name();
  const auto mode = tts_mode(chunk.text, chunk.speaker, false);
  if (mode.vocoder == Vocoder::music && !music_) return fail(Errc::not_found, "this model has no CosyVoice-300M-25Hz-Music directory for singing");
  voice_now_ = voices_->entry(mode);
  PARLANDO_TRY(const auto voice, voices_->get(voice_now_));
  u.stream = std::make_unique<SpeechStream>(mode.vocoder == Vocoder::music ? music_ : common_, voice->prompt, SpeechStream::Options{.seed = chunk.seed});
  u.codes.clear(), u.codes_done = false, u.samples = 0, u.begun = now;
  protocol::Message m;
  m.head = u.head;
  m.head.type = MessageType::open, m.head.stream = u.codes_stream = next_stream_++;
  m.body = protocol::dump(json{
      {"kind", "speech"}, {"mode", mode.system_prompt}, {"speaker", voice->name}, {"prompt_text", voice->text}, {"text", chunk.text}, {"seed", chunk.seed}});
  m.payload = to_bytes(std::span<const std::int32_t>(voice->prompt.codes));
  u.llm = llms_[(u.head.session.low + u.codes_stream) % llms_.size()];
  send(u.llm, std::move(m));
  return {};
}

/// Decodes what has come and sends it. @error when the decoder fails
Result<void> TtsCore::advance(const Key& key, Utterance& u, Time now) {
  auto& chunk = u.chunks.front();
  PARLANDO_TRY(auto wave, u.stream->push(std::exchange(u.codes, {})));
  const bool last = u.codes_done && !u.stream->pending();
  if (last) {
    PARLANDO_TRY(const auto rest, u.stream->finish());
    wave.insert(wave.end(), rest.begin(), rest.end());
  }
  if (!wave.empty() && u.samples == 0) first_audio_.observe(std::chrono::duration<double>(now - u.begun).count());
  const auto first = u.samples;
  u.samples += static_cast<std::int64_t>(wave.size());
  seconds_.add(static_cast<double>(wave.size()) / kMelRate);
  std::size_t at = static_cast<std::size_t>(std::clamp<std::int64_t>(chunk.skip - first, 0, static_cast<std::int64_t>(wave.size())));
  do {
    const auto n = std::min(kSamplesPerMessage, wave.size() - at);
    const bool end = last && at + n == wave.size();
    if (n == 0 && !end) break;
    answer(std::get<0>(key), u.head, MessageType::speech,
           fmt::format(R"({{"chunk":{},"sample":{},"last":{},"end":{}}})", chunk.index, first + static_cast<std::int64_t>(at), end, end && chunk.last),
           to_pcm16(std::span(wave).subspan(at, n)));
    at += n;
  } while (at < wave.size());
  if (last) {
    abandon(u);  // the request is done on both sides
    u.codes_stream = 0, u.codes_done = false, u.stream.reset();
    u.chunks.pop_front();
  }
  return {};
}

bool TtsCore::can_advance(const Utterance& u) { return !u.codes.empty() || u.codes_done || (u.stream && u.stream->pending()); }

bool TtsCore::work(Time now) {
  // Chunks begin as soon as they can; then one utterance gets one step, in turns.
  bool worked = false;
  std::vector<Key> failed;
  auto give_up = [&](const Key& key, const Utterance& u, const Error& error) {
    answer_error(std::get<0>(key), u.head, error);
    failed.push_back(key);
  };
  for (auto& [key, u] : utterances_) {
    if (u.chunks.empty() || u.codes_stream != 0 || llms_.empty()) continue;
    const auto done = begin(u, now);
    if (!done && done.error().code != Errc::not_ready) give_up(key, u, done.error());
  }
  for (const auto& key : failed) utterances_.erase(key);
  failed.clear();
  std::size_t n = 0;
  for (auto it = utterances_.begin(); it != utterances_.end() && !worked; ++it, ++n) {
    if (n < turn_ % std::max<std::size_t>(1, utterances_.size())) continue;
    auto& [key, u] = *it;
    if (u.codes_stream == 0 || !can_advance(u)) continue;
    worked = true;
    if (const auto done = advance(key, u, now); !done) give_up(key, u, done.error());
  }
  turn_ = worked ? n : 0;
  for (const auto& key : failed) utterances_.erase(key);
  return worked || std::any_of(utterances_.begin(), utterances_.end(), [](const auto& u) { return u.second.codes_stream != 0 && can_advance(u.second); });
}

}  // namespace parlando::tts
