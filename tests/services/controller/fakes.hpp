#pragma once
/// Stand-ins for the services that a controller calls, as cores over typed messages. What they say depends on nothing
/// but what they were told, so that work that is done again gives the same; they do one unit at a time, so that
/// anything can happen in between.
#include <deque>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "common/base/codes.hpp"
#include "common/base/pcm.hpp"
#include "common/base/units.hpp"
#include "common/protocol/codec.hpp"
#include "common/service/core.hpp"
#include "common/service/stream_table.hpp"

namespace parlando::controller::fakes {
using namespace protocol;
using nlohmann::json;
using service::CallerStream;
using service::Core;

inline std::string text_of(const Bytes& bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
inline Bytes bytes_of(std::string_view text) { return to_bytes(std::span<const char>(text.data(), text.size())); }

/// Streams of one kind, and a refusal that a test may ask for.
template <class Stream>
class Fake : public Core {
 public:
  std::optional<Errc> refuses;  ///< answers every new stream with it
  std::size_t opened = 0;
  std::vector<std::string> strange;  ///< what a well-behaved caller does not do
  std::size_t streams() const { return streams_.size(); }
  std::int64_t places = 64;  ///< streams that it takes at a time
  std::int64_t load() const override { return static_cast<std::int64_t>(streams_.size()); }
  std::int64_t slots() const override { return std::max<std::int64_t>(0, places - load()); }

  void on_message(const std::string& peer, Message m, Time) override {
    const CallerStream key{peer, m.head.key()};
    if (m.head.type == MessageType::close) {
      streams_.erase(key);
      failed_.erase(key);
      return;
    }
    if (failed_.contains(key)) return;
    auto found = streams_.find(key);
    if (found == streams_.end()) {
      ++opened;
      if (refuses) {
        failed_.insert(key);
        return this->answer_error(peer, m.head, {*refuses, "asked to refuse"});
      }
      if (m.head.epoch.value == 0 && needs_epoch()) strange.push_back("a stream without an epoch");
      found = streams_.emplace(key, Stream{}).first;
    }
    take(key, found->second, m);
  }
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time) override {
    if (state != transport::PeerState::down) return;
    std::erase_if(streams_, [&](const auto& s) { return s.first.peer == peer.instance; });
  }

 protected:
  virtual void take(const CallerStream& key, Stream& stream, Message& m) = 0;
  virtual bool needs_epoch() const { return true; }
  template <class T>
  T must(Message& m) {
    auto body = read<T>(m);
    if (!body) strange.push_back(body.error().message);
    return body ? *body : T{};
  }
  std::map<CallerStream, Stream> streams_;
  std::set<CallerStream> failed_;
};

struct VadStream {
  std::int64_t at = -1, begin = -1, end = -1, silence = -1;
  bool told = false, paused = false, lasts = false;
};

/// Samples that are not zero are speech; it is noticed 50 ms later, paused after 100 ms of silence, which is told again
/// after 480 ms, and over after 200.
class FakeVad : public Fake<VadStream> {
 public:
  static constexpr std::int64_t kNotice = 800, kPause = 1600, kLasts = 7680;
  std::int64_t silence = 3200;  ///< samples that end speech
  bool pauses = true;
  std::int64_t early = 0;  ///< samples by which its frames end before the sound does
  OpenVad last_open;

 protected:
  void take(const CallerStream& key, VadStream& s, Message& m) override {
    if (m.head.type == MessageType::flush) return flush(key, s, m);
    if (m.head.type == MessageType::open_vad) {
      last_open = must<OpenVad>(m);
      if (last_open.silence_ms >= 0) s.silence = last_open.silence_ms * 16;
    }
    if (m.head.type != MessageType::audio) return;
    const auto audio = must<Audio>(m);
    if (s.at >= 0 && audio.first_sample != s.at)
      strange.push_back(fmt::format("vad: sample {} after {}", audio.first_sample, s.at));
    s.at = audio.first_sample;
    for (const auto sample : from_bytes<std::int16_t>(audio.payload)) hear(key, s, sample, m.head);
  }

 private:
  void hear(const CallerStream& key, VadStream& s, std::int16_t sample, const Envelope& to) {
    ++s.at;
    if (sample != 0) {
      if (s.begin < 0) s.begin = s.at - 1;
      s.end = s.at;
      if (std::exchange(s.paused, false)) answer(key.peer, to, SpeechResumed{s.at - 1});
    }
    if (s.begin >= 0 && !s.told && s.at - s.begin >= kNotice) {
      s.told = true;
      answer(key.peer, to, SpeechStarted{s.begin});
    }
    if (!s.told) return;
    if (pauses && !s.paused && s.at - s.end >= kPause) {
      s.paused = true;
      s.lasts = false;
      answer(key.peer, to, SpeechPaused{s.end - early});
    }
    if (s.paused && !s.lasts && s.at - s.end >= kLasts) {
      s.lasts = true;
      answer(key.peer, to, SpeechPaused{s.end - early});
    }
    if (s.at - s.end < (s.silence < 0 ? silence : s.silence)) return;
    answer(key.peer, to, SpeechEnded{s.end - early});
    s.begin = s.end = -1;
    s.told = s.paused = false;
  }
  void flush(const CallerStream& key, VadStream& s, Message& m) {
    const auto f = must<Flush>(m);
    if (s.begin < 0) return answer_error(key.peer, m.head, {Errc::no_speech, "no speech"});
    if (!s.told) answer(key.peer, m.head, SpeechStarted{s.begin});
    answer(key.peer, m.head, SpeechEnded{f.end_sample < 0 ? s.end : std::min(s.end, f.end_sample)});
    s.begin = s.end = -1;
    s.told = s.paused = false;
  }
};

struct TokenizerStream {
  std::int64_t first = -1;
  Bytes pcm;
  std::int64_t told = 0;
};

/// A group's codes come from all sound up to its end: what is lost, doubled or shifted changes them.
class FakeTokenizer final : public Fake<TokenizerStream> {
 public:
  static constexpr std::int64_t kGroup = 1920;
  std::int64_t last_samples = 0;  ///< of the last utterance
  /// How likely an utterance of so many samples is complete; none: nobody knows.
  std::function<std::int32_t(std::int64_t samples)> complete;
  int delay_steps = 0;  ///< of answers to attempts
  std::size_t attempts = 0;
  bool work(Time) override {
    for (auto& [left, out] : delayed_) --left;
    for (; !delayed_.empty() && delayed_.front().first <= 0; delayed_.pop_front())
      post(delayed_.front().second.peer, std::move(delayed_.front().second.message));
    return false;
  }

