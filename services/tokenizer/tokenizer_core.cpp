#include "services/tokenizer/tokenizer_core.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/base/codes.hpp"
#include "common/base/pcm.hpp"
#include "common/base/units.hpp"
#include "common/telemetry/log.hpp"

namespace parlando::tokenizer {
using protocol::MessageType;

namespace {
constexpr std::int64_t kPositionMax = std::numeric_limits<std::int64_t>::max() / 4;  // positions can be added to
}

std::vector<config::Problem> TokenizerConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".threads", threads, 1, 1024);
  config::expect_range(out, path + ".guard_ms", guard_ms, 0, 10000);
  config::expect_range(out, path + ".sessions_max", sessions_max, 1, 1 << 16);
  config::expect_range(out, path + ".utterance_seconds_max", utterance_seconds_max, 1, 300);
  return out;
}

Result<std::unique_ptr<service::Core>> TokenizerCore::make(const TokenizerConfig& config) {
  at::set_num_threads(config.threads);  // loading computes, too; a team of spinning threads would starve the neighbours
  PARLANDO_TRY(auto model, SpeechTokenizer::load(config.model));
  // Warm means that one second has been through both encoders.
  const std::vector<float> second(16000, 0.01f);
  PARLANDO_TRY(const auto warm, model->codes(second, 16000, {}));
  if (warm.empty())
    return fail(Errc::internal, "the tokenizer of '{}' gave no codes for one second of audio", config.model);
  telemetry::log(telemetry::Level::info, "tokenizer is warm, {} model={}",
                 model->knows_completeness()
                     ? "and tells at an attempt how complete an utterance sounds"
                     : "and knows no completeness of an utterance: there is no turn_end.safetensors",
                 config.model);
  return std::unique_ptr<service::Core>(std::make_unique<TokenizerCore>(config, std::move(model)));
}

void TokenizerCore::on_thread() { at::set_num_threads(config_.threads); }

void TokenizerCore::add_metrics(telemetry::Metrics& metrics) {
  seconds_ = metrics.counter("parlando_tokenizer_audio_seconds_total", "Audio taken in");
  codes_ = metrics.counter("parlando_tokenizer_codes_total", "Codes sent");
  passes_ =
      metrics.counter("parlando_tokenizer_passes_total", "Passes of both encoders: blocks, attempts, ends, recordings");
}

void TokenizerCore::on_message(const std::string& peer, protocol::Message m, Time) {
  const auto head = m.head;
  const auto key = service::StreamTable<Stream>::key_of(peer, head);
  if (head.type == MessageType::close) {
    streams_.erase(key);
    return ended_.erase(key);
  }
  if (ended_.contains(key)) return;
  const bool opens = head.type == MessageType::open_tokenizer || head.type == MessageType::tokenize;
  if (opens && streams_.find(key) == nullptr) {
    if (const auto done = open(key, m); !done) {
      answer_error(peer, head, done.error());
      ended_.add(key);
    }
    return;
  }
  const auto found = streams_.at(key);
  if (!found) return answer_error(peer, head, found.error());
  auto& stream = **found;
  if (stream.done) return;  // its caller has been told and will close
  if (opens) {
    const auto why = fmt::format("stream {} is open already", head.stream.value);
    return fail_stream(key, stream, {Errc::invalid_argument, why});
  }
  stream.deadline = m.deadline;
  if (const auto done = follow(key, stream, m); !done) fail_stream(key, stream, done.error());
}

