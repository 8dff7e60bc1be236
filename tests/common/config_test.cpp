#define BOOST_TEST_MODULE config
#include <boost/test/unit_test.hpp>

#include <fstream>

#include "common/service/config.hpp"
#include "tests/support/temporary_directory.hpp"

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
  std::map<std::string, std::string> names;
  Inner inner;
  template <class V>
  void fields(V&& v) {
    v("count", count), v("on", on), v("name", name), v("list", list), v("table", table), v("names", names),
        v("inner", inner);
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
  const auto c = read<Outer>(
      nlohmann::json::parse(R"({"count":5,"table":{"a":["b"]},"names":{"a":"b"},"inner":{"share":1}})"), "c", problems);
  BOOST_TEST(problems.empty());
  BOOST_TEST(c.count == 5);
  BOOST_TEST(c.name == "x");
  BOOST_TEST(c.inner.share == 1.0);
  BOOST_TEST(c.table.at("a").at(0) == "b");
  BOOST_TEST(c.names.at("a") == "b");
}

BOOST_AUTO_TEST_CASE(every_problem_is_named_at_once) {
  std::vector<Problem> problems;
  (void)read<Outer>(
      nlohmann::json::parse(
          R"({"count":12,"on":1,"name":[],"list":"x","table":{"a":"b"},"names":{"a":1},"inner":{"share":"much","other":1},"extra":null})"),
      "c", problems);
  std::set<std::string> paths;
  for (const auto& p : problems) paths.insert(p.path);
  const std::set<std::string> expected{"c.count", "c.on",          "c.name",        "c.list", "c.table",
                                       "c.names", "c.inner.share", "c.inner.other", "c.extra"};
  BOOST_TEST((paths == expected), to_text(problems));
}

BOOST_AUTO_TEST_CASE(wrong_types_never_throw) {
  for (const char* text :
       {"3", "[]", "null", R"({"inner":3})", R"({"count":1.5})", R"({"count":null})", R"({"inner":[{}]})"}) {
    std::vector<Problem> problems;
    (void)read<Outer>(nlohmann::json::parse(text), "c", problems);
    BOOST_TEST(!problems.empty(), text);
  }
}

