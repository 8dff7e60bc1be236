#define BOOST_TEST_MODULE recording
#include "common/service/recording.hpp"

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/temporary_directory.hpp"

using namespace parlando;
using namespace parlando::service;
using nlohmann::json;
using protocol::Message;

namespace {

/// Says how often it was spoken to, and by whom; throws when it is told to.
class Counting final : public Core, public Replayable {
 public:
  explicit Counting(std::int64_t step = 1) : step_(step) {}
  void on_message(const std::string& peer, Message message, Time now) override {
    const auto say = protocol::read<protocol::Say>(message);
    if (!say) return;
    count_ += step_;
    tell(peer, message.head, fmt::format("{} {} {} {}", name_, count_, say->text, wall(now)));
    if (say->text == "fall") raise(Errc::internal, "it fell");
    if (message.deadline != Time::max()) tell(peer, message.head, "in time");
  }
  void on_peer(const transport::Peer& peer, transport::PeerState state, Time) override {
    tell(peer.instance, {}, fmt::format("{} {} {} {}", peer.role, to_string(state), peer.caller, peer.slots));
  }
  void on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time) override {
    tell(peer, head, std::string(to_string(error.code)) + error.message);
  }
  void on_tick(Time) override {
    if (++ticks_ % 2 == 0) tell("tick", {}, std::to_string(ticks_));
  }
  bool drain() override {
    tell("drain", {}, "soon");
    return false;
  }
  bool work(Time) override {
    if (count_ != 3 || std::exchange(worked_, true)) return false;
    tell("work", {}, "done");
    return false;
  }
  std::string identity() const override { return name_; }
  void set_identity(std::string name) override { name_ = std::move(name); }
  void set_wall_clock(std::chrono::seconds ahead) override { ahead_ = ahead; }
  std::string name_ = "nobody";

 private:
  std::int64_t wall(Time now) const { return (now.time_since_epoch() + ahead_) / std::chrono::hours(24); }
  void tell(const std::string& peer, const protocol::Envelope& head, std::string text) {
    send(peer, head, protocol::Say{std::move(text)});
  }
  std::int64_t step_, count_ = 0, ticks_ = 0;
  bool worked_ = false;
  std::chrono::seconds ahead_{0};
};

struct Tape {
  TemporaryDirectory folder;
  std::filesystem::path file = folder.path() / "core.plrec";
  std::unique_ptr<Core> core;
  Time now{std::chrono::hours(5)};
  std::size_t said = 0;

  explicit Tape(std::uint64_t bytes_max = 1u << 20) {
    auto counting = std::make_unique<Counting>();
    counting->name_ = "anna";
    auto recorded = record(std::move(counting), {{"service", "counting"}}, {file, bytes_max});
    BOOST_REQUIRE(recorded.has_value());
    core = *std::move(recorded);
  }
  void say(const std::string& text, bool deadline = false) {
    Message message = protocol::pack(protocol::Say{text});
    message.head.stream = {7};
    if (deadline) message.deadline = now + milliseconds(5);
    try {
      core->on_message("caller", std::move(message), now);
    } catch (const Failure&) {
    }
    step();
  }
  void step() {
    core->work(now);
    said += core->take().size();
    now += milliseconds(20);
  }
  /// Something of everything.
  void live() {
    core->on_peer({"ctx#1", "context", 1, true, true, false, 9}, transport::PeerState::up, now);
    say("hello");
    core->on_tick(now);
    say("fall");
    core->on_tick(now);
    say("again", true);
    core->on_refused("caller", protocol::pack(protocol::Say{"x"}).head, {Errc::overloaded, "full"}, now);
    step();
    core->drain();
    step();
    core.reset();
  }
};

MakeCore counting(std::int64_t step = 1) {
  return [step](const json&) -> Result<std::unique_ptr<Core>> {
    return std::unique_ptr<Core>(std::make_unique<Counting>(step));
  };
}

