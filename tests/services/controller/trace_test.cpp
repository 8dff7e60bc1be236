#include "services/controller/trace.hpp"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>
#include <random>

namespace parlando::controller {
using nlohmann::json;

BOOST_AUTO_TEST_SUITE(trace_test)

BOOST_AUTO_TEST_CASE(parts_follow_each_other_in_the_order_of_their_marks) {
  const json stages{{"decision_ms", 500.0},   {"tokenizer_ms", 210.04},  {"transcript_ms", 260.0},
                    {"first_text_ms", 270.0}, {"first_audio_ms", 501.5}, {"text_ms", 900.0},
                    {"total_ms", 1500.0}};
  const json expected{{"id", "00000000000000ff"},
                      {"total_ms", 501.5},
                      {"parts",
                       {{{"name", "tokenizer"}, {"ms", 210.0}},
                        {{"name", "transcript"}, {"ms", 50.0}},
                        {{"name", "first_text"}, {"ms", 10.0}},
                        {{"name", "decision"}, {"ms", 230.0}},
                        {{"name", "first_audio"}, {"ms", 1.5}}}}};
  BOOST_TEST(trace_of(0xff, stages) == expected);
}

BOOST_AUTO_TEST_CASE(an_answer_that_is_not_spoken_ends_with_its_text) {
  const auto trace = trace_of(1, {{"first_text_ms", 20.0}, {"text_ms", 55.0}, {"total_ms", 55.0}});
  BOOST_TEST(trace["total_ms"] == 55.0);
  BOOST_TEST(trace["parts"].back()["name"] == "text");
  BOOST_TEST(trace_of(1, json::object())["parts"].empty());
}

BOOST_AUTO_TEST_CASE(parts_sum_to_the_total) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> some(-50, 3000);
  for (int n = 0; n < 1000; ++n) {
    json stages;
    for (const auto* name : {"decision_ms", "tokenizer_ms", "transcript_ms", "first_text_ms", "first_audio_ms"})
      if (random() % 8 != 0) stages[name] = some(random);
    stages["text_ms"] = some(random);
    const auto trace = trace_of(n, stages);
    double sum = 0;
    for (const auto& part : trace["parts"]) {
      BOOST_TEST(part["ms"].get<double>() >= 0);
      sum += part["ms"].get<double>();
    }
    BOOST_TEST(std::abs(sum - trace["total_ms"].get<double>()) < 0.05);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
