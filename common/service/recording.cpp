#include "common/service/recording.hpp"

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/protocol/codec.hpp"
#include "common/telemetry/log.hpp"

namespace parlando::service {
namespace fs = std::filesystem;
using nlohmann::json;
using protocol::Bytes;
using protocol::Message;

namespace {

constexpr std::string_view kFirstLine = "parlando recording 1";
constexpr std::size_t kHeaderBytesMax = 1u << 20;
constexpr std::uint32_t kRecordBytesMax = protocol::kMessageBytesMax + (1u << 16);
constexpr std::size_t kFlushBytes = 64u << 10;
constexpr milliseconds kFlushEvery{1000};

// ------------------------------------------------------------------------------------------------ writing and reading

/// Values one behind the other.
class Writer {
 public:
  template <class T>
  Writer& number(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Writer& bytes(std::string_view text) {
    number(static_cast<std::uint32_t>(text.size()));
    out_.append(text);
    return *this;
  }
  Writer& message(const Message& message) {
    const auto frames = protocol::encode(message);
    bytes({reinterpret_cast<const char*>(frames.envelope.data()), frames.envelope.size()});
    bytes(frames.body);
    return bytes({reinterpret_cast<const char*>(frames.payload.data()), frames.payload.size()});
  }
  const std::string& text() const { return out_; }

 private:
  std::string out_;
};

/// @throw Failure when something is missing
class Reader {
 public:
  explicit Reader(std::string_view text) : rest_(text) {}
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view bytes() { return take(number<std::uint32_t>()); }
  Message message() {
    const auto part = [this] { return std::as_bytes(std::span(bytes())); };
    const auto envelope = part(), body = part(), payload = part();
    const std::span<const std::byte> frames[] = {envelope, body, payload};
    auto decoded = protocol::decode(frames);
    if (!decoded || decoded->messages.size() != 1)
      throw Failure({Errc::bad_format, "a recorded message is no message"});
    return std::move(decoded->messages[0]);
  }
  bool is_empty() const { return rest_.empty(); }

 private:
  std::string_view take(std::size_t size) {
    if (size > rest_.size()) throw Failure({Errc::bad_format, "a record ends in the middle"});
    const auto out = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return out;
  }
  std::string_view rest_;
};

std::int64_t count_of(Time time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}
Time time_of(std::int64_t count) {
  return Time(std::chrono::duration_cast<Time::duration>(std::chrono::nanoseconds(count)));
}

/// What identifies a message: sequence numbers and budgets are the link's.
std::string said(const std::vector<Out>& messages) {
  Writer out;
  for (const auto& [peer, message] : messages) {
    const auto frames = protocol::encode(message);
    auto crc = protocol::crc32c(std::as_bytes(std::span(peer)));
    crc = protocol::crc32c(frames.envelope, crc);
    crc = protocol::crc32c(std::as_bytes(std::span(frames.body)), crc);
    crc = protocol::crc32c(frames.payload, crc);
    out.number(static_cast<std::uint16_t>(message.head.type)).number(message.head.stream.value).number(crc);
  }
  return out.text();
}

class File {
 public:
  explicit File(RecordingOptions options) : options_(std::move(options)) {}
  /// A wrong folder is told before the service starts; a full disk keeps no service from starting.
  Result<void> open(const json& header) {
    errno = 0;
    out_.open(options_.file, std::ios::binary | std::ios::trunc);
    const bool full = errno == ENOSPC || errno == EDQUOT;
    if (!out_ && !full) return fail(Errc::io, "cannot write the recording '{}'", options_.file.string());
    // It holds what people say, and tokens of sessions.
    std::error_code code;
    if (fs::is_regular_file(options_.file, code))
      fs::permissions(options_.file, fs::perms::owner_read | fs::perms::owner_write, code);
    out_ << kFirstLine << "\n" << header.dump(-1, ' ', false, json::error_handler_t::replace) << "\n" << std::flush;
    if (!out_) end("it cannot be written");
    return {};
  }
  bool is_lost() const { return lost_; }
  void record(char kind, Time now, std::string_view content) {
    if (over_) return;
    if (written_ + content.size() > options_.bytes_max) return end("its limit is reached");
    Writer head;
    head.number(kind).number(count_of(now)).number(static_cast<std::uint32_t>(content.size()));
    out_.write(head.text().data(), static_cast<std::streamsize>(head.text().size()));
    out_.write(content.data(), static_cast<std::streamsize>(content.size()));
    written_ += head.text().size() + content.size();
    unflushed_ += head.text().size() + content.size();
    if (unflushed_ < kFlushBytes && now - flushed_at_ < kFlushEvery) return;
    flushed_at_ = now;
    unflushed_ = 0;
    if (!out_.flush()) end("it cannot be written");
  }