std::string content(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(recording)

BOOST_AUTO_TEST_CASE(a_replay_says_the_same_again) {
  Tape tape;
  tape.live();
  std::size_t told = 0, heard = 0;
  const auto result = replay(tape.file, counting(), [&](const Replayed& r) { (r.said ? told : heard)++; });
  BOOST_REQUIRE(result.has_value());
  BOOST_TEST(!result->difference.has_value());
  BOOST_TEST(result->messages == tape.said);
  BOOST_TEST(told == tape.said);
  BOOST_TEST(heard == 3u);
  BOOST_TEST(result->events == 9u);  // one of them a step of work that had a result
}

BOOST_AUTO_TEST_CASE(a_core_that_says_something_else_is_found_where_it_does) {
  Tape tape;
  tape.live();
  const auto result = replay(tape.file, counting(2));
  BOOST_REQUIRE(result.has_value());
  BOOST_REQUIRE(result->difference.has_value());
  BOOST_TEST(*result->difference == "after 0.000 s it says say on stream 7; recorded was say on stream 7");
}

BOOST_AUTO_TEST_CASE(what_is_missing_from_the_file_is_found) {
  Tape tape;
  tape.live();
  auto bytes = content(tape.file);
  // The first of what was said is taken out: the core says more than is written.
  const auto header = bytes.find('\n', bytes.find('\n') + 1) + 1;
  std::size_t at = header;
  while (bytes[at] != 'o') {
    std::uint32_t size = 0;
    std::memcpy(&size, bytes.data() + at + 9, 4);
    at += 13 + size;
  }
  std::uint32_t size = 0;
  std::memcpy(&size, bytes.data() + at + 9, 4);
  bytes.erase(at, 13 + size);
  std::ofstream(tape.file, std::ios::binary) << bytes;
  const auto result = replay(tape.file, counting());
  BOOST_REQUIRE(result.has_value());
  BOOST_REQUIRE(result->difference.has_value());
  BOOST_TEST(result->difference->ends_with("recorded was nothing"));
}

BOOST_AUTO_TEST_CASE(a_file_that_was_cut_off_is_read_up_to_there) {
  Tape tape;
  tape.live();
  const auto bytes = content(tape.file);
  const auto header = bytes.find('\n', bytes.find('\n') + 1) + 1;
  for (std::size_t size = header; size < bytes.size(); ++size) {
    std::ofstream(tape.file, std::ios::binary) << bytes.substr(0, size);
    const auto result = replay(tape.file, counting());
    BOOST_REQUIRE(result.has_value());
    BOOST_TEST(!result->difference.has_value());
  }
}

BOOST_AUTO_TEST_CASE(nonsense_is_an_error_that_names_the_file) {
  Tape tape;
  tape.live();
  const auto bytes = content(tape.file);
  const auto check = [&](const std::string& text, Errc code) {
    std::ofstream(tape.file, std::ios::binary) << text;
    const auto result = replay(tape.file, counting());
    BOOST_REQUIRE(!result.has_value());
    BOOST_TEST((result.error().code == code), result.error().message);
    BOOST_TEST(result.error().message.find(tape.file.string()) != std::string::npos);
  };
  check("", Errc::bad_format);
  check("parlando recording 2\n{}\n", Errc::bad_format);
  check("parlando recording 1\n[]\n", Errc::bad_format);
  check("parlando recording 1\n{}\nzzzzzzzzz" + std::string(4, '\0'), Errc::bad_format);
  check("parlando recording 1\n{}\nmzzzzzzzz" + std::string(4, '\xff'), Errc::bad_format);
  const auto header = bytes.find('\n', bytes.find('\n') + 1) + 1;
  for (std::size_t at = header; at < bytes.size(); ++at) {
    auto damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x55);
    std::ofstream(tape.file, std::ios::binary) << damaged;
    (void)replay(tape.file, counting());  // whatever it says, it says it
  }
  std::filesystem::remove(tape.file);
  BOOST_TEST((replay(tape.file, counting()).error().code == Errc::not_found));
}

BOOST_AUTO_TEST_CASE(at_its_limit_the_recording_ends_and_the_service_goes_on) {
  Tape tape(300);
  for (int i = 0; i < 50; ++i) tape.say("more");
  BOOST_TEST(tape.said >= 50u);
  tape.core.reset();
  BOOST_TEST(std::filesystem::file_size(tape.file) < 600u);
  const auto result = replay(tape.file, counting());
  BOOST_REQUIRE(result.has_value());
  BOOST_TEST(!result->difference.has_value());
}

BOOST_AUTO_TEST_CASE(a_full_disk_keeps_no_service_from_starting_and_is_counted) {
  for (const bool full : {true, false}) {
    TemporaryDirectory folder;
    const auto file = full ? std::filesystem::path("/dev/full") : folder.path() / "x";
    auto core = record(std::make_unique<Counting>(), {{"service", "counting"}}, {file});
    BOOST_REQUIRE(core.has_value());
    telemetry::Metrics metrics;
    (*core)->add_metrics(metrics);
    (*core)->on_tick(Time{});
    (*core)->on_tick(Time{});
    BOOST_TEST((*core)->take().size() == 1u);
    const auto count = std::string("parlando_recording_failures_total ") + (full ? "1" : "0") + "\n";
    BOOST_TEST(metrics.text().find(count) != std::string::npos, metrics.text());
  }
}

BOOST_AUTO_TEST_CASE(only_cores_that_can_be_replayed_are_recorded) {
  class Plain final : public Core {
    void on_message(const std::string&, Message, Time) override {}
  };
  TemporaryDirectory folder;
  const auto refused = record(std::make_unique<Plain>(), {{"service", "plain"}}, {folder.path() / "x"});
  BOOST_REQUIRE(!refused.has_value());
  BOOST_TEST(refused.error().message == "a plain cannot be recorded");
  const auto nowhere = record(std::make_unique<Counting>(), {{"service", "counting"}}, {folder.path() / "no" / "x"});
  BOOST_REQUIRE(!nowhere.has_value());
  BOOST_TEST((nowhere.error().code == Errc::io));
}

BOOST_AUTO_TEST_SUITE_END()
