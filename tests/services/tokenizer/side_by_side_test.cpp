/// Streams that are read side by side get, bit for bit, what each would get alone.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <map>
#include <random>

#include "common/audio/audio_file.hpp"
#include "common/base/codes.hpp"
#include "common/base/pcm.hpp"
#include "common/nn/threads.hpp"
#include "services/tokenizer/tokenizer_core.hpp"
#include "tests/support/core_driver.hpp"
#include "tests/support/out_of_memory.hpp"

namespace parlando::tokenizer {
namespace {
namespace fs = std::filesystem;
using Work = LiveTokenizer::Work;
using Reading = LiveTokenizer::Reading;

const fs::path kBundled = fs::path(PARLANDO_SOURCE_DIR) / "models/nano";
constexpr std::int64_t kPart = 7680;  // a block; the first is two

/// Random weights of no round size. @param positions  of the semantic branch: 25 are a second
std::shared_ptr<const SpeechTokenizer> short_sighted(std::int64_t positions) {
  checkpoint::TensorMap l, s;
  std::mt19937 random(5);
  const auto add = [&](checkpoint::TensorMap& to, const std::string& name, checkpoint::Shape shape, float scale,
                       float offset = 0) {
    std::vector<float> values(static_cast<std::size_t>(*checkpoint::elements_of(shape)));
    std::normal_distribution<float> normal(offset, scale);
    for (auto& v : values) v = normal(random);
    to[name] = checkpoint::make_f32(std::move(shape), std::move(values));
  };
  const auto norm = [&](checkpoint::TensorMap& to, const std::string& name, std::int64_t n) {
    add(to, name + ".weight", {n}, 0.1f, 1), add(to, name + ".bias", {n}, 0.1f);
  };
  constexpr std::int64_t d = 36, inner = 70;
  for (int n = 0; n < 3; ++n) {
    const auto at = n == 0 ? std::string("encoder.encoders0.0.") : fmt::format("encoder.encoders.{}.", n - 1);
    const std::int64_t in = n == 0 ? 560 : d;
    norm(l, at + "norm1", in), norm(l, at + "norm2", d);
    add(l, at + "self_attn.linear_q_k_v.weight", {3 * d, in}, 0.1f);
    add(l, at + "self_attn.linear_q_k_v.bias", {3 * d}, 0.1f);
    add(l, at + "self_attn.linear_out.weight", {d, d}, 0.2f), add(l, at + "self_attn.linear_out.bias", {d}, 0.1f);
    add(l, at + "self_attn.fsmn_block.weight", {d, 1, 11}, 0.2f);
    add(l, at + "feed_forward.w_1.weight", {inner, d}, 0.2f), add(l, at + "feed_forward.w_1.bias", {inner}, 0.1f);
    add(l, at + "feed_forward.w_2.weight", {d, inner}, 0.2f), add(l, at + "feed_forward.w_2.bias", {d}, 0.1f);
  }
  norm(l, "encoder.after_norm", d);
  add(l, "cmvn.shift", {560}, 0.1f, 8), add(l, "cmvn.rescale", {560}, 0.01f, 0.3f);
  add(l, "kmeans.centroids", {50, d}, 1);
  add(s, "encoder.conv1.weight", {d, 128, 3}, 0.1f), add(s, "encoder.conv1.bias", {d}, 0.1f);
  add(s, "encoder.conv2.weight", {d, d, 3}, 0.1f), add(s, "encoder.conv2.bias", {d}, 0.1f);
  add(s, "encoder.positional_embedding", {positions, d}, 0.5f);
  for (int n = 0; n < 2; ++n) {
    const auto at = fmt::format("encoder.blocks.{}.", n);
    norm(s, at + "attn_ln", d), norm(s, at + "mlp_ln", d);
    for (const char* name : {"query", "key", "value", "out"}) {
      add(s, at + "attn." + name + ".weight", {d, d}, 0.3f);
      if (std::string(name) != "key") add(s, at + "attn." + name + ".bias", {d}, 0.1f);
    }
    add(s, at + "mlp.0.weight", {inner, d}, 0.2f), add(s, at + "mlp.0.bias", {inner}, 0.1f);
    add(s, at + "mlp.2.weight", {d, inner}, 0.2f), add(s, at + "mlp.2.bias", {d}, 0.1f);
  }
  add(s, "quantizer._codebook.embed", {60, d}, 1);
  return std::make_shared<SpeechTokenizer>(std::make_shared<LinguisticEncoder>(std::move(l), 3, "random"),
                                           std::make_shared<SemanticEncoder>(std::move(s), 3, "random"));
}

std::shared_ptr<const SpeechTokenizer> nano() {
  static const auto loaded = *SpeechTokenizer::load(kBundled / "Step-Audio-Tokenizer");
  return loaded;
}

/// Bundled questions one behind the other: some 36 s, so that a piece of the semantic branch ends inside.
const std::vector<float>& speech() {
  static const auto wave = [] {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(kBundled / "questions"))
      if (entry.path().extension() == ".wav") files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    std::vector<float> out;
    while (out.size() < 36 * 16000)
      for (const auto& file : files) {
        const auto audio = *audio::read_audio(file);
        BOOST_REQUIRE(audio.rate == 16000);
        out.insert(out.end(), audio.wave.begin(), audio.wave.end());
      }
    return out;
  }();
  return wave;
}

void same(const Result<LiveEnd>& got, const Result<LiveEnd>& expected) {
  BOOST_REQUIRE(got.has_value());
  BOOST_REQUIRE(expected.has_value());
  BOOST_TEST(got->codes == expected->codes, boost::test_tools::per_element());
  BOOST_REQUIRE(got->states.defined() == expected->states.defined());
  if (got->states.defined()) BOOST_TEST(at::equal(got->states, expected->states));
  BOOST_TEST(got->completeness == expected->completeness);
}

/// Streams of different ages, some at a block and some at an end, a few at a time and in any order: what each has at
/// its ends, the states included, is what its twin has that was never with anybody.
void any_company_changes_nothing(const std::shared_ptr<const SpeechTokenizer>& tokenizer, std::uint32_t seed,
                                 int rounds) {
  const c10::InferenceMode guard;
  std::mt19937 random(seed);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
  struct Twins {
    LiveTokenizer live, alone;
    std::size_t from, heard = 0;
    std::optional<Reading> reading;
    std::optional<std::size_t> end;
    std::vector<std::int32_t> told, told_alone;
  };
  std::vector<Twins> twins;
  const auto join = [&] {
    twins.push_back({LiveTokenizer(tokenizer, {}), LiveTokenizer(tokenizer, {}), below(3 * 16000), 0, {}, {}, {}, {}});
  };
  const auto hear = [&](Twins& t, std::size_t n) {
    n = std::min(n, speech().size() - t.from - t.heard);
    const auto part = std::span(speech()).subspan(t.from + t.heard, n);
    t.live.add(part), t.alone.add(part), t.heard += n;
  };
  const auto finish = [&](Twins& t) {
    if (t.end) {
      same(t.live.take_end(*t.reading), t.alone.stable(*t.end));
    } else {
      const auto got = t.live.take_block(std::move(*t.reading)), expected = t.alone.step();
      BOOST_REQUIRE(got.has_value());
      BOOST_REQUIRE(expected.has_value());
      BOOST_TEST(got->codes == expected->codes, boost::test_tools::per_element());
      BOOST_TEST(got->final_groups == expected->final_groups);
    }
    t.reading.reset();
  };
  int passes = 0, ends = 0;
  for (int round = 0; round < rounds; ++round) {
    if (twins.size() < 2 || (twins.size() < 6 && below(4) == 0)) {
      join();
      if (round == 0 && seed % 3 == 0)
        hear(twins.back(), 29 * 16000);  // far behind: many blocks, and the end of a piece
    }
    if (below(12) == 0)  // gone, whatever was under way
      twins.erase(twins.begin() + static_cast<std::ptrdiff_t>(below(twins.size())));
    for (auto& t : twins) hear(t, below(12000));
    std::vector<Work> work;
    std::shuffle(twins.begin(), twins.end(), random);
    for (auto& t : twins) {
      if (!t.reading && below(4) == 0) {
        t.end = below(8) == 0 ? below(t.heard + 1) : t.heard - std::min(t.heard, below(16000));
        t.reading = t.live.until(*t.end);
        ++ends;
      } else if (!t.reading && t.live.is_behind()) {
        t.end.reset();
        t.reading = t.live.block();
      }
      if (t.reading && !t.reading->is_done() && below(5) > 0) {
        BOOST_TEST(t.reading->rows() >= 0);
        work.push_back({&t.live, &*t.reading});
      }
    }
    passes += work.size() > 1;
    LiveTokenizer::read(work);
    for (auto& t : twins)
      if (t.reading && t.reading->is_done()) finish(t);
  }
  BOOST_TEST(passes > rounds / 4);
  BOOST_TEST(ends > rounds / 8);
}

BOOST_AUTO_TEST_CASE(any_company_changes_nothing_of_what_a_stream_gets) {
  nn::use_threads(1);  // as the service by default
  const auto model = short_sighted(1500);
  for (std::uint32_t seed = 1; seed <= 6; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) { any_company_changes_nothing(model, seed, 40); }
  }
  any_company_changes_nothing(nano(), 2, 25);
}