 private:
  void end(const char* why) {
    over_ = true;
    lost_ = !out_;
    out_.close();
    telemetry::log(telemetry::Level::warning, "the recording '{}' ends here: {}", options_.file.string(), why);
  }
  RecordingOptions options_;
  std::ofstream out_;
  std::uint64_t written_ = 0;
  std::size_t unflushed_ = 0;
  Time flushed_at_{};
  bool over_ = false;  ///< nothing more is written …
  bool lost_ = false;  ///< … for the disk did not take it
};

/// Passes everything on and writes it down.
class Recorded final : public Core {
 public:
  Recorded(std::unique_ptr<Core> core, Replayable& replayable, RecordingOptions options)
      : core_(std::move(core)), replayable_(replayable), file_(std::move(options)) {}
  Result<void> open(json header) {
    header["identity"] = replayable_.identity();
    return file_.open(header);
  }

  void on_message(const std::string& peer, Message message, Time now) override {
    follow_clock(now);
    Writer out;
    out.bytes(peer).number(count_of(message.deadline)).message(message);
    file_.record('m', now, out.text());
    watched(now, [&] { core_->on_message(peer, std::move(message), now); });
  }
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time now) override {
    follow_clock(now);
    Writer out;
    out.bytes(peer.instance).bytes(peer.role).number(peer.version).number(peer.caller).number(peer.ready);
    out.number(peer.draining).number(peer.slots).number(static_cast<std::uint8_t>(state));
    file_.record('p', now, out.text());
    watched(now, [&] { core_->on_peer(peer, state, now); });
  }
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) override {
    Writer out;
    Message only_head;
    only_head.head = head;
    out.bytes(peer).message(only_head).number(static_cast<std::uint16_t>(error.code)).bytes(error.message);
    file_.record('r', now, out.text());
    watched(now, [&] { core_->on_refused(peer, head, error, now); });
  }
  void on_tick(Time now) override {
    follow_clock(now);
    file_.record('t', now, {});
    count_failure();
    watched(now, [&] { core_->on_tick(now); });
  }
  bool work(Time now) override {
    const bool more = core_->work(now);
    auto messages = core_->take();
    if (more || !messages.empty()) file_.record('w', now, {});
    pass_on(std::move(messages), now);
    return more;
  }
  milliseconds tick_interval() const override { return core_->tick_interval(); }
  bool is_heavy() const override { return core_->is_heavy(); }
  void on_thread() override { core_->on_thread(); }
  int wait(std::span<pollfd> descriptors, milliseconds timeout) override { return core_->wait(descriptors, timeout); }
  Result<void> listen() override { return core_->listen(); }
  int listening_port() const override { return core_->listening_port(); }
  std::string why_not_ready() const override { return core_->why_not_ready(); }
  void add_metrics(telemetry::Metrics& metrics) override {
    core_->add_metrics(metrics);
    failures_ =
        metrics.counter("parlando_recording_failures_total", "Recordings that the disk did not take to their end");
    count_failure();
  }
  std::int64_t load() const override { return core_->load(); }
  std::int64_t slots() const override { return core_->slots(); }
  std::int64_t own_slots() const override { return core_->own_slots(); }
  bool drain() override {
    file_.record('d', now_, {});
    const bool done = core_->drain();
    pass_on(core_->take(), now_);
    return done;
  }

