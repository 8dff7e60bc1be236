#define BOOST_TEST_MODULE trace_view
#include "services/cli/trace_view.hpp"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

namespace parlando::cli {
namespace {

using nlohmann::json;

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> out;
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

/// Characters, not bytes.
std::size_t width(const std::string& line) {
  return static_cast<std::size_t>(
      std::count_if(line.begin(), line.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

json trace_of(std::initializer_list<std::pair<const char*, double>> parts) {
  json out{{"id", "00000000000000ff"}, {"total_ms", 0.0}, {"parts", json::array()}};
  double total = 0;
  for (const auto& [name, ms] : parts) {
    out["parts"].push_back({{"name", name}, {"ms", ms}});
    total += ms;
  }
  out["total_ms"] = total;
  return out;
}

}  // namespace

BOOST_AUTO_TEST_CASE(parts_follow_each_other_and_their_sum_is_told) {
  const auto lines =
      lines_of(draw_trace(trace_of({{"decision", 50.0}, {"first_text", 25.0}, {"first_audio", 25.0}}), 40));
  BOOST_REQUIRE_EQUAL(lines.size(), 5u);
  BOOST_TEST(lines[0].find("00000000000000ff") != std::string::npos);
  const auto bar = [](const std::string& line) { return line.substr(14); };
  BOOST_TEST(bar(lines[1]).find("█") == 0u);
  BOOST_TEST(bar(lines[2]).find("█") == 20u);
  BOOST_TEST(bar(lines[3]).find("█") == 30u);
  BOOST_TEST(lines[4].find("100.0 ms") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(figures_stand_in_a_column_whatever_the_parts_are) {
  for (const auto& trace :
       {trace_of({{"decision", 0.0}, {"first_audio", 0.0}}), trace_of({{"tokenizer", 0.3}, {"text", 1e4}}),
        trace_of({{"a", 7.0}, {"b", 13.0}, {"c", 0.1}})}) {
    const auto lines = lines_of(draw_trace(trace, 17));
    BOOST_REQUIRE(lines.size() > 2u);
    for (std::size_t n = 1; n < lines.size(); ++n) {
      const auto upto = lines[n].substr(0, lines[n].find(" ms") + 3);
      BOOST_TEST(width(upto) == 2u + 12u + 17u + 1u + 8u + 3u, upto);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_turn_without_parts_has_no_picture) {
  BOOST_TEST(draw_trace(trace_of({})).empty());
  BOOST_TEST(draw_trace(json()).empty());
  BOOST_TEST(draw_trace(json::object()).empty());
}

}  // namespace parlando::cli
