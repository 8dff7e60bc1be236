#define BOOST_TEST_MODULE bench_baseline
#include "services/cli/bench_baseline.hpp"

#include <boost/test/unit_test.hpp>

#include "common/base/mapped_file.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::cli {

BOOST_AUTO_TEST_CASE(figures_that_both_have_are_compared) {
  const auto before = nlohmann::json::parse(
      R"({"bench":"lm","threads":1,"a":{"x":2.0,"gone":1},"rows":{"2":4},"machine":{"processor":"P","load":3},"text":"t"})");
  const auto now = nlohmann::json::parse(
      R"({"bench":"lm","threads":2,"a":{"x":3.0,"new":1},"rows":{"2":2},"machine":{"processor":"Q","load":9},"text":"u",
          "spread":{"a.x":{"low":2.5,"median":2.9,"high":3.0}}})");
  const auto found = changes(now, before);
  BOOST_REQUIRE(found.size() == 2u);
  BOOST_TEST(found[0].name == "a.x");
  BOOST_TEST(found[0].growth() == 0.5);
  BOOST_TEST(found[0].low == 2.5);
  BOOST_TEST(found[1].name == "rows.2");
  BOOST_TEST(found[1].growth() == -0.5);
  BOOST_TEST(found[1].high == 2);
  const auto table = change_table(now, before);
  BOOST_TEST(table.find("threads was 1, is 2") != std::string::npos);
  BOOST_TEST(table.find("another processor: it was \"P\"") != std::string::npos);
  BOOST_TEST(table.find("+50.0 %") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(what_is_no_baseline_is_named) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "lm.json";
  BOOST_TEST(static_cast<int>(read_baseline(file).error().code) == static_cast<int>(Errc::not_found));
  BOOST_REQUIRE(write_file(file, "[1, 2]").has_value());
  BOOST_TEST(static_cast<int>(read_baseline(file).error().code) == static_cast<int>(Errc::bad_format));
  BOOST_REQUIRE(write_file(file, R"({"a": 1})").has_value());
  BOOST_TEST(read_baseline(file)->at("a") == 1);
}

BOOST_AUTO_TEST_CASE(a_baseline_that_is_missing_is_an_error_unless_it_is_made) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "lm.json", other = folder.path() / "other.json";
  BOOST_TEST(!baseline_of({}, file)->has_value());
  for (const auto& output : {std::filesystem::path(), other}) {
    const auto missing = baseline_of(file, output);
    BOOST_REQUIRE(!missing.has_value());
    BOOST_TEST(static_cast<int>(missing.error().code) == static_cast<int>(Errc::not_found));
    BOOST_TEST(missing.error().message.find(file.string()) != std::string::npos);
  }
  const auto made = baseline_of(file, folder.path() / "." / "lm.json");
  BOOST_REQUIRE(made.has_value());
  BOOST_TEST(!made->has_value());
  // What is there is read before it is written over.
  BOOST_REQUIRE(write_file(file, R"({"a": 1})").has_value());
  for (const auto& output : {std::filesystem::path(), other, file})
    BOOST_TEST(baseline_of(file, output)->value()["a"] == 1);
}

}  // namespace parlando::cli
