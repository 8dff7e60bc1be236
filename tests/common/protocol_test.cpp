#define BOOST_TEST_MODULE protocol
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "common/protocol/delivery.hpp"

namespace parlando::protocol {
namespace {

Message audio_message() {
  Message m;
  m.head.type = MessageType::audio;
  m.head.session = {7, 9}, m.head.epoch = Epoch::of(3, 1), m.head.turn = 4, m.head.stream = 2, m.head.sequence = 11, m.head.trace = 5,
  m.head.remaining_ms = 250;
  m.body = R"({"rate":16000})";
  m.payload.assign(640, std::byte{0x5a});
  return m;
}

struct Wire {
  std::vector<std::byte> envelope, body, payload;
  explicit Wire(const Message& m) {
    const auto f = encode(m);
    BOOST_REQUIRE(f.has_value());
    envelope.assign(f->envelope.begin(), f->envelope.end());
    const auto b = std::as_bytes(std::span(f->body));
    body.assign(b.begin(), b.end());
    payload = f->payload;
  }
  Result<Message> read() const {
    const std::span<const std::byte> frames[] = {envelope, body, payload};
    return decode(frames);
  }
  Errc code() const {
    const auto r = read();
    return r ? Errc::ok : r.error().code;
  }
};

void check_code(Errc got, Errc want) { BOOST_TEST(to_string(got) == to_string(want)); }

}  // namespace

BOOST_AUTO_TEST_CASE(what_is_encoded_is_decoded) {
  const auto m = audio_message();
  const auto r = Wire(m).read();
  BOOST_REQUIRE_MESSAGE(r.has_value(), (r ? std::string() : r.error().message));
  BOOST_TEST((r->head.session == m.head.session && r->head.epoch == m.head.epoch));
  BOOST_TEST(r->head.sequence == 11u);
  BOOST_TEST(r->head.remaining_ms == 250u);
  BOOST_TEST(body_of(*r)["rate"] == 16000);
  BOOST_TEST((r->payload == m.payload));
}

BOOST_AUTO_TEST_CASE(the_envelope_lies_on_the_wire_as_documented) {
  const Wire w(audio_message());
  BOOST_TEST(w.envelope.size() == 80u);
  BOOST_TEST(std::memcmp(w.envelope.data(), "PRLD\x01\x00\x50\x00\x20\x00", 10) == 0);
  BOOST_TEST(std::to_integer<int>(w.envelope[36]) == 3);  // the session's half of the epoch
  BOOST_TEST(std::to_integer<int>(w.envelope[48]) == 11);
  const std::string digits = "123456789";
  BOOST_TEST(crc32c(std::as_bytes(std::span(digits))) == 0xe3069283u);  // check value of CRC-32C
}

BOOST_AUTO_TEST_CASE(every_kind_of_bad_input_gets_its_own_code) {
  auto with = [](auto&& change) {
    Wire w(audio_message());
    change(w);
    return w.code();
  };
  check_code(with([](Wire& w) { w.envelope.resize(5); }), Errc::bad_frame);
  check_code(with([](Wire& w) { w.envelope.resize(79); }), Errc::bad_frame);
  check_code(with([](Wire& w) { w.envelope[0] = std::byte{0}; }), Errc::bad_magic);
  check_code(with([](Wire& w) { w.envelope[4] = std::byte{9}; }), Errc::bad_version);
  check_code(with([](Wire& w) { w.envelope[8] = std::byte{0xee}; }), Errc::unknown_type);
  check_code(with([](Wire& w) { w.payload.pop_back(); }), Errc::bad_frame);
  check_code(with([](Wire& w) { w.payload[3] ^= std::byte{1}; }), Errc::bad_frame);
  check_code(with([](Wire& w) { w.envelope[41] ^= std::byte{1}; }), Errc::bad_frame);  // the turn: only the checksum sees it
  auto bad = audio_message();
  bad.body = "[1]";
  check_code(Wire(bad).code(), Errc::bad_json);
  bad.body = "{\"a\":";
  check_code(Wire(bad).code(), Errc::bad_json);
  bad.body = "{\"a\":" + std::string(40, '[') + std::string(40, ']') + "}";
  check_code(Wire(bad).code(), Errc::bad_json);
  bad.body = std::string(kBodyBytesMax + 1, ' ');
  check_code(encode(bad).error().code, Errc::bad_frame);
  bad = audio_message();
  bad.payload.resize(32 * 1024 + 1);
  check_code(encode(bad).error().code, Errc::bad_frame);
  const std::span<const std::byte> one[] = {std::span<const std::byte>()};
  check_code(decode(one).error().code, Errc::bad_frame);
}

BOOST_AUTO_TEST_CASE(any_flipped_bit_is_noticed) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    Wire w(audio_message());
    auto& frame = i % 3 == 0 ? w.envelope : i % 3 == 1 ? w.body : w.payload;
    frame[random() % frame.size()] ^= std::byte(1 << random() % 8);
    BOOST_TEST(!w.read().has_value());
  }
}

