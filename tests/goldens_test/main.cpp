/// Compares the runtime with reference values: `goldens_test -- --goldens DIR`. DIR is one family or a parent of
/// several, recognised by content. Without arguments: the selection in tests/goldens, and the full set beside the
/// project where it is present.
#define BOOST_TEST_MODULE goldens
#include <fmt/core.h>

#include <boost/test/unit_test.hpp>
#include <set>

#include "common/nn/threads.hpp"
#include "tests/goldens_test/report.hpp"

namespace fs = std::filesystem;
namespace parlando::goldens {

/// Family of a folder, or an empty string.
std::string family_of(const fs::path& folder) {
  if (fs::exists(folder / "cases.json")) return "lm";
  if (fs::exists(folder / "silero_cases.json")) return "vad";
  if (fs::exists(folder / "manifest.json")) {
    const auto manifest = load_json(folder / "manifest.json");
    if (manifest.is_object() && manifest.contains("resample")) return "tokenizer";
    if (manifest.is_object() && manifest.contains("models")) return "vocoder";
  }
  return {};
}

bool run_family(const fs::path& folder) {
  const auto family = family_of(folder);
  if (family == "lm") return run_lm(folder);
  if (family == "vad") return run_vad(folder);
  if (family == "tokenizer") return run_tokenizer(folder);
  if (family == "vocoder") return run_vocoder(folder);
  raise(Errc::not_found,
        "'{}' is no folder of reference values (cases.json, silero_cases.json, or a manifest.json with 'resample' or "
        "'models')",
        folder.string());
}

bool run(const fs::path& folder) {
  if (!fs::is_directory(folder)) raise(Errc::not_found, "'{}' is not a directory", folder.string());
  if (!family_of(folder).empty()) return run_family(folder);
  bool good = true;
  int families = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string().starts_with(".") ||
        (!entry.is_directory() && entry.path().extension() == ".md"))
      continue;
    if (!entry.is_directory()) raise(Errc::bad_format, "'{}' is neither a family nor a README", entry.path().string());
    good = run_family(entry.path()) && good;
    ++families;
  }
  if (families == 0) raise(Errc::not_found, "'{}' holds no family of reference values", folder.string());
  return good;
}

}  // namespace parlando::goldens

BOOST_AUTO_TEST_CASE(the_runtime_reproduces_the_reference_values) {
  parlando::nn::use_threads(2);
  const auto& suite = boost::unit_test::framework::master_test_suite();
  std::vector<fs::path> folders;
  for (int i = 1; i < suite.argc; ++i) {
    const std::string argument = suite.argv[i];
    if (argument == "--goldens" && i + 1 < suite.argc) {
      folders.emplace_back(suite.argv[++i]);
    } else {
      BOOST_FAIL("unknown argument '" << argument << "'; usage: goldens_test -- --goldens DIR");
    }
  }
  if (folders.empty()) {
    folders.emplace_back(fs::path(PARLANDO_SOURCE_DIR) / "tests/goldens");
    const auto full = fs::path(PARLANDO_SOURCE_DIR) / "../shared/goldens";
    if (fs::is_directory(full)) folders.push_back(full);
  }
  for (const auto& folder : folders) {
    try {
      BOOST_CHECK_MESSAGE(parlando::goldens::run(folder), "reference values of " << folder << " are not reproduced");
    } catch (const parlando::Failure& failure) {
      BOOST_ERROR(failure.error.message);
    } catch (const std::exception& e) {
      BOOST_ERROR(folder.string() + ": " + e.what());
    }
  }
}
