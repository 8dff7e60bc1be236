#include "services/controller/dialogue.hpp"

#include <algorithm>

#include "common/base/codes.hpp"
#include "common/base/pcm.hpp"
#include "services/controller/tools.hpp"

namespace parlando::controller {
using nlohmann::json;
using protocol::MessageType, protocol::flag_in, protocol::integer_in, protocol::text_in;

namespace {
constexpr std::size_t kAudioBytesMax = 16 * 1024;  // of one message when the log is replayed
constexpr std::int64_t kSpeechRate = 22050;
constexpr const char *kVad = "vad", *kTokenizer = "tokenizer", *kChat = "llm-chat", *kTts = "tts", *kContext = "context";
}  // namespace

std::vector<config::Problem> DialogueConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".preroll_ms", preroll_ms, 0, 2000);
  config::expect_range(out, path + ".tail_ms", tail_ms, 0, 2000);
  config::expect_range(out, path + ".turn_seconds_max", turn_seconds_max, 1, 30);
  config::expect_range(out, path + ".reply_seconds_max", reply_seconds_max, 1, 600);
  config::expect_range(out, path + ".history_turns", history_turns, 0, 100);
  config::expect_range(out, path + ".sessions_max", sessions_max, 1, 1 << 16);
  if (tokenizer_mode != "stable" && tokenizer_mode != "exact")
    out.push_back({path + ".tokenizer_mode", "is '" + tokenizer_mode + "', expected stable or exact"});
  if (tools != "demo" && tools != "none") out.push_back({path + ".tools", "is '" + tools + "', expected demo or none"});
  return out;
}

protocol::Message Dialogue::message(const std::string& role, MessageType type, json body, std::vector<std::byte> payload) const {
  protocol::Message m;
  m.head.type = type, m.head.session = id_, m.head.stream = streams_.at(role), m.head.turn = static_cast<std::uint32_t>(turns_ + 1);
  m.head.epoch = protocol::Epoch::of(epoch_, static_cast<std::uint32_t>(replays_));
  // What is left of the answer's time; a close always arrives.
  if (state_ != State::listening && state_ != State::hearing && type != MessageType::close) {
    const auto left = std::chrono::duration_cast<milliseconds>(ended_at_ + std::chrono::seconds(config_.reply_seconds_max) - now_).count();
    m.head.remaining_ms = static_cast<std::uint32_t>(std::max<std::int64_t>(1, left));
  }
  m.body = protocol::dump(body);
  m.payload = std::move(payload);
  return m;
}

bool Dialogue::send(const std::string& role, MessageType type, json body, std::vector<std::byte> payload) {
  if (!streams_.contains(role)) return false;
  if (outlet_.to_service(role, message(role, type, std::move(body), std::move(payload)))) return true;
  streams_.erase(role);
  wanted_.insert(role);
  return false;
}

void Dialogue::send_audio(const std::string& role, std::size_t first, std::size_t last) {
  for (auto at = first; at < last; at += kAudioBytesMax) {
    const auto end = std::min(last, at + kAudioBytesMax);
    if (!send(role, MessageType::audio, json::object(), {log_.begin() + static_cast<std::ptrdiff_t>(at), log_.begin() + static_cast<std::ptrdiff_t>(end)}))
      return;
  }
}

void Dialogue::start(const std::string& role) {
  wanted_.erase(role);
  streams_[role] = next_stream_++;
  if (role == kVad) {
    if (!send(role, MessageType::open, json::object())) return;
    send_audio(role, 0, log_.size());
    if (flushed_) send(role, MessageType::flush, json::object());
  } else if (role == kTokenizer) {
    if (!send(role, MessageType::open, {{"mode", config_.tokenizer_mode}})) return;
    const bool ended = state_ != State::hearing;
    send_audio(role, 2 * static_cast<std::size_t>(begin_), ended ? 2 * static_cast<std::size_t>(end_) : log_.size());
    if (ended) send(role, MessageType::flush, {{"samples", end_ - begin_}});
  } else if (role == kChat) {
    json past = json::array();
    for (const auto& r : history_)
      past.push_back({{"role", "user"}, {"content", text_in(r, "user")}}), past.push_back({{"role", "assistant"}, {"content", text_in(r, "assistant")}});
    const auto text = protocol::dump(past);
    if (!send(role, MessageType::open, {{"kind", "chat"}, {"system", system_}}, to_bytes(std::span<const char>(text)))) return;
    if (typed_)
      send(role, MessageType::append, {{"text", *typed_}});
    else if (!codes_.empty())
      send(role, MessageType::append, {{"first_group", 0}}, to_bytes(std::span<const std::int32_t>(codes_)));
    if (typed_ || tokens_done_) send(role, MessageType::generate, json::object());
  } else if (role == kTts) {
    // From the first piece that is not wholly there; what was sent of it is skipped.
    for (std::size_t i = 0; i < spoken_.size(); ++i)
      if (!spoken_[i].done && !send(role, MessageType::speak,
                                    {{"chunk", i},
                                     {"text", spoken_[i].text},
                                     {"speaker", speaker_},
                                     {"last", all_spoken_ && i + 1 == spoken_.size()},
                                     {"skip_samples", spoken_[i].samples}}))
        return;
  } else if (role == kContext) {
    if (epoch_ == 0) {
      if (!send(role, MessageType::open, json::object())) return;
      send(role, MessageType::history, json::object());
    }
    if (state_ == State::committing) send_record();
  }
}