BOOST_AUTO_TEST_CASE(duplicates_stale_epochs_and_gaps_are_told_apart) {
  Inbox inbox;
  Envelope e;
  e.epoch = Epoch::of(1, 0), e.sequence = 1, e.flags = kFlagStart;
  using V = Inbox::Verdict;
  Envelope middle = e;
  middle.sequence = 5, middle.flags = 0;
  BOOST_TEST((inbox.judge(middle) == V::gap));  // an unknown stream does not begin in its middle
  BOOST_TEST((inbox.judge(e) == V::accept));
  BOOST_TEST((inbox.judge(e) == V::duplicate));
  e.sequence = 3, e.flags = 0;
  BOOST_TEST((inbox.judge(e) == V::gap));
  e.sequence = 2;
  BOOST_TEST((inbox.judge(e) == V::accept));
  e.epoch = Epoch::of(1, 1), e.sequence = 2;  // a replay under a new attempt
  BOOST_TEST((inbox.judge(e) == V::duplicate));
  e.sequence = 3;
  BOOST_TEST((inbox.judge(e) == V::accept));
  e.epoch = Epoch::of(1, 0), e.sequence = 4;  // the stopped owner wakes up
  BOOST_TEST((inbox.judge(e) == V::stale));
  e.epoch = Epoch::of(2, 0), e.sequence = 1, e.flags = kFlagStart;  // another controller adopted the session
  BOOST_TEST((inbox.judge(e) == V::accept));
  BOOST_TEST(*inbox.acknowledged({}, 0) == 1u);
}

BOOST_AUTO_TEST_CASE(a_lossy_reordering_repeating_link_delivers_everything_once_and_in_order) {
  for (unsigned seed = 1; seed <= 50; ++seed) {
    std::mt19937 random(seed);
    Outbox out(8, 1 << 20);
    out.replay(Epoch::of(1, 0));  // the session epoch that context granted
    Inbox in;
    std::vector<Message> link;
    std::vector<int> got;
    std::uint32_t attempt = 0;
    int sent = 0;
    for (int step = 0; step < 3000 && got.size() < 60; ++step) {
      if (sent < 60 && random() % 3 == 0) {
        Message m;
        m.head.type = MessageType::tokens;
        m.body = nlohmann::json{{"n", sent}}.dump();
        if (out.push(m)) ++sent;
      }
      if (random() % 17 == 0) out.replay(Epoch::of(1, ++attempt));  // the connection broke
      for (auto& m : out.take()) {
        if (random() % 4 == 0) continue;  // lost
        link.push_back(m);
        if (random() % 5 == 0) link.push_back(m);  // twice
      }
      if (link.size() > 1 && random() % 3 == 0) std::swap(link[random() % link.size()], link[random() % link.size()]);
      while (!link.empty() && random() % 2) {
        const auto m = link.front();
        link.erase(link.begin());
        if (in.judge(m.head) == Inbox::Verdict::accept) got.push_back(body_of(m)["n"].get<int>());
      }
      if (const auto ack = in.acknowledged({}, 0); ack && random() % 2) out.window(*ack, *ack + 8);
    }
    BOOST_TEST_CONTEXT("seed " << seed) {
      BOOST_REQUIRE(got.size() == 60u);
      for (int i = 0; i < 60; ++i) BOOST_TEST(got[i] == i);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_full_outbox_refuses_rather_than_grows) {
  Outbox out(1000, 5 * kEnvelopeBytes);
  int taken = 0;
  for (int i = 0; i < 9; ++i) taken += out.push(Message{}).has_value();
  BOOST_TEST(taken == 5);
  out.window(5, 1000);
  BOOST_TEST(out.push(Message{}).has_value());
  BOOST_TEST(out.unacknowledged() == 1u);
}

BOOST_AUTO_TEST_CASE(losing_a_replica_moves_only_its_own_sessions) {
  const std::vector<std::string> four = {"a", "b", "c", "d"}, three = {"a", "b", "d"};
  std::vector<int> counts(4);
  for (std::uint64_t s = 0; s < 4000; ++s) {
    const auto before = *rendezvous({s, s * 7}, four), after = *rendezvous({s, s * 7}, three);
    ++counts[before];
    if (four[before] != "c") BOOST_TEST(four[before] == three[after]);
  }
  for (const int c : counts) BOOST_TEST(std::abs(c - 1000) < 150);
  BOOST_TEST(!rendezvous({1, 1}, {}).has_value());
}

BOOST_AUTO_TEST_CASE(both_ways_to_the_checksum_agree) {
  std::vector<std::byte> bytes;
  for (int n = 0; n < 70; ++n) {
    BOOST_TEST(crc32c(bytes, 17u * static_cast<unsigned>(n)) == crc32c_table(bytes, 17u * static_cast<unsigned>(n)));
    bytes.push_back(std::byte(n * 37));
  }
}

BOOST_AUTO_TEST_CASE(a_field_of_another_type_reads_as_its_default) {
  const auto body = nlohmann::json::parse(R"({"text":"hi","number":-3,"flag":true,"list":[1],"half":0.5})");
  BOOST_TEST(text_in(body, "text") == "hi");
  BOOST_TEST(integer_in(body, "number") == -3);
  BOOST_TEST(flag_in(body, "flag"));
  for (const auto* key : {"list", "half", "missing"}) {
    BOOST_TEST(text_in(body, key, "none") == "none");
    BOOST_TEST(integer_in(body, key, 9) == 9);
    BOOST_TEST(flag_in(body, key, true));
  }
  BOOST_TEST(text_in(nlohmann::json::array(), "text").empty());
  BOOST_TEST(dump({{"text", "a\xff"}}) == "{\"text\":\"a\xef\xbf\xbd\"}");
}

}  // namespace parlando::protocol