 protected:
  void take(const CallerStream& key, TokenizerStream& s, Message& m) override {
    if (m.head.type == MessageType::flush) return flush(key, s, m);
    if (m.head.type != MessageType::audio) return;
    auto audio = must<Audio>(m);
    if (s.first < 0) s.first = audio.first_sample;
    if (s.first + samples(s) != audio.first_sample) strange.push_back("tokenizer: sound is missing");
    s.pcm.insert(s.pcm.end(), audio.payload.begin(), audio.payload.end());
    while ((s.told + 1) * kGroup <= samples(s)) {
      answer(key.peer, m.head, Tokens{s.told, s.told, false, group(s, s.told, (s.told + 1) * kGroup)});
      ++s.told;
    }
  }

 private:
  static std::int64_t samples(const TokenizerStream& s) { return static_cast<std::int64_t>(s.pcm.size() / 2); }
  Bytes group(const TokenizerStream& s, std::int64_t index, std::int64_t end) const {
    const auto sum =
        crc32c(std::span(s.pcm).first(static_cast<std::size_t>(2 * end)), static_cast<std::uint32_t>(index));
    const auto code = static_cast<std::int32_t>(sum % 1000);
    const std::vector<std::int32_t> codes{code, code, 1024 + code, 1024 + code, 1024 + code};
    return to_bytes(std::span<const std::int32_t>(codes));
  }
  void flush(const CallerStream& key, TokenizerStream& s, Message& m) {
    const auto f = must<Flush>(m);
    const auto end = f.end_sample < 0 ? samples(s) : f.end_sample - s.first;
    last_samples = end;
    if (end > samples(s) || end < 0)
      strange.push_back(fmt::format("tokenizer: {} samples are asked for, {} are known", end, samples(s)));
    attempts += f.attempt != 0 ? 1 : 0;
    const auto likely = f.attempt != 0 && complete ? complete(end) : -1;
    const auto whole = std::min(s.told, (end - 1) / kGroup);
    auto tokens = end < 400 ? Tokens{0, 0, true, {}, f.attempt, likely}
                            : Tokens{whole, whole, true, group(s, whole, std::min(end, samples(s))), f.attempt, likely};
    if (f.attempt == 0 || delay_steps == 0) return answer(key.peer, m.head, std::move(tokens));
    delayed_.push_back({delay_steps, {key.peer, pack(std::move(tokens), m.head)}});
  }
  std::deque<std::pair<int, service::Out>> delayed_;
};

struct ChatStream {
  std::string user, past, system;
  std::uint64_t seed = 0;
  std::vector<std::int32_t> codes, given;
  std::vector<std::string> results;
  bool asked = false, waits = false, transcribes = false, as_it_stands = false, in_background = false;
  std::size_t next = 0, calls = 0;
  std::map<TextKind, std::int64_t> said;  ///< bytes, or calls
  CallerStream key;
  Envelope to;
};

/// Says a fixed number of tokens that depend on user, history and seed; calls one tool on the way and speaks of its
/// result.
class FakeChat final : public Fake<ChatStream> {
 public:
  void on_message(const std::string& peer, Message m, Time now) override {
    if (m.head.type == MessageType::erase) return over.push_back(m.head.session);
    Fake::on_message(peer, std::move(m), now);
  }
  bool calls_tool = true;
  std::size_t sentences = 2;
  std::optional<Errc> fails_at_third;
  std::string last_past, last_system, last_user;
  OpenChat last_open;
  std::vector<std::vector<std::string>> rounds{{"set_timer"}};  ///< names of the tools that it calls
  std::vector<std::string> last_results;
  bool speaks_first = false;  ///< a sentence before the first call
  std::string first_sentence = "One moment please. ";
  /// What is asked for in the background is a summary of what stands in the history.
  std::vector<std::string> asked_to_summarise;
  std::string summary;  ///< empty: one that depends on what is summarised
  std::string summary_end = "stop";
  std::optional<Errc> fails_in_background;
  std::size_t summary_steps = 1;  ///< that one takes
  static std::string summary_of(std::string_view past) {
    return fmt::format("summary {:x}", crc32c(std::as_bytes(std::span(past))));
  }
  std::size_t forks = 0;
  std::vector<SessionId> over;  ///< sessions that are
  static std::int32_t id_of(std::size_t index) { return 1000 + static_cast<std::int32_t>(index); }

  struct Token {
    TextKind kind;
    std::string text;
  };
  bool work(Time) override {
    for (auto& [key, s] : streams_) step(s);
    return false;  // one token a step
  }

 protected:
  void take(const CallerStream& key, ChatStream& s, Message& m) override {
    s.key = key;
    s.to = m.head;
    switch (m.head.type) {
      case MessageType::open_chat: {
        const auto open = must<OpenChat>(m);
        s.past = text_of(open.payload);
        s.system = open.system;
        s.seed = open.seed;
        if (open.tool_choice == "none") return;  // nobody is answered
        last_open = open;
        last_past = s.past;
        last_system = s.system;
        return;
      }
      case MessageType::fork_chat: {
        const auto from = streams_.find({key.peer, {m.head.session, must<ForkChat>(m).from}});
        if (from == streams_.end() || from->second.asked) return strange.push_back("llm-chat: a fork of nothing");
        ++forks;
        s = from->second;
        s.key = key;
        s.to = m.head;
        return;
      }
      case MessageType::hear: {
        const auto hear = must<Hear>(m);
        const auto at = static_cast<std::size_t>(hear.first_group) * kCodesPerGroup;
        if (at > s.codes.size()) strange.push_back("llm-chat: codes are missing");
        s.codes.resize(std::min(at, s.codes.size()));
        const auto codes = from_bytes<std::int32_t>(hear.payload);
        s.codes.insert(s.codes.end(), codes.begin(), codes.end());
        return;
      }
      case MessageType::say:
        s.user = last_user = must<Say>(m).text;
        return;
      case MessageType::go_on:
        s.given = from_bytes<std::int32_t>(must<GoOn>(m).payload);
        return;
      case MessageType::generate:
        if (s.asked) strange.push_back("llm-chat: asked twice");
        s.asked = true;
        {
          const auto generate = must<Generate>(m);
          s.transcribes = generate.transcribe;
          s.as_it_stands = generate.as_it_stands;
          s.in_background = generate.background;
          if (s.in_background) asked_to_summarise.push_back(json::parse(s.past).at(0)["content"]);
        }
        if (s.as_it_stands && (!s.user.empty() || !s.codes.empty())) strange.push_back("llm-chat: somebody has spoken");
        if (s.user.empty() && !s.as_it_stands)
          s.user = fmt::format("heard {} codes {:x}", s.codes.size(), crc32c(std::as_bytes(std::span(s.codes))));
        return;
      case MessageType::tool_result:
        s.results.push_back(must<ToolResult>(m).result.text);
        last_results = s.results;
        if (s.results.size() > s.calls) strange.push_back("llm-chat: a result of nothing");
        s.waits = s.waits && s.results.size() < s.calls;
        return;
      default:
        strange.push_back("llm-chat: unknown message");
    }
  }