void Dialogue::send_record() {
  const auto text = protocol::dump(record_);
  send(kContext, MessageType::turn, {{"turn", turns_ + 1}, {"epoch", epoch_}}, to_bytes(std::span<const char>(text)));
}

void Dialogue::finish(const std::string& role) {
  send(role, MessageType::close, json::object());
  streams_.erase(role);
  wanted_.erase(role);
}

void Dialogue::open(const json& options, Time now) {
  now_ = now;
  system_ = text_in(options, "system"), speaker_ = text_in(options, "speaker");
  speak_ = flag_in(options, "speak", true);
  start(kContext);
}

void Dialogue::audio(std::vector<std::byte> pcm, Time now) {
  now_ = now;
  if (state_ != State::listening && state_ != State::hearing) return;  // over an answer: not heard yet
  const auto first = log_.size();
  log_.insert(log_.end(), pcm.begin(), pcm.end());
  if (!streams_.contains(kVad) && !wanted_.contains(kVad))
    start(kVad);
  else if (streams_.contains(kVad))
    send_audio(kVad, first, log_.size());
  if (state_ == State::hearing) send_audio(kTokenizer, first, log_.size());
  const auto limit = static_cast<std::size_t>(config_.turn_seconds_max) * 32000;
  if (state_ == State::hearing && log_.size() / 2 - static_cast<std::size_t>(begin_) >= limit / 2)
    return end_speech(static_cast<std::int64_t>(log_.size() / 2), now);
  // Silence before a turn need not be kept longer than the pre-roll can reach back; start again now and then.
  if (state_ == State::listening && !flushed_ && log_.size() >= limit) {
    finish(kVad);
    log_.erase(log_.begin(), log_.end() - static_cast<std::ptrdiff_t>(2 * 16 * static_cast<std::size_t>(config_.preroll_ms + 200)));
    start(kVad);
  }
}

void Dialogue::flush(Time now) {
  now_ = now;
  if (state_ != State::listening && state_ != State::hearing) return;
  if (log_.empty()) return fail_turn("no_speech", "no audio came before the end of the turn");
  flushed_ = true;
  if (streams_.contains(kVad))
    send(kVad, MessageType::flush, json::object());
  else if (!wanted_.contains(kVad))
    start(kVad);
}

void Dialogue::text(const std::string& text, Time now) {
  now_ = now;
  if (state_ != State::listening) return outlet_.to_client(MessageType::error, {{"code", "invalid_argument"}, {"message", "a turn is under way"}}, {});
  if (text.empty()) return outlet_.to_client(MessageType::error, {{"code", "invalid_argument"}, {"message", "the text is empty"}}, {});
  if (streams_.contains(kVad)) finish(kVad);
  typed_ = transcript_ = text;
  state_ = State::thinking, ended_at_ = now;
  start(kChat);
}

void Dialogue::cancel(Time) {
  if (state_ == State::committing) return;  // it is as good as done
  reset();
}

void Dialogue::close() {
  reset();
  finish(kContext);
}

void Dialogue::begin_speech(std::int64_t sample, Time) {
  if (state_ != State::listening) return;
  state_ = State::hearing;
  begin_ = std::max<std::int64_t>(0, sample - 16 * config_.preroll_ms);
  outlet_.to_client(MessageType::speech_started, {{"sample", sample}}, {});
  start(kTokenizer);
  start(kChat);
}

void Dialogue::end_speech(std::int64_t sample, Time now) {
  if (state_ != State::hearing) return;
  end_ = std::min<std::int64_t>(sample + 16 * config_.tail_ms, static_cast<std::int64_t>(log_.size() / 2));
  state_ = State::thinking, ended_at_ = now;
  finish(kVad);
  outlet_.to_client(MessageType::speech_ended, {{"sample", sample}}, {});
  send(kTokenizer, MessageType::flush, {{"samples", end_ - begin_}});
}