/// A stream that cannot be read is told so; who was beside it gets what it would have got.
BOOST_AUTO_TEST_CASE(an_error_is_the_error_of_the_stream_that_has_it) {
  const auto tokenizer = short_sighted(40);  // 1.6 s
  const auto wave = [](std::size_t from, std::size_t n) { return std::span(speech()).subspan(from, n); };
  LiveTokenizer longer(tokenizer, {}), shorter(tokenizer, {}), alone(tokenizer, {});
  longer.add(wave(0, 40000)), shorter.add(wave(9000, 20000)), alone.add(wave(9000, 20000));
  auto far = longer.until(40000), near = shorter.until(20000);
  while (!far.is_done() || !near.is_done()) {
    std::vector<Work> work;
    if (!far.is_done()) work.push_back({&longer, &far});
    if (!near.is_done()) work.push_back({&shorter, &near});
    LiveTokenizer::read(work);
  }
  const auto failed = longer.take_end(far);
  BOOST_REQUIRE(!failed.has_value());
  BOOST_TEST((failed.error().code == Errc::invalid_argument));
  BOOST_TEST(failed.error().message.find("40 positions") != std::string::npos, failed.error().message);
  same(shorter.take_end(near), alone.stable(20000));
}

/// No memory in the middle of a pass, wherever that is: both are told; the streams stand where they stood and go on.
BOOST_AUTO_TEST_CASE(a_pass_that_fails_leaves_the_streams_as_they_were) {
  const auto tokenizer = short_sighted(1500);
  // With another second behind the pass that fails: what its blocks leave behind is in what comes then.
  const auto wave = std::span(speech()).first(3 * kPart), other = std::span(speech()).subspan(9000, 3 * kPart);
  const auto rest = [](LiveTokenizer& live, std::span<const float> heard) {
    while (live.is_behind()) BOOST_REQUIRE(live.step().has_value());
    return live.stable(heard.size());
  };
  const auto alone = [&](std::span<const float> heard) {
    LiveTokenizer live(tokenizer, {});
    live.add(heard);
    return rest(live, heard);
  };
  const auto expected_one = alone(wave), expected_two = alone(other);
  std::size_t n = 0;
  for (bool met = true; met; ++n) {
    LiveTokenizer one(tokenizer, {}), two(tokenizer, {});
    one.add(wave), two.add(other);
    BOOST_REQUIRE(one.step().has_value());  // behind a state of its own
    auto first = one.block(), second = two.block();
    const Work work[] = {{&one, &first}, {&two, &second}};
    {
      const OutOfMemory now(n, SIZE_MAX);
      LiveTokenizer::read(work);
      met = now.was_met();
    }
    BOOST_TEST(first.is_done());
    BOOST_TEST(second.is_done());
    if (met) {
      BOOST_TEST((one.take_block(std::move(first)).error().code == Errc::internal));
      BOOST_TEST((two.take_block(std::move(second)).error().code == Errc::internal));
    } else {
      BOOST_TEST(one.take_block(std::move(first)).has_value());
      BOOST_TEST(two.take_block(std::move(second)).has_value());
    }
    BOOST_TEST_CONTEXT("tensor " << n << " of the pass") {
      same(rest(one, wave), expected_one);
      same(rest(two, other), expected_two);
    }
  }
  BOOST_TEST(n > 50u);
  // One tensor alone: what each is read for by itself then is what it gets.
  for (std::size_t i = 0; i + 1 < n; ++i) {
    LiveTokenizer one(tokenizer, {}), two(tokenizer, {});
    one.add(wave), two.add(other);
    auto first = one.block(), second = two.block();
    const Work work[] = {{&one, &first}, {&two, &second}};
    {
      const OutOfMemory now(i, 1);
      LiveTokenizer::read(work);
    }
    BOOST_TEST_CONTEXT("tensor " << i << " alone") {
      BOOST_REQUIRE(one.take_block(std::move(first)).has_value());
      BOOST_REQUIRE(two.take_block(std::move(second)).has_value());
      same(rest(one, wave), expected_one);
      same(rest(two, other), expected_two);
    }
  }
}