 private:
  std::vector<Token> script(const ChatStream& s) const {
    std::vector<Token> out;
    if (s.in_background) {
      out.resize(summary_steps, {TextKind::text, ""});
      out.push_back({TextKind::text, summary == "none" ? " " : summary.empty() ? summary_of(s.past) : summary});
      out.push_back({TextKind::done, json{{"finish", summary_end}}.dump()});
      return out;
    }
    if (!s.as_it_stands) {
      out.push_back({TextKind::transcript, s.user.substr(0, 4)});
      out.push_back({TextKind::transcript, s.user.substr(std::min<std::size_t>(4, s.user.size()))});
    }
    if (s.transcribes) {
      out.push_back({TextKind::done, R"({"finish":"stop"})"});
      return out;
    }
    if (speaks_first) out.push_back({TextKind::text, first_sentence});
    if (calls_tool)
      for (const auto& round : rounds)
        for (std::size_t i = 0; i < round.size(); ++i) {
          json call{{"name", round[i]}, {"arguments", {{"amount", 3}}}};
          if (i + 1 < round.size()) call["left"] = round.size() - i - 1;
          out.push_back({TextKind::tool_call, call.dump()});
        }
    const auto flavour = crc32c(std::as_bytes(std::span(s.past)), static_cast<std::uint32_t>(s.seed)) % 100;
    out.push_back({TextKind::text, fmt::format("answer {}", flavour)});
    for (std::size_t i = 0; i < sentences; ++i) {
      out.push_back({TextKind::text, " to "});
      out.push_back({TextKind::text, i == 0 && !s.results.empty() ? s.results[0] : fmt::format("äöü {}", i)});
      out.push_back({TextKind::text, ". "});
    }
    out.push_back({TextKind::done, R"({"finish":"stop","output_tokens":9})"});
    return out;
  }
  /// What is given already is told at once and without ids; else one token.
  void step(ChatStream& s) {
    if (!s.asked || s.waits) return;
    while (s.next < s.given.size() && !s.waits && tell(s, {})) {
      if (s.given[s.next - 1] != id_of(s.next - 1)) strange.push_back("llm-chat: ids of another reply");
    }
    if (s.waits || s.next < s.given.size()) return;
    if (fails_in_background && s.in_background) {
      s.asked = false;
      return answer_error(s.key.peer, s.to, {*fails_in_background, "asked to fail"});
    }
    if (fails_at_third && s.next == 3) {
      s.asked = false;
      return answer_error(s.key.peer, s.to, {*fails_at_third, "asked to fail"});
    }
    const std::vector<std::int32_t> id{id_of(s.next)};
    tell(s, to_bytes(std::span<const std::int32_t>(id)));
  }
  bool tell(ChatStream& s, Bytes ids) {
    const auto tokens = script(s);
    if (s.next >= tokens.size()) return false;
    const auto& t = tokens[s.next++];
    auto& said = s.said[t.kind];
    const bool calls = t.kind == TextKind::tool_call;
    auto text = t.text;
    const auto call = calls ? json::parse(text) : json();
    if (calls && s.next < s.given.size()) {
      auto past = call;
      past["past"] = true;
      text = past.dump();
    }
    answer(s.key.peer, s.to, Text{t.kind, said, text, std::move(ids)});
    said += calls ? 1 : static_cast<std::int64_t>(t.text.size());
    s.calls += calls ? 1 : 0;
    if (calls) s.waits = !call.contains("left") && s.results.size() < s.calls;
    return true;
  }
};

struct TtsStream {
  std::deque<Message> parts;
};

/// 100 samples a byte, in three parts; a sample depends on text, seed and its place.
class FakeTts final : public Fake<TtsStream> {
 public:
  std::set<std::uint64_t> seeds;
  Speak last;
  std::size_t waiting_most = 0;  ///< pieces of one stream at a time
  bool work(Time) override {
    for (auto& [key, s] : streams_) {
      if (s.parts.empty()) continue;
      post(key.peer, std::move(s.parts.front()));
      s.parts.pop_front();
    }
    return false;  // one part a step
  }

 protected:
  void take(const CallerStream&, TtsStream& s, Message& m) override {
    const auto to = m.head;
    const auto speak = must<Speak>(m);
    seeds.insert(speak.seed);
    last = speak;
    const auto total = 100 * static_cast<std::int64_t>(speak.text.size());
    // A decoder works in blocks: what is skipped may begin a little early.
    const auto skip = speak.skip_samples - speak.skip_samples % 128;
    for (int part = 0; part < 3; ++part) {
      const auto first = std::max(skip, total * part / 3), end = std::max(skip, total * (part + 1) / 3);
      std::vector<std::int16_t> wave;
      for (auto i = first; i < end; ++i)
        wave.push_back(static_cast<std::int16_t>(i * 37 + crc32c(std::as_bytes(std::span(speak.text))) + speak.seed));
      s.parts.push_back(
          pack(Speech{speak.piece, first, 22050, part == 2, to_bytes(std::span<const std::int16_t>(wave))}, to));
    }
    waiting_most = std::max(waiting_most, (s.parts.size() + 2) / 3);
  }
};

/// What lasts: shared by all replicas of the fake store.
struct FakeStore {
  struct Entry {
    std::uint64_t epoch = 0;
    std::string owner;
    std::map<std::int64_t, std::string> turns;
    bool erased = false;
  };
  std::map<SessionId, Entry> sessions;
  std::optional<Errc> fails;        ///< every Commit, as a full disk does
  std::optional<Errc> cannot_read;  ///< every History
  std::string garbage;              ///< Records instead of the history
  std::size_t commits = 0, renewals = 0, doubled = 0;
};

struct ContextStream {};

class FakeContext final : public Fake<ContextStream> {
 public:
  explicit FakeContext(std::shared_ptr<FakeStore> store) : store_(std::move(store)) {}

