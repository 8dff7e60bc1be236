#include "services/controller/text_chunker.hpp"

#include <boost/test/unit_test.hpp>

namespace parlando::controller {
namespace {

std::vector<std::string> run(const std::string& text, std::size_t packet, TextChunker::Options options = {}) {
  TextChunker chunker(options);
  std::vector<TextChunk> chunks;
  for (std::size_t at = 0; at < text.size(); at += packet)
    for (auto& chunk : chunker.push(std::string_view(text).substr(at, packet))) chunks.push_back(std::move(chunk));
  for (auto& chunk : chunker.finish()) chunks.push_back(std::move(chunk));
  std::vector<std::string> out;
  for (auto& chunk : chunks) {
    // Without its tag it is what stands in the text before its end.
    const auto spoken = chunk.text.substr(chunk.tag_bytes);
    BOOST_TEST(text.substr(0, chunk.end).ends_with(spoken));
    out.push_back(std::move(chunk.text));
  }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(text_chunker)

BOOST_AUTO_TEST_CASE(sentences_are_pieces_however_the_text_arrives) {
  const std::string text = "hello there, you! it is 3.5 degrees. bring a warm coat; or two";
  const std::vector<std::string> want{"hello there, you!", "it is 3.5 degrees.", "bring a warm coat;", "or two"};
  for (std::size_t packet = 1; packet <= text.size(); ++packet)
    BOOST_TEST(run(text, packet) == want, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(not_every_full_stop_ends_a_sentence) {
  const std::vector<std::vector<std::string>> cases{
      {"Dr. Smith and mrs. jones live in St. Louis.", "So do J. R. Ewing and I.", "Good."},
      {"it opens at 5 p.m. on fridays.", "come at 6 p.m.", "We are in the U.S. now."},
      {"take fruit, e.g. Apples.", "1. milk it is.", "2. Bread and 3.5 eggs.", "so am i, by now.", "no."},
      {"no. 2. Bread and 3.5 eggs.", "that is all"},
      {"the answer is 7.", "plan b. is better"}};
  for (const auto& want : cases) {
    std::string text;
    for (const auto& piece : want) text += (text.empty() ? "" : " ") + piece;
    for (std::size_t packet = 1; packet <= text.size(); ++packet)
      BOOST_TEST(run(text, packet) == want, boost::test_tools::per_element());
  }
}

BOOST_AUTO_TEST_CASE(a_sentence_of_a_word_or_two_is_spoken_with_the_next_one) {
  const std::vector<std::vector<std::string>> cases{{"hello! how can i help you?", "it is nice to hear you."},
                                                    {"good morning! yes?", "no. this is what i know;", "bye! see"},
                                                    {"here it is, at last:\n", "one\n", "two. three.\n", "four"},
                                                    {"你好！很高兴见到你。", "好的。再见"},
                                                    {"hi. ho"},
                                                    {"hi."}};
  for (const auto& want : cases)
    for (const std::string tag : {"", "(快速1)", "（快速1）"}) {
      auto text = tag;
      std::vector<std::string> trimmed;
      for (const auto& piece : want) {
        const bool spaced = text != tag && text.back() != '\n' && static_cast<unsigned char>(piece[0]) < 0x80;
        text += (spaced ? " " : "") + piece;
        trimmed.push_back(tag + piece.substr(0, piece.find_last_not_of('\n') + 1));
      }
      for (std::size_t packet = 1; packet <= text.size(); ++packet)
        BOOST_TEST(run(text, packet) == trimmed, boost::test_tools::per_element());
    }
}

BOOST_AUTO_TEST_CASE(the_first_piece_is_short) {
  std::string text = "well", chinese;
  while (text.size() < 600) text += " and another word";
  for (int n = 0; n < 100; ++n) chinese += "今天天气很好";
  for (const auto& [said, first, later] : {std::tuple(text, 110u, 210u), std::tuple(chinese, 63u, 123u)}) {
    const auto pieces = run(said, 7);
    BOOST_REQUIRE(pieces.size() > 2u);
    BOOST_TEST(pieces[0].size() <= first);
    BOOST_TEST(pieces[1].size() > first);
    BOOST_TEST(pieces[1].size() <= later);
  }
  const auto comma = run("this is what is said before anything else is, as it were, and so on and on and on", 5);
  BOOST_TEST(comma.size() == 1u);
  BOOST_TEST(run("this is what is said before anything else is said at all, as it were, and so on and on", 5).size() ==
             2u);
}

BOOST_AUTO_TEST_CASE(a_leading_tag_belongs_to_every_piece) {
  const std::vector<std::string> want{"(快速1)this is the one.", "(快速1)two."};
  BOOST_TEST(run("(快速1)this is the one. two.", 3) == want, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(long_text_is_cut_at_commas_and_then_at_spaces) {
  std::string text;
  for (int n = 0; n < 60; ++n) text += "word ";
  for (const auto& piece : run(text, 7, {.first = {40, 50, 50}, .later = {40, 50, 50}}))
    BOOST_TEST(piece.size() <= 56u);
  BOOST_TEST(run("aaaa bbbb, cccc, dddd", 4, {.first = {6, 50, 50}, .later = {6, 50, 50}}).size() == 2u);
}

BOOST_AUTO_TEST_CASE(text_without_marks_or_spaces_is_cut_between_characters) {
  std::string chinese, word(2000, 'a');
  for (int n = 0; n < 800; ++n) chinese += "今天天气很好";
  for (const auto& text : {chinese, word, "(慢速1)" + chinese, "Straße" + std::string(900, 'x') + "ü" + word}) {
    const auto pieces = run(text, text.size());
    std::string all;
    for (const auto& piece : pieces) {
      BOOST_TEST(piece.size() <= 800u);
      BOOST_TEST((static_cast<unsigned char>(piece.front()) & 0xc0) != 0x80);
      all += piece.starts_with("(慢速1)") && !all.empty() ? piece.substr(std::string("(慢速1)").size()) : piece;
    }
    BOOST_TEST(all == text);
    for (const std::size_t packet : {1, 2, 3, 5, 201}) BOOST_TEST(run(text, packet) == pieces);
  }
  // A mark that comes late is one all the same.
  const std::string mark = std::string(198, 'b') + "好。好";
  for (std::size_t packet = 1; packet <= mark.size(); ++packet)
    BOOST_TEST(run(mark, packet) == run(mark, mark.size()), boost::test_tools::per_element());
  const std::string stop = std::string(799, 'c') + "x. and more";
  for (std::size_t packet = 1; packet <= stop.size(); packet += 7)
    BOOST_TEST(run(stop, packet) == run(stop, stop.size()), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_short_sentence_in_front_of_a_pause_is_a_piece) {
  const auto paused = [](const std::string& text) {
    TextChunker chunker;
    std::vector<std::string> out;
    BOOST_TEST(chunker.push(text).empty());
    for (auto& chunk : chunker.pause()) {
      BOOST_TEST(text.substr(0, chunk.end).ends_with(chunk.text));
      out.push_back(std::move(chunk.text));
    }
    BOOST_TEST(chunker.pause().empty());
    // Nothing is lost or said twice.
    std::string all;
    for (const auto& piece : out) all += piece;
    for (auto& chunk : chunker.push(" and so on")) all += chunk.text;
    for (auto& chunk : chunker.finish()) all += chunk.text.substr(out.empty() ? 0 : chunk.tag_bytes);
    std::erase(all, ' ');
    auto want = text + "andsoon";
    std::erase(want, ' ');
    BOOST_TEST(all == want);
    return out;
  };
  for (const std::string text :
       {"one moment. ", "one moment.", "ok! ", "(happy)ok!", "好的。", "let me look that up for you."})
    BOOST_TEST(paused(text).size() == 1u, text);
  for (const std::string text : {"", "  ", "let me", "mr. ", "at 5 p.m. ", "(happy)", "请等"})
    BOOST_TEST(paused(text).empty(), text);
}

BOOST_AUTO_TEST_CASE(wide_punctuation_ends_sentences_and_nothing_is_lost) {
  const std::vector<std::string> want{"大家早上好。", "再见"};
  BOOST_TEST(run("大家早上好。再见", 2) == want, boost::test_tools::per_element());
  BOOST_TEST(run("", 1).empty());
  BOOST_TEST(run("   ", 1).empty());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
