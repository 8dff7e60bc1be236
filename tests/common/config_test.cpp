#define BOOST_TEST_MODULE config
#include <boost/test/unit_test.hpp>

#include "common/config/fields.hpp"

namespace parlando::config {
namespace {

struct Inner {
  double share = 0.5;
  template <class V>
  void fields(V&& v) {
    v("share", share);
  }
};
struct Outer {
  int count = 3;
  bool on = false;
  std::string name = "x";
  std::vector<std::string> list;
  std::map<std::string, std::vector<std::string>> table;
  Inner inner;
  template <class V>
  void fields(V&& v) {
    v("count", count), v("on", on), v("name", name), v("list", list), v("table", table), v("inner", inner);
  }
  std::vector<Problem> problems(const std::string& path) const {
    std::vector<Problem> out;
    expect_range(out, path + ".count", count, 1, 9);
    return out;
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(values_are_read_and_defaults_stand) {
  std::vector<Problem> problems;
  const auto c = read<Outer>(nlohmann::json::parse(R"({"count":5,"table":{"a":["b"]},"inner":{"share":1}})"), "c", problems);
  BOOST_TEST(problems.empty());
  BOOST_TEST(c.count == 5);
  BOOST_TEST(c.name == "x");
  BOOST_TEST(c.inner.share == 1.0);
  BOOST_TEST(c.table.at("a").at(0) == "b");
}

BOOST_AUTO_TEST_CASE(every_problem_is_named_at_once) {
  std::vector<Problem> problems;
  (void)read<Outer>(nlohmann::json::parse(R"({"count":12,"on":1,"name":[],"list":"x","table":{"a":"b"},"inner":{"share":"much","other":1},"extra":null})"), "c",
                    problems);
  std::set<std::string> paths;
  for (const auto& p : problems) paths.insert(p.path);
  const std::set<std::string> expected{"c.count", "c.on", "c.name", "c.list", "c.table", "c.inner.share", "c.inner.other", "c.extra"};
  BOOST_TEST((paths == expected), to_text(problems));
}

BOOST_AUTO_TEST_CASE(wrong_types_never_throw) {
  for (const char* text : {"3", "[]", "null", R"({"inner":3})", R"({"count":1.5})", R"({"count":null})", R"({"inner":[{}]})"}) {
    std::vector<Problem> problems;
    (void)read<Outer>(nlohmann::json::parse(text), "c", problems);
    BOOST_TEST(!problems.empty(), text);
  }
}

}  // namespace parlando::config