 protected:
  bool needs_epoch() const override { return false; }
  void take(const CallerStream& key, ContextStream&, Message& m) override {
    auto& e = store_->sessions[m.head.session];
    switch (m.head.type) {
      case MessageType::claim:
        return claim(key, e, m);
      case MessageType::renew: {
        ++store_->renewals;
        const auto renew = must<Renew>(m);
        if (renew.epoch.value != e.epoch) return stale(key, e, m.head);
        return answer(key.peer, m.head, Granted{renew.epoch, renew.lease_ms});
      }
      case MessageType::history:
        return history(key, e, m);
      case MessageType::commit:
        return commit(key, e, m);
      case MessageType::erase:
        return erase(key, e, m);
      default:
        strange.push_back("context: unknown message");
    }
  }

 private:
  void stale(const CallerStream& key, const FakeStore::Entry& e, Envelope to) {
    to.epoch = {e.epoch};
    answer_error(key.peer, to, {Errc::stale_epoch, fmt::format("the session has epoch {}", e.epoch)});
  }
  void erase(const CallerStream& key, FakeStore::Entry& e, Message& m) {
    if (e.epoch == 0 || m.head.epoch.value != e.epoch || e.erased) return stale(key, e, m.head);
    const auto turns = static_cast<std::int64_t>(e.turns.size());
    e = {e.epoch + 1, {}, {}, true};
    answer(key.peer, m.head, Erased{turns});
  }
  void claim(const CallerStream& key, FakeStore::Entry& e, Message& m) {
    const auto c = must<Claim>(m);
    if (e.erased && c.expected.value == e.epoch)
      return answer_error(key.peer, m.head, {Errc::not_found, "the session was erased"});
    const bool again = c.owner == e.owner && c.expected.value + 1 == e.epoch;
    if (!again && c.expected.value != e.epoch) return stale(key, e, m.head);
    if (!again) ++e.epoch;
    e.owner = c.owner;
    answer(key.peer, m.head, Granted{{e.epoch}, c.lease_ms});
  }
  void history(const CallerStream& key, const FakeStore::Entry& e, Message& m) {
    const auto h = must<History>(m);
    if (store_->cannot_read) return answer_error(key.peer, m.head, {*store_->cannot_read, "asked to fail"});
    json list = json::array();
    for (const auto& [turn, record] : e.turns)
      if (turn > static_cast<std::int64_t>(e.turns.size()) - h.turns_max)
        list.push_back({{"turn", turn}, {"record", json::parse(record)}});
    const auto last = e.turns.empty() ? 0 : e.turns.rbegin()->first;
    answer(key.peer, m.head, Records{last, bytes_of(store_->garbage.empty() ? list.dump() : store_->garbage)});
  }
  void commit(const CallerStream& key, FakeStore::Entry& e, Message& m) {
    ++store_->commits;
    const auto c = must<Commit>(m);
    if (c.epoch.value != e.epoch) return stale(key, e, m.head);
    if (store_->fails) return answer_error(key.peer, m.head, {*store_->fails, "asked to fail"});
    const auto last = e.turns.empty() ? 0 : e.turns.rbegin()->first;
    if (c.turn > last + 1)
      return answer_error(key.peer, m.head, {Errc::invalid_argument, fmt::format("turn {} after {}", c.turn, last)});
    const auto text = text_of(c.payload);
    if (c.turn <= last && e.turns.at(c.turn) != text) ++store_->doubled;
    e.turns.emplace(c.turn, text);
    answer(key.peer, m.head, Committed{c.turn, "digest"});
  }
  std::shared_ptr<FakeStore> store_;
};

/// A gateway with one client: keeps what it may have to say again, knows what the client has, and checks that nothing
/// comes twice, early or out of order. Speaks to one controller at a time.
class FakeGateway final : public Core {
 public:
  explicit FakeGateway(SessionId session) : session(session) {}
  SessionId session;
  std::string controller;  ///< whom it listens to
  bool speak = true;
  bool waits_for_opened = true;  ///< with its inputs
  bool opens_again = false;      ///< under the true epoch, when it was told that
  std::string system;
  Settings settings;  ///< with Open; `system` and `speak` apart
  bool is_stored = true;
  bool plays = false;              ///< it keeps time with a loudspeaker
  std::int64_t heard_samples = 0;  ///< what it says of it when asked to hold
  bool heard_all = false;          ///< nothing plays any more
  bool keeps_time = false;         ///< it says what a loudspeaker has come to, instead of what a test has set
  std::optional<Interrupted> interrupted;
  std::optional<Waiting> waiting;
  std::vector<Noted> noted;
  /// What the user has heard of each turn's answer, and what its record says.
  std::map<std::int64_t, std::string> heard_of, whole_of;
  std::set<std::int64_t> truncated;  ///< turns of which the client has said itself how much it has heard
  bool was_cut_off = false;  ///< an end of a turn was told that never came: its number may be another one's by now
  bool holds = false;        ///< the last word on it was Hold
  std::string token_digest;  ///< with Open; empty: the session cannot be resumed

  /// Inputs that ask for something, by what they are, and how often each was answered.
  std::map<std::uint64_t, std::string> questions;
  std::map<std::uint64_t, int> fates;
  std::set<std::uint64_t> lost;  ///< inputs that gateway and controller have gone with before anybody answered them
  std::vector<std::pair<std::uint64_t, std::string>> open_questions() const {
    std::vector<std::pair<std::uint64_t, std::string>> out;
    for (const auto& question : questions)
      if (!fates.contains(question.first) && !lost.contains(question.first)) out.push_back(question);
    return out;
  }
  /// Whether the store has a turn that is told; with it, calls before the end of speech are found.
  std::function<bool(std::int64_t turn)> is_stored_turn;