// ---- the service

protocol::Bytes pcm(std::int64_t from, std::int64_t n) {
  return to_pcm16(std::span(speech()).subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(n)));
}

struct Service {
  telemetry::Metrics metrics;
  TokenizerCore core;
  CoreDriver driver{core};
  Service(const TokenizerConfig& config, std::shared_ptr<const SpeechTokenizer> model)
      : core(config, std::move(model)) {
    core.add_metrics(metrics);
  }
  void open(std::uint32_t stream) {
    driver.tell("controller", stream, protocol::OpenTokenizer{protocol::TokenizerMode::stable});
  }
  void hear(std::uint32_t stream, std::int64_t first, protocol::Bytes bytes) {
    driver.tell("controller", stream, protocol::Audio{first, std::move(bytes)});
  }
  /// Streams that the next unit of work answered.
  std::vector<std::uint32_t> next() {
    driver.work(1);
    std::vector<std::uint32_t> out;
    for (const auto& h : driver.take()) out.push_back(h.stream());
    return out;
  }
  bool counts(const std::string& line) const { return metrics.text().find(line + "\n") != std::string::npos; }
};
using Streams = std::vector<std::uint32_t>;

BOOST_AUTO_TEST_CASE(what_is_due_is_read_side_by_side_up_to_a_number_of_rows) {
  // A first block has four windows of nine rows.
  const std::pair<int, std::vector<Streams>> limits[] = {
      {1, {{1}, {2}, {3}, {4}, {5}}}, {36, {{1}, {2}, {3}, {4}, {5}}}, {72, {{1, 2}, {3, 4}, {5}}},
      {179, {{1, 2, 3, 4}, {5}}},     {180, {{1, 2, 3, 4, 5}}},
  };
  const auto model = short_sighted(1500);
  for (const auto& [rows, expected] : limits) {
    BOOST_TEST_CONTEXT(rows << " rows") {
      Service s({.batch_rows_max = rows}, model);
      for (const std::uint32_t stream : {1, 2, 3, 4, 5}) s.open(stream), s.hear(stream, 0, pcm(0, 2 * kPart));
      for (const auto& streams : expected) BOOST_TEST(s.next() == streams, boost::test_tools::per_element());
      BOOST_TEST(s.next().empty());
      BOOST_TEST(s.counts(fmt::format("parlando_tokenizer_pass_rows_count {}", expected.size())));
      BOOST_TEST(s.counts("parlando_tokenizer_pass_rows_sum 180"));
      BOOST_TEST(s.counts("parlando_tokenizer_passes_total 5"));
    }
  }
}

