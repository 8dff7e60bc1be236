#define BOOST_TEST_MODULE language
#include "services/cli/language.hpp"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "common/base/mapped_file.hpp"
#include "services/cli/task_accuracy.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::cli {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kDialogues = fs::path(PARLANDO_SOURCE_DIR) / "models/nano/dialogues";
const fs::path kNano = fs::path(PARLANDO_SOURCE_DIR) / "models/nano/Step-Audio-Chat";
constexpr const char* kIds = "1,4,900,901,902,903";

json generated(const fs::path& model, const std::string& format = "", bool greedy = true, std::uint64_t seed = 1) {
  const auto done =
      generate({.model = model, .ids = kIds, .format = format, .tokens_max = 24, .greedy = greedy, .seed = seed});
  BOOST_REQUIRE_MESSAGE(done.has_value(), (done ? std::string() : done.error().message));
  return *done;
}
}  // namespace

BOOST_AUTO_TEST_CASE(greedy_ids_repeat_and_drawn_ones_depend_on_the_seed) {
  const auto first = generated(kNano);
  BOOST_TEST(first["format"] == "f32");
  BOOST_TEST(!first["ids"].empty());
  BOOST_TEST(first["ids"].size() <= 24u);
  BOOST_TEST((first["finish"] == "stop" || first["ids"].size() == 24));
  BOOST_TEST((generated(kNano) == first));
  bool differs = false;
  for (std::uint64_t seed = 1; seed <= 5; ++seed)
    differs |= generated(kNano, "", false, seed) != generated(kNano, "", false, seed + 10);
  BOOST_TEST(differs);
}

BOOST_AUTO_TEST_CASE(ids_that_are_none_are_refused) {
  for (const char* bad : {"", "1,", ",1", "1,,2", "one", "1 2", "99999999999"}) {
    const auto done = generate({.model = kNano, .ids = bad});
    BOOST_REQUIRE_MESSAGE(!done.has_value(), bad);
    BOOST_TEST((done.error().code == Errc::invalid_argument));
  }
  const auto outside = generate({.model = kNano, .ids = "1,2334"});
  BOOST_REQUIRE(!outside.has_value());
  BOOST_TEST((outside.error().code == Errc::token_out_of_range));
  const auto format = generate({.model = kNano, .ids = "1", .format = "int3"});
  BOOST_REQUIRE(!format.has_value());
  BOOST_TEST((format.error().code == Errc::invalid_argument));
}

BOOST_AUTO_TEST_CASE(a_packed_checkpoint_answers_as_the_packed_weights_do_and_says_what_it_cost) {
  double last = 0;
  for (const char* format : {"bf16", "int8", "int4"}) {
    const TemporaryDirectory folder;
    const auto target = folder.path() / format;
    const auto report = quantize({.source = kNano,
                                  .target = target,
                                  .format = format,
                                  .check_tokens = 200,
                                  .dialogues = kDialogues,
                                  .task_max = 12});
    BOOST_REQUIRE_MESSAGE(report.has_value(), (report ? std::string() : report.error().message));
    BOOST_TEST((*report)["bytes"] < (*report)["source_bytes"]);
    const auto& tensors = (*report)["tensors"];
    BOOST_TEST(tensors.size() == 5u * 4u + 1u);
    const double error = tensors.at("model.layers.2.gate_up");
    BOOST_TEST(error > last);  // fewer bits, more error
    BOOST_TEST(error < 0.15);
    last = error;
    const auto& check = (*report)["check"];
    BOOST_TEST(check["tokens"] == 200);
    BOOST_TEST(check["divergence"].get<double>() >= -1e-4);
    BOOST_TEST(check["divergence"].get<double>() < 0.5);
    BOOST_TEST(check["same_first"].get<double>() > 0.7);
    const auto& task = (*report)["task"];
    BOOST_TEST(task["recordings"] == 12);
    BOOST_TEST(task["words"].get<int>() > 36);
    for (const auto* of : {"source", "packed"}) {  // of bundled recordings the model understands nearly all
      BOOST_TEST(task[of]["word_error_rate"].get<double>() < 0.25, of << " " << task.dump());
      BOOST_TEST(task[of]["exact"].get<int>() >= 6);
    }
    BOOST_TEST(task["same"].get<int>() >= 8);
    BOOST_TEST((generated(target) == generated(kNano, format)));
    BOOST_TEST(!fs::exists(target.string() + ".part"));
    BOOST_TEST(fs::exists(target / "tokenizer.model"));
    const auto again = quantize({.source = kNano, .target = target, .format = format});
    BOOST_REQUIRE(!again.has_value());
    BOOST_TEST((again.error().code == Errc::invalid_argument));
    const auto packed = quantize({.source = target, .target = folder.path() / "twice", .format = format});
    BOOST_REQUIRE(!packed.has_value());
    BOOST_TEST(!fs::exists(folder.path() / "twice"));
  }
}

BOOST_AUTO_TEST_CASE(what_a_user_has_beside_the_target_stays) {
  const TemporaryDirectory folder;
  const auto target = folder.path() / "out", part = folder.path() / "out.part";
  fs::create_directories(part);
  BOOST_REQUIRE(write_file(part / "thesis.txt", "years of work").has_value());
  const auto done = quantize({.source = kNano, .target = target, .format = "bf16", .check_tokens = 0});
  BOOST_REQUIRE(!done.has_value());
  BOOST_TEST((done.error().code == Errc::invalid_argument));
  BOOST_TEST(done.error().message.find(part.string()) != std::string::npos);
  BOOST_TEST(fs::exists(part / "thesis.txt"));
  BOOST_TEST(!fs::exists(target));
  // Of a run that fails nothing is left in its way.
  fs::remove_all(part);
  fs::create_directories(folder.path() / "model");
  fs::copy(kNano / "config.json", folder.path() / "model");
  BOOST_TEST(!quantize({.source = folder.path() / "model", .target = target, .check_tokens = 0}).has_value());
  BOOST_TEST(!fs::exists(part));
  const auto plain = quantize({.source = kNano, .target = target, .format = "bf16", .check_tokens = 0});
  BOOST_REQUIRE_MESSAGE(plain.has_value(), (plain ? std::string() : plain.error().message));
  BOOST_TEST((*plain)["check"].is_null());
  BOOST_TEST((*plain)["task"].is_null());
}

BOOST_AUTO_TEST_CASE(words_are_compared_without_case_and_marks) {
  using Counts = std::pair<std::int64_t, std::int64_t>;
  BOOST_TEST((word_errors("What is the capital?", "what is | the capital") == Counts(0, 4)));
  BOOST_TEST((word_errors("", "one two") == Counts(2, 2)));
  BOOST_TEST((word_errors("one", "") == Counts(1, 0)));
  BOOST_TEST((word_errors("what was capital of of france", "what is the capital of france") == Counts(3, 6)));
}

}  // namespace parlando::cli