  // ---- what the client got
  struct Event {
    MessageType type;
    std::string text;  ///< of errors the code
    std::uint32_t turn = 0;
    std::int64_t retry_ms = 0;
    std::uint64_t epoch = 0;
    Time at{};
  };
  std::vector<Event> events;
  std::string transcript, reply;  ///< of the turn under way, or the last one
  std::vector<json> calls;
  Bytes audio;              ///< of all turns
  std::vector<json> turns;  ///< TurnDone
  std::vector<bool> degraded;
  std::vector<std::string> wrong;  ///< what a correct controller never does
  std::uint64_t epoch = 0, seed = 0;
  Checkpoint checkpoint;
  std::vector<Checkpoint> checkpoints;

  /// All that the client was told, and what of it waits.
  std::string told() const {
    std::string out;
    for (const auto& e : events)
      if (e.type != MessageType::speech && e.type != MessageType::text)
        out += fmt::format("{} {} turn={} {}\n", (e.at - Time(std::chrono::hours(1))).count() / 20000000,
                           to_string(e.type), e.turn, e.text);
    for (const auto& [input, what] : open_questions()) out += fmt::format("{} {} has no answer\n", input, what);
    return out;
  }
  std::size_t count(MessageType type) const {
    return static_cast<std::size_t>(
        std::count_if(events.begin(), events.end(), [&](const Event& e) { return e.type == type; }));
  }
  const Event* last_error() const {
    for (auto it = events.rbegin(); it != events.rend(); ++it)
      if (it->type == MessageType::error) return &*it;
    return nullptr;
  }

  // ---- what the client says
  /// Another opening of a stored session: numbers of its own, and nothing is known of what was told.
  void number_inputs_from(std::uint64_t input) {
    next_input_ = input;
    said_ = input - 1;
    turn_told_ = -1;
  }
  /// At another controller, or for the first time.
  void open(std::string at) {
    controller = std::move(at);
    ++stream_;
    Open o;
    static_cast<Settings&>(o) = settings;
    o.stored = is_stored;
    o.system = system;
    o.speak = speak;
    o.plays = plays;
    o.seed = seed == 0 ? 77 : seed;
    o.expected_epoch = {epoch};
    o.token_digest = token_digest;
    o.inputs_kept = inputs_kept && (open_turn_ == 0 || open_turn_ != turn_resumed_);
    if (o.inputs_kept) lose_unkept();
    moved_ = true;
    o.first_input = kept_.empty() ? next_input_ : kept_.front().first;
    o.last_input = said_;
    o.turn_told = turn_told_;
    o.sound_from = sound_from_;
    o.decided = decided_;
    if (open_turn_ != 0) {
      o.open_turn = {open_turn_};
      o.transcript_bytes = static_cast<std::int64_t>(transcript.size());
      o.reply_bytes = static_cast<std::int64_t>(reply.size());
      o.tool_calls = static_cast<std::int64_t>(calls.size());
      json results = json::array(), ids = json::array();
      for (const auto& c : calls) {
        results.push_back(c.value("result", json()));
        ids.push_back(c.value("id", json()));
      }
      o.tool_results = {results.dump()};
      o.call_ids = {ids.dump()};
      o.pieces = pieces_;
      o.piece_samples = piece_samples_;
      o.turn_samples = turn_samples_;
      o.piece_lengths = {json(lengths_).dump()};
      o.payload = to_bytes(std::span<const std::int32_t>(ids_));
    }
    send(controller, head(), std::move(o));
    is_open_ = false;
    checkpoint.keep_until = 0;  // all is kept until the new owner says otherwise
    if (!waits_for_opened) say_kept();
  }
  template <class T>
  void say(T body) {
    constexpr bool kBegins = std::is_same_v<T, Say> || std::is_same_v<T, Respond> || std::is_same_v<T, Utter>;
    if constexpr (std::is_same_v<T, Truncate>) truncated.insert(body.turn.value);
    if constexpr (std::is_same_v<T, Cancel>) {
      typed_since_cancel_ = false;
      tell_heard(body);
    }
    if constexpr (kBegins) typed_since_cancel_ = true;
    must_begin_ = must_begin_ && !kBegins;
    if constexpr (std::is_same_v<T, Say>) questions[next_input_] = body.text;
    if constexpr (std::is_same_v<T, Utter>) questions[next_input_] = body.text;
    if constexpr (std::is_same_v<T, Respond>) questions[next_input_] = fmt::format("respond {}", next_input_);
    if constexpr (std::is_same_v<T, Cancel>) questions[next_input_] = fmt::format("cancel {}", next_input_);
    auto message = pack(std::move(body), head());
    message.head.trace = 4711;
    kept_.push_back({next_input_++, message});
    if (!is_open_) return;
    said_ = std::max(said_, kept_.back().first);
    post(controller, std::move(message));
    drop_behind();
  }
  /// As gateways do: a cancel names the turn that is heard, and how far stands in front of it.
  void tell_heard(Cancel& cancel) {
    if (!keeps_time || !plays || !is_open_) return;
    if (cancel.turn.value == 0 && open_turn_ == 0 && !sounds_.empty()) cancel.turn = {sounds_.front().turn};
    const auto heard = played_of(cancel.turn.value);
    if (cancel.turn.value != 0 && !heard.over) say_played(heard);
    cancels_ = cancel.turn.value;
  }
  /// A cancel of a turn that is heard, as gateways tell it.
  void cancel_playing(std::uint32_t turn) {
    say_played(played_of(turn));
    say(Cancel{{turn}});
  }
  /// The loudspeaker has come to the end of a turn's sound.
  void played(std::uint32_t turn, std::int64_t samples) {
    sounding_ = 0;
    post(controller, pack(Played{{turn}, samples, true}, head()));
  }
  void close(bool detached = false) { send(controller, head(), Close{detached}); }
  /// Another controller is to have the session.
  void leave() { send(controller, head(), Close{.moves = true}); }
  bool inputs_kept = true;
  /// The client comes from `former` with what it got there, and wants its session of the controller `at`.
  void resume(const FakeGateway& former, std::string at, Attach attach) {
    controller = std::move(at);
    audio = former.audio;
    audio.resize(audio.size() - 2 * static_cast<std::size_t>(former.turn_samples_ - attach.samples));
    turns = former.turns;
    seed = former.seed;
    epoch = former.epoch;
    ++stream_;
    is_open_ = false;
    send(controller, head(), std::move(attach));
  }
  /// What the client would say: of the turn whose end it has not got.
  Attach claim(std::string digest, std::string next) const {
    Attach out;
    out.token_digest = std::move(digest);
    out.next_digest = std::move(next);
    out.turn = {static_cast<std::uint32_t>(turns.size()) + 1};
    if (open_turn_ == 0) return out;
    out.samples = turn_samples_;
    out.transcript_bytes = static_cast<std::int64_t>(transcript.size());
    out.reply_bytes = static_cast<std::int64_t>(reply.size());
    out.tool_calls = static_cast<std::int64_t>(calls.size());
    return out;
  }
  /// The same client comes back to a session whose gateway was lost, with all that it has. What it had said and nobody
  /// has taken in is said by nobody again.
  void come_back(std::string at, std::string next_digest) {
    auto claim = this->claim(token_digest, next_digest);
    claim.turn = {open_turn_ != 0 ? open_turn_ : turn_ended_ + 1};
    token_digest = std::move(next_digest);
    controller = std::move(at);
    kept_.clear();
    sounds_.clear();
    attached.reset();
    holds = false;
    interrupted_ = sounding_ = turn_resumed_ = 0;
    moved_ = false;
    decided_before_ = std::exchange(decided_, {});
    checkpoint = {};
    ++stream_;
    is_open_ = false;
    send(controller, head(), std::move(claim));
  }
  std::optional<Attached> attached;  ///< the last one
  bool pieces_may_jump = false;      ///< the client has more than whole pieces of unknown length
  bool is_open() const { return is_open_; }
  std::size_t kept() const { return kept_.size(); }
  StreamId stream() const { return {stream_}; }

