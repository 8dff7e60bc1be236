#define BOOST_TEST_MODULE fleet_view
#include "services/cli/fleet_view.hpp"

#include <fmt/format.h>

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

namespace parlando::cli {
namespace {

/// A controller that has told so many turns, all with their first sound between 0.3 and 0.5 s.
std::string controller(int turns, int errors = 0, double cpu = 0) {
  return fmt::format(
      "# HELP parlando_controller_ready whether work is taken\n# TYPE parlando_controller_ready gauge\n"
      "parlando_controller_ready 1\nparlando_controller_draining 0\nparlando_controller_load 3\n"
      "parlando_controller_slots 253\nparlando_controller_streams 3\nparlando_controller_queue_messages 1\n"
      "parlando_controller_messages_received_total {2}\nparlando_controller_turns_total {0}\n"
      "parlando_controller_turn_errors_total{{code=\"no_speech\"}} {1}\n"
      "parlando_controller_turn_errors_total{{code=\"unavailable\"}} 0\n"
      "parlando_controller_first_audio_seconds_bucket{{le=\"0.3\"}} 0\n"
      "parlando_controller_first_audio_seconds_bucket{{le=\"0.5\"}} {0}\n"
      "parlando_controller_first_audio_seconds_bucket{{le=\"+Inf\"}} {0}\n"
      "parlando_controller_first_audio_seconds_count {0}\nprocess_cpu_seconds_total {3}\n"
      "process_resident_memory_bytes 104857600\n",
      turns, errors, 10 * turns, cpu);
}

std::string gateway(int sessions) {
  return fmt::format("parlando_gateway_ready 0\nparlando_gateway_draining 0\nparlando_gateway_sessions {}\n", sessions);
}

}  // namespace

BOOST_AUTO_TEST_CASE(samples_are_read_with_their_labels) {
  const auto page =
      parse_metrics("# TYPE a counter\na 1\nb{x=\"one two\",y=\"}\"} 2.5e1\nc NaN\nbroken\n\nd{le=\"+Inf\"} 7");
  BOOST_TEST(page.size() == 3u);
  BOOST_TEST(page.at("a") == 1);
  BOOST_TEST(page.at("b{x=\"one two\",y=\"}\"}") == 25);
  BOOST_TEST(page.at("d{le=\"+Inf\"}") == 7);
  BOOST_TEST(parse_metrics("").empty());
}

BOOST_AUTO_TEST_CASE(rates_are_differences_of_two_looks) {
  FleetView view;
  view.take("controller-1", controller(10), 100);
  BOOST_TEST(!view.to_json().contains("turns_per_s"));
  view.take("controller-1", controller(16, 2, 0.5), 102);
  const auto all = view.to_json();
  BOOST_TEST(all["turns_per_s"] == 3.0);
  BOOST_TEST(all["errors_per_s"] == 1.0);
  BOOST_TEST(all["turns"] == 16.0);
  const auto& row = all["services"][0];
  BOOST_TEST(row["messages_per_s"] == 30.0);
  BOOST_TEST(row["cpu_percent"] == 25.0);
  BOOST_TEST(row["memory_mib"] == 100.0);
  BOOST_TEST(row["faults"] == 2.0);
  // Of the six turns since, which lie evenly between the bounds as far as anybody knows.
  BOOST_TEST(all["first_audio_ms"]["n"] == 6.0);
  BOOST_TEST(all["first_audio_ms"]["p50"].get<double>() == 400.0, boost::test_tools::tolerance(1e-9));
  BOOST_TEST(all["first_audio_ms"]["p95"].get<double>() == 490.0, boost::test_tools::tolerance(1e-9));
}

BOOST_AUTO_TEST_CASE(a_new_process_counts_from_zero) {
  FleetView view;
  view.take("controller-1", controller(1000), 0);
  view.take("controller-1", controller(4), 2);
  BOOST_TEST(view.to_json()["turns_per_s"] == 2.0);
  BOOST_TEST(view.to_json()["first_audio_ms"]["n"] == 4.0);
}

BOOST_AUTO_TEST_CASE(who_does_not_answer_is_shown_and_loses_his_figures) {
  FleetView view;
  view.take("gateway-1", gateway(5), 0);
  view.take("controller-1", controller(10), 0);
  view.lost("controller-1", "no connection");
  auto all = view.to_json();
  BOOST_TEST(all["sessions"] == 5.0);
  BOOST_TEST(all["turns"] == 0.0);
  BOOST_TEST(all["services"][1]["state"] == "away");
  BOOST_TEST(view.draw(200).find("no connection") != std::string::npos);
  // It comes back as a new one: nothing is compared with what was before.
  view.take("controller-1", controller(12), 9);
  BOOST_TEST(!view.to_json().contains("turns_per_s"));
  view.forget("controller-1");
  BOOST_TEST(view.to_json()["services"].size() == 1u);
}

BOOST_AUTO_TEST_CASE(the_picture_is_in_the_order_of_a_turn_and_fits) {
  FleetView view;
  view.take("a-controller", controller(10), 0);
  view.take("z-gateway", gateway(1), 0);
  view.take("other", "up 1\n", 0);
  for (const int columns : {1, 20, 80, 200}) {
    std::istringstream lines(view.draw(columns));
    for (std::string line; std::getline(lines, line);) {
      const auto characters = std::count_if(line.begin(), line.end(),
                                            [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
      BOOST_TEST(characters <= columns);
    }
  }
  const auto text = view.draw(200);
  BOOST_TEST(text.find("z-gateway") < text.find("a-controller"));
  BOOST_TEST(text.find("a-controller") < text.find("other"));
  BOOST_TEST(text.find("not ready") != std::string::npos);
}

}  // namespace parlando::cli
