#define BOOST_TEST_MODULE protocol
#include "common/protocol/codec.hpp"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <random>

#include "common/protocol/messages.hpp"

namespace parlando::protocol {
namespace {

const Time kNow{std::chrono::hours(1)};

Message audio_message() {
  Message m = pack(Audio{1600, Bytes(640, std::byte{0x5a})});
  m.head.session = {7, 9};
  m.head.epoch = {3};
  m.head.turn = {4};
  m.head.stream = {2};
  m.head.sequence = 11;
  m.head.trace = 5;
  m.head.remaining_ms = 250;
  return m;
}
Message text_message(std::string body) {
  Message m;
  m.head.type = MessageType::say;
  m.head.sequence = 12;
  m.body = std::move(body);
  return m;
}

struct Wire {
  Bytes envelope, body, payload;
  explicit Wire(const Frames& f) : envelope(f.envelope.begin(), f.envelope.end()), payload(f.payload) {
    const auto b = std::as_bytes(std::span(f.body));
    body.assign(b.begin(), b.end());
  }
  Result<Decoded> read() const {
    const std::span<const std::byte> frames[] = {envelope, body, payload};
    return decode(frames, kNow);
  }
  Errc code() const {
    const auto r = read();
    return r ? Errc::ok : r.error().code;
  }
};
Wire batch_of(const std::vector<Message>& messages) {
  std::vector<const Message*> together;
  for (const auto& m : messages) together.push_back(&m);
  return Wire(encode_batch(together));
}

void check_code(Errc got, Errc want) { BOOST_TEST(to_string(got) == to_string(want)); }
void same(const Message& got, const Message& want) {
  BOOST_TEST((got.head.type == want.head.type));
  BOOST_TEST((got.head.session == want.head.session && got.head.epoch == want.head.epoch));
  BOOST_TEST((got.head.turn == want.head.turn && got.head.stream == want.head.stream));
  BOOST_TEST(got.head.sequence == want.head.sequence);
  BOOST_TEST(got.head.trace == want.head.trace);
  BOOST_TEST(got.head.remaining_ms == want.head.remaining_ms);
  BOOST_TEST(got.body == want.body);
  BOOST_TEST((got.payload == want.payload));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(codec)

BOOST_AUTO_TEST_CASE(what_is_encoded_is_decoded) {
  const auto m = audio_message();
  auto r = Wire(encode(m)).read();
  BOOST_REQUIRE_MESSAGE(r.has_value(), (r ? std::string() : r.error().message));
  BOOST_REQUIRE(r->messages.size() == 1u);
  BOOST_TEST(!r->batch);
  same(r->messages[0], m);
  BOOST_TEST((r->messages[0].deadline == kNow + milliseconds(250)));
  BOOST_TEST(read<Audio>(r->messages[0])->first_sample == 1600);
}

BOOST_AUTO_TEST_CASE(the_envelope_lies_on_the_wire_as_documented) {
  const Wire w(encode(audio_message()));
  BOOST_TEST(w.envelope.size() == 80u);
  BOOST_TEST(std::memcmp(w.envelope.data(), "PRLD\x01\x00\x50\x00\x20\x00", 10) == 0);
  BOOST_TEST(std::to_integer<int>(w.envelope[12]) == 250);
  BOOST_TEST(std::to_integer<int>(w.envelope[16]) == 7);
  BOOST_TEST(std::to_integer<int>(w.envelope[24]) == 9);
  BOOST_TEST(std::to_integer<int>(w.envelope[32]) == 3);
  BOOST_TEST(std::to_integer<int>(w.envelope[40]) == 4);
  BOOST_TEST(std::to_integer<int>(w.envelope[44]) == 2);
  BOOST_TEST(std::to_integer<int>(w.envelope[48]) == 11);
  BOOST_TEST(std::to_integer<int>(w.envelope[56]) == 5);
  BOOST_TEST(std::to_integer<int>(w.envelope[64]) == 8);
  BOOST_TEST(std::to_integer<int>(w.envelope[68]) == (640 & 0xff));
  const std::string digits = "123456789";
  BOOST_TEST(crc32c(std::as_bytes(std::span(digits))) == 0xe3069283u);  // check value of CRC-32C
}

BOOST_AUTO_TEST_CASE(a_batch_lies_on_the_wire_as_documented) {
  const auto w = batch_of({audio_message(), text_message("{}")});
  BOOST_TEST(std::to_integer<int>(w.envelope[8]) == 9);
  BOOST_TEST(std::to_integer<int>(w.envelope[48]) == 11);
  BOOST_TEST(w.body.empty());
  BOOST_REQUIRE(w.payload.size() == 56u + 8 + 640 + 56 + 2);
  BOOST_TEST(std::to_integer<int>(w.payload[0]) == 32);
  BOOST_TEST(std::to_integer<int>(w.payload[8]) == 7);
  BOOST_TEST(std::to_integer<int>(w.payload[24]) == 3);
  BOOST_TEST(std::to_integer<int>(w.payload[36]) == 2);
  BOOST_TEST(std::to_integer<int>(w.payload[48]) == 8);
  BOOST_TEST(std::to_integer<int>(w.payload[56 + 8 + 640]) == 71);
}

BOOST_AUTO_TEST_CASE(a_batch_is_its_messages_with_numbers_that_follow_each_other) {
  std::vector<Message> all = {audio_message(), text_message(R"({"text":"a"})"), audio_message()};
  all[2].head.sequence = 13;
  all[2].head.remaining_ms = 0;
  auto r = batch_of(all).read();
  BOOST_REQUIRE_MESSAGE(r.has_value(), (r ? std::string() : r.error().message));
  BOOST_TEST(r->batch);
  BOOST_REQUIRE(r->messages.size() == 3u);
  for (std::size_t i = 0; i < 3; ++i) same(r->messages[i], all[i]);
  BOOST_TEST((r->messages[2].deadline == Time::max()));
}

BOOST_AUTO_TEST_CASE(every_kind_of_bad_input_gets_its_own_code) {
  auto with = [](auto&& change) {
    Wire w(encode(audio_message()));
    change(w);
    return w.code();
  };
  check_code(with([](Wire& w) { w.envelope.resize(5); }), Errc::bad_frame);
  check_code(with([](Wire& w) { w.envelope.resize(79); }), Errc::bad_frame);
  check_code(with([](Wire& w) { w.envelope[0] = std::byte{0}; }), Errc::bad_magic);
  check_code(with([](Wire& w) { w.envelope[4] = std::byte{9}; }), Errc::bad_version);
  check_code(with([](Wire& w) { w.payload.pop_back(); }), Errc::bad_frame);
  check_code(with([](Wire& w) { w.payload[3] ^= std::byte{1}; }), Errc::bad_frame);
  check_code(with([](Wire& w) { w.envelope[41] ^= std::byte{1}; }),
             Errc::bad_frame);  // the turn: only the checksum sees it
  for (const auto* body : {"[1]", "{\"a\":", "7", "{\"a\":\"\xff\"}", "{} {}"}) {
    check_code(Wire(encode(text_message(body))).code(), Errc::bad_json);
    check_code(check(text_message(body)).error().code, Errc::bad_json);
  }
  const auto deep = text_message("{\"a\":" + std::string(40, '[') + std::string(40, ']') + "}");
  check_code(Wire(encode(deep)).code(), Errc::bad_json);
  check_code(check(deep).error().code, Errc::bad_json);
  check_code(Wire(encode(text_message(std::string(kBodyBytesMax + 1, ' ')))).code(), Errc::bad_frame);
  check_code(check(text_message(std::string(kBodyBytesMax + 1, ' '))).error().code, Errc::bad_frame);
  auto large = audio_message();
  large.payload.resize(32 * 1024 + 1);
  check_code(Wire(encode(large)).code(), Errc::bad_frame);
  check_code(check(large).error().code, Errc::bad_frame);
  const std::span<const std::byte> one[] = {std::span<const std::byte>()};
  check_code(decode(one).error().code, Errc::bad_frame);
}

BOOST_AUTO_TEST_CASE(a_type_of_a_later_version_keeps_its_number_and_nothing_else) {
  auto m = audio_message();
  m.head.type = static_cast<MessageType>(127);
  auto r = Wire(encode(m)).read();
  BOOST_REQUIRE(r.has_value());
  BOOST_TEST(r->skipped == 1u);
  BOOST_TEST(r->messages[0].unknown);
  BOOST_TEST(r->messages[0].head.sequence == 11u);
  BOOST_TEST(r->messages[0].payload.empty());
  m.head.sequence = 0;
  check_code(Wire(encode(m)).code(), Errc::unknown_type);
  m.head.sequence = 12;
  r = batch_of({audio_message(), m, text_message("{}")}).read();
  BOOST_REQUIRE(r.has_value());
  BOOST_TEST(r->skipped == 1u);
  BOOST_REQUIRE(r->messages.size() == 3u);
  BOOST_TEST(r->messages[1].unknown);
  BOOST_TEST(r->messages[2].head.sequence == 13u);
}

BOOST_AUTO_TEST_CASE(a_batch_with_anything_wrong_in_it_does_not_count_at_all) {
  const auto refuse = [](const std::vector<Message>& messages, Errc code) {
    check_code(batch_of(messages).code(), code);
  };
  refuse({audio_message(), text_message("[1]")}, Errc::bad_json);
  Message word;
  word.head.type = MessageType::heartbeat;
  refuse({audio_message(), word}, Errc::bad_frame);
  auto large = audio_message();
  large.payload.resize(40 * 1024);
  refuse({audio_message(), large}, Errc::bad_frame);
  // Sizes that lie, under a checksum that is right.
  for (const int at : {48, 52}) {
    for (const std::uint32_t size : {600u, 0xffffffffu, 0x7fffffffu}) {
      const auto w = batch_of({audio_message()});
      Message outer;
      outer.head.type = MessageType::batch;
      outer.head.sequence = 1;
      outer.payload = w.payload;
      std::memcpy(outer.payload.data() + at, &size, 4);
      check_code(Wire(encode(outer)).code(), Errc::bad_frame);
    }
  }
  Message outer;
  outer.head.type = MessageType::batch;
  outer.head.sequence = 1;
  check_code(Wire(encode(outer)).code(), Errc::bad_frame);  // empty
  outer.payload.resize(55);
  check_code(Wire(encode(outer)).code(), Errc::bad_frame);
  outer.payload.assign(56 * (kBatchMessagesMax + 1), std::byte{0});
  check_code(Wire(encode(outer)).code(), Errc::bad_frame);
}

BOOST_AUTO_TEST_CASE(any_flipped_bit_is_noticed) {
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) {
    auto w = i % 2 ? Wire(encode(audio_message())) : batch_of({audio_message(), text_message(R"({"text":"a"})")});
    auto& frame = i % 3 == 0 || w.body.empty() ? w.envelope : i % 3 == 1 ? w.body : w.payload;
    frame[random() % frame.size()] ^= std::byte(1 << random() % 8);
    BOOST_TEST(!w.read().has_value());
  }
}

BOOST_AUTO_TEST_CASE(both_ways_to_the_checksum_agree) {
  std::vector<std::byte> bytes;
  for (int n = 0; n < 70; ++n) {
    BOOST_TEST(crc32c(bytes, 17u * static_cast<unsigned>(n)) == crc32c_table(bytes, 17u * static_cast<unsigned>(n)));
    bytes.push_back(std::byte(n * 37));
  }
}

BOOST_AUTO_TEST_CASE(the_link_s_own_words_are_those_and_no_others) {
  std::string control;
  for (std::uint16_t t = 0; t < kTypeMax; ++t)
    if (is_known(t) && is_control(static_cast<MessageType>(t)))
      control += std::string(to_string(static_cast<MessageType>(t))) + " ";
  BOOST_TEST(control == "hello heartbeat heartbeat_reply window refused resync batch ");
  for (const auto type :
       {MessageType::audio, MessageType::flush, MessageType::speech, MessageType::tokens, MessageType::hear})
    BOOST_TEST(is_packed(type));  // no JSON on the path of a frame
  BOOST_TEST(!is_known(0));
  for (const std::uint16_t retired : {35, 65, 66, 68, 69}) BOOST_TEST(!is_known(retired));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::protocol