 private:
  void count_failure() {
    if (failures_.impl != nullptr) failures_.set_at_least(file_.is_lost() ? 1 : 0);
  }
  template <class F>
  void watched(Time now, F&& f) {
    try {
      f();
    } catch (...) {
      file_.record('x', now, {});
      pass_on(core_->take(), now);
      throw;
    }
    pass_on(core_->take(), now);
  }
  void pass_on(std::vector<Out> messages, Time now) {
    if (messages.empty()) return;
    file_.record('o', now, said(messages));
    for (auto& [peer, message] : messages) post(peer, std::move(message));
  }
  void follow_clock(Time now) {
    now_ = now;
    const auto steady = std::chrono::floor<std::chrono::seconds>(now.time_since_epoch());
    const std::chrono::seconds ahead = std::chrono::seconds(std::time(nullptr)) - steady;
    if (ahead_ && std::chrono::abs(ahead - *ahead_) <= std::chrono::seconds(1)) return;
    ahead_ = ahead;
    replayable_.set_wall_clock(ahead);
    Writer out;
    out.number(static_cast<std::int64_t>(ahead.count()));
    file_.record('c', now, out.text());
  }

  std::unique_ptr<Core> core_;
  Replayable& replayable_;
  File file_;
  telemetry::Metrics::Counter failures_;
  std::optional<std::chrono::seconds> ahead_;
  Time now_{};
};

// ------------------------------------------------------------------------------------------------ replay

struct Record {
  char kind = 0;
  Time time;
  std::string content;
};

/// Records of a file in order; one that was cut off is not there.
class Records {
 public:
  static Result<Records> open(const fs::path& file, json& header) {
    Records out;
    out.in_.open(file, std::ios::binary);
    if (!out.in_) return fail(Errc::not_found, "cannot open the recording '{}'", file.string());
    std::string first(kFirstLine.size() + 1, ' ');
    out.in_.read(first.data(), static_cast<std::streamsize>(first.size()));
    if (!out.in_ || first != std::string(kFirstLine) + "\n")
      return fail(Errc::bad_format, "'{}' is no recording: it does not begin with '{}'", file.string(), kFirstLine);
    std::string line;
    std::getline(out.in_, line);
    header = line.size() > kHeaderBytesMax ? json() : json::parse(line, nullptr, false);
    if (!header.is_object()) return fail(Errc::bad_format, "the header of '{}' is no JSON object", file.string());
    return out;
  }
  std::optional<Record> next() {
    char head[13];
    if (!in_.read(head, sizeof head)) return {};
    Reader reader({head, sizeof head});
    Record out;
    out.kind = reader.number<char>();
    out.time = time_of(reader.number<std::int64_t>());
    const auto size = reader.number<std::uint32_t>();
    if (size > kRecordBytesMax)
      throw Failure(
          {Errc::bad_format, fmt::format("a record of {} bytes, at most {} are written", size, kRecordBytesMax)});
    out.content.resize(size);
    if (!in_.read(out.content.data(), size)) return {};
    return out;
  }

 private:
  std::ifstream in_;
};

class Player {
 public:
  Player(Core& core, Replayable& replayable, const std::function<void(const Replayed&)>& told)
      : core_(core), replayable_(replayable), told_(told) {}

  /// @return false when something was said differently
  bool play(const Record& record) {
    if (record.kind == 'o') return compare(record);
    if (record.kind == 'x') return true;  // as the event before it has
    if (!expect_nothing(record.time)) return false;
    if (record.kind != 'c') ++result.events;
    if (!first_) first_ = record.time;
    Reader in(record.content);
    give(record.kind, in, record.time);
    for (auto& out : core_.take()) said_.push_back(std::move(out));
    return true;
  }
  ReplayResult result;