  void on_message(const std::string& peer, Message m, Time now) override {
    const bool early = m.head.type == MessageType::error && m.head.epoch.value == 0;  // it answers an opening
    if (peer != controller || m.head.stream.value != stream_ || (m.head.epoch.value < epoch && !early)) {
      ++ignored;
      return;
    }
    if (m.head.type == MessageType::error) return on_error(m);
    events.push_back({m.head.type, {}, m.head.turn.value, 0, m.head.epoch.value, now});
    switch (m.head.type) {
      case MessageType::opened:
        return on_opened(m);
      case MessageType::attached:
        return on_attached(m);
      case MessageType::text:
        return on_text(m);
      case MessageType::speech:
        return on_speech(m);
      case MessageType::turn_done:
        return on_done(m);
      case MessageType::cancelled: {
        const auto c = *read<Cancelled>(m);
        settle(c.settled, c.sound_from);
        turn_over(m.head.turn.value, false);
        return on_cancelled(c.turn.value);
      }
      case MessageType::decided:
        decided_ = *read<Decided>(m);
        return;
      case MessageType::speech_started:
        must_begin_ = false;
        return touch(m);
      case MessageType::checkpoint:
        return on_checkpoint(m);
      case MessageType::hold:
        return on_hold(read<Hold>(m)->turn.value);
      case MessageType::release:
        if (!std::exchange(holds, false)) wrong.push_back("a release without a hold");
        return;
      case MessageType::interrupted:
        return on_interrupted(*read<Interrupted>(m));
      case MessageType::waiting:
        touch(m);
        waiting = *read<Waiting>(m);
        return;
      case MessageType::noted:
        touch(m);
        noted.push_back(*read<Noted>(m));
        if (noted.back().text != transcript && !was_cut_off) wrong.push_back("another transcript is noted");
        settle(noted.back().settled, noted.back().sound_from);
        std::erase_if(sounds_, [&](const Sound& s) { return s.turn == m.head.turn.value; });  // of one before it
        turn_over(m.head.turn.value, true);
        turn_ended_ = m.head.turn.value;
        return finish();
      default:
        touch(m);
    }
  }
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time) override {
    if (state == transport::PeerState::up) linked.insert(peer.instance);
    if (state == transport::PeerState::down) linked.erase(peer.instance);
  }
  void on_tick(Time now) override {
    const auto passed = now - std::exchange(ticked_at_, now);
    if (!keeps_time || holds || sounds_.empty()) return;
    auto& front = sounds_.front();
    front.heard += std::chrono::duration_cast<std::chrono::microseconds>(passed).count() * 22050 / 1000000;
    front.heard = std::min(front.heard, front.samples);
    if (!front.complete || front.heard < front.samples) return;
    if (plays) say_played({{front.turn}, front.samples, true});
    sounds_.pop_front();
  }
  bool is_silent() const { return sounds_.empty(); }
  std::size_t ignored = 0;
  std::set<std::string> linked;