BOOST_AUTO_TEST_CASE(what_should_be_a_text_is_not_told_when_it_may_hold_one) {
  for (const char* text : {R"({"name":["postgresql://u:hunter2@h"]})", R"({"name":{"password":"hunter2"}})"}) {
    std::vector<Problem> problems;
    (void)read<Outer>(nlohmann::json::parse(text), "c", problems);
    BOOST_REQUIRE(problems.size() == 1u);
    BOOST_TEST(problems[0].path == "c.name");
    BOOST_TEST(problems[0].text.find(", expected a text") != std::string::npos, problems[0].text);
    BOOST_TEST(problems[0].text.find("hunter2") == std::string::npos, problems[0].text);
  }
}

namespace {

/// Paths of the problems of a `wire`, one after the other.
std::string wire_problems(const std::string& text) {
  std::vector<Problem> problems;
  (void)read<service::WireConfig>(nlohmann::json::parse(text), "w", problems);
  std::string out;
  for (const auto& p : problems) out += p.path + " ";
  return out;
}

const std::string kPair = R"("secret_key_file":"s","public_key_file":"p")";

}  // namespace

BOOST_AUTO_TEST_CASE(tcp_without_keys_needs_plain_words) {
  BOOST_TEST(wire_problems(R"({"bind":"tcp://*:1"})") == "w.bind ");
  BOOST_TEST(wire_problems(R"({"connect":{"vad":["tcp://h:1"]}})") == "w.connect.vad ");
  BOOST_TEST(wire_problems(R"({"connect":{"vad":["dns:tcp://h:1"]}})") == "w.connect.vad ");
  BOOST_TEST(wire_problems(R"({"bind":"tcp://*:1","curve":{"plain_tcp":false}})") == "w.bind ");
  BOOST_TEST(
      wire_problems(R"({"bind":"tcp://*:1","connect":{"vad":["tcp://h:1"]},"curve":{"plain_tcp":true}})").empty());
  BOOST_TEST(wire_problems(R"({"bind":"ipc:///a","connect":{"vad":["inproc://b","ipc:///c","file:/d"]}})").empty());
}

BOOST_AUTO_TEST_CASE(keys_on_tcp_say_who_may_call_and_who_is_called) {
  BOOST_TEST(wire_problems(R"({"bind":"tcp://*:1","curve":{)" + kPair + "}}") == "w.curve.keys_file ");
  BOOST_TEST(wire_problems(R"({"bind":"tcp://*:1","curve":{"keys_file":"k",)" + kPair + "}}").empty());
  const std::string connect = R"({"connect":{"vad":["tcp://h:1"],"tts":["ipc:///t"]},"curve":{)" + kPair;
  BOOST_TEST(wire_problems(connect + "}}") == "w.curve.server_key_files.vad ");
  BOOST_TEST(wire_problems(connect + R"(,"server_key_files":{"tts":"t"}}})") == "w.curve.server_key_files.vad ");
  BOOST_TEST(wire_problems(connect + R"(,"server_key_files":{"vad":"v"}}})").empty());
}

BOOST_AUTO_TEST_CASE(halves_of_keys_are_problems) {
  BOOST_TEST(wire_problems(R"({"curve":{"secret_key_file":"s"}})") == "w.curve ");
  BOOST_TEST(wire_problems(R"({"curve":{"public_key_file":"p"}})") == "w.curve ");
  BOOST_TEST(wire_problems(R"({"curve":{"keys_file":"k"}})") == "w.curve.keys_file ");
  BOOST_TEST(wire_problems(R"({"curve":{"server_key_files":{"vad":"v"}}})") == "w.curve.server_key_files ");
  BOOST_TEST(wire_problems(R"({"curve":{"plain_tcp":true,)" + kPair + "}}") == "w.curve.plain_tcp ");
  // Half a pair is no pair.
  BOOST_TEST(wire_problems(R"({"bind":"tcp://*:1","curve":{"secret_key_file":"s"}})") == "w.curve w.bind ");
}

BOOST_AUTO_TEST_CASE(sources_that_cannot_be_meant_are_problems) {
  BOOST_TEST(wire_problems(R"({"bind":"udp://x"})") == "w.bind ");
  BOOST_TEST(wire_problems(R"({"connect":{"vad":["file:","dns:x","tcp://h"]},"curve":{"plain_tcp":true}})") ==
             "w.connect.vad w.connect.vad w.connect.vad ");
}

BOOST_AUTO_TEST_CASE(keys_are_read_from_their_files) {
  const TemporaryDirectory folder;
  const auto own = *transport::curve::KeyPair::generate();
  const auto vad = *transport::curve::KeyPair::generate();
  const auto tts = *transport::curve::KeyPair::generate();
  const auto put = [&](const std::string& name, const std::string& text) {
    const auto file = (folder.path() / name).string();
    std::ofstream(file) << text << "\n";
    return file;
  };
  service::WireConfig wire;
  auto& c = wire.curve;
  BOOST_TEST(!service::socket_options(wire, {})->keys.has_value());
  c.secret_key_file = put("secret", own.secret_key);
  c.public_key_file = put("public", own.public_key);
  c.server_key_files = {{"vad", put("vad", vad.public_key)}, {"tts", put("tts", tts.public_key)}};
  auto keys = *service::socket_options(wire, {})->keys;
  BOOST_TEST(keys.own.secret_key == own.secret_key);
  BOOST_TEST(keys.own.public_key == own.public_key);
  BOOST_TEST(keys.server_keys.at("tts") == tts.public_key);
  BOOST_TEST(keys.server_keys.at("vad") == vad.public_key);
  BOOST_TEST(!keys.callers);
  c.keys_file = put("callers", tts.public_key + " tts");
  keys = *service::socket_options(wire, {})->keys;
  BOOST_TEST(keys.callers->who(tts.public_key)->role == "tts");
  put("public", vad.public_key);  // of another pair
  BOOST_TEST((service::socket_options(wire, {}).error().code == Errc::bad_format));
  put("public", own.public_key);
  c.server_key_files["tts"] = put("broken", "abc");
  BOOST_TEST((service::socket_options(wire, {}).error().code == Errc::bad_format));
  c.keys_file = (folder.path() / "none").string();
  BOOST_TEST((service::socket_options(wire, {}).error().code == Errc::not_found));
}

}  // namespace parlando::config
