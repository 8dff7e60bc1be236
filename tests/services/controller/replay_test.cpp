/// A controller whose life was recorded makes every decision again.
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <random>

#include "tests/services/controller/rig.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::controller {

namespace {

struct RecordedRig : Rig {
  TemporaryDirectory folder;
  std::filesystem::path file = folder.path() / "controller.plrec";
  RecordedRig() {
    config.tools = "demo";
    for (const auto& role : kServiceRoles)
      for (int i = 1; i <= 2; ++i) add(fmt::format("{}-{}", role, i), role);
    auto core = service::record(std::make_unique<ControllerCore>(config), {{"service", "controller"}}, {file});
    BOOST_REQUIRE(core.has_value());
    add_core("controller-1", "controller", *std::move(core));
    add("gateway-1", "gateway");
    gateway().plays = true;
    gateway().open("controller-1");
  }
  /// @return what a controller of another configuration says about it
  Result<service::ReplayResult> replay(const ControllerConfig& changed) {
    kill("controller-1");  // so that the file is whole
    add_core("controller-1", "controller", std::make_unique<ControllerCore>(config));
    return service::replay(file, [&](const nlohmann::json&) -> Result<std::unique_ptr<service::Core>> {
      return std::unique_ptr<service::Core>(std::make_unique<ControllerCore>(changed));
    });
  }
  void talk(std::uint32_t seed) {
    std::mt19937 random(seed);
    const auto replica = [&] {
      return fmt::format("{}-{}", kServiceRoles[random() % kServiceRoles.size()], 1 + random() % 2);
    };
    Speaker speaker(gateway());
    std::string stalled;
    for (int n = 0; n < 600; ++n) {
      speaker.step();
      step();
      if (random() % 80 == 0) speaker.again();
      if (random() % 120 == 0) gateway().say(Cancel{});
      if (!stalled.empty() && random() % 10 == 0) wake(std::exchange(stalled, {}));
      if (stalled.empty() && random() % 60 == 0) suspend(stalled = replica());
    }
    if (!stalled.empty()) wake(stalled);
    run(50);
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(replay_test)

BOOST_AUTO_TEST_CASE(every_decision_is_made_again) {
  std::size_t turns = 0, messages = 0;
  for (std::uint32_t seed = 1; seed <= 20; ++seed) {
    RecordedRig rig;
    rig.talk(seed);
    turns += rig.gateway().turns.size();
    const auto result = rig.replay(rig.config);
    BOOST_REQUIRE_MESSAGE(result.has_value(), "seed " << seed);
    BOOST_TEST(!result->difference.has_value(), "seed " << seed << ": " << result->difference.value_or(""));
    messages += result->messages;
  }
  BOOST_TEST(turns > 10u);
  BOOST_TEST(messages > 2000u);
}

/// Personas, and turns that a former process has left, may be others when somebody looks.
BOOST_AUTO_TEST_CASE(a_recording_brings_what_its_controller_found_on_the_disk) {
  Rig rig;
  TemporaryDirectory folder;
  const auto file = folder.path() / "controller.plrec";
  for (const auto& role : kServiceRoles) rig.add(role + "-1", role);
  auto config = rig.config;
  config.commit_queue_file = (folder.path() / "waiting").string();
  BOOST_REQUIRE(Journal(config.commit_queue_file).append({{9, 9}, {1}, 1, R"({"user":"left"})"}).has_value());
  config.personas_file = (folder.path() / "personas.json").string();
  std::ofstream(config.personas_file) << R"({"guide": {"system": "you lead tours"}})";
  rig.store->sessions[{9, 9}].epoch = 1;
  auto made = ControllerCore::make(config);
  BOOST_REQUIRE(made.has_value());
  auto core = service::record(*std::move(made), {{"service", "controller"}}, {file});
  BOOST_REQUIRE(core.has_value());
  rig.add_core("controller-1", "controller", *std::move(core));
  rig.add("gateway-1", "gateway");
  rig.gateway().system = "persona:guide";
  rig.gateway().open("controller-1");
  rig.run(8);
  rig.gateway().say(Say{"hello"});
  BOOST_REQUIRE(rig.run_until([&] { return rig.gateway().turns.size() == 1; }));
  BOOST_TEST((rig.store->sessions[{9, 9}].turns.size() == 1u));
  rig.kill("controller-1");
  rig.add_core("controller-1", "controller", std::make_unique<ControllerCore>(rig.config));
  const auto result = service::replay(file, [&](const nlohmann::json&) -> Result<std::unique_ptr<service::Core>> {
    return std::unique_ptr<service::Core>(std::make_unique<ControllerCore>(rig.config));
  });
  BOOST_REQUIRE(result.has_value());
  BOOST_TEST(!result->difference.has_value(), result->difference.value_or(""));
}

BOOST_AUTO_TEST_CASE(a_controller_that_decides_otherwise_is_found) {
  RecordedRig rig;
  rig.talk(3);
  auto changed = rig.config;
  changed.trials_max = 0;
  const auto result = rig.replay(changed);
  BOOST_REQUIRE(result.has_value());
  BOOST_TEST(result->difference.has_value());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::controller
