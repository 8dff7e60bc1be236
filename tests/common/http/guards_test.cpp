#include "common/http/guards.hpp"

#include <boost/test/unit_test.hpp>

namespace parlando::http {
namespace {

BOOST_AUTO_TEST_SUITE(guards)

BOOST_AUTO_TEST_CASE(a_listen_address_is_numeric_or_localhost_and_has_a_port) {
  for (const auto& [text, host, port, loopback] :
       {std::tuple("127.0.0.1:80", "127.0.0.1", 80, true), std::tuple("localhost:0", "127.0.0.1", 0, true),
        std::tuple("0.0.0.0:65535", "0.0.0.0", 65535, false), std::tuple("[::1]:80", "::1", 80, true),
        std::tuple("[::]:9000", "::", 9000, false)}) {
    const auto got = parse_listen_address(text);
    BOOST_REQUIRE_MESSAGE(got, text);
    BOOST_TEST(got->host == host);
    BOOST_TEST(got->port == port);
    BOOST_TEST(got->loopback == loopback);
  }
}

BOOST_AUTO_TEST_CASE(a_malformed_listen_address_is_refused_by_name) {
  for (const std::string text : {"", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:70000", "127.0.0.1:-1",
                                 "127.0.0.1:80x", "127.0.0.1:+80", "127.0.0.1: 80", "::1:80", "[::1]", "[::1:80",
                                 "[127.0.0.1]:80", ":80", "example.org:80", "127.0.0.1:99999999999999999999"}) {
    const auto got = parse_listen_address(text);
    BOOST_REQUIRE_MESSAGE(!got, text);
    BOOST_TEST((got.error().code == Errc::invalid_argument));
    BOOST_TEST(got.error().message.find("'" + text + "'") != std::string::npos);
  }
}

BOOST_AUTO_TEST_CASE(on_loopback_only_loopback_names_with_the_port_are_served) {
  const HostRule rule({}, {"127.0.0.1", 0, true}, 7860);
  for (const auto* host : {"127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860", "[::1]:7860"})
    BOOST_TEST(rule.allows(host), host);
  for (const auto* host :
       {"", ":7860", "localhost", "localhost:80", "evil.example:7860", "127.0.0.1.evil.example:7860", "10.0.0.1:7860"})
    BOOST_TEST(!rule.allows(host), host);
  const HostRule other({}, {"127.0.0.9", 0, true}, 80);
  BOOST_TEST(other.allows("127.0.0.9:80"));
  BOOST_TEST(other.allows("localhost"));  // 80 is left out by browsers
}

BOOST_AUTO_TEST_CASE(elsewhere_numeric_hosts_are_served_and_names_are_not) {
  const HostRule rule({}, {"0.0.0.0", 0, false}, 7860);
  for (const auto* host : {"10.1.2.3:7860", "10.1.2.3", "[fe80::1]:8080", "localhost:7860"})
    BOOST_TEST(rule.allows(host), host);
  for (const auto* host : {"evil.example:7860", "10.1.2.3.evil.example", ""}) BOOST_TEST(!rule.allows(host), host);
}

BOOST_AUTO_TEST_CASE(a_list_of_hosts_replaces_the_default) {
  const HostRule rule({"Talk.example", "other.example:81"}, {"127.0.0.1", 0, true}, 7860);
  for (const auto* host : {"talk.example", "talk.example:9", "other.example:81"}) BOOST_TEST(rule.allows(host), host);
  for (const auto* host : {"other.example", "other.example:80", "localhost:7860"}) BOOST_TEST(!rule.allows(host), host);
  BOOST_TEST(HostRule({"*"}, {"127.0.0.1", 0, true}, 7860).allows("anything:1"));
}

BOOST_AUTO_TEST_CASE(an_origin_is_the_pages_own_or_listed) {
  BOOST_TEST(origin_allowed("http://localhost:7860", "localhost:7860", {}));
  BOOST_TEST(origin_allowed("HTTP://LocalHost:7860", "localhost:7860", {}));
  BOOST_TEST(origin_allowed("https://talk.example", "talk.example", {}));  // behind a proxy that speaks TLS
  BOOST_TEST(origin_allowed("https://talk.example", "talk.example:443", {}));
  for (const auto* origin : {"http://localhost:7861", "http://evil.example", "null", "", "http://", "localhost:7860",
                             "file://localhost:7860"})
    BOOST_TEST(!origin_allowed(origin, "localhost:7860", {}), origin);
  BOOST_TEST(!origin_allowed("https://talk.example", "talk.example:80", {}));
  BOOST_TEST(origin_allowed("https://app.example", "localhost:7860", {"https://App.example"}));
  BOOST_TEST(!origin_allowed("https://app.example.evil", "localhost:7860", {"https://app.example"}));
  BOOST_TEST(origin_allowed("null", "localhost:7860", {"*"}));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace parlando::http