BOOST_AUTO_TEST_CASE(an_end_goes_before_blocks_and_no_block_waits_for_ever) {
  Service s({.batch_rows_max = 1}, short_sighted(1500));
  for (const std::uint32_t stream : {1, 2, 3}) s.open(stream);
  s.hear(3, 0, pcm(0, 5000));
  s.hear(1, 0, pcm(0, 2 * kPart));
  s.driver.now += milliseconds(10);
  s.hear(2, 0, pcm(0, 2 * kPart));
  s.driver.now += milliseconds(10);
  s.driver.tell("controller", 3, protocol::Flush{-1, 1});
  const auto check = [&](const Streams& expected) {
    BOOST_TEST(s.next() == expected, boost::test_tools::per_element());
  };
  check({3});
  // An end that is asked for when the next block of a stream would be complete comes behind the last one.
  s.driver.now += milliseconds(465);
  s.driver.tell("controller", 3, protocol::Flush{4000, 2});
  check({1});
  check({3});
  check({2});
  BOOST_TEST(s.counts("parlando_tokenizer_wait_seconds_count{what=\"block\"} 2"));
  BOOST_TEST(s.counts("parlando_tokenizer_wait_seconds_count{what=\"end\"} 2"));
}

BOOST_AUTO_TEST_CASE(a_block_waits_from_when_it_was_complete) {
  Service s({.batch_rows_max = 1}, short_sighted(1500));
  for (const std::uint32_t stream : {1, 2, 3}) s.open(stream);
  const auto check = [&](const Streams& expected) {
    BOOST_TEST(s.next() == expected, boost::test_tools::per_element());
  };
  s.hear(1, 0, pcm(0, 3 * kPart));
  s.driver.now += milliseconds(100);
  s.hear(2, 0, pcm(0, 2 * kPart));
  s.driver.now += milliseconds(150);
  check({1});
  check({1});  // its second block came before the other's first
  check({2});
  BOOST_TEST(s.counts("parlando_tokenizer_wait_seconds_count{what=\"block\"} 3"));
  BOOST_TEST(s.counts("parlando_tokenizer_wait_seconds_sum{what=\"block\"} 0.65"));
  // Many blocks at once, far behind: each has waited since then, and an end does not wait for all of them.
  s.hear(1, 3 * kPart, pcm(3 * kPart, 4 * kPart));
  s.driver.now += milliseconds(1000);
  check({1});
  s.driver.now += milliseconds(500);
  s.hear(3, 0, pcm(0, 5000));
  s.driver.tell("controller", 3, protocol::Flush{-1});
  s.driver.now += milliseconds(500);
  check({1});
  check({3});
  check({1});
  check({1});
  check({});
  BOOST_TEST(s.counts("parlando_tokenizer_wait_seconds_count{what=\"block\"} 7"));
  BOOST_TEST(s.counts("parlando_tokenizer_wait_seconds_sum{what=\"block\"} 7.65"));
}

