#define BOOST_TEST_MODULE topology
#include "services/cli/topology.hpp"

#include <boost/test/unit_test.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "services/controller/config.hpp"

namespace parlando::cli {
namespace {

/// "tts 2" -> its entry, the second of its role
std::map<std::string, nlohmann::json> instances(std::map<std::string, int> replicas) {
  UpOptions options;
  options.processes = true;
  options.metrics_port = 9000;
  options.replicas = std::move(replicas);
  std::map<std::string, nlohmann::json> out;
  std::map<std::string, int> count;
  for (const auto& entry : topology(options, {"ipc://run/", "run/replicas"})) {
    const auto role = entry["role"].get<std::string>();
    out[role + " " + std::to_string(++count[role])] = entry;
  }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_CASE(one_of_each_has_consecutive_metrics_ports) {
  std::set<std::string> ports;
  for (const auto& [name, entry] : instances({})) ports.insert(entry["wire"]["metrics"].get<std::string>());
  BOOST_TEST(ports.size() == 8u);
  BOOST_TEST(*ports.begin() == "127.0.0.1:9000");
  BOOST_TEST(*ports.rbegin() == "127.0.0.1:9007");
}

BOOST_AUTO_TEST_CASE(scaling_a_role_leaves_the_configuration_of_everybody_else_as_it_is) {
  const auto before = instances({{"gateway", 2}});
  for (const std::string role : {"vad", "tts", "controller"}) {
    const auto after = instances({{"gateway", 2}, {role, 3}});
    BOOST_TEST(after.size() == before.size() + 2);
    std::set<std::string> ports;
    for (const auto& [name, entry] : after) {
      ports.insert(entry["wire"]["metrics"].get<std::string>());
      if (const auto known = before.find(name); known != before.end())
        BOOST_TEST((entry == known->second), name << " changed with " << role);
    }
    BOOST_TEST(ports.size() == after.size());
  }
}

BOOST_AUTO_TEST_CASE(turns_that_wait_for_a_store_on_the_disk_wait_there) {
  for (const auto& [store, files] :
       std::map<std::string, std::vector<std::string>>{{"a/b.sqlite", {"a/b.sqlite.waiting-1", "a/b.sqlite.waiting-2"}},
                                                       {":memory:", {"", ""}},
                                                       {"postgresql://host/name", {"", ""}}}) {
    UpOptions options;
    options.store = store;
    options.replicas = {{"controller", 2}};
    std::vector<std::string> found;
    for (const auto& entry : topology(options, {"inproc://", {}}))
      if (entry["role"] == "controller") found.push_back(entry["core"].value("commit_queue_file", ""));
    BOOST_TEST(found == files, boost::test_tools::per_element());
  }
}

BOOST_AUTO_TEST_CASE(speech_is_tokenised_while_it_is_spoken) {
  for (const auto& entry : topology(UpOptions{}, {"inproc://", {}}))
    if (entry["role"] == "controller")
      BOOST_TEST(entry["core"].value("tokenizer_mode", controller::ControllerConfig{}.tokenizer_mode) == "stable");
}

BOOST_AUTO_TEST_CASE(the_second_address_is_the_first_gateways_alone) {
  UpOptions options;
  options.api_listen = "127.0.0.1:1";
  options.api_listen_required = false;
  options.replicas = {{"gateway", 2}};
  std::vector<nlohmann::json> gateways;
  for (const auto& entry : topology(options, {"inproc://", {}}))
    if (entry["role"] == "gateway") gateways.push_back(entry["core"]);
  BOOST_REQUIRE(gateways.size() == 2u);
  BOOST_TEST(gateways[0]["api_listen"] == "127.0.0.1:1");
  BOOST_TEST(gateways[0]["api_listen_required"] == false);
  BOOST_TEST(!gateways[1].contains("api_listen"));
}

}  // namespace parlando::cli