void Dialogue::on_service(const std::string& role, const protocol::Message& m, Time now) {
  now_ = now;
  const auto current = streams_.find(role);
  if (current == streams_.end() || current->second != m.head.stream) return;
  const auto body = protocol::body_of(m);
  switch (m.head.type) {
    case MessageType::speech_started:
      return begin_speech(integer_in(body, "sample"), now);
    case MessageType::speech_ended:
      return end_speech(integer_in(body, "sample"), now);
    case MessageType::tokens: {
      const auto codes = from_bytes<std::int32_t>(m.payload);
      const auto at = static_cast<std::size_t>(std::max<std::int64_t>(0, integer_in(body, "first_group"))) * kCodesPerGroup;
      if (at > codes_.size()) return;
      codes_.resize(at);
      codes_.insert(codes_.end(), codes.begin(), codes.end());
      if (streams_.contains(kChat)) send(kChat, MessageType::append, {{"first_group", integer_in(body, "first_group")}}, m.payload);
      if (!flag_in(body, "last")) return;
      tokens_done_ = true;
      timings_["tokenizer_ms"] = ms_since_end(now);
      finish(kTokenizer);
      if (codes_.empty())
        return fail_turn("no_speech", fmt::format("{:.2f} s of speech are too short to be understood", static_cast<double>(end_ - begin_) / 16000));
      send(kChat, MessageType::generate, json::object());
      return;
    }
    case MessageType::text:
      return on_text(body, now);
    case MessageType::speech:
      return on_speech(body, m, now);
    case MessageType::open:
      epoch_ = static_cast<std::uint32_t>(integer_in(body, "epoch"));
      return;
    case MessageType::history: {
      const auto list =
          json::parse(reinterpret_cast<const char*>(m.payload.data()), reinterpret_cast<const char*>(m.payload.data()) + m.payload.size(), nullptr, false);
      if (!history_known_ && list.is_array())
        for (const auto& t : list)
          if (t.is_object() && t.contains("record")) history_.push_back(t["record"]), turns_ = std::max(turns_, integer_in(t, "turn"));
      history_known_ = true;
      while (static_cast<int>(history_.size()) > config_.history_turns) history_.pop_front();
      outlet_.to_client(MessageType::open, {{"turns", turns_}, {"epoch", epoch_}}, {});
      return;
    }
    case MessageType::turn: {
      if (state_ != State::committing || integer_in(body, "turn") != turns_ + 1) return;
      ++turns_;
      history_.push_back(record_);
      while (static_cast<int>(history_.size()) > config_.history_turns) history_.pop_front();
      auto done = record_;
      done["turn"] = turns_, done["stages"] = timings_, done["audio_seconds"] = static_cast<double>(samples_sent_) / kSpeechRate;
      reset();
      outlet_.to_client(MessageType::turn, done, {});
      return;
    }
    case MessageType::error:
      return fail_turn(text_in(body, "code"), text_in(body, "message"));
    default:
      return;
  }
}

void Dialogue::on_text(const json& body, Time now) {
  const auto kind = text_in(body, "kind"), text = text_in(body, "text");
  if (kind == "transcript") {
    transcript_ = text;
    timings_["transcript_ms"] = ms_since_end(now);
    outlet_.to_client(MessageType::text, {{"kind", "transcript"}, {"text", text}}, {});
  } else if (kind == "text") {
    if (reply_.empty()) timings_["first_text_ms"] = ms_since_end(now);
    reply_ += text;
    outlet_.to_client(MessageType::text, {{"kind", "text"}, {"text", text}}, {});
    speak(chunker_.push(text), false);
  } else if (kind == "tool_call") {
    const auto call = json::parse(text, nullptr, false);
    if (!call.is_object()) return fail_turn("bad_json", "the model's tool call is not JSON");
    const auto name = text_in(call, "name");
    const auto arguments = call.value("arguments", json::object());
    const auto result = config_.tools == "demo" ? run_demo_tool(name, arguments) : json{{"error", "no tools are configured"}};
    tool_calls_.push_back({{"name", name}, {"arguments", arguments}, {"result", result}});
    outlet_.to_client(MessageType::text, {{"kind", "tool_call"}, {"text", tool_calls_.back().dump()}}, {});
    send(kChat, MessageType::append, {{"tool_result", result}});
  } else if (kind == "done") {
    text_done_ = true;
    timings_["text_ms"] = ms_since_end(now);
    finish(kChat);
    speak(chunker_.finish(), true);
    maybe_commit(now);
  }
}