BOOST_AUTO_TEST_CASE(nobody_waits_for_company) {
  Service s({}, short_sighted(1500));
  for (const std::uint32_t stream : {1, 2}) s.open(stream);
  s.hear(2, 0, pcm(0, 2 * kPart - 1));
  s.hear(1, 0, pcm(0, 2 * kPart));
  BOOST_TEST(s.next() == Streams{1}, boost::test_tools::per_element());
  s.hear(2, 2 * kPart - 1, pcm(2 * kPart - 1, 1));
  BOOST_TEST(s.next() == Streams{2}, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(who_asks_for_an_end_takes_no_blocks_along_that_have_time) {
  Service s({}, short_sighted(1500));
  for (const std::uint32_t stream : {1, 2, 3}) s.open(stream);
  for (const std::uint32_t stream : {1, 2}) s.hear(stream, 0, pcm(0, 2 * kPart));
  s.hear(3, 0, pcm(0, kPart));
  s.driver.tell("controller", 3, protocol::Flush{-1});
  BOOST_TEST(s.next() == Streams{3}, boost::test_tools::per_element());
  BOOST_TEST(s.next() == (Streams{1, 2}), boost::test_tools::per_element());
  // Those that are late go with it.
  for (const std::uint32_t stream : {1, 2}) s.hear(stream, 2 * kPart, pcm(2 * kPart, kPart));
  s.driver.now += milliseconds(600);
  s.open(4);
  s.hear(4, 0, pcm(0, kPart));
  s.driver.tell("controller", 4, protocol::Flush{-1});
  BOOST_TEST(s.next() == (Streams{1, 2, 4}), boost::test_tools::per_element());
}

/// Streams that join, leave in mid-utterance, lose their caller or their budget between two parts of a reading, ask for
/// ends and end: every answer at an end is that of a stream that was alone.
BOOST_AUTO_TEST_CASE(every_end_is_answered_as_if_the_stream_had_been_alone) {
  nn::use_threads(1);
  const auto model = short_sighted(1500);
  int answers = 0, cancelled = 0, expired = 0;
  for (std::uint32_t seed = 1; seed <= 15; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      const auto below = [&](std::int64_t n) {
        return static_cast<std::int64_t>(random() % static_cast<std::uint32_t>(n));
      };
      Service s({.sessions_max = 8, .batch_rows_max = static_cast<int>(1 + below(200))}, model);
      struct Stream {
        std::string peer;
        std::int64_t from = 0, heard = 0;
        std::map<std::uint32_t, std::int64_t> asked;  ///< number of an attempt, 0: the end
        std::uint32_t attempts = 0;
      };
      std::map<std::uint32_t, Stream> open;
      std::uint32_t next = 1;
      const auto close = [&](std::uint32_t number) {
        s.driver.tell(open.at(number).peer, number, protocol::Close{});
        open.erase(number);
      };
      const auto look = [&] {
        for (const auto& h : s.driver.take()) {
          BOOST_REQUIRE(open.contains(h.stream()));
          auto& stream = open.at(h.stream());
          if (h.is<protocol::ErrorMessage>()) {
            BOOST_TEST(h.code() == "deadline_exceeded");
            close(h.stream()), ++expired;
            continue;
          }
          const auto tokens = h.read<protocol::Tokens>();
          if (!tokens.last) continue;
          BOOST_REQUIRE(stream.asked.contains(tokens.attempt));
          const auto end = stream.asked.at(tokens.attempt);
          LiveTokenizer alone(model, {});
          const auto bytes = pcm(stream.from, stream.heard);
          BOOST_REQUIRE(alone.push(from_pcm16(bytes)).has_value());
          BOOST_TEST(from_bytes<std::int32_t>(tokens.payload) == alone.stable(static_cast<std::size_t>(end))->codes,
                     boost::test_tools::per_element());
          ++answers;
          stream.asked.erase(tokens.attempt);
          if (tokens.attempt == 0) close(h.stream());
        }
      };
      for (int i = 0; i < 100; ++i) {
        const auto what = below(12);
        if (open.empty() || (what == 0 && open.size() < 6)) {
          auto& stream = open[next];
          stream.peer = below(2) == 0 ? "one" : "two";
          stream.from = below(3 * 16000);
          s.driver.tell(stream.peer, next++, protocol::OpenTokenizer{protocol::TokenizerMode::stable});
        } else {
          auto at = std::next(open.begin(), below(static_cast<std::int64_t>(open.size())));
          auto& [number, stream] = *at;
          const bool ends = stream.asked.contains(0);
          if (what <= 6 && !ends) {
            const auto n = below(5) == 0 ? 20000 : below(6000);
            const auto deadline = below(15) == 0 ? s.driver.now + milliseconds(below(20)) : Time::max();
            s.driver.tell(stream.peer, number, protocol::Audio{stream.heard, pcm(stream.from + stream.heard, n)},
                          CoreDriver::kSession, deadline);
            stream.heard += n;
          } else if (what <= 8 && !ends) {
            const auto end = below(stream.heard + 1);
            const auto attempt = what == 7 ? 0 : ++stream.attempts;
            stream.asked[attempt] = end;
            s.driver.tell(stream.peer, number, protocol::Flush{end, attempt});
          } else if (what == 9) {
            close(number), ++cancelled;
          } else if (what == 10 && below(4) == 0) {
            const auto peer = stream.peer;
            s.driver.caller(peer, transport::PeerState::down);
            cancelled += static_cast<int>(std::erase_if(open, [&](const auto& o) { return o.second.peer == peer; }));
          }
        }
        s.driver.now += milliseconds(below(20));
        s.driver.work(static_cast<int>(below(3)));
        look();
      }
      s.driver.work();
      look();
      for (const auto& [number, stream] : open) BOOST_TEST(stream.asked.empty(), "stream " << number);
    }
  }
  BOOST_TEST(answers > 50);
  BOOST_TEST(cancelled > 20);
  BOOST_TEST(expired > 3);
}

}  // namespace
}  // namespace parlando::tokenizer