Result<void> TokenizerCore::open(const Key& key, protocol::Message& m) {
  Stream stream{m.head, LiveTokenizer(model_, {.guard_ms = config_.guard_ms})};
  stream.known_completeness = model_->completeness({}, 0);
  stream.deadline = m.deadline;
  if (m.head.type == MessageType::open_tokenizer) {
    PARLANDO_TRY(const auto open, protocol::read<protocol::OpenTokenizer>(m));
    stream.exact = open.mode == protocol::TokenizerMode::exact;
    PARLANDO_DO(streams_.open(key, std::move(stream)));
    return {};
  }
  PARLANDO_TRY(const auto ask, protocol::read<protocol::Tokenize>(m));
  if (ask.payload.size() % sizeof(float) != 0)
    return fail(Errc::bad_frame, "a recording of {} bytes, a sample has {}", ask.payload.size(), sizeof(float));
  stream.recording_rate = ask.rate;
  stream.recording = from_bytes<float>(ask.payload);
  const auto bad =
      std::find_if(stream.recording.begin(), stream.recording.end(), [](float x) { return !std::isfinite(x); });
  if (bad != stream.recording.end())
    return fail(Errc::invalid_argument, "sample {} of the recording is {}", bad - stream.recording.begin(), *bad);
  PARLANDO_TRY(auto* stored, streams_.open(key, std::move(stream)));
  queue(key, *stored);
  return {};
}

Result<void> TokenizerCore::follow(const Key& key, Stream& s, protocol::Message& m) {
  if (s.recording_rate > 0) return fail(Errc::unsupported, "a recording takes no {}", to_string(m.head.type));
  switch (m.head.type) {
    case MessageType::audio: {
      PARLANDO_TRY(auto audio, protocol::read<protocol::Audio>(m));
      return hear(key, s, std::move(audio));
    }
    case MessageType::flush: {
      PARLANDO_TRY(const auto flush, protocol::read<protocol::Flush>(m));
      auto end = s.end.value_or(s.live.samples());
      if (flush.end_sample >= 0)
        end = std::min(
            end, static_cast<std::size_t>(std::max<std::int64_t>(0, flush.end_sample - s.base_sample.value_or(0))));
      if (flush.attempt == 0)
        s.end = end;
      else if (!s.end)
        s.attempts.push_back({flush.attempt, end});
      queue(key, s);
      return {};
    }
    default:
      return fail(Errc::unsupported, "tokenizer takes no {}", to_string(m.head.type));
  }
}

Result<void> TokenizerCore::hear(const Key& key, Stream& s, protocol::Audio audio) {
  if (s.end) return {};  // after the end of the utterance
  const auto heard = static_cast<std::int64_t>(s.live.samples());
  if (audio.payload.size() % 2 != 0)
    return fail(Errc::bad_frame, "audio of {} bytes, a sample has 2", audio.payload.size());
  if (audio.first_sample > kPositionMax)
    return fail(Errc::invalid_argument, "audio begins at sample {}, at most {} is possible", audio.first_sample,
                kPositionMax);
  if (!s.base_sample) s.base_sample = audio.first_sample;
  if (audio.first_sample != *s.base_sample + heard)
    return fail(Errc::position_mismatch, "audio begins at sample {}, {} is expected", audio.first_sample,
                *s.base_sample + heard);
  const auto samples = from_pcm16(audio.payload);
  if (heard + static_cast<std::int64_t>(samples.size()) > config_.utterance_seconds_max * kInputRate)
    return fail(Errc::invalid_argument, "an utterance takes at most {} s", config_.utterance_seconds_max);
  s.live.add(samples);
  seconds_.add(static_cast<double>(samples.size()) / kInputRate);
  if (has_block(s)) queue(key, s);
  return {};
}

/// One error, and nothing further of this stream: its caller closes it.
void TokenizerCore::fail_stream(const Key& key, Stream& stream, const Error& error) {
  stream.done = true;
  answer_error(key.peer, stream.head, error);
}

void TokenizerCore::queue(const Key& key, Stream& stream) {
  if (!std::exchange(stream.queued, true)) queue_.push_back(key);
}

bool TokenizerCore::has_block(const Stream& s, std::size_t end) { return !s.exact && s.live.is_behind(end); }