 private:
  /// What a core throws is part of what it does.
  template <class F>
  void guarded(F&& f) {
    try {
      f();
    } catch (...) {
    }
  }
  void give(char kind, Reader& in, Time now) {
    switch (kind) {
      case 'm': {
        const std::string peer(in.bytes());
        const auto deadline = in.number<std::int64_t>();
        auto message = in.message();
        message.deadline = deadline == count_of(Time::max()) ? Time::max() : time_of(deadline);
        if (told_) told_({seconds(now), false, peer, message});
        return guarded([&] { core_.on_message(peer, std::move(message), now); });
      }
      case 'p': {
        transport::Peer peer;
        peer.instance = in.bytes();
        peer.role = in.bytes();
        peer.version = in.number<std::uint16_t>();
        peer.caller = in.number<bool>();
        peer.ready = in.number<bool>();
        peer.draining = in.number<bool>();
        peer.slots = in.number<std::int64_t>();
        const auto state = static_cast<transport::PeerState>(in.number<std::uint8_t>());
        return guarded([&] { core_.on_peer(peer, state, now); });
      }
      case 'r': {
        const std::string peer(in.bytes());
        const auto head = in.message().head;
        const auto code = static_cast<Errc>(in.number<std::uint16_t>());
        const Error error{code, std::string(in.bytes())};
        return guarded([&] { core_.on_refused(peer, head, error, now); });
      }
      case 't':
        return guarded([&] { core_.on_tick(now); });
      case 'w':
        return guarded([&] { core_.work(now); });
      case 'd':
        return guarded([&] { core_.drain(); });
      case 'c':
        return replayable_.set_wall_clock(std::chrono::seconds(in.number<std::int64_t>()));
      default:
        throw Failure({Errc::bad_format, fmt::format("a record of the unknown kind '{}'", kind)});
    }
  }
  bool compare(const Record& record) {
    result.messages += said_.size();
    for (const auto& [peer, message] : said_)
      if (told_) told_({seconds(record.time), true, peer, message});
    const auto now = said(said_);
    const auto names = describe(said_);
    said_.clear();
    if (now == record.content) return true;
    result.difference = fmt::format("after {:.3f} s it says {}; recorded was {}", seconds(record.time), names,
                                    describe(record.content));
    return false;
  }
  bool expect_nothing(Time now) {
    if (said_.empty()) return true;
    result.difference = fmt::format("after {:.3f} s it says {}; recorded was nothing", seconds(now), describe(said_));
    return false;
  }
  static std::string describe(const std::vector<Out>& messages) {
    std::vector<std::string> names;
    for (const auto& [peer, message] : messages)
      names.push_back(fmt::format("{} on stream {}", to_string(message.head.type), message.head.stream.value));
    return names.empty() ? "nothing" : fmt::format("{}", fmt::join(names, ", "));
  }
  static std::string describe(const std::string& recorded) {
    std::vector<std::string> names;
    for (Reader in(recorded); !in.is_empty();) {
      const auto type = static_cast<protocol::MessageType>(in.number<std::uint16_t>());
      const auto stream = in.number<std::uint32_t>();
      in.number<std::uint32_t>();
      names.push_back(fmt::format("{} on stream {}", to_string(type), stream));
    }
    return fmt::format("{}", fmt::join(names, ", "));
  }
  double seconds(Time now) const { return std::chrono::duration<double>(now - first_.value_or(now)).count(); }

  Core& core_;
  Replayable& replayable_;
  const std::function<void(const Replayed&)>& told_;
  std::vector<Out> said_;
  std::optional<Time> first_;
};

}  // namespace

Result<std::unique_ptr<Core>> record(std::unique_ptr<Core> core, json header, RecordingOptions options) {
  auto* replayable = dynamic_cast<Replayable*>(core.get());
  if (replayable == nullptr)
    return fail(Errc::unsupported, "a {} cannot be recorded", header.value("service", std::string("service")));
  if (const auto why = replayable->why_not_replayable(); !why.empty())
    return fail(Errc::unsupported, "this {} cannot be recorded: {}", header.value("service", std::string()), why);
  auto out = std::make_unique<Recorded>(std::move(core), *replayable, std::move(options));
  PARLANDO_DO(out->open(std::move(header)));
  return std::unique_ptr<Core>(std::move(out));
}

Result<ReplayResult> replay(const fs::path& file, const MakeCore& make,
                            const std::function<void(const Replayed&)>& told) {
  json header;
  PARLANDO_TRY(auto records, Records::open(file, header));
  PARLANDO_TRY(const auto core, make(header));
  auto* replayable = dynamic_cast<Replayable*>(core.get());
  if (replayable == nullptr)
    return fail(Errc::unsupported, "what '{}' was recorded of cannot be replayed", file.string());
  replayable->set_identity(header.value("identity", std::string()));
  Player player(*core, *replayable, told);
  try {
    while (const auto record = records.next())
      if (!player.play(*record)) break;
  } catch (const Failure& failure) {
    return tl::make_unexpected(
        Error{failure.error.code, fmt::format("'{}': {}", file.string(), failure.error.message)});
  }
  return player.result;
}

}  // namespace parlando::service
