#pragma once
/// The tokenizer service without its process. Streams of speech: OpenTokenizer, Audio, Flush; a recording: Tokenize.
/// Both are answered by Tokens, the last of which ends the work; the stream's entry goes with Close or the caller. An
/// attempt (Flush with a number) is answered by what a Flush there would be, and by how complete the utterance sounds;
/// it changes nothing.
/// Behind an error a stream is silent until Close.
///
/// A unit of work is a pass of both encoders. In it are the streams whose turn has come and all others that have
/// something to read at that moment, by deadline, up to a number of rows: nobody waits for company. An end, of an
/// utterance or of an attempt, is due when it is asked for; a block when the next one will be complete, since nobody
/// waits for its codes before. One that is late already is due at once, behind what was asked for until then: who is
/// far behind holds nobody up. What has no parts (`exact`, recordings) is read alone.
/// What is thrown is the error of the stream for which it was done. One that cannot be told then is told at the next
/// step; what others have asked for is answered in any case.
#include <cstdint>
#include <deque>
#include <exception>
#include <map>

#include "common/config/fields.hpp"
#include "common/service/core.hpp"
#include "common/service/ended_streams.hpp"
#include "common/service/stream_table.hpp"
#include "services/tokenizer/model/live.hpp"

namespace parlando::tokenizer {

struct TokenizerConfig {
  int threads = 1;  ///< of the process's pool that one call takes at most, its own included
  std::string model = "models/nano/Step-Audio-Tokenizer";
  int guard_ms = 400;  ///< of sound that a group must have heard behind it before it is final in `stable` mode
  int sessions_max = 256;
  int utterance_seconds_max = 30;
  int batch_rows_max = 72;  ///< of both encoders that streams read side by side; one stream is read in any case
  template <class V>
  void fields(V&& v) {
    v("threads", threads), v("model", model), v("guard_ms", guard_ms), v("sessions_max", sessions_max),
        v("utterance_seconds_max", utterance_seconds_max), v("batch_rows_max", batch_rows_max);
  }
  std::vector<config::Problem> problems(const std::string& path) const;
};

class TokenizerCore final : public service::Core {
 public:
  static constexpr std::size_t kAttemptsMax = 1024;  ///< of one stream, not answered yet
  static Result<std::unique_ptr<service::Core>> make(const TokenizerConfig& config);
  TokenizerCore(TokenizerConfig config, std::shared_ptr<const SpeechTokenizer> model)
      : config_(std::move(config)),
        model_(std::move(model)),
        streams_(static_cast<std::size_t>(config_.sessions_max)) {}
  void on_thread() override;
  void on_message(const std::string& peer, protocol::Message message, Time now) override;
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time now) override;
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) override;
  bool work(Time now) override;
  bool is_heavy() const override { return true; }
  std::int64_t load() const override { return static_cast<std::int64_t>(streams_.size()); }
  std::int64_t slots() const override { return config_.sessions_max - load(); }
  void add_metrics(telemetry::Metrics& metrics) override;

 private:
  using Place = std::pair<Time, std::uint64_t>;  ///< when it is due; among equals, who came first
  struct Stream {
    protocol::Envelope head;
    LiveTokenizer live;
    bool exact = false;
    std::optional<std::int64_t> base_sample;  ///< position of the first sample
    struct Attempt {
      std::uint32_t number = 0;
      std::size_t end = 0;  ///< length of the utterance
      Time asked{};
    };
    std::deque<Attempt> attempts;                   ///< not yet answered
    std::optional<std::size_t> end;                 ///< length of the utterance, once flushed
    Time end_asked{};                               ///< or when the recording came
    std::size_t known_end = 0;                      ///< an end that was asked for
    std::vector<std::int32_t> known;                ///< its codes
    double known_completeness = TurnEnd::kUnknown;  ///< at that end
    std::optional<LiveTokenizer::Reading> reading;  ///< under way: up to `reading_end`, or a block
    std::optional<std::size_t> reading_end;
    std::vector<float> recording;
    int recording_rate = 0;
    std::deque<Time> blocks;     ///< when each came that has not been read; those of an utterance at most
    std::optional<Place> place;  ///< in the queue, also while it is in a pass
    bool done = false;           ///< answered for good, or failed: what still comes is ignored
    bool failed = false;         ///< something was thrown; unless it is done, that could not be told yet
    Time deadline = Time::max();
  };
  using Key = service::CallerStream;
  /// What a stream needs next: a pass of its own, or a part of one with others.
  enum class Need { nothing, own_pass, part };
  using Due = std::pair<Key, Stream*>;
  void take_message(const Key& key, protocol::Message message, Time now);
  Result<void> open(const Key& key, protocol::Message& message, Time now);
  Result<void> follow(const Key& key, Stream& stream, protocol::Message& message, Time now);
  Result<void> hear(const Key& key, Stream& stream, protocol::Audio audio, Time now);
  void fail_stream(const Key& key, Stream& stream, const Error& error);
  void end(Stream& stream);
  void drop(const Key& key);
  void queue(const Key& key, Stream& stream, Time now, bool served = false);
  void leave_queue(Stream& stream);
  std::vector<Due> take_due(Time now, std::exception_ptr& untold);
  void begin(Stream& stream);
  void count(const Stream& stream, Time now);
  Result<void> read_alone(const Key& key, Stream& stream);
  Result<void> take(const Key& key, Stream& stream);
  void read_parts(std::span<const Due> streams);
  void fail_thrown(const Key& key, Stream& stream);
  void fail_now_or_later(const Key& key, Stream& stream, std::exception_ptr& untold);
  void answer_known(const Key& key, Stream& stream);
  static Need need_of(const Stream& stream);
  static std::optional<std::size_t> next_end(const Stream& stream);
  static std::optional<Time> asked(const Stream& stream);
  /// Speech up to there has not been read while it came; `exact` streams read nothing before they are asked.
  static bool has_block(const Stream& stream, std::size_t end = SIZE_MAX);
  static void know(Stream& stream, std::size_t end, LiveEnd codes);
  void tell(const Key& key, const Stream& stream, const LiveUpdate& update);
  void tell_all(const Key& key, const Stream& stream, std::uint32_t attempt, std::span<const std::int32_t> codes);
  TokenizerConfig config_;
  std::shared_ptr<const SpeechTokenizer> model_;
  service::StreamTable<Stream> streams_;
  service::EndedStreams ended_;  ///< without an entry: they could not be opened, or their caller did not take an answer
  std::map<Place, Key> queue_;   ///< streams with work; each once
  std::uint64_t queued_ = 0;
  telemetry::Metrics::Counter seconds_, codes_, passes_;
  telemetry::Metrics::Histogram rows_, block_wait_, end_wait_;
};

}  // namespace parlando::tokenizer
