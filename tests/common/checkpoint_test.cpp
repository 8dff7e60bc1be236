#define BOOST_TEST_MODULE checkpoint
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <fstream>

#include "common/checkpoint/import.hpp"
#include "common/checkpoint/safetensors.hpp"
#include "common/checkpoint/torch_zip.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::checkpoint {
namespace fs = std::filesystem;
const fs::path kCorpus = fs::path(PARLANDO_SOURCE_DIR) / "tests/fuzz/corpus/torch_zip";

BOOST_AUTO_TEST_CASE(views_of_a_shared_storage_are_resolved) {
  const auto r = read_torch_file(kCorpus / "views.pt");
  BOOST_REQUIRE_MESSAGE(r.has_value(), (r ? std::string() : r.error().message));
  const auto b = *to_f32(r->at("b")), c = *to_f32(r->at("c"));
  BOOST_TEST(r->at("b").shape == (Shape{3, 2}), boost::test_tools::per_element());
  const std::vector<float> want_b = {1, 2, 5, 6, 9, 10}, want_c = {0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11};
  BOOST_TEST(b == want_b, boost::test_tools::per_element());
  BOOST_TEST(c == want_c, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_nested_state_dict_loses_its_module_prefix) {
  const auto r = read_torch_file(kCorpus / "nested.pt");
  BOOST_REQUIRE_MESSAGE(r.has_value(), (r ? std::string() : r.error().message));
  BOOST_TEST(r->contains("x"));
  BOOST_TEST(name_of(r->at("y").dtype) == "F16");
}

BOOST_AUTO_TEST_CASE(a_pickle_that_wants_to_run_code_is_refused_by_name) {
  const auto r = read_torch_file(kCorpus / "hostile.pt");
  BOOST_REQUIRE(!r.has_value());
  BOOST_TEST(static_cast<int>(r.error().code) == static_cast<int>(Errc::unsupported));
  BOOST_TEST(r.error().message.find("system") != std::string::npos, r.error().message);
}

BOOST_AUTO_TEST_CASE(what_is_written_is_read_back) {
  const TemporaryDirectory folder;
  TensorMap tensors;
  tensors["x"] = make_f32({2, 2}, {1.5f, -2, 3, 4});
  BOOST_REQUIRE((write_safetensors(folder.path() / "a.safetensors", tensors, {{"n_head", "4"}})).has_value());
  const auto r = read_safetensors(folder.path() / "a.safetensors");
  BOOST_REQUIRE((r).has_value());
  BOOST_TEST(r->metadata.at("n_head") == "4");
  BOOST_TEST(*to_f32(r->tensors.at("x")) == (std::vector<float>{1.5f, -2, 3, 4}), boost::test_tools::per_element());
}

namespace {

std::size_t files_in(const fs::path& folder) {
  return static_cast<std::size_t>(
      std::distance(fs::recursive_directory_iterator(folder), fs::recursive_directory_iterator()));
}

}  // namespace

BOOST_AUTO_TEST_CASE(an_import_into_its_own_source_is_refused_before_anything_is_written) {
  const TemporaryDirectory folder;
  const auto in = folder.path() / "in";
  fs::create_directories(in / "model");
  std::ofstream(in / "model" / "config.json") << "{}";
  std::ofstream(in / "model" / "model.safetensors") << std::string("\x02\0\0\0\0\0\0\0{}", 10);
  fs::create_directory_symlink(in, folder.path() / "link");
  const auto before = files_in(in);
  for (const auto& out : {in / "out", in / "deep" / "out", in / "model", folder.path() / "link" / "out",
                          in / "model" / ".." / "out", in / "out" / "", in}) {
    const auto r = import_directory(in, out);
    BOOST_REQUIRE_MESSAGE(!r.has_value(), out.string());
    BOOST_TEST(static_cast<int>(r.error().code) == static_cast<int>(Errc::invalid_argument), r.error().message);
    BOOST_TEST(files_in(in) == before, out.string());
  }
  BOOST_TEST(import_directory(folder.path() / "link", in / "out").error().message.find("inside the source") !=
             std::string::npos);
  // A name that only begins the same is another folder.
  const auto beside = import_directory(in, folder.path() / "in2");
  BOOST_TEST(beside.has_value(), (beside ? std::string() : beside.error().message));
}

BOOST_AUTO_TEST_CASE(a_source_that_links_to_itself_is_refused) {
  const TemporaryDirectory folder;
  fs::create_directories(folder.path() / "in" / "empty");
  fs::create_directory_symlink(folder.path() / "in", folder.path() / "in" / "empty" / "self");
  const auto r = import_directory(folder.path() / "in", folder.path() / "out");
  BOOST_REQUIRE(!r.has_value());
  BOOST_TEST(r.error().message.find("loop") != std::string::npos, r.error().message);
}

}  // namespace parlando::checkpoint
