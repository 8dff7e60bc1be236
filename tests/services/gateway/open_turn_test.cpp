#include "services/gateway/open_turn.hpp"

#include <boost/test/unit_test.hpp>

using namespace parlando;
using namespace parlando::gateway;
using protocol::TextKind;

namespace {

protocol::Text reply(std::int64_t at, std::string text, std::size_t ids = 0) {
  return {TextKind::text, at, std::move(text), protocol::Bytes(4 * ids)};
}
protocol::Speech sound(std::uint32_t piece, std::int64_t first, std::size_t samples, bool last = false) {
  return {piece, first, 22050, last, protocol::Bytes(samples * 2)};
}
protocol::Open described(const OpenTurn& turn) {
  protocol::Open open;
  turn.describe(open);
  return open;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(open_turn_test)

BOOST_AUTO_TEST_CASE(texts_are_shown_once_however_they_are_cut) {
  OpenTurn turn;
  turn.begin({1});
  const auto first = reply(0, "hello ", 2);
  BOOST_TEST(*turn.text(first) == "hello ");
  BOOST_TEST(!turn.text(first));
  const auto longer = reply(0, "hello world", 1);
  BOOST_TEST(*turn.text(longer) == "world");
  const auto next = reply(11, "!");
  BOOST_TEST(*turn.text(next) == "!");
  BOOST_TEST(described(turn).reply_bytes == 12);
  BOOST_TEST(described(turn).payload.size() == 12u);
}

BOOST_AUTO_TEST_CASE(a_cut_never_falls_within_a_character) {
  OpenTurn turn;
  turn.begin({1});
  turn.text(reply(0, "a"));
  BOOST_TEST(*turn.text(reply(0, "\xc3\xa9z")) == "z");
}

BOOST_AUTO_TEST_CASE(transcript_and_reply_are_counted_apart) {
  OpenTurn turn;
  turn.begin({1});
  BOOST_TEST(*turn.text({TextKind::transcript, 0, "what", {}}) == "what");
  BOOST_TEST(*turn.text(reply(0, "that")) == "that");
  BOOST_TEST(described(turn).transcript_bytes == 4);
  BOOST_TEST(described(turn).reply_bytes == 4);
}

BOOST_AUTO_TEST_CASE(tool_calls_are_counted_with_their_results) {
  OpenTurn turn;
  turn.begin({1});
  const protocol::Text call{TextKind::tool_call, 0, R"({"name":"t","arguments":{},"result":{"time":"12:30"}})",
                            protocol::Bytes(8)};
  BOOST_TEST(turn.text(call).has_value());
  BOOST_TEST(!turn.text(call));
  BOOST_TEST(turn.text({TextKind::tool_call, 1, "no json", {}}).has_value());
  BOOST_TEST(
      turn.text({TextKind::tool_call, 2, R"({"result":)" + std::string(40, '[') + std::string(40, ']') + "}", {}})
          .has_value());
  const auto open = described(turn);
  BOOST_TEST(open.tool_calls == 3);
  BOOST_TEST(open.tool_results.text == R"([{"time":"12:30"},null,null])");
  BOOST_TEST(open.payload.size() == 8u);
}

BOOST_AUTO_TEST_CASE(sound_is_heard_once_and_in_order) {
  OpenTurn turn;
  turn.begin({1});
  BOOST_TEST(turn.speech(sound(0, 0, 100)).size() == 200u);
  BOOST_TEST(turn.speech(sound(0, 0, 100)).empty());
  BOOST_TEST(turn.speech(sound(0, 50, 100)).size() == 100u);  // the second half is new
  BOOST_TEST(turn.speech(sound(0, 150, 50, true)).size() == 100u);
  BOOST_TEST(turn.speech(sound(0, 150, 50, true)).empty());
  BOOST_TEST(turn.speech(sound(1, 0, 30)).size() == 60u);
  const auto open = described(turn);
  BOOST_TEST(open.pieces == 1);
  BOOST_TEST(open.piece_samples == 30);
  BOOST_TEST(open.turn_samples == 230);
}

BOOST_AUTO_TEST_CASE(the_end_of_a_piece_may_carry_nothing) {
  OpenTurn turn;
  turn.begin({1});
  turn.speech(sound(0, 0, 100));
  BOOST_TEST(turn.speech(sound(0, 100, 0, true)).empty());
  BOOST_TEST(described(turn).pieces == 1);
  BOOST_TEST(described(turn).piece_samples == 0);
}

BOOST_AUTO_TEST_CASE(lengths_of_pieces_are_told_and_of_any_number_all_sound_is_heard) {
  OpenTurn turn;
  turn.begin({1});
  turn.speech(sound(0, 0, 30));
  turn.speech(sound(0, 30, 10, true));
  turn.speech(sound(1, 0, 7, true));
  turn.speech(sound(2, 0, 5));
  BOOST_TEST(described(turn).piece_lengths.text == "[40,7]");
  OpenTurn elsewhere;
  const auto open = described(turn);
  elsewhere.resume(open);
  elsewhere.speech(sound(2, 5, 1, true));
  BOOST_TEST(described(elsewhere).piece_lengths.text == "[40,7,6]");
  OpenTurn many;
  many.begin({2});
  for (std::uint32_t piece = 0; piece < 9000; ++piece) BOOST_TEST(many.speech(sound(piece, 0, 2, true)).size() == 4u);
  BOOST_TEST(described(many).pieces == 9000);
  BOOST_TEST(described(many).turn_samples == 18000);
}

BOOST_AUTO_TEST_CASE(another_turn_begins_from_nothing) {
  OpenTurn turn;
  turn.begin({1});
  turn.text(reply(0, "hello"));
  turn.begin({1});
  BOOST_TEST(described(turn).reply_bytes == 5);
  turn.begin({2});
  BOOST_TEST(described(turn).reply_bytes == 0);
  BOOST_TEST(described(turn).open_turn.value == 2u);
  turn.end();
  BOOST_TEST(!turn.is_open());
}

BOOST_AUTO_TEST_SUITE_END()