 private:
  Envelope head() const {
    Envelope head;
    head.session = session;
    head.stream = {stream_};
    return head;
  }
  void touch(const Message& m) {
    if (open_turn_ == m.head.turn.value) return;
    if (open_turn_ != 0) wrong.push_back(fmt::format("turn {} inside of turn {}", m.head.turn.value, open_turn_));
    begin(m.head.turn.value);
  }
  void begin(std::uint32_t turn) {
    open_turn_ = turn;
    cut_turns_.erase(open_turn_);
    transcript.clear();
    reply.clear();
    calls.clear();
    ids_.clear();
    pieces_ = piece_samples_ = turn_samples_ = 0;
    lengths_.clear();
  }
  void finish() { open_turn_ = 0; }
  /// Nothing further of this turn is told, or plays.
  void fall_silent(std::uint32_t turn) {
    std::erase_if(sounds_, [&](const Sound& s) { return s.turn == turn; });
    if (turn != 0 && turn != open_turn_) return;
    interrupted_ = 0;
    finish();
  }
  void on_cancelled(std::uint32_t turn) {
    cancels_ = 0;
    forgotten_.insert(turn);  // the gateway keeps nothing of its sound
    const bool was_done = open_turn_ == 0 && !turns.empty() && turns.back()["turn"] == turn;
    if ((open_turn_ == 0 || turn == open_turn_) && !was_done) must_begin_ = !typed_since_cancel_;
    fall_silent(turn);
  }
  void say_played(const Played& played) {
    // A cancel is on its way that says how much was heard until then.
    if (cancels_ != played.turn.value) said_played_[played.turn.value] = played.samples;
    post(controller, pack(Played{played}, head()));
  }
  Played played_of(std::uint32_t turn) const {
    if (!keeps_time) return {{turn}, heard_samples, heard_all};
    for (const auto& s : sounds_)
      if (s.turn == turn) return {{turn}, s.heard, false};
    return {{turn}, 0, turn != open_turn_};
  }
  void on_hold(std::uint32_t turn) {
    if (std::exchange(holds, true)) wrong.push_back("a hold in a hold");
    if (plays) say_played(played_of(turn));
  }
  void on_interrupted(Interrupted what) {
    holds = false;
    const auto turn = what.turn.value;
    interrupted_ = turn == open_turn_ ? turn : 0;
    // The number of an answer that is not remembered is used again, while its sound may still be heard.
    const bool is_told = keeps_time && plays && !forgotten_.contains(turn) && !truncated.contains(turn);
    const auto said = said_played_.find(turn);
    const auto heard = said != said_played_.end() ? said->second : played_of(turn).samples;
    if (is_told && what.samples != heard)
      wrong.push_back(fmt::format("{} samples are said to be heard, not {}", what.samples, heard));
    cut_turns_.insert(turn);
    std::erase_if(sounds_, [&](const Sound& s) { return s.turn <= turn; });
    sounding_ = 0;
    heard_of[turn] = what.heard;
    interrupted = std::move(what);
  }
  void expect_audible(const Message& m) {
    // A turn that is told from its record does not begin anew: nobody knows any more where speech began.
    const bool is_stored = is_stored_turn && is_stored_turn(m.head.turn.value);
    if (must_begin_ && !is_stored) wrong.push_back("something of a turn that was cancelled");
    if (m.head.turn.value == interrupted_) wrong.push_back("something of a turn that was interrupted");
  }
  void on_error(Message& m) {
    const auto e = read<ErrorMessage>(m);
    events.push_back({MessageType::error, e->code, m.head.turn.value, e->retry_ms, m.head.epoch.value});
    settle(e->settled, e->sound_from);
    // What the former gateway had is said again by nobody: its turn has taken the answers to that with it.
    if (m.head.turn.value != 0 && m.head.turn.value == turn_resumed_)
      for (const auto& [input, what] : questions)
        if (input < attached->first_input) fates.try_emplace(input, 1);
    if (m.head.turn.value != 0) turn_over(m.head.turn.value, false);
    if (m.head.turn.value != 0) fall_silent(m.head.turn.value);
    // Its first owner died with the grant: the session was never told to be open, so nobody else can have it.
    if (!opens_again || e->code != "stale_epoch" || m.head.epoch.value <= epoch) return;
    epoch = m.head.epoch.value;
    open(std::string(controller));
  }
  void on_opened(Message& m) {
    const auto o = read<Opened>(m);
    epoch = m.head.epoch.value;
    if (seed != 0 && seed != o->seed) wrong.push_back("another seed");
    seed = o->seed;
    turn_told_ = std::min(turn_told_, o->turns);
    if (open_turn_ > o->turns + 1) {  // it begins again, behind turns that are lost
      const bool is_resumed = open_turn_ == turn_resumed_;
      fall_silent(open_turn_);
      if (is_resumed) begin(turn_resumed_ = static_cast<std::uint32_t>(o->turns) + 1);  // and fails then
    }
    opened_degraded = o->degraded;
    holds = false;
    interrupted_ = 0;  // a new owner makes the answer again; the gateway plays nothing of it
    const auto sounds = keeps_time ? (sounds_.empty() ? 0 : sounds_.front().turn) : heard_all ? 0 : sounding_;
    if (plays && sounds != 0) say_played(played_of(sounds));
    if (!is_open_) say_kept();
  }
  /// The texts of the client are what it has of them: only how long they are is known here.
  void on_attached(Message& m) {
    auto a = read<Attached>(m);
    epoch = m.head.epoch.value;
    seed = a->seed;
    next_input_ = a->first_input;
    said_ = next_input_ - 1;
    open_turn_ = turn_resumed_ = a->open_turn.value;
    turn_told_ = open_turn_ != 0 ? open_turn_ - 1 : a->turns;
    transcript.resize(static_cast<std::size_t>(a->transcript_bytes), '?');
    reply.resize(static_cast<std::size_t>(a->reply_bytes), '?');
    const auto results = json::parse(a->tool_results.text), ids = json::parse(a->call_ids.text);
    calls.clear();
    for (std::size_t i = 0; i < static_cast<std::size_t>(a->tool_calls); ++i)
      calls.push_back({{"id", i < ids.size() ? ids[i] : json()}, {"name", ""}, {"result", results.at(i)}});
    std::erase_if(questions, [&](const auto& q) { return q.first >= next_input_ && !fates.contains(q.first); });
    ids_ = from_bytes<std::int32_t>(a->payload);
    pieces_ = a->pieces;
    piece_samples_ = a->piece_samples;
    turn_samples_ = a->turn_samples;
    const auto lengths = json::parse(a->piece_lengths.text, nullptr, false);
    lengths_ = lengths.is_array() ? lengths.get<std::vector<std::int64_t>>() : std::vector<std::int64_t>();
    attached = std::move(*a);
    say_kept();
  }
  void say_kept() {
    is_open_ = true;
    for (const auto& [number, message] : kept_) {
      auto again = message;
      again.head.stream = {stream_};
      said_ = std::max(said_, number);
      post(controller, std::move(again));
    }
  }
  /// What waits for a turn at the controller alone, because the gateway that had it is lost, goes with that controller.
  /// What a turn under way is known to answer has its end nevertheless; also that in which the client came back, though
  /// nobody but this client knows any more what it answers.
  void lose_unkept() {
    if (!attached) return;
    const auto resumed = decided_before_.of_turn == attached->open_turn ? decided_before_.answers_input : 0;
    for (const auto& [input, what] : open_questions())
      if (input < attached->first_input && input != decided_.answers_input && input != resumed) lost.insert(input);
  }
  // ---- as gateway/input_log does
  void settle(const JsonText& list, std::int64_t sound_from) {
    const auto settled = json::parse(list.text);
    for (const auto& number : settled.is_array() ? settled : json::array()) {
      if (questions.contains(number)) ++fates[number];
      for (auto& [n, message] : kept_)
        if (n == number && message.head.type != MessageType::audio) message = pack(Audio{}, message.head);
    }
    sound_from_ = std::max(sound_from_, sound_from);
  }
  void turn_over(std::uint32_t turn, bool stored) {
    if (turn != 0 && turn_resumed_ == turn) {
      turn_resumed_ = 0;  // its number may be used again
      if (moved_) lose_unkept();
    }
    if (turn >= decided_.of_turn.value) decided_ = {};
    if (stored) turn_told_ = std::max<std::int64_t>(turn_told_, turn);
  }
  /// Of the sound behind a decision only the last stays.
  void drop_behind() {
    if (checkpoint.keep_until == 0) return;
    std::int64_t recent = 0;
    for (auto it = kept_.rbegin(); it != kept_.rend() && it->first > checkpoint.keep_until; ++it) {
      if (it->second.head.type != MessageType::audio || it->second.payload.empty()) continue;
      const auto samples = static_cast<std::int64_t>(it->second.payload.size() / 2);
      if (recent + samples > checkpoint.recent_samples)
        it->second.payload.clear();
      else
        recent += samples;
    }
  }
  void on_text(Message& m) {
    touch(m);
    auto t = read<Text>(m);
    const auto ids = from_bytes<std::int32_t>(t->payload);
    for (const auto id : ids) {
      if (id != FakeChat::id_of(ids_.size())) wrong.push_back(fmt::format("id {} as the {}th", id, ids_.size()));
      ids_.push_back(id);
    }
    if (t->text.empty()) return;
    expect_audible(m);
    if (t->kind == TextKind::tool_call) {
      if (t->at_bytes != static_cast<std::int64_t>(calls.size())) wrong.push_back("a tool call twice");
      calls.push_back(json::parse(t->text));
      const bool decided = decided_.of_turn == m.head.turn && (decided_.answers_input != 0 || decided_.end_sample >= 0);
      const bool is_resumed = attached && attached->open_turn == m.head.turn;  // that was decided before
      if (is_stored_turn && !decided && !is_resumed && !is_stored_turn(m.head.turn.value))
        wrong.push_back("a tool call before the end of speech");
      return;
    }
    auto& text = t->kind == TextKind::transcript ? transcript : reply;
    if (t->at_bytes != static_cast<std::int64_t>(text.size()))
      wrong.push_back(fmt::format("text at {} after {}", t->at_bytes, text.size()));
    text += t->text;
  }
  void on_speech(Message& m) {
    touch(m);
    auto s = read<Speech>(m);
    if (pieces_may_jump && (s->piece > pieces_ || s->first_sample > piece_samples_)) {
      pieces_ = s->piece;
      piece_samples_ = s->first_sample;
    }
    if (s->piece != pieces_) wrong.push_back(fmt::format("piece {} after {}", s->piece, pieces_));
    if (s->first_sample != piece_samples_)
      wrong.push_back(fmt::format("sample {} after {}", s->first_sample, piece_samples_));
    if (!s->payload.empty()) {
      expect_audible(m);
      sounding_ = m.head.turn.value;
      if (sounds_.empty() || sounds_.back().turn != sounding_) sounds_.push_back({sounding_});
      sounds_.back().samples += static_cast<std::int64_t>(s->payload.size() / 2);
    }
    audio.insert(audio.end(), s->payload.begin(), s->payload.end());
    piece_samples_ += static_cast<std::int64_t>(s->payload.size() / 2);
    turn_samples_ += static_cast<std::int64_t>(s->payload.size() / 2);
    if (!s->last) return;
    lengths_.resize(static_cast<std::size_t>(pieces_), -1);
    lengths_.push_back(piece_samples_);
    ++pieces_;
    piece_samples_ = 0;
  }
  void on_done(Message& m) {
    touch(m);
    auto d = read<TurnDone>(m);
    degraded.push_back(d->degraded);
    turns.push_back(json::parse(text_of(d->payload)));
    const auto turn = m.head.turn.value;
    settle(d->settled, d->sound_from);
    turn_over(turn, d->remembered);
    turn_ended_ = turn;
    if (!d->remembered) forgotten_.insert(turn);
    whole_of[turn] = turns.back()["assistant"];
    if (!cut_turns_.contains(turn)) heard_of[turn] = whole_of[turn];
    interrupted_ = 0;
    for (auto& s : sounds_) s.complete = s.complete || s.turn <= turn;
    finish();
  }
  void on_checkpoint(Message& m) {
    checkpoint = *read<Checkpoint>(m);
    checkpoints.push_back(checkpoint);
    for (auto& [number, message] : kept_)
      if (number <= checkpoint.input && message.head.type == MessageType::configure)
        static_cast<Settings&>(settings) = *read<Configure>(message);
    std::erase_if(kept_, [&](const auto& k) { return k.first <= checkpoint.input; });
    drop_behind();
  }
  /// What a loudspeaker has of a turn.
  struct Sound {
    std::uint32_t turn;
    std::int64_t samples = 0, heard = 0;
    bool complete = false;
  };
  std::deque<Sound> sounds_;
  Time ticked_at_{};
  std::set<std::uint32_t> cut_turns_, forgotten_;
  std::uint32_t interrupted_ = 0;  ///< the open turn, if it was interrupted
  std::uint32_t sounding_ = 0;     ///< the last turn with sound
  bool must_begin_ = false, typed_since_cancel_ = false;
  std::uint32_t stream_ = 0, open_turn_ = 0;
  std::uint64_t next_input_ = 1, said_ = 0;
  std::int64_t turn_told_ = 0, sound_from_ = 0;
  std::uint32_t turn_ended_ = 0;    ///< the last one whose end was told, remembered or not
  std::uint32_t turn_resumed_ = 0;  ///< the one under way when the client came back: its inputs went with the gateway
  bool moved_ = false;              ///< to another controller since then
  TurnFacts decided_, decided_before_;  ///< of the turn under way; as the gateway knew it that was lost
  bool is_open_ = false;
  std::map<std::uint32_t, std::int64_t> said_played_;  ///< the last word on each turn
  std::uint32_t cancels_ = 0;                          ///< and has not heard that it is cancelled
  std::deque<std::pair<std::uint64_t, Message>> kept_;
  std::vector<std::int32_t> ids_;
  std::int64_t pieces_ = 0, piece_samples_ = 0, turn_samples_ = 0;
  std::vector<std::int64_t> lengths_;

 public:
  bool opened_degraded = false;
};

}  // namespace parlando::controller::fakes
