#include "services/tokenizer/tokenizer_core.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/base/codes.hpp"
#include "common/base/pcm.hpp"
#include "common/base/units.hpp"
#include "common/nn/threads.hpp"
#include "common/service/thrown.hpp"
#include "common/telemetry/log.hpp"
#include "kernels/team/pool.hpp"

namespace parlando::tokenizer {
using protocol::MessageType;

namespace {
constexpr milliseconds kBlockDue{480};  // a block's codes are waited for by the next block at most
constexpr int kBatchRowsMax = 512;      // at official size a pass of some 1.4 s: a step of 2 s is one that hangs
constexpr std::int64_t kPositionMax = std::numeric_limits<std::int64_t>::max() / 4;  // positions can be added to
}  // namespace

std::vector<config::Problem> TokenizerConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".threads", threads, 1, 1024);
  config::expect_range(out, path + ".guard_ms", guard_ms, 0, 10000);
  config::expect_range(out, path + ".sessions_max", sessions_max, 1, 1 << 16);
  config::expect_range(out, path + ".utterance_seconds_max", utterance_seconds_max, 1, 300);
  config::expect_range(out, path + ".batch_rows_max", batch_rows_max, 1, kBatchRowsMax);
  return out;
}

Result<std::unique_ptr<service::Core>> TokenizerCore::make(const TokenizerConfig& config) {
  nn::use_threads(config.threads);  // loading computes, too
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

void TokenizerCore::on_thread() { nn::use_threads(config_.threads); }

void TokenizerCore::add_metrics(telemetry::Metrics& metrics) {
  seconds_ = metrics.counter("parlando_tokenizer_audio_seconds_total", "Audio taken in");
  codes_ = metrics.counter("parlando_tokenizer_codes_total", "Codes sent");
  passes_ = metrics.counter("parlando_tokenizer_passes_total", "Blocks, attempts, ends and recordings that were read");
  rows_ = metrics.sizes("parlando_tokenizer_pass_rows", "Rows of a pass of both encoders, of all streams in it");
  const std::string wait = "parlando_tokenizer_wait_seconds",
                    help = "From when a block was complete, or an end was asked for, to its pass";
  block_wait_ = metrics.histogram(wait, help, "what", "block");
  end_wait_ = metrics.histogram(wait, help, "what", "end");
}

/// What is thrown ends the stream as any error does: what its caller sends behind that would be taken for a gap.
void TokenizerCore::on_message(const std::string& peer, protocol::Message m, Time now) {
  const auto head = m.head;
  auto key = service::StreamTable<Stream>::key_of(peer, head);
  try {
    take_message(key, std::move(m), now);
  } catch (...) {
    if (head.type == MessageType::close) return drop(key);
    if (auto* stream = streams_.find(key); stream != nullptr) try {
        return fail_thrown(key, *stream);
      } catch (...) {
        end(*stream);  // its host tells what was thrown
        throw;
      }
    ended_.add(std::move(key));
    answer_error(peer, head, service::thrown());
  }
}

void TokenizerCore::take_message(const Key& key, protocol::Message m, Time now) {
  const auto head = m.head;
  if (head.type == MessageType::close) {
    drop(key);
    return ended_.erase(key);
  }
  if (ended_.contains(key)) return;
  const bool opens = head.type == MessageType::open_tokenizer || head.type == MessageType::tokenize;
  if (opens && streams_.find(key) == nullptr) {
    if (const auto done = open(key, m, now); !done) {
      ended_.add(key);
      answer_error(key.peer, head, done.error());
    }
    return;
  }
  const auto found = streams_.at(key);
  if (!found) return answer_error(key.peer, head, found.error());
  auto& stream = **found;
  if (stream.done) return;  // its caller has been told and will close
  if (opens) {
    const auto why = fmt::format("stream {} is open already", head.stream.value);
    return fail_stream(key, stream, {Errc::invalid_argument, why});
  }
  stream.deadline = m.deadline;
  if (const auto done = follow(key, stream, m, now); !done) fail_stream(key, stream, done.error());
}

Result<void> TokenizerCore::open(const Key& key, protocol::Message& m, Time now) {
  Stream stream{m.head, LiveTokenizer(model_, {.guard_ms = config_.guard_ms})};
  stream.known_completeness = model_->completeness({}, {});
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
  stream.end_asked = now;
  PARLANDO_TRY(auto* stored, streams_.open(key, std::move(stream)));
  queue(key, *stored, now);
  return {};
}

Result<void> TokenizerCore::follow(const Key& key, Stream& s, protocol::Message& m, Time now) {
  if (s.recording_rate > 0) return fail(Errc::unsupported, "a recording takes no {}", to_string(m.head.type));
  switch (m.head.type) {
    case MessageType::audio: {
      PARLANDO_TRY(auto audio, protocol::read<protocol::Audio>(m));
      return hear(key, s, std::move(audio), now);
    }
    case MessageType::flush: {
      PARLANDO_TRY(const auto flush, protocol::read<protocol::Flush>(m));
      auto end = s.end.value_or(s.live.samples());
      if (flush.end_sample >= 0)
        end = std::min(
            end, static_cast<std::size_t>(std::max<std::int64_t>(0, flush.end_sample - s.base_sample.value_or(0))));
      if (flush.attempt != 0 && s.attempts.size() >= kAttemptsMax)
        return fail(Errc::overloaded, "{} attempts wait, expected at most {}", s.attempts.size() + 1, kAttemptsMax);
      if (flush.attempt == 0)
        s.end = end, s.end_asked = now;
      else if (!s.end)
        s.attempts.push_back({flush.attempt, end, now});
      queue(key, s, now);
      return {};
    }
    default:
      return fail(Errc::unsupported, "tokenizer takes no {}", to_string(m.head.type));
  }
}

Result<void> TokenizerCore::hear(const Key& key, Stream& s, protocol::Audio audio, Time now) {
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
  if (!s.exact) s.blocks.resize(s.live.blocks_behind(), now);
  seconds_.add(static_cast<double>(samples.size()) / kInputRate);
  queue(key, s, now);
  return {};
}

/// One error, and nothing further of this stream: its caller closes it. It is over when that is told and not before.
void TokenizerCore::fail_stream(const Key& key, Stream& stream, const Error& error) {
  answer_error(key.peer, stream.head, error);
  end(stream);
}

void TokenizerCore::end(Stream& stream) {
  stream.done = true;
  stream.reading.reset();
  leave_queue(stream);
}

void TokenizerCore::drop(const Key& key) {
  if (auto* stream = streams_.find(key); stream != nullptr) leave_queue(*stream);
  streams_.erase(key);
}

/// Puts a stream with work where its work is due, and takes one without from there. A block that is late is due now,
/// not when it was: the many of a stream that is far behind would go before all ends that others ask for. One that is
/// in the queue stays there whatever fails.
/// @param served  its turn is over: it goes behind those that are due at the same time
void TokenizerCore::queue(const Key& key, Stream& stream, Time now, bool served) {
  if (stream.failed && !stream.done) return;  // at its next turn it is told
  if (need_of(stream) == Need::nothing) return leave_queue(stream);
  const auto since = asked(stream);
  const auto due = since ? *since : std::max(now, stream.blocks.front() + kBlockDue);
  if (!served && stream.place && stream.place->first <= due) return;
  const Place place(due, ++queued_);
  if (stream.place) {
    auto entry = queue_.extract(*stream.place);
    entry.key() = place;
    queue_.insert(std::move(entry));
  } else {
    queue_.emplace(place, key);
  }
  stream.place = place;
}

void TokenizerCore::leave_queue(Stream& stream) {
  if (stream.place) queue_.erase(*std::exchange(stream.place, std::nullopt));
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

/// The end that is asked for next. An attempt waits for the blocks before its end, which come in any case: it changes
/// nothing but what it costs itself.
std::optional<std::size_t> TokenizerCore::next_end(const Stream& s) {
  if (!s.attempts.empty() && (s.end || !has_block(s, s.attempts.front().end))) return s.attempts.front().end;
  return s.end;
}

/// Since when somebody waits for the stream.
std::optional<Time> TokenizerCore::asked(const Stream& s) {
  if (s.recording_rate > 0) return s.end_asked;
  if (!s.attempts.empty()) return s.attempts.front().asked;
  return s.end ? std::optional(s.end_asked) : std::nullopt;
}

TokenizerCore::Need TokenizerCore::need_of(const Stream& s) {
  if (s.done) return Need::nothing;
  if (s.recording_rate > 0) return Need::own_pass;
  if (s.reading || has_block(s)) return Need::part;
  if (!next_end(s)) return Need::nothing;
  return s.exact ? Need::own_pass : Need::part;
}

/// The end that was asked for last is remembered: a turn ends where an attempt was made.
void TokenizerCore::know(Stream& s, std::size_t end, LiveEnd codes) {
  s.known = std::move(codes.codes);
  s.known_completeness = codes.completeness;
  s.known_end = end;
}

/// Answers what is asked for as long as it is known; at first: nothing of nothing.
void TokenizerCore::answer_known(const Key& key, Stream& s) {
  while (!s.done && !s.reading && next_end(s) == s.known_end) {
    const bool attempt = !s.attempts.empty();
    tell_all(key, s, attempt ? s.attempts.front().number : 0, s.known);
    if (attempt)
      s.attempts.pop_front();
    else
      s.done = true;
  }
}

/// What has no parts.
Result<void> TokenizerCore::read_alone(const Key& key, Stream& s) {
  if (s.recording_rate > 0) {
    PARLANDO_TRY(const auto codes, model_->codes(s.recording, s.recording_rate, {.trim = true, .energy_norm = true}));
    tell_all(key, s, 0, codes);
    s.done = true;
    return {};
  }
  const auto end = *next_end(s);
  PARLANDO_TRY(auto codes, s.live.exact(end));
  know(s, end, std::move(codes));
  return {};
}

/// The stream's next way through its utterance: an end that is asked for, else a block.
void TokenizerCore::begin(Stream& s) {
  s.reading_end = next_end(s);
  s.reading = s.reading_end ? s.live.until(*s.reading_end) : s.live.block();
}

/// Of a reading that is done.
Result<void> TokenizerCore::take(const Key& key, Stream& s) {
  if (!s.reading->is_done()) return {};
  auto reading = *std::exchange(s.reading, std::nullopt);
  if (s.reading_end) {
    PARLANDO_TRY(auto codes, s.live.take_end(reading));
    know(s, *s.reading_end, std::move(codes));
  } else {
    PARLANDO_TRY(const auto update, s.live.take_block(std::move(reading)));
    s.blocks.pop_front();
    tell(key, s, update);
  }
  return {};
}

/// A block, attempt, end or recording whose pass comes now.
void TokenizerCore::count(const Stream& s, Time now) {
  passes_.add();
  const bool block = s.reading && !s.reading_end;
  const auto since = block ? s.blocks.front() : asked(s).value_or(now);
  (block ? block_wait_ : end_wait_).observe(std::chrono::duration<double>(now - since).count());
}

/// Where something was thrown. @pre inside of a catch block
void TokenizerCore::fail_thrown(const Key& key, Stream& s) {
  if (s.done) return;  // its end is told
  s.failed = true;
  const auto error = service::thrown();
  telemetry::log(telemetry::Level::error, "tokenizer fails at a stream: {}", error.message);
  fail_stream(key, s, error);
}

/// The same of a stream in the queue, but what is thrown here is kept: it is told at the stream's next turn, and keeps
/// nobody else from what is theirs.
void TokenizerCore::fail_now_or_later(const Key& key, Stream& s, std::exception_ptr& untold) {
  try {
    fail_thrown(key, s);
  } catch (...) {
    untold = std::current_exception();
  }
}

/// Streams of the next pass: one that needs a pass of its own, or those with a part to read, by what is due first, up
/// to the limit. They leave the queue when that is done. What is known is answered without one.
std::vector<TokenizerCore::Due> TokenizerCore::take_due(Time now, std::exception_ptr& untold) {
  std::vector<Due> out;
  out.reserve(queue_.size());
  std::int64_t rows = 0;
  // An answer leaves when the whole pass is read: who is due takes nobody along who has time yet.
  const bool is_due = !queue_.empty() && queue_.begin()->first.first <= now;
  for (auto next = queue_.begin(); next != queue_.end();) {
    if (is_due && next->first.first > now && !out.empty()) break;
    const auto key = (next++)->second;
    auto& s = *streams_.find(key);
    try {
      if (s.deadline <= now) {
        fail_stream(key, s, {Errc::deadline_exceeded, "the budget was spent before the codes were made"});
        continue;
      }
      if (s.failed) {
        fail_stream(key, s, {Errc::internal, "the tokenizer failed at this stream before, and could not tell it"});
        continue;
      }
      answer_known(key, s);
      const auto need = need_of(s);
      if (need == Need::own_pass) {
        if (!out.empty()) continue;  // its turn comes when it is first
        count(s, now);
        out.emplace_back(key, &s);
        return out;
      }
      if (need == Need::part) {
        const bool is_new = !s.reading;
        if (is_new) begin(s);
        rows += s.reading->rows();
        if (!out.empty() && rows > config_.batch_rows_max) {
          if (is_new) s.reading.reset();  // what is asked for until its turn comes goes first
          break;
        }
        if (is_new) count(s, now);
        out.emplace_back(key, &s);
      } else {
        leave_queue(s);
      }
    } catch (...) {
      fail_now_or_later(key, s, untold);
    }
  }
  return out;
}

/// Of all streams in a pass that are on their way, the next part.
void TokenizerCore::read_parts(std::span<const Due> streams) {
  std::vector<LiveTokenizer::Work> parts;
  std::int64_t rows = 0;
  for (const auto& [key, s] : streams)
    if (s->reading && !s->reading->is_done()) {
      parts.push_back({&s->live, &*s->reading});
      rows += s->reading->rows();
    }
  if (!parts.empty()) rows_.observe(static_cast<double>(rows));
  LiveTokenizer::read(parts);
}

bool TokenizerCore::work(Time now) {
  const kernels::Pool::Busy busy(kernels::Pool::of_process());
  std::exception_ptr untold;
  const auto streams = take_due(now, untold);
  try {
    read_parts(streams);
  } catch (...) {
    for (const auto& [key, s] : streams) fail_now_or_later(key, *s, untold);
    if (untold) std::rethrow_exception(untold);
    return !queue_.empty();
  }
  for (const auto& [key, s] : streams) try {
      const auto done = s->reading ? take(key, *s) : read_alone(key, *s);
      if (!done) {
        fail_stream(key, *s, done.error());
        continue;
      }
      answer_known(key, *s);
      queue(key, *s, now, true);
    } catch (...) {
      fail_now_or_later(key, *s, untold);
    }
  if (untold) std::rethrow_exception(untold);
  return !queue_.empty();
}

void TokenizerCore::on_peer(const transport::Peer& peer, transport::PeerState state, Time) {
  if (state != transport::PeerState::down) return;
  streams_.erase_peer(peer.instance, [this](const Key&, Stream& stream) { leave_queue(stream); });
  ended_.erase_peer(peer.instance);
}

/// Codes that their caller does not take leave a hole: nothing behind it would make sense.
void TokenizerCore::on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time) {
  const auto key = service::StreamTable<Stream>::key_of(peer, head);
  auto* stream = streams_.find(key);
  if (stream == nullptr || head.type != MessageType::tokens) return;
  fail_stream(key, *stream, error);
  drop(key);
  ended_.add(key);
}

}  // namespace parlando::tokenizer