void Dialogue::speak(std::vector<std::string> pieces, bool last) {
  if (!speak_) return;
  const auto first = spoken_.size();
  for (auto& p : pieces) spoken_.push_back({std::move(p), 0, false});
  all_spoken_ = last;
  // The last piece is only known with the end of the text; it may have been sent before without the mark. Its own end is enough then.
  if (spoken_.empty() || first == spoken_.size()) return;
  if (!streams_.contains(kTts)) {
    if (!wanted_.contains(kTts)) start(kTts);
    return;
  }
  for (auto i = first; i < spoken_.size(); ++i)
    send(kTts, MessageType::speak,
         {{"chunk", i}, {"text", spoken_[i].text}, {"speaker", speaker_}, {"last", last && i + 1 == spoken_.size()}, {"skip_samples", 0}});
}

void Dialogue::on_speech(const json& body, const protocol::Message& m, Time now) {
  const auto chunk = static_cast<std::size_t>(std::max<std::int64_t>(0, integer_in(body, "chunk")));
  if (chunk >= spoken_.size() || spoken_[chunk].done) return;
  auto& s = spoken_[chunk];
  // After a replay the first message may overlap what was sent.
  const auto first = integer_in(body, "sample"), count = static_cast<std::int64_t>(m.payload.size() / 2),
             skip = std::clamp<std::int64_t>(s.samples - first, 0, count);
  if (first > s.samples) return;  // cannot happen: streams keep their order
  if (skip < count) {
    if (samples_sent_ == 0) timings_["first_audio_ms"] = ms_since_end(now);
    if (state_ == State::thinking) state_ = State::speaking;
    outlet_.to_client(MessageType::speech, {{"sample", samples_sent_}, {"rate", kSpeechRate}},
                      {m.payload.begin() + static_cast<std::ptrdiff_t>(2 * skip), m.payload.end()});
    s.samples += count - skip, samples_sent_ += count - skip;
  }
  s.done = flag_in(body, "last");
  maybe_commit(now);
}

void Dialogue::maybe_commit(Time now) {
  if (!text_done_ || state_ == State::committing || std::any_of(spoken_.begin(), spoken_.end(), [](const Spoken& s) { return !s.done; })) return;
  timings_["total_ms"] = ms_since_end(now);
  record_ = {{"user", transcript_}, {"assistant", reply_}, {"tool_calls", tool_calls_}};
  state_ = State::committing;
  if (streams_.contains(kTts)) finish(kTts);
  if (streams_.contains(kContext) && epoch_ != 0) {
    send_record();
  } else if (!wanted_.contains(kContext) && !streams_.contains(kContext)) {
    start(kContext);
  }
}

void Dialogue::fail_turn(const std::string& code, const std::string& text) {
  reset();
  outlet_.to_client(MessageType::error, {{"code", code}, {"message", text}, {"turn", turns_ + 1}}, {});
}

void Dialogue::reset() {
  for (const char* role : {kVad, kTokenizer, kChat, kTts}) {
    if (streams_.contains(role)) finish(role);
    wanted_.erase(role);
  }
  state_ = State::listening;
  log_.clear(), codes_.clear(), spoken_.clear(), transcript_.clear(), reply_.clear();
  begin_ = end_ = samples_sent_ = 0;
  flushed_ = tokens_done_ = text_done_ = all_spoken_ = false;
  typed_.reset();
  tool_calls_ = json::array(), timings_ = json::object();
  chunker_ = TextChunker();
}

void Dialogue::service_lost(const std::string& role, Time now) {
  now_ = now;
  if (!streams_.contains(role)) return;
  streams_.erase(role);
  ++replays_;
  if (role == kChat && (!reply_.empty() || !tool_calls_.empty())) return fail_turn("unavailable", "the language model died in the middle of the answer");
  wanted_.insert(role);
  service_back(role, now);  // another replica may be live
}

void Dialogue::service_back(const std::string& role, Time now) {
  now_ = now;
  if (wanted_.contains(role)) start(role);
}

void Dialogue::tick(Time now) {
  now_ = now;
  if ((state_ == State::thinking || state_ == State::speaking || state_ == State::committing) &&
      now - ended_at_ > std::chrono::seconds(config_.reply_seconds_max)) {
    std::string waiting;
    for (const auto& role : wanted_) waiting += (waiting.empty() ? "" : ", ") + role;
    fail_turn(waiting.empty() ? "deadline_exceeded" : "unavailable",
              waiting.empty() ? fmt::format("the turn took more than {} s", config_.reply_seconds_max) : "no replica is live of: " + waiting);
  }
}

}  // namespace parlando::controller