void TokenizerCore::tell(const Key& key, const Stream& stream, const LiveUpdate& update) {
  codes_.add(static_cast<double>(update.codes.size()));
  answer(key.peer, stream.head,
         protocol::Tokens{update.first_group, update.final_groups, false,
                          to_bytes(std::span<const std::int32_t>(update.codes))});
}

void TokenizerCore::tell_all(const Key& key, const Stream& stream, std::uint32_t attempt,
                             std::span<const std::int32_t> codes) {
  codes_.add(static_cast<double>(codes.size()));
  protocol::Tokens tokens{0, static_cast<std::int64_t>(codes.size()) / kCodesPerGroup, true, to_bytes(codes), attempt};
  if (attempt != 0 && stream.known_completeness >= 0)
    tokens.complete_permille = static_cast<std::int32_t>(std::lround(1000 * stream.known_completeness));
  answer(key.peer, stream.head, std::move(tokens));
}

/// Codes of an utterance that ends there, and how complete it sounds. The end that was asked for last is remembered: a
/// turn ends where an attempt was made.
Result<std::vector<std::int32_t>> TokenizerCore::codes_until(Stream& s, std::size_t end) {
  if (end == s.known_end) return s.known;  // at first: nothing of nothing
  passes_.add();
  PARLANDO_TRY(auto known, s.exact ? s.live.exact(end) : s.live.stable(end));
  s.known = std::move(known.codes);
  s.known_completeness = known.completeness;
  s.known_end = end;
  return s.known;
}

/// The next unit of a stream's work: what was asked for, and a block or the end.
Result<void> TokenizerCore::advance(const Key& key, Stream& s) {
  if (s.recording_rate > 0) {
    passes_.add();
    PARLANDO_TRY(const auto codes, model_->codes(s.recording, s.recording_rate, {.trim = true, .energy_norm = true}));
    tell_all(key, s, 0, codes);
    s.done = true;
    return {};
  }
  // An attempt waits for the blocks before its end, which come in any case: it changes nothing but what it costs
  // itself.
  while (!s.attempts.empty() && (s.end || !has_block(s, s.attempts.front().end))) {
    const auto attempt = s.attempts.front();
    s.attempts.pop_front();
    PARLANDO_TRY(const auto codes, codes_until(s, attempt.end));
    tell_all(key, s, attempt.number, codes);
  }
  if (s.end) {
    PARLANDO_TRY(const auto codes, codes_until(s, *s.end));
    tell_all(key, s, 0, codes);
    s.done = true;
  } else if (has_block(s)) {
    passes_.add();
    PARLANDO_TRY(const auto update, s.live.step());
    tell(key, s, update);
  }
  if (!s.attempts.empty() || (!s.done && has_block(s))) queue(key, s);
  return {};
}

bool TokenizerCore::work(Time now) {
  if (queue_.empty()) return false;
  const auto key = queue_.front();
  queue_.pop_front();
  if (auto* s = streams_.find(key); s != nullptr && !s->done) {
    s->queued = false;
    const auto done =
        s->deadline <= now
            ? Result<void>(fail(Errc::deadline_exceeded, "the budget was spent before the codes were made"))
            : advance(key, *s);
    if (!done) fail_stream(key, *s, done.error());
  }
  return !queue_.empty();
}

void TokenizerCore::on_peer(const transport::Peer& peer, transport::PeerState state, Time) {
  if (state != transport::PeerState::down) return;
  streams_.erase_peer(peer.instance);
  ended_.erase_peer(peer.instance);
}

/// Codes that their caller does not take leave a hole: nothing behind it would make sense.
void TokenizerCore::on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time) {
  const auto key = service::StreamTable<Stream>::key_of(peer, head);
  auto* stream = streams_.find(key);
  if (stream == nullptr || head.type != MessageType::tokens) return;
  fail_stream(key, *stream, error);
  streams_.erase(key);
  ended_.add(key);
}

}  // namespace parlando::tokenizer
